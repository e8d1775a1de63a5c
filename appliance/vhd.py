"""Fixed VHD files (Virtual Hard Disk Image Format Specification 1.0): the raw disk and a footer.

Azure takes these, of whole MiB.
"""

from __future__ import annotations

import struct
from pathlib import Path
from uuid import UUID

from appliance.errors import InputError, VerificationError
from appliance.sparse import sparse_copy

FOOTER_BYTES = 512
ALIGNMENT = 1 << 20
# Seconds between 1970-01-01 and 2000-01-01, from which this format counts.
EPOCH_2000 = 946684800
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")


def geometry(sectors: int) -> tuple[int, int, int]:
    """(cylinders, heads, sectors per track) as the appendix of the specification computes them."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    track = 17
    cylinders_heads = sectors // track
    heads = max((cylinders_heads + 1023) // 1024, 4)
    if cylinders_heads >= heads * 1024 or heads > 16:
        track, heads = 31, 16
        cylinders_heads = sectors // track
    if cylinders_heads >= heads * 1024:
        track, heads = 63, 16
        cylinders_heads = sectors // track
    return cylinders_heads // heads, heads, track


def footer(size: int, identifier: UUID, epoch: int) -> bytes:
    """The footer of a fixed disk of `size` bytes made at `epoch` (seconds since 1970)."""
    cylinders, heads, sectors = geometry(size // 512)

    def pack(checksum: int) -> bytes:
        # With the creator qem2 readers take the size from its field; others let the geometry decide.
        return _FOOTER.pack(
            b"conectix", 2, 0x00010000, 0xFFFFFFFFFFFFFFFF, max(epoch - EPOCH_2000, 0), b"qem2", 0x00050003,
            b"Wi2k", size, size, cylinders, heads, sectors, 2, checksum, identifier.bytes, 0,
        )  # fmt: skip

    return pack(~sum(pack(0)) & 0xFFFFFFFF)


def write_vhd(raw: Path, output: Path, identifier: UUID, epoch: int) -> None:
    """Convert a raw disk; raises InputError unless its size is whole MiB, which Azure asks for."""
    size = raw.stat().st_size
    if size % ALIGNMENT or not size:
        raise InputError(f"{raw.name}: {size} bytes are not whole MiB", "give a disk of whole MiB")
    sparse_copy(raw, output)
    with output.open("ab") as stream:
        stream.write(footer(size, identifier, epoch))


def check_vhd(path: Path) -> int:
    """Size of the disk in bytes; raises VerificationError if footer or length are damaged."""
    length = path.stat().st_size
    if length <= FOOTER_BYTES:
        raise VerificationError(f"{path.name}: is too short for a VHD file")
    with path.open("rb") as stream:
        stream.seek(length - FOOTER_BYTES)
        found = stream.read(FOOTER_BYTES)
    fields = _FOOTER.unpack(found)
    if found[:8] != b"conectix" or fields[8] != length - FOOTER_BYTES:
        raise VerificationError(
            f"{path.name}: the VHD footer (last 512 bytes) is missing, damaged or the file cut short"
        )
    if found != footer(fields[8], UUID(bytes=fields[15]), fields[4] + EPOCH_2000):
        raise VerificationError(f"{path.name}: the VHD footer (last 512 bytes) is damaged")
    if fields[8] % ALIGNMENT:
        raise VerificationError(f"{path.name}: the disk of {fields[8]} bytes is not whole MiB")
    return int(fields[8])
