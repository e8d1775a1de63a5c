"""GUID partition tables (UEFI specification 2.10, chapter 5.3): write, read, check, move the backup."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from appliance.errors import VerificationError

SECTOR = 512
ENTRY_COUNT = 128
ENTRY_BYTES = 128
TABLE_SECTORS = ENTRY_COUNT * ENTRY_BYTES // SECTOR
ALIGNMENT = 1 << 20
BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
EFI_SYSTEM = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_ROOT_X86_64 = UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")


@dataclass(frozen=True)
class Partition:
    """One partition; `start` and `size` in bytes."""

    kind: UUID
    uuid: UUID
    start: int
    size: int
    name: str


@dataclass(frozen=True)
class Table:
    """A partition table; `disk_bytes` is the size of the disk that it describes."""

    disk: UUID
    disk_bytes: int
    partitions: tuple[Partition, ...]


def _entries(partitions: Sequence[Partition]) -> bytes:
    packed = b"".join(
        _ENTRY.pack(
            partition.kind.bytes_le, partition.uuid.bytes_le, partition.start // SECTOR,
            (partition.start + partition.size) // SECTOR - 1, 0, partition.name.encode("utf-16-le"),
        )
        for partition in partitions
    )  # fmt: skip
    return packed.ljust(ENTRY_COUNT * ENTRY_BYTES, b"\0")


def _header(table: Table, entries: bytes, *, here: int, other: int, entries_at: int) -> bytes:
    last_usable = table.disk_bytes // SECTOR - TABLE_SECTORS - 2

    def pack(checksum: int) -> bytes:
        return _HEADER.pack(
            b"EFI PART", 0x00010000, _HEADER.size, checksum, 0, here, other, TABLE_SECTORS + 2, last_usable,
            table.disk.bytes_le, entries_at, ENTRY_COUNT, ENTRY_BYTES, zlib.crc32(entries),
        )  # fmt: skip

    return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")


def _protective(disk_bytes: int) -> bytes:
    """The partition entries and signature of the protective MBR: its last 66 bytes."""
    sectors = min(disk_bytes // SECTOR - 1, 0xFFFFFFFF)
    entry = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, sectors)
    return entry + bytes(48) + b"\x55\xaa"


def write_table(stream: BinaryIO, table: Table) -> None:
    """Write protective MBR (its boot code is kept), both headers and both entry arrays."""
    entries = _entries(table.partitions)
    last = table.disk_bytes // SECTOR - 1
    backup_entries = last - TABLE_SECTORS
    descriptor = stream.fileno()
    os.pwrite(descriptor, _protective(table.disk_bytes), 446)
    os.pwrite(descriptor, _header(table, entries, here=1, other=last, entries_at=2) + entries, SECTOR)
    os.pwrite(
        descriptor,
        entries + _header(table, entries, here=last, other=1, entries_at=backup_entries),
        backup_entries * SECTOR,
    )


def read_table(path: Path) -> Table:
    """Read the table of a disk image and check all of it.

    Raises VerificationError naming what is wrong: signature, a checksum, copies that disagree, partitions
    that overlap, lie outside or are not aligned to 1 MiB, a backup that is not at the end.
    """
    size = path.stat().st_size
    if size % SECTOR or size < (2 * TABLE_SECTORS + 3) * SECTOR:
        raise VerificationError(f"{path.name}: {size} bytes cannot be a disk with a partition table")
    with path.open("rb") as stream:
        if os.pread(stream.fileno(), 66, 446) != _protective(size):
            raise VerificationError(f"{path.name}: the protective MBR (bytes 446 to 511) is damaged")
        last = size // SECTOR - 1
        primary, primary_entries = _read_copy(path.name, stream, 1)
        backup, backup_entries = _read_copy(path.name, stream, last)
        if os.pread(stream.fileno(), SECTOR - _HEADER.size, SECTOR + _HEADER.size).strip(b"\0"):
            raise VerificationError(f"{path.name}: the rest of the primary GPT header is not zero")
        if os.pread(stream.fileno(), SECTOR - _HEADER.size, last * SECTOR + _HEADER.size).strip(b"\0"):
            raise VerificationError(f"{path.name}: the rest of the backup GPT header is not zero")
    if primary_entries != backup_entries or primary[9] != backup[9] or primary[7:9] != backup[7:9]:
        raise VerificationError(f"{path.name}: the primary and the backup GPT disagree")
    if (primary[5], primary[6], primary[10]) != (1, last, 2) or backup[6] != 1:
        raise VerificationError(f"{path.name}: the backup GPT is not in the last sector")
    partitions = tuple(
        _partition(primary_entries[i : i + ENTRY_BYTES]) for i in range(0, len(primary_entries), 128)
    )
    used = tuple(partition for partition in partitions if partition is not None)
    _check_places(path.name, used, size)
    return Table(UUID(bytes_le=primary[9]), size, used)


def _read_copy(name: str, stream: BinaryIO, sector: int) -> tuple[tuple[Any, ...], bytes]:
    which = "primary" if sector == 1 else "backup"
    raw = os.pread(stream.fileno(), _HEADER.size, sector * SECTOR)
    if len(raw) < _HEADER.size or raw[:8] != b"EFI PART":
        raise VerificationError(f"{name}: no {which} GPT header in sector {sector}")
    header = _HEADER.unpack(raw)
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:]) != header[3]:
        raise VerificationError(f"{name}: the checksum of the {which} GPT header is wrong")
    if (header[11], header[12]) != (ENTRY_COUNT, ENTRY_BYTES):
        raise VerificationError(f"{name}: the {which} GPT has {header[11]} entries of {header[12]} bytes")
    entries = os.pread(stream.fileno(), ENTRY_COUNT * ENTRY_BYTES, header[10] * SECTOR)
    if zlib.crc32(entries) != header[13]:
        raise VerificationError(f"{name}: the checksum of the {which} GPT entries is wrong")
    return header, entries


def _partition(raw: bytes) -> Partition | None:
    kind, uuid, first, last, _, name = _ENTRY.unpack(raw)
    if not any(kind):
        return None
    return Partition(
        UUID(bytes_le=kind), UUID(bytes_le=uuid), first * SECTOR, (last - first + 1) * SECTOR,
        name.decode("utf-16-le").rstrip("\0"),
    )  # fmt: skip


def _check_places(name: str, partitions: Sequence[Partition], size: int) -> None:
    end = ALIGNMENT
    for partition in sorted(partitions, key=lambda each: each.start):
        if partition.start % ALIGNMENT:
            raise VerificationError(f"{name}: partition {partition.name} is not aligned to 1 MiB")
        if partition.start < end:
            raise VerificationError(f"{name}: partition {partition.name} overlaps the one before it")
        end = partition.start + partition.size
        if end > size - (TABLE_SECTORS + 1) * SECTOR:
            raise VerificationError(f"{name}: partition {partition.name} ends after the disk")


def move_backup(path: Path, size: int) -> None:
    """Make the disk image `size` bytes long, its backup table at the new end; partitions stay."""
    table = read_table(path)
    old_backup = table.disk_bytes - (TABLE_SECTORS + 1) * SECTOR
    with path.open("r+b") as stream:
        os.pwrite(stream.fileno(), bytes((TABLE_SECTORS + 1) * SECTOR), old_backup)
        stream.truncate(size)
        write_table(stream, Table(table.disk, size, table.partitions))
