"""Partition tables: what is written is read back, any flipped bit is found, the backup can be moved."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import VerificationError
from appliance.gpt import (
    BIOS_BOOT,
    EFI_SYSTEM,
    LINUX_ROOT_X86_64,
    SECTOR,
    TABLE_SECTORS,
    Partition,
    Table,
    move_backup,
    read_table,
    write_table,
)

MIB = 1 << 20
SIZE = 16 * MIB
PARTITIONS = (
    Partition(BIOS_BOOT, UUID(int=1), MIB, MIB, "centralino-bios"),
    Partition(EFI_SYSTEM, UUID(int=2), 2 * MIB, 4 * MIB, "centralino-efi"),
    Partition(LINUX_ROOT_X86_64, UUID(int=3), 6 * MIB, 9 * MIB, "centralino-root"),
)
TABLE = Table(UUID(int=9), SIZE, PARTITIONS)


def make(path: Path, table: Table = TABLE) -> Path:
    with path.open("w+b") as stream:
        stream.truncate(table.disk_bytes)
        write_table(stream, table)
    return path


def test_reads_what_it_wrote(tmp_path: Path) -> None:
    assert read_table(make(tmp_path / "disk")) == TABLE


def test_sfdisk_agrees(tmp_path: Path) -> None:
    sfdisk = shutil.which("sfdisk", path="/usr/sbin:/sbin:/usr/bin")
    if sfdisk is None:
        pytest.skip("sfdisk is not installed")
    disk = make(tmp_path / "disk")
    subprocess.run([sfdisk, "--verify", disk], check=True)
    dump = subprocess.run([sfdisk, "--dump", disk], check=True, capture_output=True, text=True).stdout
    assert f"label-id: {str(TABLE.disk).upper()}" in dump
    assert dump.count("centralino-") == 3


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.one_of(
        st.integers(446, (TABLE_SECTORS + 2) * SECTOR - 1),
        st.integers(SIZE - (TABLE_SECTORS + 1) * SECTOR, SIZE - 1),
    ),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_of_the_tables_is_found(place: int, bit: int, tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    with disk.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << bit]))
    with pytest.raises(VerificationError, match="disk"):
        read_table(disk)


def test_backup_moves_to_the_new_end(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    move_backup(disk, 3 * SIZE)
    assert read_table(disk) == Table(TABLE.disk, 3 * SIZE, PARTITIONS)
    with disk.open("rb") as stream:
        stream.seek(SIZE - (TABLE_SECTORS + 1) * SECTOR)
        assert not any(stream.read((TABLE_SECTORS + 1) * SECTOR)), "the old backup is still there"


def test_a_grown_disk_without_moved_backup_is_named(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    with disk.open("r+b") as stream:
        stream.truncate(2 * SIZE)
    with pytest.raises(VerificationError, match="protective MBR"):
        read_table(disk)


def test_overlap_is_named(tmp_path: Path) -> None:
    clash = Partition(LINUX_ROOT_X86_64, UUID(int=4), 5 * MIB, 2 * MIB, "clash")
    with pytest.raises(VerificationError, match="clash overlaps"):
        read_table(make(tmp_path / "disk", Table(UUID(int=9), SIZE, (*PARTITIONS[:2], clash))))


def test_boot_code_is_kept(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("w+b") as stream:
        stream.truncate(SIZE)
        stream.write(b"\xeb" * 440)
        write_table(stream, TABLE)
    assert disk.read_bytes()[:440] == b"\xeb" * 440
