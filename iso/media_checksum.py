"""The checksum implanted into a medium, as Anaconda's media check (`rd.live.check`, checkisomd5) reads it.

isomd5sum's own program reads the finished image once more; here the digest follows the writer, so that it
costs next to nothing on a second processor. The field is that of libimplantisomd5: the MD5 of the volume
without its last 15 sectors, the field itself read as spaces, and three digits each of 20 intermediate sums.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from appliance.errors import InputError

SECTOR = 2048
DESCRIPTOR = 16 * SECTOR
FIELD = DESCRIPTOR + 883  # ECMA-119 8.4.32: application use
FIELD_BYTES = 512
SKIPPED_SECTORS = 15
FRAGMENTS = 20
FRAGMENT_DIGITS = 3
# What isomd5sum reads at once: where an intermediate sum is taken depends on it. Ours reads more at a time.
STEP = 16 * SECTOR
BLOCK = 32 * STEP
POLL_SECONDS = 0.02


class MediaChecksum:
    """Computes the field while, or after, an image is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = threading.Event()
        self._head = b""
        self._field: bytes | None = None

    @contextmanager
    def following(self) -> Iterator[None]:
        """Digest the image while the block writes it, front to back."""
        thread = threading.Thread(target=self._follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._written.set()
            thread.join()

    def implant(self) -> None:
        """Write the field into the finished image; raises InputError if it is no ISO 9660 image."""
        with self._path.open("r+b") as stream:
            # A writer may come back to the front at its end: then what was digested is not what is there.
            if self._field is None or stream.read(len(self._head)) != self._head:
                self._written.set()
                self._field = self._digest(stream)
            if self._field is None:
                raise InputError(f"{self._path} is no ISO 9660 image")
            stream.seek(FIELD)
            stream.write(self._field)

    def _follow(self) -> None:
        while not self._path.exists():
            if self._written.wait(POLL_SECONDS) and not self._path.exists():
                return
        with self._path.open("rb") as stream:
            self._field = self._digest(stream)

    def _digest(self, stream: IO[bytes]) -> bytes | None:
        """The field; None if the file ends too early or holds no volume descriptor where it should."""
        stream.seek(0)
        head = self._read(stream, DESCRIPTOR + SECTOR)
        if head is None or head[DESCRIPTOR : DESCRIPTOR + 6] != b"\x01CD001":
            return None
        self._head = head
        (sectors,) = struct.unpack_from("<I", head, DESCRIPTOR + 80)
        total = (sectors - SKIPPED_SECTORS) * SECTOR
        fragment_bytes = total // (FRAGMENTS + 1)
        if fragment_bytes < STEP:
            return None
        whole = hashlib.md5(usedforsecurity=False)
        sums, fragment, offset = "", 0, 0
        stream.seek(0)
        while offset < total:
            data = self._read(stream, min(BLOCK, total - offset))
            if data is None:
                return None
            if offset == 0:
                data = data[:FIELD] + b" " * FIELD_BYTES + data[FIELD + FIELD_BYTES :]
            view = memoryview(data)
            for start in range(0, len(data), STEP):
                whole.update(view[start : start + STEP])
                if (offset + start) // fragment_bytes != fragment:
                    fragment = (offset + start) // fragment_bytes
                    sums += "".join(f"{byte:x}"[0] for byte in whole.copy().digest()[:FRAGMENT_DIGITS])
            offset += len(data)
        text = (
            f"ISO MD5SUM = {whole.hexdigest()};SKIPSECTORS = {SKIPPED_SECTORS};RHLISOSTATUS=0;"
            f"FRAGMENT SUMS = {sums};FRAGMENT COUNT = {FRAGMENTS};"
            "THIS IS NOT THE SAME AS RUNNING MD5SUM ON THIS ISO!!"
        )
        return text.encode().ljust(FIELD_BYTES)

    def _read(self, stream: IO[bytes], length: int) -> bytes | None:
        """Exactly so many bytes; waits for the writer, None if it ended before."""
        found = stream.read(length)
        while len(found) < length:
            ended = self._written.wait(POLL_SECONDS)
            found += stream.read(length - len(found))
            if ended and len(found) < length:
                return None
        return found
