"""The format writers on a small disk: content kept, nothing random, damage found and named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import InputError, VerificationError
from appliance.sparse import content_digest, raw_content_digest, sparse_copy
from appliance.vhd import check_vhd, footer, geometry, write_vhd
from appliance.vhdx import CHUNK_RATIO, SECTOR, crc32c, disk_size, read_vhdx, write_vhdx
from appliance.vmdk import GRAIN_BYTES, TABLE_ENTRIES, capacity_of, read_stream_vmdk, write_stream_vmdk

MIB = 1 << 20
EPOCH = 1767225600
IDENTIFIER = UUID("3e1459a3-477e-41f8-a404-e8f4f308c4a8")
SEED = "a seed"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 MiB: three grain tables' worth, one of them empty, data at the very start and end."""
    path = tmp_path_factory.mktemp("raw") / "disk.raw"
    with path.open("wb") as stream:
        stream.truncate(80 * MIB)
        for offset, content in (
            (0, b"boot" * 128),
            (5 * MIB + 100, bytes(range(256)) * 1000),
            (70 * MIB, b"\xff" * 3 * MIB),
            (80 * MIB - 512, b"EFI PART" * 64),
        ):
            stream.seek(offset)
            stream.write(content)
    return path


def write(kind: str, raw: Path, target: Path) -> None:
    if kind == "vmdk":
        write_stream_vmdk(raw, target)
    elif kind == "vhd":
        write_vhd(raw, target, IDENTIFIER, EPOCH)
    else:
        write_vhdx(raw, target, SEED)


def check(kind: str, path: Path) -> str:
    """The content digest of a file, after every check that its reader makes."""
    if kind == "vmdk":
        return content_digest(capacity_of(path), read_stream_vmdk(path))
    if kind == "vhd":
        return raw_content_digest(path, check_vhd(path))
    return content_digest(disk_size(path), read_vhdx(path, SEED))


KINDS = ("vmdk", "vhd", "vhdx")


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_what_the_disk_holds(kind: str, raw: Path, tmp_path: Path) -> None:
    write(kind, raw, tmp_path / "disk")
    assert check(kind, tmp_path / "disk") == raw_content_digest(raw)


@pytest.mark.parametrize("kind", KINDS)
def test_same_bytes_wherever_and_however_the_raw_disk_is_stored(kind: str, raw: Path, tmp_path: Path) -> None:
    # The second raw disk has no holes at all and another name.
    (tmp_path / "other").mkdir()
    filled = tmp_path / "other/filled.raw"
    filled.write_bytes(raw.read_bytes())
    write(kind, raw, tmp_path / "one")
    write(kind, filled, tmp_path / "other/two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other/two").read_bytes()


@pytest.mark.parametrize(("kind", "name"), [("vmdk", "vmdk"), ("vhd", "vpc"), ("vhdx", "vhdx")])
def test_qemu_reads_the_same_disk(kind: str, name: str, raw: Path, tmp_path: Path) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    write(kind, raw, tmp_path / "disk")
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", name, raw, tmp_path / "disk"], check=True)
    if kind != "vhd":
        subprocess.run(["qemu-img", "check", "-f", name, tmp_path / "disk"], check=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_no_flipped_bit_goes_unnoticed(data: st.DataObject, kind: str, raw: Path, tmp_path: Path) -> None:
    good = tmp_path / f"good.{kind}"
    if not good.exists():
        write(kind, raw, good)
    if kind == "vhd":
        places = st.integers(0, good.stat().st_size - 1)
    else:
        # Where the writers put structure or data; the padding between is no part of the disk.
        places = st.one_of(*(st.integers(start, end - 1) for start, end in used_ranges(kind, good)))
    place = data.draw(places)
    bit = data.draw(st.integers(0, 7))
    bad = tmp_path / "bad"
    sparse_copy(good, bad)
    with bad.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << bit]))
    try:
        assert check(kind, bad) != raw_content_digest(raw)
    except VerificationError as error:
        assert "bad" in error.message


def used_ranges(kind: str, path: Path) -> list[tuple[int, int]]:
    size = path.stat().st_size
    if kind == "vhdx":
        return [
            (0, 520),
            (64 << 10, (64 << 10) + 4096),
            (192 << 10, 256 << 10),
            (2 * MIB, 2 * MIB + 200),
            (4 * MIB, size),
        ]
    return [(0, 78), (size - 1024, size - 1024 + 78), (size - 512, size)]


def test_vmdk_grains_ascend_and_tables_follow_their_grains(raw: Path, tmp_path: Path) -> None:
    write_stream_vmdk(raw, tmp_path / "disk")
    grains = [offset // GRAIN_BYTES for offset, _ in read_stream_vmdk(tmp_path / "disk")]
    assert grains == sorted(grains)
    assert {grain // TABLE_ENTRIES for grain in grains} == {0, 2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_is_named(kind: str, raw: Path, tmp_path: Path) -> None:
    write(kind, raw, tmp_path / "disk")
    with (tmp_path / "disk").open("r+b") as stream:
        stream.truncate((tmp_path / "disk").stat().st_size - 700)
    with pytest.raises(VerificationError, match="disk"):
        check(kind, tmp_path / "disk")


@pytest.mark.parametrize("kind", KINDS)
def test_odd_sizes_are_refused(kind: str, tmp_path: Path) -> None:
    odd = tmp_path / "odd.raw"
    with odd.open("wb") as stream:
        stream.truncate(3 * MIB + 512)
    with pytest.raises(InputError, match=r"odd\.raw"):
        write(kind, odd, tmp_path / "disk")


def test_crc32c_is_castagnolis() -> None:
    # RFC 3720, appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


def test_vhd_footer_has_the_checksum_of_the_specification() -> None:
    made = footer(80 * MIB, IDENTIFIER, EPOCH)
    assert len(made) == 512
    without = made[:64] + bytes(4) + made[68:]
    assert int.from_bytes(made[64:68], "big") == ~sum(without) & 0xFFFFFFFF


def test_vhd_geometry_never_exceeds_the_disk() -> None:
    for size in (3 * MIB, 80 * MIB, 8 << 30, 127 << 30, 2 << 40):
        cylinders, heads, sectors = geometry(size // 512)
        assert cylinders * heads * sectors <= size // 512
        assert cylinders <= 0xFFFF


def test_vhdx_reserves_bitmap_entries_on_large_disks(tmp_path: Path) -> None:
    large = tmp_path / "large.raw"
    last = (CHUNK_RATIO + 5) * MIB
    with large.open("wb") as stream:
        stream.truncate(last + MIB)
        stream.seek(last)
        stream.write(b"x" * SECTOR)
    write_vhdx(large, tmp_path / "disk", SEED)
    assert [offset for offset, _ in read_vhdx(tmp_path / "disk", SEED)] == [last]
    if shutil.which("qemu-io"):
        # Comparing whole disks would read gigabytes of zeros: the block and its neighbours tell.
        zero = ((last - MIB, MIB), (last + SECTOR, MIB - SECTOR), ((CHUNK_RATIO - 1) * MIB, 2 * MIB))
        asked = [f"read -P 0x78 {last} {SECTOR}", *(f"read -P 0 {at} {length}" for at, length in zero)]
        words = [word for each in asked for word in ("-c", each)]
        done = subprocess.run(
            ["qemu-io", "-r", "-f", "vhdx", *words, tmp_path / "disk"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and "verification failed" not in done.stdout, done.stdout + done.stderr


def test_a_vmdk_whose_directory_lies_nowhere_is_named(raw: Path, tmp_path: Path) -> None:
    write_stream_vmdk(raw, tmp_path / "disk")
    data = bytearray((tmp_path / "disk").read_bytes())
    # The highest bit of the footer's directory offset (bytes 56 to 63).
    data[len(data) - 1024 + 63] ^= 0x80
    (tmp_path / "disk").write_bytes(data)
    with pytest.raises(VerificationError, match="the grain directory is damaged"):
        check("vmdk", tmp_path / "disk")
