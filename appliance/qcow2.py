"""Reads what a qcow2 file holds (QEMU docs/interop/qcow2): enough for what `centralino-build` makes.

That is one layer without snapshots, encryption, external data or backing file, clusters plain or deflated.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from appliance.errors import VerificationError

MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
COMPRESSED = 1 << 62
ALL_ZERO = 1
SECTOR = 512


def read_qcow2(path: Path) -> tuple[int, Iterator[tuple[int, bytes]]]:
    """Size of the disk in bytes, and (offset, content) of each stored cluster in ascending order.

    Raises VerificationError naming what is damaged or of a kind that this builder does not make.
    """
    with path.open("rb") as stream:
        head = stream.read(HEADER.size)
    if len(head) < HEADER.size or head[:4] != MAGIC:
        raise VerificationError(f"{path.name}: is no qcow2 file")
    fields = HEADER.unpack(head)
    version, backing, bits, size, encrypted = fields[1], fields[2], fields[4], fields[5], fields[6]
    snapshots, incompatible, header_bytes = fields[11], fields[13], fields[17]
    plain = (version, backing, encrypted, snapshots, incompatible) == (3, 0, 0, 0, 0)
    # Deflate is what a header without its own word for the compression says.
    if not plain or not 9 <= bits <= 21 or not HEADER.size <= header_bytes <= 112:
        raise VerificationError(f"{path.name}: the header is damaged or of another kind than this builder's")
    if fields[7] * (1 << (2 * bits - 3)) < size:
        raise VerificationError(f"{path.name}: the header's table is too short for a disk of {size} bytes")
    return size, _clusters(path, size, bits, fields[7], fields[8])


def _clusters(path: Path, size: int, bits: int, entries: int, table: int) -> Iterator[tuple[int, bytes]]:
    cluster = 1 << bits
    per_table = cluster // 8
    with path.open("rb") as stream:
        for index, entry in enumerate(_table(stream, path, table, entries)):
            if not (inner := entry & OFFSET_MASK):
                continue
            for number, place in enumerate(_table(stream, path, inner, per_table), index * per_table):
                offset = number * cluster
                if offset < size and (content := _cluster(stream, path, place, bits)):
                    yield offset, content[: size - offset]


def _table(stream: BinaryIO, path: Path, offset: int, entries: int) -> tuple[int, ...]:
    stream.seek(offset)
    content = stream.read(entries * 8)
    if len(content) != entries * 8:
        raise VerificationError(f"{path.name}: the table at {offset} lies outside of the file")
    return struct.unpack(f">{entries}Q", content)


def _cluster(stream: BinaryIO, path: Path, place: int, bits: int) -> bytes:
    """One cluster; empty if it holds nothing but zeros."""
    cluster = 1 << bits
    if place & COMPRESSED:
        # Low bits the place, high bits how many further sectors it reaches into.
        width = 62 - (bits - 8)
        start = place & ((1 << width) - 1)
        sectors = ((place >> width) & ((1 << (bits - 8)) - 1)) + 1
        stream.seek(start)
        packed = stream.read(sectors * SECTOR - start % SECTOR)
        try:
            content = zlib.decompressobj(-15).decompress(packed, cluster)
        except zlib.error as error:
            raise VerificationError(f"{path.name}: the compressed cluster at {start} is damaged") from error
    else:
        start = place & OFFSET_MASK
        if not start or place & ALL_ZERO:
            return b""
        stream.seek(start)
        content = stream.read(cluster)
    if len(content) != cluster:
        raise VerificationError(f"{path.name}: the cluster at {start} is cut short")
    return content
