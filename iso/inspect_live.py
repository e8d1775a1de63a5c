"""Is a live medium whole, and can it boot? What `centralino-build verify` asks of one, beside its digest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iso.inspect import BIOS, UEFI, Finding, implanted_checksum
from iso.iso9660 import Iso

SYSTEM = "LiveOS/squashfs.img"
SQUASHFS_MAGIC = b"hsqs"
# Distributions name GRUB's directory differently.
MENUS = ("boot/grub/grub.cfg", "boot/grub2/grub.cfg")
LOADERS = ("EFI/BOOT/bootx64.efi", "EFI/BOOT/grubx64.efi")


def is_live(path: Path) -> bool:
    """Whether an ISO holds a live system; raises InputError if it cannot be read."""
    with Iso(path) as iso:
        return SYSTEM in iso.files


def inspect_live(path: Path, label: str) -> list[Finding]:
    """Everything that is wrong with a live medium of this label; raises InputError if it is no ISO."""
    with Iso(path) as iso:
        findings = list(_parts(iso, label))
    return [*findings, *implanted_checksum(path)]


def _parts(iso: Iso, label: str) -> Iterator[Finding]:
    if iso.label != label:
        yield Finding("volume", f"is labelled {iso.label!r}, not {label!r}")
    platforms = {entry.platform for entry in iso.boot_entries() if entry.bootable}
    for platform, name in ((BIOS, "BIOS"), (UEFI, "UEFI")):
        if platform not in platforms:
            yield Finding("El Torito", f"there is no entry for {name}")
    if iso.read_at(510, 2) != b"\x55\xaa":
        yield Finding("MBR", "there is none: the image does not boot from a stick")
    present = {name.lower(): name for name in iso.files}
    menu = next((name for name in MENUS if name in iso.files), MENUS[0])
    for name in (SYSTEM, menu, *LOADERS):
        if name.lower() not in present:
            yield Finding(name, "is missing")
    if SYSTEM in iso.files and iso.read_at(iso.files[SYSTEM].extents[0][0] * 2048, 4) != SQUASHFS_MAGIC:
        yield Finding(SYSTEM, "is no squashfs")
    if menu in iso.files and label not in iso.read(menu).decode("utf-8", "replace"):
        yield Finding(menu, f"starts from another volume than {label!r}")
