"""Large sparse files, read and written by their data alone: holes and zero blocks cost nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

COPY_BYTES = 1 << 20


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
