"""Everything that an installer build needs, made on this host: mirrors, keys, base ISO, payload, profiles."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from installer_medium import Base, make_base
from rpm_repositories import Key, Rpm, build, comps, defaults, make_key, module, repository, sign

from appliance.cache import digest_file
from appliance.platform_data import load_platform
from appliance.profile import Profile, load_profile
from kickstart.from_profile import wanted_packages

PROFILE = """schema = 1
[product]
name = "centralino-pbx"
title = "Centralino PBX"
version = "0.1.0"
[platform]
name = "almalinux8"
[disk]
tier = "users-75"
filesystem = "xfs"
[boot]
installer_arguments = ["console=tty0", "console=ttyS0,115200n8"]
menu_seconds = 1
"""
# A product that is not ours: other name, disk, network and end; no line of code knows it.
EDGE = """schema = 1
[product]
name = "edge-gateway"
title = "Edge Gateway"
version = "7.2"
[platform]
name = "almalinux8"
[disk]
minimum_gib = 32
filesystem = "ext4"
[disk.volumes]
log_gib = 4
swap_gib = 1
[network]
method = "static"
address = "192.0.2.7/24"
gateway = "192.0.2.1"
hostname = "edge"
[packages]
extra = ["edge-tool"]
[site]
playbook = "edge.yml"
[boot]
installer_arguments = ["console=tty0", "console=ttyS0,115200n8"]
menu_seconds = 0
iso_label = "EDGE-7"
after_install = "poweroff"
"""
MODULES = {
    "mariadb-server": ("mariadb", "10.11"),
    "mariadb-backup": ("mariadb", "10.11"),
    "nginx": ("nginx", "1.24"),
}
PROGRAMS = (
    "dnf",
    "rpmbuild",
    "rpmsign",
    "createrepo_c",
    "xorriso",
    "mcopy",
    "implantisomd5",
    "busybox",
    "mksquashfs",
)


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]


@dataclass(frozen=True)
class Site:
    """What was made, and the words that name it on the command line."""

    directory: Path
    base_iso: Path
    checksum: Path
    key: Key
    mirror: Path
    payload: Path
    cache: Path

    def words(self, profile: Path, output: Path, *more: str | Path) -> list[str]:
        return [
            str(word)
            for word in (
                "--profile",
                profile,
                "--base-iso",
                self.base_iso,
                "--checksum",
                self.checksum,
                "--mirror",
                self.mirror.as_uri(),
                "--mirror",
                f"epel={(self.mirror / 'epel').as_uri()}",
                "--gpg-key",
                self.key.public,
                "--payload",
                self.payload,
                "--output",
                output,
                *more,
            )
        ]

    def run(self, command: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "appliance.cli", command, *(str(word) for word in words)],
            capture_output=True,
            text=True,
            check=False,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "CENTRALINO_CACHE": str(self.cache),
                "HOME": "/root",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )

    def profile(self, name: str) -> Path:
        return self.directory / f"{name}.toml"


def make_site(
    directory: Path, *, base: Base | None = None, filler_packages: int = 0, filler_size: int = 0
) -> Site:
    """Make it all below an empty directory; some seconds."""
    (directory / "pbx.toml").write_text(PROFILE)
    (directory / "edge.toml").write_text(EDGE)
    key = make_key(directory, "vendor")
    mirror = _mirror(directory, key, load_profile(directory / "pbx.toml"), filler_packages, filler_size)
    payload = directory / "payload"
    payload.mkdir()
    (payload / "install").write_text("#!/bin/sh\necho installed\n")
    (payload / "install").chmod(0o755)
    files = {"install": hashlib.sha256((payload / "install").read_bytes()).hexdigest()}
    (payload / "manifest.json").write_text(json.dumps({"files": files}))
    iso = make_base(directory / "base", base)
    checksum = directory / "CHECKSUM"
    checksum.write_text(f"# {iso.name}\nSHA256 ({iso.name}) = {digest_file(iso)}\n")
    return Site(directory, iso, checksum, key, mirror, payload, directory / "cache")


def _mirror(directory: Path, key: Key, profile: Profile, filler: int, filler_size: int) -> Path:
    platform = load_platform("almalinux8")
    fillers = [f"filler{number:03}" for number in range(filler)]
    rpms = []
    for name in (*wanted_packages(profile, platform), "edge-tool", "firewalld", *fillers):
        label, version = "", "1.0"
        if name in MODULES:
            label, version = f"{':'.join(MODULES[name])}:8100020240000000000:489197e6", "10.0"
        requires = ("hidden-dependency",) if name == "kernel" else ()
        size = filler_size if name in fillers else 0
        rpms.append(Rpm(name, version=version, requires=requires, module=label, size=size))
    rpms.append(Rpm("hidden-dependency", requires=tuple(fillers)))
    files = dict(zip(rpms, build(directory / "rpms", rpms), strict=True))
    sign(files.values(), key)
    epel = {"asterisk", "asterisk-odbc", "asterisk-pjsip", "lsyncd", "coturn"}
    appstream = {"python3.12", *MODULES, *epel}
    groups = {
        "BaseOS": [file for rpm, file in files.items() if rpm.name not in appstream],
        "AppStream": [file for rpm, file in files.items() if rpm.name in appstream - epel],
        "PowerTools": [],
        "extras": [],
    }
    mirror = directory / "mirror"
    for name, members in groups.items():
        repository(
            mirror / f"8.10/{name}/x86_64/os",
            members,
            groups=comps({"core": ["bash-completion", "kernel", "firewalld"]}) if name == "BaseOS" else "",
            modules=_modules() if name == "AppStream" else "",
        )
    repository(mirror / "epel/8/Everything/x86_64", [file for rpm, file in files.items() if rpm.name in epel])
    return mirror


def _modules() -> str:
    text = ""
    for name, stream in sorted(set(MODULES.values())):
        members = [
            f"{package}-0:10.0-1.el8.noarch" for package, own in MODULES.items() if own == (name, stream)
        ]
        text += module(name, stream, members)
    return text + defaults("nginx", "1.14") + module("nginx", "1.14", [])
