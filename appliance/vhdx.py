"""Dynamic VHDX files ([MS-VHDX], Virtual Hard Disk v2): blocks without data take no space.

qemu-img puts random identifiers and a used log into them; here everything derives from the inputs.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from appliance.disk_identity import derived_uuid
from appliance.errors import InputError, VerificationError
from appliance.sparse import data_chunks

MIB = 1 << 20
BLOCK_BYTES = MIB
SECTOR = 512
PHYSICAL_SECTOR = 4096
HEADER_PLACES = (64 << 10, 128 << 10)
REGION_PLACES = (192 << 10, 256 << 10)
REGION_BYTES = 64 << 10
LOG_AT, METADATA_AT, BAT_AT = 1 * MIB, 2 * MIB, 3 * MIB
ITEMS_AT = 64 << 10
BLOCK_ZERO, BLOCK_PRESENT = 2, 6
# After this many blocks the table has an entry for a sector bitmap, unused without a parent.
CHUNK_RATIO = (1 << 23) * SECTOR // BLOCK_BYTES
BAT_REGION = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
DISK_IDENTIFIER = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR_ITEM = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
REQUIRED, VIRTUAL_DISK = 4, 2


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _CRC32C[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _sealed(data: bytes) -> bytes:
    """Put the checksum of `data` (computed with the field zero) at byte 4."""
    return data[:4] + struct.pack("<I", crc32c(data)) + data[8:]


def _header(sequence: int, seed: str) -> bytes:
    return _sealed(
        struct.pack(
            "<4sIQ16s16s16sHHIQ", b"head", 0, sequence, derived_uuid(seed, "vhdx file").bytes_le,
            derived_uuid(seed, "vhdx data").bytes_le, bytes(16), 0, 1, MIB, LOG_AT,
        ).ljust(4096, b"\0")
    )  # fmt: skip


def _regions(bat_bytes: int) -> bytes:
    entry = struct.Struct("<16sQII")
    table = struct.pack("<4sIII", b"regi", 0, 2, 0)
    table += entry.pack(BAT_REGION.bytes_le, BAT_AT, bat_bytes, 1)
    table += entry.pack(METADATA_REGION.bytes_le, METADATA_AT, MIB, 1)
    return _sealed(table.ljust(REGION_BYTES, b"\0"))


def _metadata(size: int, seed: str) -> bytes:
    items = (
        (FILE_PARAMETERS, struct.pack("<II", BLOCK_BYTES, 0), REQUIRED),
        (DISK_SIZE, struct.pack("<Q", size), REQUIRED | VIRTUAL_DISK),
        (DISK_IDENTIFIER, derived_uuid(seed, "vhdx disk").bytes_le, REQUIRED | VIRTUAL_DISK),
        (LOGICAL_SECTOR, struct.pack("<I", SECTOR), REQUIRED | VIRTUAL_DISK),
        (PHYSICAL_SECTOR_ITEM, struct.pack("<I", PHYSICAL_SECTOR), REQUIRED | VIRTUAL_DISK),
    )
    table, values = struct.pack("<8sHH20x", b"metadata", 0, len(items)), b""
    for identifier, value, flags in items:
        table += struct.pack("<16sIIII", identifier.bytes_le, ITEMS_AT + len(values), len(value), flags, 0)
        values += value
    return table.ljust(ITEMS_AT, b"\0") + values


def _bat_index(block: int) -> int:
    return block + block // CHUNK_RATIO


def _bat_entries(size: int) -> int:
    return _bat_index(-(-size // BLOCK_BYTES) - 1) + 1


def _bat_bytes(size: int) -> int:
    return -(-_bat_entries(size) * 8 // MIB) * MIB


def _head(size: int, seed: str) -> dict[int, bytes]:
    """Everything before the block table, by its offset."""
    creator = "Centralino".encode("utf-16-le").ljust(512, b"\0")
    return {
        0: b"vhdxfile" + creator,
        HEADER_PLACES[0]: _header(0, seed),
        HEADER_PLACES[1]: _header(1, seed),
        REGION_PLACES[0]: _regions(_bat_bytes(size)),
        REGION_PLACES[1]: _regions(_bat_bytes(size)),
        METADATA_AT: _metadata(size, seed),
    }


def write_vhdx(raw: Path, output: Path, seed: str) -> None:
    """Convert a raw disk; `seed` is the text that its identifiers derive from. Raises InputError."""
    size = raw.stat().st_size
    if size % MIB or not size:
        raise InputError(f"{raw.name}: {size} bytes are not whole MiB", "give a disk of whole MiB")
    table = [BLOCK_ZERO] * _bat_entries(size)
    for chunk in range(CHUNK_RATIO, len(table), CHUNK_RATIO + 1):
        table[chunk] = 0
    position = BAT_AT + _bat_bytes(size)
    with raw.open("rb") as source, output.open("wb") as stream:
        for number, content in data_chunks(source, BLOCK_BYTES):
            os.pwrite(stream.fileno(), content, position)
            table[_bat_index(number)] = position | BLOCK_PRESENT
            position += BLOCK_BYTES
        stream.truncate(position)
        for at, content in _head(size, seed).items():
            os.pwrite(stream.fileno(), content, at)
        os.pwrite(stream.fileno(), struct.pack(f"<{len(table)}Q", *table), BAT_AT)


def read_vhdx(path: Path, seed: str) -> Iterator[tuple[int, bytes]]:
    """(offset in bytes, content) of each stored block of a file that `write_vhdx` made with this seed.

    Raises VerificationError naming the part that is damaged; the blocks have no checksum of their own, so
    damage inside them shows only against the manifest or the raw disk.
    """
    with path.open("rb") as stream:
        size = disk_size(path)
        for at, expected in _head(size, seed).items():
            if os.pread(stream.fileno(), len(expected), at) != expected:
                raise VerificationError(f"{path.name}: the VHDX structure at byte {at} is damaged")
        if any(os.pread(stream.fileno(), MIB, LOG_AT)):
            raise VerificationError(f"{path.name}: the VHDX log at byte {LOG_AT} is not empty")
        entries = struct.unpack(
            f"<{_bat_entries(size)}Q", os.pread(stream.fileno(), _bat_entries(size) * 8, BAT_AT)
        )
        expected_at = BAT_AT + _bat_bytes(size)
        for block in range(-(-size // BLOCK_BYTES)):
            entry = entries[_bat_index(block)]
            if entry == BLOCK_ZERO:
                continue
            if entry != expected_at | BLOCK_PRESENT:
                raise VerificationError(f"{path.name}: entry {block} of the VHDX block table is damaged")
            yield block * BLOCK_BYTES, os.pread(stream.fileno(), BLOCK_BYTES, expected_at)
            expected_at += BLOCK_BYTES
        if expected_at != path.stat().st_size:
            raise VerificationError(
                f"{path.name}: has {path.stat().st_size} bytes, its blocks end at {expected_at}"
            )


def disk_size(path: Path) -> int:
    """Size of the disk in bytes, from the metadata. Raises VerificationError."""
    with path.open("rb") as stream:
        if stream.read(8) != b"vhdxfile":
            raise VerificationError(f"{path.name}: is not a VHDX file")
        raw = os.pread(stream.fileno(), 8, METADATA_AT + ITEMS_AT + 8)
        size = int(struct.unpack("<Q", raw)[0]) if len(raw) == 8 else 0
        if not size or size % MIB or size > 64 << 40:
            raise VerificationError(f"{path.name}: the disk size in the VHDX metadata is damaged")
        return size
