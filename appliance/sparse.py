"""Large sparse files, read and written by their data alone: holes and zero blocks cost nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

COPY_BYTES = 1 << 20
CONTENT_BYTES = 64 << 10


def data_ranges(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """(start, end) of each stored range of a file, as the file system knows them; all between is zero."""
    descriptor = stream.fileno()
    size = os.fstat(descriptor).st_size
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
        position = end


def data_chunks(stream: BinaryIO, chunk_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(number, content) of each chunk that holds anything but zeros; the last one may be short.

    Whether the host stored a run of zeros as a hole or as data makes no difference to the result.
    """
    zeros = bytes(chunk_bytes)
    done = 0
    for start, end in data_ranges(stream):
        for number in range(max(start // chunk_bytes, done), -(-end // chunk_bytes)):
            content = os.pread(stream.fileno(), chunk_bytes, number * chunk_bytes)
            done = number + 1
            if content != zeros[: len(content)]:
                yield number, content


def copy_into(source: Path, target: BinaryIO, offset: int) -> None:
    """Write the data of `source` into `target` at `offset` (bytes); the place must hold zeros before."""
    with source.open("rb") as stream:
        for number, content in data_chunks(stream, COPY_BYTES):
            os.pwrite(target.fileno(), content, offset + number * COPY_BYTES)


def sparse_copy(source: Path, target: Path, size: int | None = None) -> None:
    """Copy a file without its zeros; `size` (bytes) makes the copy longer."""
    with target.open("wb") as stream:
        stream.truncate(source.stat().st_size if size is None else size)
        copy_into(source, stream, 0)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; holes are hashed without being read from the disk."""
    digest = hashlib.sha256()
    zeros = bytes(COPY_BYTES)
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        position = 0
        for start, end in [*data_ranges(stream), (size, size)]:
            while position < start:
                step = min(COPY_BYTES, start - position)
                digest.update(zeros[:step])
                position += step
            stream.seek(position)
            while position < end:
                content = stream.read(min(COPY_BYTES, end - position))
                digest.update(content)
                position += len(content)
    return digest.hexdigest()


def content_digest(size: int, parts: Iterable[tuple[int, bytes]]) -> str:
    """A digest of what a disk of `size` bytes holds, whatever file format it lies in.

    `parts` are (offset, content) in ascending order, offsets multiples of 64 KiB; what is not named is zero.
    SHA-256 over the size and then number and content of each 64 KiB that holds anything but zeros.
    """
    digest = hashlib.sha256(struct.pack("<Q", size))
    zeros = bytes(CONTENT_BYTES)
    for offset, content in parts:
        for start in range(0, len(content), CONTENT_BYTES):
            piece = content[start : start + CONTENT_BYTES]
            if piece != zeros[: len(piece)]:
                digest.update(struct.pack("<Q", (offset + start) // CONTENT_BYTES) + piece)
    return digest.hexdigest()


def raw_content_digest(path: Path, size: int | None = None) -> str:
    """`content_digest` of a raw disk; `size` ends it earlier, before what follows the disk in the file."""
    with path.open("rb") as stream:
        end = path.stat().st_size if size is None else size
        return content_digest(end, _parts(stream, end))


def _parts(stream: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    for number, content in data_chunks(stream, COPY_BYTES):
        offset = number * COPY_BYTES
        if offset < end:
            yield offset, content[: end - offset]
