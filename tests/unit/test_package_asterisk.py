"""The Asterisk RPM: which tarballs are taken, and a spec that rpm itself accepts."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from appliance.errors import BuildError, InputError
from appliance.packages.build import AsteriskSource, asterisk_spec, build_asterisk, inspect_asterisk
from appliance.platform_data import load_platform
from appliance.profile import load_profile

ALMALINUX = load_platform("almalinux8")


def tarball(directory: Path, version: str, *, versions: str = "PJPROJECT_VERSION = 2.15.1\n") -> Path:
    path = directory / f"asterisk-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {".version": version + "\n", "third-party/versions.mak": versions}.items():
            info = tarfile.TarInfo(f"asterisk-{version}/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("version", ["20.15.2", "22.5.0"])
def test_reads_what_the_tarball_says(version: str, tmp_path: Path) -> None:
    assert inspect_asterisk(tarball(tmp_path, version), None) == AsteriskSource(
        version, "pjproject-2.15.1.tar.bz2"
    )


def test_the_digest_must_be_the_one_given(tmp_path: Path) -> None:
    path = tarball(tmp_path, "22.5.0")
    inspect_asterisk(path, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(InputError, match="SHA-256 is not the one given"):
        inspect_asterisk(path, "0" * 64)


@pytest.mark.parametrize("version", ["18.26.4", "16.28.0", "21.1.0"])
def test_releases_that_nobody_mends_are_refused(version: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no supported long-term release"):
        inspect_asterisk(tarball(tmp_path, version), None)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no archive")
    with pytest.raises(InputError, match="no whole tarball"):
        inspect_asterisk(tmp_path / "x", None)
    cut = tarball(tmp_path, "22.5.0")
    cut.write_bytes(cut.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"no whole tarball|no Asterisk"):
        inspect_asterisk(cut, None)
    with pytest.raises(InputError, match="no Asterisk source tarball"):
        inspect_asterisk(tarball(tmp_path, "22.5.0", versions=""), None)


def test_the_pjproject_that_belongs_to_it_must_be_there(tmp_path: Path) -> None:
    profile = load_profile(Path("pbx-almalinux8"))
    with pytest.raises(InputError, match=r"pjproject-2\.15\.1\.tar\.bz2 is missing"):
        build_asterisk(profile, ALMALINUX, tarball(tmp_path, "22.5.0"), None, None, tmp_path / "out", ())


def test_platforms_with_an_asterisk_of_their_own_need_none(tmp_path: Path) -> None:
    profile = load_profile(Path("pbx-debian12"))
    with pytest.raises(BuildError, match="no need of this package"):
        build_asterisk(profile, load_platform("debian12"), tmp_path / "x", None, None, tmp_path, ())


def test_rpm_accepts_the_spec(tmp_path: Path) -> None:
    if shutil.which("rpmspec") is None:
        pytest.skip("rpmspec is not installed")
    spec = tmp_path / "asterisk.spec"
    found = AsteriskSource("22.5.0", "pjproject-2.15.1.tar.bz2")
    spec.write_text(asterisk_spec(found, "asterisk-22.5.0.tar.gz", ALMALINUX.packages_build["asterisk"]))
    subprocess.run(["rpmspec", "-P", spec], check=True, capture_output=True)
    told = subprocess.run(
        ["rpmspec", "-q", "--qf", "%{NAME} %{VERSION}\\n", spec], check=True, capture_output=True, text=True
    )
    assert told.stdout.splitlines() == ["asterisk 22.5.0", "asterisk-pjsip 22.5.0", "asterisk-odbc 22.5.0"]
    needs = subprocess.run(
        ["rpmspec", "-q", "--buildrequires", spec], check=True, capture_output=True, text=True
    )
    assert sorted(needs.stdout.split()) == sorted(ALMALINUX.packages_build["asterisk"])


def test_the_unit_uses_only_what_systemd_239_knows() -> None:
    from appliance.packages.build import HERE

    text = (HERE / "asterisk.service").read_text()
    for unknown in (
        "ProtectHostname",
        "ProtectClock",
        "ProtectProc",
        "LoadCredential",
        "OOMPolicy",
        "ExecPaths",
    ):
        assert unknown not in text
