"""Files are written whole, durably, and never through a symbolic link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from daemon import faults
from daemon.errors import StorageError
from daemon.files import (
    FileChange,
    append_line,
    apply_file_change,
    ensure_directory,
    read_text,
    remove_file,
    rotate,
    write_file,
    write_link,
)


def test_content_mode_and_owner(tmp_path: Path) -> None:
    file = tmp_path / "a.conf"
    old_mask = os.umask(0o077)
    try:
        write_file(file, "text\n", mode=0o644)
    finally:
        os.umask(old_mask)
    assert file.read_text() == "text\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    write_file(file, b"\x00\xff", mode=0o600)
    assert file.read_bytes() == b"\x00\xff"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.conf"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_owner_and_group_by_name(tmp_path: Path) -> None:
    file = tmp_path / "a.conf"
    write_file(file, "x", owner="nobody", group="daemon")
    assert (file.owner(), file.group()) == ("nobody", "daemon")


def test_an_unknown_owner_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    file = tmp_path / "a.conf"
    file.write_text("old")
    with pytest.raises(StorageError, match="was not written"):
        write_file(file, "new", owner="no-such-user")
    assert file.read_text() == "old"


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    with pytest.raises(StorageError, match="symbolic link"):
        write_file(link, "evil")
    with pytest.raises(StorageError):
        append_line(link, b"evil")
    assert target.read_text() == "precious"
    assert link.is_symlink()


def test_a_link_planted_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / ".a.conf.centralino-new").symlink_to(target)
    write_file(tmp_path / "a.conf", "text")
    assert target.read_text() == "precious"
    assert (tmp_path / "a.conf").read_text() == "text"


def test_a_directory_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.conf").mkdir()
    with pytest.raises(StorageError, match="no regular file"):
        write_file(tmp_path / "a.conf", "text")


def test_a_missing_directory_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        write_file(tmp_path / "missing" / "a.conf", "text")


def test_the_file_is_synced_before_and_the_directory_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(handle: int) -> None:
        events.append("sync " + Path(f"/proc/self/fd/{handle}").readlink().name)
        real_sync(handle)

    def rename(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        events.append(f"rename {target}")
        real_rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    write_file(tmp_path / "a.conf", "text")
    assert events == ["sync .a.conf.centralino-new", "rename a.conf", f"sync {tmp_path.name}"]


def test_a_failure_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.conf"
    file.write_text("old")

    def full(_handle: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError) as caught:
        write_file(file, "new")
    assert caught.value.remedy == "free space on that disk"
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.conf"]


def test_remove_and_missing(tmp_path: Path) -> None:
    file = tmp_path / "a.conf"
    file.write_text("x")
    remove_file(file)
    remove_file(file)
    remove_file(tmp_path / "missing" / "a.conf")
    assert not file.exists()


def test_links_are_replaced_atomically(tmp_path: Path) -> None:
    link = tmp_path / "localtime"
    write_link(link, "zone/A")
    write_link(link, "zone/B")
    assert str(link.readlink()) == "zone/B"
    assert [entry.name for entry in tmp_path.iterdir()] == ["localtime"]


def test_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "a.conf"
    apply_file_change(FileChange(file, None, "one\n", mode=0o640))
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    apply_file_change(FileChange(file, "one\n", None))
    assert not file.exists()


def test_the_diff_of_a_secret_file_shows_nothing_of_it(tmp_path: Path) -> None:
    shown = FileChange(tmp_path / "a", "old-password\n", "new-password\n", secret=True).diff()
    assert "password" not in shown
    assert "-old\n+new\n" in FileChange(tmp_path / "a", "old\n", "new\n").diff()


def test_reading(tmp_path: Path) -> None:
    file = tmp_path / "a"
    assert read_text(file) is None
    file.write_bytes(b"a\xffb")
    assert read_text(file) == "a\ufffdb"
    with pytest.raises(StorageError, match="larger than 2 bytes"):
        read_text(file, limit=2)
    with pytest.raises(StorageError):
        read_text(tmp_path)


def test_lines_are_appended_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "log"
    assert append_line(file, b"one") == 4
    assert append_line(file, b"two\n") == 8
    with file.open("ab") as cut:
        cut.write(b"half a li")
    append_line(file, b"three")
    assert file.read_bytes() == b"one\ntwo\nhalf a li\nthree\n"
    real = os.write

    def partly(handle: int, data: memoryview) -> int:
        if len(data) > 3:
            return real(handle, data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", partly)
    with pytest.raises(StorageError):
        append_line(file, b"four!")
    assert file.read_bytes() == b"one\ntwo\nhalf a li\nthree\n"


def test_rotation_keeps_so_many(tmp_path: Path) -> None:
    file = tmp_path / "log"
    for number in range(5):
        file.write_text(str(number))
        rotate(file, keep=2)
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"log.1": "4", "log.2": "3"}


def test_directories_get_their_mode(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    ensure_directory(directory, 0o700)
    ensure_directory(directory, 0o700)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        ensure_directory(tmp_path / "file" / "b")


def test_fault_points_are_named_and_silent_without_a_test(tmp_path: Path) -> None:
    seen: list[str] = []
    faults.install(seen.append)
    try:
        write_file(tmp_path / "a.conf", "text")
    finally:
        faults.install(None)
    write_file(tmp_path / "a.conf", "again")
    assert seen == [f"file:a.conf:{moment}" for moment in ("created", "written", "renamed", "done")]
