"""Stream-optimized VMDK files (VMware Virtual Disk Format 1.1, "Stream-Optimized Compressed Sparse Extents").

Written in one pass in the order that VMware's own tools expect: grains ascending, each grain table after its
grains, grain directory, footer, end-of-stream marker. qemu-img writes another order, which some of those
tools refuse. Same disk, same zlib: same bytes; the content identifier is a digest of what the disk holds.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from appliance.errors import InputError, VerificationError
from appliance.sparse import data_chunks

SECTOR = 512
GRAIN_SECTORS = 128
GRAIN_BYTES = GRAIN_SECTORS * SECTOR
TABLE_ENTRIES = 512
TABLE_BYTES = TABLE_ENTRIES * 4
DESCRIPTOR_SECTOR = 1
DESCRIPTOR_SECTORS = 20
OVERHEAD_SECTORS = 128
AT_END = 0xFFFFFFFFFFFFFFFF
# Line-end test, compressed grains, markers.
FLAGS = 0x1 | 0x10000 | 0x20000
COMPRESSION_LEVEL = 6
MARK_END, MARK_TABLE, MARK_DIRECTORY, MARK_FOOTER = 0, 1, 2, 3
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_MARKER = struct.Struct("<QII496x")
_GRAIN = struct.Struct("<QI")


@dataclass(frozen=True)
class DiskHardware:
    """What the descriptor says of the virtual machine: hardware version (`15` of vmx-15) and adapter."""

    version: int = 15
    adapter: str = "lsilogic"


def _header(capacity: int, directory: int) -> bytes:
    return _HEADER.pack(
        b"KDMV", 3, FLAGS, capacity, GRAIN_SECTORS, DESCRIPTOR_SECTOR, DESCRIPTOR_SECTORS, TABLE_ENTRIES, 0,
        directory, OVERHEAD_SECTORS, 0, b"\n \r\n", 1,
    )  # fmt: skip


def _descriptor(capacity: int, digest: bytes, hardware: DiskHardware) -> bytes:
    content = int.from_bytes(digest[:4], "big")
    # The two highest values have a meaning of their own.
    content = content if content < 0xFFFFFFFE else content & 0x7FFFFFFF
    cylinders = min(capacity // (255 * 63), 65535)
    text = (
        "# Disk DescriptorFile\nversion=1\n"
        f'CID={content:08x}\nparentCID=ffffffff\ncreateType="streamOptimized"\n\n'
        f'# Extent description\nRW {capacity} SPARSE "disk.vmdk"\n\n'
        "# The Disk Data Base\n#DDB\n\n"
        f'ddb.adapterType = "{hardware.adapter}"\n'
        f'ddb.geometry.cylinders = "{cylinders}"\nddb.geometry.heads = "255"\nddb.geometry.sectors = "63"\n'
        f'ddb.longContentID = "{digest[:12].hex()}{content:08x}"\n'
        'ddb.toolsInstallType = "4"\nddb.toolsVersion = "2147483647"\n'
        f'ddb.virtualHWVersion = "{hardware.version}"\n'
    )
    return text.encode().ljust(DESCRIPTOR_SECTORS * SECTOR, b"\0")


def _compress(content: bytes) -> bytes:
    return zlib.compress(content.ljust(GRAIN_BYTES, b"\0"), COMPRESSION_LEVEL)


def _compressed(stream: BinaryIO) -> Iterator[tuple[int, bytes, bytes]]:
    """(grain number, content, compressed) in order; zlib runs outside of Python's lock, so threads help."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for number, content in data_chunks(stream, GRAIN_BYTES):
            waiting.append((number, content, pool.submit(_compress, content)))
            if len(waiting) > 8 * workers:
                first = waiting.pop(0)
                yield first[0], first[1], first[2].result()
        for number, content, result in waiting:
            yield number, content, result.result()


class _Writer:
    """Appends sectors and remembers where tables went."""

    def __init__(self, stream: BinaryIO, capacity: int) -> None:
        self.stream = stream
        self.position = OVERHEAD_SECTORS
        self.directory = [0] * -(-capacity // (GRAIN_SECTORS * TABLE_ENTRIES))
        self.table_number = -1
        self.table = [0] * TABLE_ENTRIES

    def append(self, data: bytes) -> int:
        """Write padded to whole sectors; returns the sector where it begins."""
        at = self.position
        padding = -len(data) % SECTOR
        self.stream.write(data + bytes(padding))
        self.position += (len(data) + padding) // SECTOR
        return at

    def mark(self, kind: int, sectors: int) -> None:
        """Append a metadata marker; `sectors` is the size of what follows it."""
        self.append(_MARKER.pack(sectors, 0, kind))

    def grain(self, number: int, compressed: bytes) -> None:
        """Append a grain; a finished table goes out before the first grain of the next one."""
        if number // TABLE_ENTRIES != self.table_number:
            self.flush_table()
            self.table_number = number // TABLE_ENTRIES
        at = self.append(_GRAIN.pack(number * GRAIN_SECTORS, len(compressed)) + compressed)
        self.table[number % TABLE_ENTRIES] = at

    def flush_table(self) -> None:
        """Append the table of the grains so far."""
        if self.table_number >= 0:
            self.mark(MARK_TABLE, TABLE_BYTES // SECTOR)
            packed = struct.pack(f"<{TABLE_ENTRIES}I", *self.table)
            self.directory[self.table_number] = self.append(packed)
            self.table = [0] * TABLE_ENTRIES


def write_stream_vmdk(raw: Path, output: Path, hardware: DiskHardware | None = None) -> None:
    """Convert a raw disk image.

    Raises InputError unless its size is a whole number of grains (64 KiB), which also keeps VMware from
    rounding the disk and so misplacing the backup partition table.
    """
    size = raw.stat().st_size
    if size % GRAIN_BYTES or not size:
        raise InputError(f"{raw.name}: {size} bytes are not a multiple of 64 KiB", "give a disk of whole MiB")
    capacity = size // SECTOR
    digest = hashlib.sha256(struct.pack("<Q", capacity))
    with raw.open("rb") as source, output.open("wb") as stream:
        stream.write(bytes(OVERHEAD_SECTORS * SECTOR))
        writer = _Writer(stream, capacity)
        for number, content, compressed in _compressed(source):
            digest.update(struct.pack("<Q", number) + content)
            writer.grain(number, compressed)
        writer.flush_table()
        packed = struct.pack(f"<{len(writer.directory)}I", *writer.directory)
        writer.mark(MARK_DIRECTORY, -(-len(packed) // SECTOR))
        directory = writer.append(packed)
        writer.mark(MARK_FOOTER, 1)
        writer.append(_header(capacity, directory))
        writer.mark(MARK_END, 0)
        stream.seek(0)
        stream.write(_header(capacity, AT_END))
        stream.write(_descriptor(capacity, digest.digest(), hardware or DiskHardware()))


def read_stream_vmdk(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset in bytes, content) of each grain, checking header, footer, tables and grains on the way.

    Raises VerificationError naming the part that is damaged and its offset in the file.
    """
    name = path.name
    with path.open("rb") as stream:
        header = stream.read(SECTOR)
        stream.seek(-2 * SECTOR, os.SEEK_END)
        footer = stream.read(SECTOR)
        if stream.read(SECTOR) != bytes(SECTOR):
            raise VerificationError(f"{name}: the end-of-stream marker is damaged; the file may be cut short")
        capacity, directory_at = _check_header(name, header, footer)
        _seek(name, stream, directory_at, "grain directory")
        count = -(-capacity // (GRAIN_SECTORS * TABLE_ENTRIES))
        directory = struct.unpack(f"<{count}I", _read(name, stream, count * 4, "grain directory"))
        for number, table_at in enumerate(directory):
            if not table_at:
                continue
            _seek(name, stream, table_at, f"grain table {number}")
            table = struct.unpack(
                f"<{TABLE_ENTRIES}I", _read(name, stream, TABLE_BYTES, f"grain table {number}")
            )
            for index, at in enumerate(table):
                if at:
                    grain = number * TABLE_ENTRIES + index
                    yield grain * GRAIN_BYTES, _read_grain(name, stream, grain, at)


def capacity_of(path: Path) -> int:
    """Size of the disk in a stream-optimized VMDK, in bytes. Raises VerificationError."""
    with path.open("rb") as stream:
        header = stream.read(SECTOR)
        stream.seek(-2 * SECTOR, os.SEEK_END)
        return _check_header(path.name, header, stream.read(SECTOR))[0] * SECTOR


def _seek(name: str, stream: BinaryIO, sector: int, what: str) -> None:
    if sector * SECTOR >= os.fstat(stream.fileno()).st_size:
        raise VerificationError(f"{name}: the place of the {what} is damaged, it lies after the file's end")
    stream.seek(sector * SECTOR)


def _read(name: str, stream: BinaryIO, length: int, what: str) -> bytes:
    at = stream.tell()
    data = stream.read(length)
    if len(data) != length:
        raise VerificationError(f"{name}: the {what} at byte {at} ends after the file")
    return data


def _check_header(name: str, header: bytes, footer: bytes) -> tuple[int, int]:
    if len(footer) != SECTOR or header[:4] != b"KDMV":
        raise VerificationError(f"{name}: is not a VMDK file")
    fields = _HEADER.unpack(header)
    directory = _HEADER.unpack(footer)[9]
    if header != _header(fields[3], AT_END):
        raise VerificationError(f"{name}: the header (first 512 bytes) is damaged")
    if footer != _header(fields[3], directory):
        raise VerificationError(f"{name}: the footer is damaged or disagrees with the header")
    return fields[3], directory


def _read_grain(name: str, stream: BinaryIO, grain: int, at: int) -> bytes:
    _seek(name, stream, at, f"grain {grain}")
    sector, length = _GRAIN.unpack(_read(name, stream, _GRAIN.size, f"marker of grain {grain}"))
    if sector != grain * GRAIN_SECTORS or length > 2 * GRAIN_BYTES:
        raise VerificationError(f"{name}: the marker of grain {grain} at byte {at * SECTOR} is damaged")
    try:
        content = zlib.decompress(_read(name, stream, length, f"grain {grain}"))
    except zlib.error as error:
        raise VerificationError(f"{name}: grain {grain} at byte {at * SECTOR} is damaged: {error}") from error
    if len(content) != GRAIN_BYTES:
        raise VerificationError(f"{name}: grain {grain} at byte {at * SECTOR} holds {len(content)} bytes")
    return content
