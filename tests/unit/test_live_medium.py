"""The live medium without building one: description, furniture of the tree, wrappers on kiwi's PATH."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from appliance.errors import BuildError
from appliance.formats_contract import Variant
from appliance.kiwi import KIWI_VERSION, render_description, validate_description
from appliance.live import FILES, MODULES, _unpack_modules, furnish, label_of, medium_of, modules_stage
from appliance.mirror import Source
from appliance.platform_data import load_platform, platform_names
from appliance.profile import load_profile

EPOCH = 1767225600


@pytest.mark.parametrize("name", platform_names())
def test_kiwi_accepts_the_description(name: str, tmp_path: Path) -> None:
    profile, platform = load_profile(Path(f"pbx-{name}")), load_platform(name)
    source = Source("main", "http://mirror.invalid/", "suite", ("main",))
    medium = medium_of(profile, platform)
    text = render_description(profile, platform, Variant.LIVE, [source], signed=False, live=medium)
    (tmp_path / "config.xml").write_text(text)
    validate_description(tmp_path)
    assert 'image="iso"' in text and 'firmware="uefi"' in text and 'squashfscompression="zstd"' in text
    assert "console=ttyS0,115200n8" in text


def test_labels_of_live_and_installer_differ_and_fit() -> None:
    profile = load_profile(Path("pbx-debian12"))
    for label in ("A", "L" * 32):
        boot = profile.boot.model_copy(update={"iso_label": label})
        made = label_of(profile.model_copy(update={"boot": boot}))
        assert made != label and len(made) <= 32 and made.endswith("-LIVE")


@pytest.mark.parametrize("name", platform_names())
def test_the_live_tree_is_the_disks_with_dracut_and_tools(name: str) -> None:
    platform = load_platform(name)
    disk, live = set(platform.package_names(Variant.DISK)), set(platform.package_names(Variant.LIVE))
    assert disk - live == set(platform.live.left_out) & disk
    assert {"dracut", "pv", "smartmontools"} <= live


def archive(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mode = 1, 0o755
            packed.addfile(info, io.BytesIO(b"x"))
        link = tarfile.TarInfo(f"kiwi-{KIWI_VERSION}/dracut/modules.d/90kiwi-live/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    return path


def test_only_the_modules_are_taken_from_the_source_archive(tmp_path: Path) -> None:
    prefix = f"kiwi-{KIWI_VERSION}/dracut/modules.d"
    names = (f"{prefix}/90kiwi-live/module-setup.sh", f"{prefix}/90kiwi-live/Makefile", "kiwi/setup.py",
             f"{prefix}/../../../out/of/it", "/etc/absolute")  # fmt: skip
    output = tmp_path / "modules"
    _unpack_modules(archive(tmp_path / "kiwi.tar.gz", *names), output)
    found = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
    assert found == ["90kiwi-live/module-setup.sh"]
    with pytest.raises(BuildError, match="no dracut module"):
        _unpack_modules(archive(tmp_path / "other.tar.gz", "kiwi/setup.py"), tmp_path / "none")


def test_the_lock_names_the_very_kiwi_that_builds() -> None:
    assert f"kiwi=={KIWI_VERSION} --hash=sha256:" in str(modules_stage().inputs)


def test_the_tree_is_furnished_and_holds_nothing_of_the_build(tmp_path: Path) -> None:
    tree, modules = tmp_path / "tree", tmp_path / "modules"
    for name in ("etc/ssh", "etc/cloud", "var/log/apt", "var/cache/apt/archives", "boot/loader/entries"):
        (tree / name).mkdir(parents=True)
    for name in ("etc/ssh/ssh_host_rsa_key", "etc/machine-id", "var/cache/apt/archives/x.deb", "etc/fstab"):
        (tree / name).write_text("of the build")
    (tree / "boot/loader/entries/x.conf").write_text("x")
    (modules / "90kiwi-live").mkdir(parents=True)
    (modules / "90kiwi-live/module-setup.sh").write_text("x")
    furnish(tree, load_platform("debian12"), modules)
    left = [path for path in tree.rglob("*") if path.is_file() and "of the build" in path.read_text()]
    assert left == []
    assert (tree / "etc/machine-id").read_text() == ""
    assert (tree / MODULES / "90kiwi-live/module-setup.sh").is_file()
    assert os.access(tree / "usr/sbin/centralino-rescue", os.X_OK)
    for unit in ("getty@", "serial-getty@"):
        drop_in = tree / f"etc/systemd/system/{unit}.service.d/90-centralino-live.conf"
        # The first line empties what the unit itself says.
        assert re.search(r"ExecStart=\nExecStart=-/sbin/agetty --autologin root ", drop_in.read_text())
    assert (tree / "etc/cloud/cloud-init.disabled").exists()


@pytest.mark.parametrize("name", ["centralino-rescue", "xorriso", "mkdosfs"])
def test_scripts_are_executable_and_clean(name: str) -> None:
    assert os.access(FILES / name, os.X_OK)
    subprocess.run(["sh", "-n", FILES / name], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", FILES / name], check=True)


def test_the_wrappers_add_what_makes_two_runs_alike(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    real.chmod(0o755)
    environment = {
        "PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": str(EPOCH), "CENTRALINO_XORRISO": str(real),
        "CENTRALINO_MKDOSFS": str(real), "CENTRALINO_VOLUME": "12345678",
    }  # fmt: skip

    def called(name: str, *words: str) -> list[str]:
        command = [FILES / name, *words]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()

    assert called("xorriso", "-outdev", "a b", "/") == [
        "-volume_date", "all_file_dates", f"={EPOCH}", "-outdev", "a b", "/",
    ]  # fmt: skip
    assert called("xorriso", "-indev", "a") == ["-indev", "a"]
    assert called("mkdosfs", "-n", "BOOT", "x") == ["--invariant", "-i", "12345678", "-n", "BOOT", "x"]


def test_the_rescue_tool_says_what_it_wants() -> None:
    done = subprocess.run([FILES / "centralino-rescue"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "usage: centralino-rescue find | mount" in done.stderr
