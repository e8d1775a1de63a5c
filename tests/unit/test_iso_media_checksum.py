"""The implanted checksum: the same whether it follows the writer or reads the finished image."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path

import pytest

from appliance.errors import InputError
from iso.media_checksum import DESCRIPTOR, FIELD, FIELD_BYTES, SECTOR, MediaChecksum

SECTORS = 1000


def image(seed: int = 1) -> bytes:
    content = bytearray(random.Random(seed).randbytes(SECTORS * SECTOR))  # noqa: S311 - any bytes will do
    content[DESCRIPTOR : DESCRIPTOR + 6] = b"\x01CD001"
    struct.pack_into("<I", content, DESCRIPTOR + 80, SECTORS)
    return bytes(content)


def field_of(path: Path) -> str:
    return path.read_bytes()[FIELD : FIELD + FIELD_BYTES].decode()


@pytest.fixture
def wanted(tmp_path: Path) -> str:
    path = tmp_path / "finished.iso"
    path.write_bytes(image())
    MediaChecksum(path).implant()
    return field_of(path)


def test_the_field_is_the_digest_without_itself_and_the_last_sectors(wanted: str) -> None:
    content = bytearray(image()[: (SECTORS - 15) * SECTOR])
    content[FIELD : FIELD + FIELD_BYTES] = b" " * FIELD_BYTES
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert wanted.startswith(f"ISO MD5SUM = {digest};SKIPSECTORS = 15;RHLISOSTATUS=0;FRAGMENT SUMS = ")
    sums = wanted.split("FRAGMENT SUMS = ")[1].split(";")[0]
    assert len(sums) == 60 and not set(sums) - set("0123456789abcdef")
    assert wanted.rstrip(" ").endswith("THIS IS NOT THE SAME AS RUNNING MD5SUM ON THIS ISO!!")


@pytest.mark.parametrize("piece", [1 << 10, 7 * SECTOR + 13, 1 << 20])
def test_following_the_writer_gives_the_same(tmp_path: Path, wanted: str, piece: int) -> None:
    path = tmp_path / "written.iso"
    checksum = MediaChecksum(path)
    content = image()
    with checksum.following(), path.open("wb") as stream:
        for start in range(0, len(content), piece):
            stream.write(content[start : start + piece])
            stream.flush()
    checksum.implant()
    assert field_of(path) == wanted


def test_a_writer_that_comes_back_to_the_front_is_noticed(tmp_path: Path, wanted: str) -> None:
    path = tmp_path / "written.iso"
    checksum = MediaChecksum(path)
    content = image()
    other = bytearray(image(2))
    other[DESCRIPTOR : DESCRIPTOR + SECTOR] = content[DESCRIPTOR : DESCRIPTOR + SECTOR]
    with checksum.following(), path.open("wb") as stream:
        stream.write(other[:SECTOR] + content[SECTOR:])
        stream.flush()
        stream.seek(0)
        stream.write(content[:SECTOR])
    checksum.implant()
    assert field_of(path) == wanted


@pytest.mark.parametrize("content", [b"", b"x" * 100000, image()[:-100000]])
def test_what_is_no_whole_image_gets_no_checksum(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.iso"
    checksum = MediaChecksum(path)
    with checksum.following():
        path.write_bytes(content)
    with pytest.raises(InputError):
        checksum.implant()
    assert path.read_bytes() == content


def test_a_writer_that_never_begins_does_not_hang(tmp_path: Path) -> None:
    checksum = MediaChecksum(tmp_path / "never.iso")
    with pytest.raises(RuntimeError, match="no space"), checksum.following():
        raise RuntimeError("no space")
