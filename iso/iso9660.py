"""Reads ISO 9660 images with Rock Ridge without mounting them (ECMA-119, SUSP, RRIP 1.12).

Enough for installation media: names, modes, links, files of several extents, El Torito. No Joliet.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO

from appliance.errors import InputError

SECTOR = 2048
_CHUNK = 1 << 20
_MULTI_EXTENT = 0x80
_DIRECTORY = 0x02


class DamagedImageError(InputError):
    """The file is no ISO 9660 image or its structure is broken."""


@dataclass(frozen=True)
class IsoFile:
    """A regular file (or, with `target`, a symbolic link): its extents are (first sector, bytes)."""

    path: str
    extents: tuple[tuple[int, int], ...]
    target: str = ""

    @property
    def size(self) -> int:
        """Bytes of content."""
        return sum(length for _, length in self.extents)


@dataclass(frozen=True)
class BootEntry:
    """One El Torito entry: `platform` 0 is BIOS, 0xEF is UEFI; `sectors` counts 512 bytes."""

    platform: int
    bootable: bool
    lba: int
    sectors: int


class Iso:
    """An open image. Raises DamagedImageError on anything that does not add up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._stream: IO[bytes] = path.open("rb")
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}", "name an ISO image") from error
        self.file_size = path.stat().st_size
        try:
            self._read_descriptors()
            self.files = {file.path: file for file in self._walk()}
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            self._stream.close()
            raise DamagedImageError(
                f"{path}: the directory is damaged ({error})", "get the image again"
            ) from error
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Iso:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def _read_descriptors(self) -> None:
        self.primary = self.read_at(16 * SECTOR, SECTOR)
        if self.primary[:6] != b"\x01CD001":
            raise DamagedImageError(f"{self.path} is no ISO 9660 image", "name an installer ISO")
        self.label = self.primary[40:72].decode("ascii", "replace").rstrip()
        (self.sectors,) = struct.unpack_from("<I", self.primary, 80)
        if self.file_size < self.sectors * SECTOR:
            raise DamagedImageError(
                f"{self.path} is truncated: {self.file_size} bytes instead of {self.sectors * SECTOR}",
                "download it again",
            )
        self.boot_catalog = 0
        for number in range(17, 32):
            descriptor = self.read_at(number * SECTOR, SECTOR)
            if descriptor[1:6] != b"CD001" or descriptor[0] == 255:
                break
            if descriptor[0] == 0 and descriptor[7:30] == b"EL TORITO SPECIFICATION":
                (self.boot_catalog,) = struct.unpack_from("<I", descriptor, 71)

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes at an offset; raises DamagedImageError if the file ends before."""
        self._stream.seek(offset)
        found = self._stream.read(length)
        if len(found) != length:
            raise DamagedImageError(f"{self.path} ends inside of its data", "get the image again")
        return found

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's content, piece by piece."""
        for sector, length in self._file(path).extents:
            for start in range(0, length, _CHUNK):
                yield self.read_at(sector * SECTOR + start, min(_CHUNK, length - start))

    def read(self, path: str) -> bytes:
        """A file's whole content; meant for small files."""
        return b"".join(self.chunks(path))

    def sha256(self, path: str) -> str:
        """SHA-256 of a file's content."""
        digest = hashlib.sha256()
        for chunk in self.chunks(path):
            digest.update(chunk)
        return digest.hexdigest()

    def extract(self, path: str, target: Path) -> None:
        """Write a file's content to `target`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            for chunk in self.chunks(path):
                stream.write(chunk)

    def below(self, directory: str) -> list[str]:
        """The paths of all files below a directory, sorted."""
        return sorted(path for path in self.files if path.startswith(directory.rstrip("/") + "/"))

    def _file(self, path: str) -> IsoFile:
        try:
            return self.files[path]
        except KeyError:
            raise InputError(
                f"{self.path.name} has no file {path}", "name an AlmaLinux 8 installer ISO"
            ) from None

    def boot_entries(self) -> list[BootEntry]:
        """The El Torito catalogue; empty if there is none."""
        if not self.boot_catalog:
            return []
        catalog = self.read_at(self.boot_catalog * SECTOR, SECTOR)
        if catalog[30:32] != b"\x55\xaa" or sum(struct.unpack("<16H", catalog[:32])) & 0xFFFF:
            raise DamagedImageError(f"{self.path}: the boot catalogue is damaged", "get the image again")
        entries = [_boot_entry(catalog[1], catalog[32:64])]
        offset = 64
        while offset < SECTOR and catalog[offset] in (0x90, 0x91):
            (count,) = struct.unpack_from("<H", catalog, offset + 2)
            for number in range(count):
                start = offset + 32 * (number + 1)
                entries.append(_boot_entry(catalog[offset + 1], catalog[start : start + 32]))
            offset += 32 * (count + 1)
        return entries

    def _walk(self) -> Iterator[IsoFile]:
        (sector,) = struct.unpack_from("<I", self.primary, 158)
        (length,) = struct.unpack_from("<I", self.primary, 166)
        # SUSP: the root's own record says how many bytes stand before every system use field.
        self._skip = 0
        first = self.read_at(sector * SECTOR, SECTOR)
        fields = first[33 + first[32] + (1 - first[32] % 2) : first[0]]
        if fields[:2] == b"SP":
            self._skip = fields[6]
        pending = [(PurePosixPath(), sector, length)]
        seen = set()
        while pending:
            directory, sector, length = pending.pop()
            if sector in seen:
                raise DamagedImageError(
                    f"{self.path}: the directory {directory} contains itself", "get the image again"
                )
            seen.add(sector)
            yield from self._read_directory(directory, self.read_at(sector * SECTOR, length), pending)

    def _read_directory(
        self, directory: PurePosixPath, data: bytes, pending: list[tuple[PurePosixPath, int, int]]
    ) -> Iterator[IsoFile]:
        offset = 0
        extents: list[tuple[int, int]] = []
        while offset < len(data):
            size = data[offset]
            if size == 0:
                # Records never cross a sector: the rest of this one is empty.
                offset = (offset // SECTOR + 1) * SECTOR
                continue
            record = data[offset : offset + size]
            offset += size
            (sector,) = struct.unpack_from("<I", record, 2)
            (length,) = struct.unpack_from("<I", record, 10)
            flags, name_length = record[25], record[32]
            raw_name = record[33 : 33 + name_length]
            if raw_name in (b"\x00", b"\x01"):
                continue
            name, target = self._rock_ridge(record[33 + name_length + (1 - name_length % 2) :])
            path = directory / (name or raw_name.decode("ascii").split(";")[0])
            if flags & _DIRECTORY:
                pending.append((path, sector, length))
                continue
            extents.append((sector, length))
            if flags & _MULTI_EXTENT:
                continue
            yield IsoFile(str(path), tuple(extents), target)
            extents = []

    def _rock_ridge(self, fields: bytes) -> tuple[str, str]:
        """Name and symbolic link target out of the system use fields, continuations followed."""
        name = b""
        parts: list[str] = []
        absolute = False
        fields = fields[self._skip :]
        following: tuple[int, int, int] | None = None
        while True:
            while len(fields) >= 4 and fields[2] >= 4:
                kind, entry = fields[:2], fields[: fields[2]]
                fields = fields[fields[2] :]
                if kind == b"NM":
                    name += entry[5:]
                elif kind == b"CE":
                    following = struct.unpack_from("<I4xI4xI", entry, 4)
                elif kind == b"SL":
                    absolute |= _link_parts(entry[5:], parts)
                elif kind == b"ST":
                    fields = b""
            if following is None:
                break
            sector, start, length = following
            following = None
            fields = self.read_at(sector * SECTOR + start, length)
        target = ("/" if absolute else "") + "/".join(parts)
        return name.decode("utf-8", "replace"), target


def _link_parts(data: bytes, parts: list[str]) -> bool:
    absolute = False
    while len(data) >= 2:
        flags, length = data[0], data[1]
        content = data[2 : 2 + length].decode("utf-8", "replace")
        if flags & 8:
            absolute = True
        else:
            parts.append({2: ".", 4: ".."}.get(flags & 6, content))
        data = data[2 + length :]
    return absolute


def _boot_entry(platform: int, data: bytes) -> BootEntry:
    sectors, lba = struct.unpack_from("<HI", data, 6)
    return BootEntry(platform, data[0] == 0x88, lba, sectors)
