"""`centralino-build iso` and `pxe` as a user runs them, on media and mirrors made here (S-IN-01..05)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from installer_medium import Base, make_base, write_iso, write_tree
from installer_site import Site

from iso.inspect import inspect_iso
from iso.iso9660 import Iso

pytestmark = pytest.mark.image


def made(site: Site, output: Path, *more: str | Path, profile: str = "pbx") -> dict[str, object]:
    done = site.run("iso", *site.words(site.profile(profile), output, "--json", *more))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def lock_of(medium: Path) -> Path:
    return next(medium.parent.glob("*.packages.toml"))


def test_a_finished_medium_has_no_findings(medium: Path, keyring: Path) -> None:
    assert [finding.sentence() for finding in inspect_iso(medium, keyring=keyring)] == []


def test_twice_in_other_places_at_other_times_gives_the_same_bytes(
    site: Site, medium: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another directory, another second, another name and age of the base, an empty cache, another umask."""
    base = tmp_path / "elsewhere" / site.base_iso.name
    base.parent.mkdir()
    shutil.copyfile(site.base_iso, base)
    os.utime(base, (1, 1))
    first = int(medium.stat().st_mtime)
    while int(time.time()) <= first:
        time.sleep(0.05)
    other = replace(site, base_iso=base, cache=tmp_path / "cache")
    before = os.umask(0o077)
    try:
        result = made(
            other, tmp_path / "deep" / "er", "--sign-key", site.key.secret, "--lock", lock_of(medium)
        )
    finally:
        os.umask(before)
    again = Path(str(result["path"]))
    with Iso(medium) as one, Iso(again) as two:
        assert sorted(one.files) == sorted(two.files)
        for path in one.files:
            assert one.sha256(path) == two.sha256(path), f"{path} is the first file that differs"
    assert medium.read_bytes() == again.read_bytes()


def test_the_implanted_checksum_is_that_of_isomd5sum(medium: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.iso"
    subprocess.run(["cp", "--reflink=auto", medium, copy], check=True)
    subprocess.run(["implantisomd5", "--force", copy], check=True, stdout=subprocess.DEVNULL)
    assert copy.read_bytes() == medium.read_bytes()
    subprocess.run(["checkisomd5", copy], check=True, stdout=subprocess.DEVNULL)


def test_what_is_on_the_medium(medium: Path) -> None:
    with Iso(medium) as iso:
        assert iso.label == "CENTRALINO-PBX-0_1_0"
        names = {path.rsplit("/", 1)[-1] for path in iso.files}
        assert (
            "hidden-dependency-1.0-1.el8.noarch.rpm" in names
            and "firewalld-1.0-1.el8.noarch.rpm" not in names
        )
        modules = [path for path in iso.below("AppStream/repodata") if "modules" in path]
        assert modules, "dnf would refuse every modular package"
        assert "%include /tmp/centralino-storage.ks" in iso.read("ks.cfg").decode()
        assert "%include" not in iso.read("ks-questions.cfg").decode()


def test_a_second_product_is_a_profile_and_nothing_else(site: Site, medium: Path, tmp_path: Path) -> None:
    """S-MC-01: the edge comes later; here is any other product, made by the same code."""
    result = made(site, tmp_path, profile="edge")
    path = Path(str(result["path"]))
    assert path.name == "edge-gateway-7.2-almalinux8.iso"
    assert inspect_iso(path) == []
    with Iso(path) as iso:
        kickstart = iso.read("ks.cfg").decode()
        assert iso.label == "EDGE-7"
        assert "edge-tool-1.0-1.el8.noarch.rpm" in {name.rsplit("/", 1)[-1] for name in iso.files}
        for words in (
            "--ip=192.0.2.7",
            "--hostname=edge",
            "\npoweroff\n",
            "minimum_bytes=32000000000",
            "Edge Gateway",
        ):
            assert words in kickstart
        assert "entralino PBX" not in kickstart + iso.read("isolinux/isolinux.cfg").decode()


def test_the_lock_is_kept_and_guarded(site: Site, medium: Path, tmp_path: Path) -> None:
    lock = tmp_path / "packages.toml"
    shutil.copyfile(lock_of(medium), lock)
    before = lock.read_bytes()
    assert made(site, tmp_path / "a", "--lock", lock)["changes"] == []
    assert lock.read_bytes() == before
    # The same lock for another product: refused.
    done = site.run("iso", *site.words(site.profile("edge"), tmp_path / "b", "--lock", lock))
    assert done.returncode == 7 and "--update-lock" in done.stderr
    assert not (tmp_path / "b").exists() or not list((tmp_path / "b").iterdir())
    result = made(site, tmp_path / "b", "--lock", lock, "--update-lock", profile="edge")
    assert result["changes"] == ["+ edge-tool-1.0-1.el8.noarch"]


def flipped(source: Path, target: Path, offset: int, bit: int = 0) -> Path:
    subprocess.run(["cp", "--reflink=auto", source, target], check=True)
    with target.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0] ^ (1 << bit)
        stream.seek(offset)
        stream.write(bytes([byte]))
    return target


@pytest.mark.parametrize(
    "path",
    [
        "isolinux/isolinux.bin",
        "isolinux/isolinux.cfg",
        "isolinux/vmlinuz",
        "images/efiboot.img",
        "EFI/BOOT/grub.cfg",
        "EFI/BOOT/BOOTX64.EFI",
        "images/install.img",
        ".treeinfo",
        ".discinfo",
        "ks.cfg",
        "ks-questions.cfg",
        "SHA256SUMS",
        "SHA256SUMS.kickstart",
        "centralino/payload.tar",
        "BaseOS/repodata/repomd.xml",
    ],
)
def test_a_flipped_bit_in_a_file_is_found_and_the_file_named(medium: Path, tmp_path: Path, path: str) -> None:
    """Without the implanted checksum, which would find it too but could not name it."""
    with Iso(medium) as iso:
        sector, length = iso.files[path].extents[0]
    damaged = flipped(medium, tmp_path / "x.iso", sector * 2048 + length // 2, 3)
    findings = inspect_iso(damaged, media_checksum=False)
    assert any(path in finding.sentence() for finding in findings), findings


@pytest.mark.parametrize(
    ("offset", "part"),
    [
        (510, "MBR"),
        (446, "MBR"),
        (446 + 16 + 8, "MBR"),
        (432, "MBR"),
        (512, "GPT"),
        (512 + 40, "GPT"),
        (17 * 2048 + 71, "x.iso"),
        (16 * 2048 + 40, "names"),
    ],
)
def test_a_flipped_bit_in_the_boot_records_is_found(
    medium: Path, tmp_path: Path, offset: int, part: str
) -> None:
    findings = inspect_iso(flipped(medium, tmp_path / "x.iso", offset), media_checksum=False)
    assert any(part in finding.sentence() for finding in findings), findings


def test_any_flipped_bit_is_found(medium: Path, tmp_path: Path) -> None:
    """Random places of the whole image; the last sectors are outside of the implanted checksum by design."""
    choice = random.Random(20260101)  # noqa: S311 - reproducible places, no secret
    size = medium.stat().st_size
    for number in range(12):
        offset = choice.randrange(size - 16 * 2048)
        damaged = flipped(medium, tmp_path / f"{number}.iso", offset, choice.randrange(8))
        assert inspect_iso(damaged), f"a flipped bit at {offset} was not found"
        damaged.unlink()


def test_a_foreign_signature_is_refused(site: Site, tmp_path: Path, medium: Path, keyring: Path) -> None:
    unsigned = Path(str(made(site, tmp_path, "--lock", lock_of(medium))["path"]))
    assert inspect_iso(unsigned) == []
    assert any("not signed" in finding.message for finding in inspect_iso(unsigned, keyring=keyring))
    with Iso(medium) as iso:
        sector, _ = iso.files["SHA256SUMS.sig"].extents[0]
    damaged = flipped(medium, tmp_path / "x.iso", sector * 2048 + 100)
    assert any("is not valid" in finding.message for finding in inspect_iso(damaged, keyring=keyring))


def refused(site: Site, output: Path, code: int, *messages: str, more: tuple[str | Path, ...] = ()) -> None:
    done = site.run("iso", *site.words(site.profile("pbx"), output, *more))
    assert done.returncode == code, done.stdout + done.stderr
    for message in messages:
        assert message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists() or not [path for path in output.iterdir() if path.suffix != ".toml"]


def with_base(site: Site, base: Path) -> Site:
    # Later words win, and this medium is not the one that CHECKSUM names.
    checksum = base.with_suffix(".sums")
    digest = subprocess.run(["sha256sum", base], capture_output=True, text=True, check=True).stdout.split()[0]
    checksum.write_text(f"{digest}  {base.name}\n")
    return replace(site, base_iso=base, checksum=checksum)


def test_a_truncated_base(site: Site, tmp_path: Path) -> None:
    base = tmp_path / site.base_iso.name
    base.write_bytes(site.base_iso.read_bytes()[:-5000000])
    refused(with_base(site, base), tmp_path / "out", 8, "is truncated")


def test_a_base_that_is_not_what_checksum_says(site: Site, tmp_path: Path) -> None:
    base = flipped(site.base_iso, tmp_path / site.base_iso.name, 30_000_000)
    refused(site, tmp_path / "out", 8, "not what the vendor published", more=("--base-iso", base))


def test_no_iso_at_all(site: Site, tmp_path: Path) -> None:
    base = tmp_path / "x.iso"
    base.write_bytes(b"\0" * 100000)
    refused(with_base(site, base), tmp_path / "out", 8, "no ISO 9660 image")
    refused(site, tmp_path / "out", 8, "cannot be read", more=("--base-iso", tmp_path / "nowhere.iso"))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            Base(label="Rocky-8-10-x86_64-dvd", family="Rocky Linux"),
            "is Rocky Linux 8.10 (x86_64), not AlmaLinux",
        ),
        (
            Base(label="AlmaLinux-9-4-x86_64-dvd", version="9.4"),
            "is AlmaLinux 9.4 (x86_64); this platform is AlmaLinux 8",
        ),
        (Base(label="AlmaLinux-8-9-x86_64-dvd", version="8.9"), 'set release = "8.9"'),
    ],
)
def test_another_systems_base(site: Site, tmp_path: Path, base: Base, message: str) -> None:
    refused(with_base(site, make_base(tmp_path / "base", base)), tmp_path / "out", 8, message)


def test_a_base_without_uefi(site: Site, tmp_path: Path) -> None:
    tree = write_tree(tmp_path, Base())
    (tree / "EFI/BOOT/grub.cfg").unlink()
    base = write_iso(tree, tmp_path / "x.iso", "X")
    refused(with_base(site, base), tmp_path / "out", 8, "lacks EFI/BOOT/grub.cfg")


def test_a_full_disk(site: Site, tmp_path: Path) -> None:
    """A disk of 30 MiB, which the image does not fit on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = [str(word) for word in site.words(site.profile("pbx"), disk / "out")]
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'mount -t tmpfs -o size=30m none {disk} || exit 77; "$@"; s=$?; ls -A {disk}/out; exit $s',
            "sh",
            sys.executable,
            "-m",
            "appliance.cli",
            "iso",
            *words,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CENTRALINO_CACHE": str(site.cache), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 5, done.stdout + done.stderr
    assert "MiB" in done.stderr and "--output" in done.stderr
    assert [name for name in done.stdout.splitlines() if not name.endswith(".toml")] == []


def test_an_unreachable_mirror_and_an_unsatisfiable_package(site: Site, tmp_path: Path) -> None:
    refused(site, tmp_path / "a", 4, "baseos", more=("--mirror", "http://127.0.0.1:9/"))
    profile = tmp_path / "p.toml"
    profile.write_text(site.profile("pbx").read_text() + '[packages]\nextra = ["nobody-has-this"]\n')
    done = site.run("iso", *site.words(profile, tmp_path / "b"))
    assert done.returncode == 4 and "no repository offers nobody-has-this" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('filesystem = "xfs"', 'raid = "1"\ndevice = "/dev/sda"', "RAID 1 needs two disks"),
        ("menu_seconds = 1", f'iso_label = "{"A" * 33}"', "iso_label"),
        ("[disk]", '[access]\nroot_password = "hunter22"\n[disk]', "access.root_password"),
        ("[disk]", '[access]\nroot_password_hash = "hunter22"\n[disk]', "access.root_password_hash"),
    ],
)
def test_profiles_that_cannot_be(site: Site, tmp_path: Path, old: str, new: str, message: str) -> None:
    profile = tmp_path / "p.toml"
    text = site.profile("pbx").read_text()
    assert old in text
    profile.write_text(text.replace(old, new))
    done = site.run("iso", *site.words(profile, tmp_path / "out"))
    assert done.returncode == 3 and message in done.stderr, done.stderr
    assert "hunter22" not in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("resolve", signal.SIGINT),
        ("make the repositories", signal.SIGINT),
        ("write the medium", signal.SIGINT),
        ("write the medium", signal.SIGTERM),
    ],
)
def test_ctrl_c_leaves_nothing(site: Site, tmp_path: Path, moment: str, number: signal.Signals) -> None:
    output = tmp_path / "out"
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    words = site.words(site.profile("pbx"), output)
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "iso", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A test run in the background of a shell is born deaf to Ctrl-C, and would pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={
            **os.environ,
            "CENTRALINO_CACHE": str(tmp_path / "cache"),
            "TMPDIR": str(scratch),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if moment in line:
            process.send_signal(number)
            break
    told += process.stderr.read()
    assert process.wait(timeout=60) == 130, told
    assert not list(output.glob(".*")) and not list(output.glob("*.iso"))
    assert not list(scratch.iterdir())
    assert not list((tmp_path / "cache").rglob("*partial*"))


def test_the_network_boot_tree(site: Site, medium: Path, tmp_path: Path) -> None:
    words = site.words(
        site.profile("pbx"), tmp_path, "--json", "--lock", lock_of(medium), "--url", "http://boot/pbx/"
    )
    done = site.run("pxe", *words)
    assert done.returncode == 0, done.stderr
    tree = Path(json.loads(done.stdout)["path"])
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=tree, check=True)
    with Iso(medium) as iso:
        for name in (
            "images/install.img",
            "images/pxeboot/vmlinuz",
            *iso.below("BaseOS"),
            *iso.below("AppStream"),
        ):
            assert (tree / "tree" / name).read_bytes() == iso.read(name), name
        assert (tree / "payload.tar").read_bytes() == iso.read("centralino/payload.tar")
    assert 'url --url="http://boot/pbx/tree"' in (tree / "ks.cfg").read_text()
    assert "http://boot/pbx/boot.ipxe" in (tree / "dnsmasq.conf").read_text()
    assert (
        shutil.which("dnsmasq") is None
        or not subprocess.run(
            ["dnsmasq", "--test", "-C", tree / "dnsmasq.conf"], check=False, capture_output=True
        ).returncode
    )
    done = site.run("pxe", *site.words(site.profile("pbx"), tmp_path / "b", "--url", "ftp://boot/"))
    assert done.returncode == 8 and "http://SERVER" in done.stderr
    check_damages_of_a_tree(site, tree)


def check_damages_of_a_tree(site: Site, tree: Path) -> None:
    """`verify` reads a directory as it reads a file: the manifest beside it, and all its parts."""
    done = site.run("verify", str(tree))
    assert done.returncode == 0, done.stderr
    package = next((tree / "tree/BaseOS").rglob("*.rpm"))
    for file in (package, tree / "ks.cfg", tree / "boot.ipxe", tree / "tree/.treeinfo", tree / "vmlinuz"):
        before = file.read_bytes()
        damaged = bytearray(before)
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(damaged)
        done = site.run("verify", str(tree), "--json")
        assert done.returncode == 9
        parts = {each["part"] for each in json.loads(done.stdout)["findings"]}
        assert file.relative_to(tree).as_posix() in parts
        file.write_bytes(before)
    (tree / "left over").write_text("x")
    assert "left over: is not named" in site.run("verify", str(tree)).stderr
    (tree / "left over").unlink()
    # One who changes a file and its digest in the list is told by the manifest.
    (tree / "boot.ipxe").write_text("#!ipxe\n")
    lines = (tree / "SHA256SUMS").read_text().splitlines()
    own = hashlib.sha256(b"#!ipxe\n").hexdigest()
    changed = [f"{own}  ./boot.ipxe" if line.endswith("./boot.ipxe") else line for line in lines]
    (tree / "SHA256SUMS").write_text("\n".join(changed) + "\n")
    assert "is not what was built" in site.run("verify", str(tree)).stderr


def test_two_builds_at_once(site: Site, tmp_path: Path) -> None:
    """They share the cache, and neither waits for ever nor takes the other's files."""
    environment = {
        **os.environ,
        "CENTRALINO_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "iso", *site.words(site.profile(name), tmp_path / name)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name in ("pbx", "edge")
    ]
    for process in processes:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    for name in ("pbx", "edge"):
        assert inspect_iso(next((tmp_path / name).glob("*.iso"))) == []
