"""The base ISO: is it whole, is it what the vendor published, is it the release that the profile wants?"""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass
from pathlib import Path

from appliance.cache import digest_file
from appliance.errors import InputError
from iso.iso9660 import Iso

ISOLINUX = "isolinux/isolinux.bin"
ISOLINUX_MENU = "isolinux/isolinux.cfg"
EFI_IMAGE = "images/efiboot.img"
GRUB_MENU = "EFI/BOOT/grub.cfg"
TREE_INFO = ".treeinfo"
DISC_INFO = ".discinfo"
MEDIA_REPO = "media.repo"
NEEDED = (
    ISOLINUX,
    ISOLINUX_MENU,
    "isolinux/vmlinuz",
    "isolinux/initrd.img",
    EFI_IMAGE,
    GRUB_MENU,
    "images/pxeboot/vmlinuz",
    "images/pxeboot/initrd.img",
    "images/install.img",
    TREE_INFO,
    DISC_INFO,
)
_CHECKSUM_LINES = (
    r"SHA256 \((?P<name>.+)\) = (?P<digest>[0-9a-f]{64})\s*$",
    r"(?P<digest>[0-9a-f]{64}) [ *](?P<name>.+?)\s*$",
)


@dataclass(frozen=True)
class BaseFacts:
    """What a checked base ISO is."""

    path: Path
    family: str
    version: str
    architecture: str
    label: str
    repositories: tuple[str, ...]


def check_checksum(path: Path, checksum_file: Path, digest: str | None = None) -> str:
    """Compare an ISO with the vendor's CHECKSUM file; returns its SHA-256. Raises InputError.

    Reads both usual forms: `SHA256 (NAME) = HEX` and `HEX  NAME`.
    """
    try:
        text = checksum_file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(
            f"{checksum_file} cannot be read: {error.strerror}", "name the vendor's CHECKSUM"
        ) from error
    wanted: dict[str, str] = {}
    for line in text.splitlines():
        for pattern in _CHECKSUM_LINES:
            if found := re.match(pattern, line):
                wanted[found["name"]] = found["digest"]
    if path.name not in wanted:
        raise InputError(
            f"{checksum_file} does not list {path.name} with a SHA-256",
            "keep the vendor's file name, and take CHECKSUM from the same directory",
        )
    found_digest = digest_file(path) if digest is None else digest
    if found_digest != wanted[path.name]:
        raise InputError(
            f"{path} is not what the vendor published: its SHA-256 is {found_digest}, "
            f"CHECKSUM says {wanted[path.name]}",
            "download it again",
        )
    return found_digest


def inspect_base(iso: Iso, *, title: str, release: str, architecture: str) -> BaseFacts:
    """Check that an image is an EL8-style installer of the wanted system and release.

    `title` is the platform's (`AlmaLinux 8`): its first word must be the family, its number the major
    release. Raises InputError saying what the image is instead.
    """
    family, major = title.split()[0], release.split(".")[0]
    hint = f"name a boot, minimal or DVD ISO of {family} {release}, {architecture}"
    if TREE_INFO not in iso.files:
        raise InputError(f"{iso.path.name} is no installer of {family}: it has no {TREE_INFO}", hint)
    info = read_treeinfo(iso.read(TREE_INFO).decode("utf-8", "replace"), iso.path.name)
    found = BaseFacts(
        path=iso.path,
        family=info.get("release", "name", fallback=info.get("general", "family", fallback="?")),
        version=info.get("release", "version", fallback=info.get("general", "version", fallback="?")),
        architecture=info.get("tree", "arch", fallback=info.get("general", "arch", fallback="?")),
        label=iso.label,
        repositories=tuple(sorted(set(_repositories(info)))),
    )
    what = f"{found.family} {found.version} ({found.architecture})"
    if found.family.split()[0].lower() != family.lower():
        raise InputError(f"{iso.path.name} is {what}, not {family}", hint)
    if found.architecture != architecture:
        raise InputError(f"{iso.path.name} is for {found.architecture}, not {architecture}", hint)
    if found.version.split(".")[0] != major:
        raise InputError(f"{iso.path.name} is {what}; this platform is {family} {major}", hint)
    if found.version != release:
        raise InputError(
            f"{iso.path.name} is {what}, but the profile wants {release}",
            f'set release = "{found.version}" under [platform], or name an ISO of {release}',
        )
    if missing := [name for name in NEEDED if name not in iso.files]:
        raise InputError(f"{iso.path.name} lacks {', '.join(missing)}", hint)
    return found


def read_treeinfo(text: str, name: str) -> configparser.ConfigParser:
    """A `.treeinfo` as sections and keys; raises InputError."""
    info = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    # Keys are file names: their case counts.
    info.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        info.read_string(text)
    except configparser.Error as error:
        raise InputError(f"{TREE_INFO} of {name} cannot be read: {error}", "get the image again") from error
    return info


def _repositories(info: configparser.ConfigParser) -> list[str]:
    """Top directories that hold the vendor's packages: they give way to the closure."""
    found = []
    for section in info.sections():
        if section.startswith("variant-"):
            for key in ("repository", "packages"):
                if value := info.get(section, key, fallback="").strip("./ "):
                    found.append(value.split("/")[0])
    return found
