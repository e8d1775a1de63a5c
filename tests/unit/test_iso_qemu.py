"""Boot tests' own parts: QEMU's command line, milestones, screenshots; nothing is started here."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import pytest

from appliance.errors import HostError, InputError
from iso import qemu
from iso.boot_test import (
    Expectation,
    Milestone,
    _Watcher,
    disk_inside,
    image_format,
    load_expectation,
)
from iso.network_boot import serving
from iso.pxe import check_url
from iso.qemu import Attachment, Firmware, Machine


@pytest.fixture(autouse=True)
def without_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(qemu, "accelerated", lambda: False)
    files = (tmp_path / "code.fd", tmp_path / "variables.fd")
    for file in files:
        file.touch()
    monkeypatch.setattr(qemu, "_UEFI", (tuple(map(str, files)),))
    monkeypatch.setattr(qemu, "_SECURE_BOOT", (tuple(map(str, files)),))


@pytest.mark.parametrize("firmware", list(Firmware))
@pytest.mark.parametrize("attachment", [Attachment.CD, Attachment.USB, Attachment.DISK])
def test_the_image_is_never_written_to(tmp_path: Path, firmware: Firmware, attachment: Attachment) -> None:
    words = qemu.command_line(Machine(tmp_path / "a,b.iso", firmware, attachment), tmp_path)
    drive = next(word for word in words if "id=image" in word)
    assert "readonly=on" in drive or "snapshot=on" in drive
    assert "a,,b.iso" in drive
    assert ("property=secure" in " ".join(words)) == (firmware is Firmware.SECURE_BOOT)
    assert ("pflash" in " ".join(words)) == (firmware is not Firmware.BIOS)
    assert not any("kvm" in word for word in words)


def archive(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as made:
        for name in names:
            content = name.encode() * 300
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return path


def test_the_disk_inside_of_an_ova_is_started(tmp_path: Path) -> None:
    ova = archive(tmp_path / "a,b.ova", "box.ovf", "box.mf", "box-disk1.vmdk")
    assert image_format(ova) == "vmdk"
    window = disk_inside(ova)
    assert window is not None
    content = b"box-disk1.vmdk" * 300
    assert ova.read_bytes()[window[0] :][: window[1]] == content
    machine = Machine(ova, attachment=Attachment.DISK, image_format="vmdk", window=window)
    words = qemu.command_line(machine, tmp_path)
    drive = next(word for word in words if "id=image" in word)
    options = drive.replace(",,", "\0").split(",")
    source = next(word for word in options if word.startswith("file=json:"))
    node = json.loads(source.removeprefix("file=json:").replace("\0", ","))
    inside = node["file"]
    assert node["driver"] == "vmdk" and (inside["offset"], inside["size"]) == window
    assert inside["file"]["filename"] == str(ova)
    assert {"snapshot=on", "format=vmdk"} <= set(options)


def test_an_archive_that_holds_no_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 VMDKs"):
        image_format(archive(tmp_path / "payload.tar", "payload.json"))
    (tmp_path / "disk.tar.gz").write_bytes(gzip.compress(b"disk"))
    with pytest.raises(InputError, match="compressed"):
        image_format(tmp_path / "disk.tar.gz")


def tree_for(directory: Path, url: str) -> Path:
    (directory / "boot.ipxe").write_text(f"#!ipxe\nkernel {url}/vmlinuz initrd=initrd.img\n")
    return directory


def test_a_boot_tree_is_served_to_the_guest_and_to_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    with serving(tree_for(tmp_path, "http://10.0.2.100/pbx")) as served:
        assert "restrict=on" in served.netdev() and "tcp:10.0.2.100:80-" in served.netdev()
        base = f"http://127.0.0.1:{served.host_port}"
        with urllib.request.urlopen(f"{base}/pbx/vmlinuz") as answer:  # noqa: S310
            assert answer.read() == b"kernel"
        for path in ("/vmlinuz", "/pbx/../../etc/passwd", "/etc/passwd"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(base + path)  # noqa: S310


@pytest.mark.parametrize("url", ["http://boot.example/pbx", "http://192.0.2.1/pbx", "https://10.0.2.100/pbx"])
def test_a_tree_for_another_address_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="--url"), serving(tree_for(tmp_path, url)):
        pass
    with pytest.raises(InputError, match=r"boot\.ipxe"), serving(tmp_path / "nowhere"):
        pass


def test_missing_firmware_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "_UEFI", ())
    with pytest.raises(HostError, match="ovmf"):
        qemu.firmware_files(Firmware.UEFI)


def test_a_screenshot_becomes_png() -> None:
    # The first pixel begins with a byte that is white space.
    pixels = bytes([32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    image = qemu.png(b"P6\n2 2\n255\n" + pixels)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack_from(">II", image, 16) == (2, 2)
    length = struct.unpack_from(">I", image, 33)[0]
    assert zlib.decompress(image[41 : 41 + length]) == b"\0" + pixels[:6] + b"\0" + pixels[6:]
    with pytest.raises(HostError):
        qemu.png(b"P5\n2 2\n255\nxxxx")


@pytest.mark.parametrize("name", ["installer", "disk"])
def test_the_shipped_milestones_are_valid(name: str) -> None:
    expectation = load_expectation(name)
    assert expectation.milestones and expectation.failures


@pytest.mark.parametrize(
    "text",
    [
        "",
        "milestone = 3",
        '[[milestone]]\ntitle = "x"\n',
        '[[milestone]]\ntitle="x"\npattern="("\nseconds=1\n',
    ],
)
def test_wrong_milestones_are_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(InputError, match="milestone"):
        load_expectation(str(tmp_path / "m.toml"))


@pytest.mark.parametrize("url", ["ftp://x/y", "http://", "x", "http://a/b c", "http://a/?q=1", "http://a/'"])
def test_an_address_that_no_boot_loader_could_use_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        check_url(url)
    assert check_url("http://boot.example:8080/pbx/") == "http://boot.example:8080/pbx"


def test_an_answer_is_typed_once_its_milestone_was_said(tmp_path: Path) -> None:
    console, machine = os.pipe()
    keyboard = io.BytesIO()
    os.write(machine, b"login: root (automatic login)\r\nroot@box:~# ")
    os.close(machine)
    milestones = (
        Milestone("login", "automatic login", 5),
        Milestone("shell", r"root@\S+:~# ", 5, "true\n"),
        Milestone("never", "this is not said", 5, "not typed\n"),
    )
    with (tmp_path / "log").open("wb") as log:
        watcher = _Watcher(console, keyboard, log, Expectation(milestones), lambda title, seconds: None)
        watcher.watch()
    os.close(console)
    assert keyboard.getvalue() == b"true\n"
    assert watcher.problem == "the machine went off before `never`"


@pytest.mark.parametrize("name", ["installer", "live", "disk"])
def test_the_shipped_milestones_can_be_read(name: str) -> None:
    assert load_expectation(name).milestones


def test_milestones_of_a_file_may_answer(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[[milestone]]\ntitle = "a"\npattern = "b"\nseconds = 1\nanswer = "c\\n"\n')
    assert load_expectation(str(file)).milestones == (Milestone("a", "b", 1.0, "c\n"),)
