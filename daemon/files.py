"""The one module that writes files: whole or not at all, also when the power goes or the disk is full.

A file is written under a temporary name in its own directory, fsynced, given mode, owner and SELinux label,
renamed over the old one, and the directory is fsynced. A reader therefore sees the old text or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from daemon import faults
from daemon.errors import CentralinoError, StorageError
from daemon.run import run

TEMPORARY_SUFFIX = ".centralino-new"
SELINUX_LABEL = "security.selinux"
SELINUX_ENFORCE = Path("/sys/fs/selinux/enforce")
LABEL_LIMIT_SECONDS = 10.0

# One writer at a time: the temporary name derives from the file's name, so that a file left by a power loss
# is overwritten by the next write instead of piling up.
_writing = threading.RLock()


@dataclass(frozen=True)
class FileChange:
    """One file that a change replaces: `after` is the whole new text, None removes the file."""

    path: Path
    before: str | None
    after: str | None
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    secret: bool = False

    def diff(self) -> str:
        """A unified diff; of a secret file only the fact that it changes."""
        if self.secret:
            return f"{self.path}: contents are secret, {'removed' if self.after is None else 'replaced'}\n"
        import difflib  # half a megabyte that only a plan needs

        return "".join(
            difflib.unified_diff(
                (self.before or "").splitlines(keepends=True),
                (self.after or "").splitlines(keepends=True),
                str(self.path) if self.before is not None else "/dev/null",
                str(self.path) if self.after is not None else "/dev/null",
            )
        )


def write_file(
    path: Path,
    content: str | bytes,
    *,
    mode: int = 0o644,
    owner: str | None = None,
    group: str | None = None,
    name_lasts: bool = True,
) -> None:
    """Replace `path` by `content`, atomically and durably.

    Without `name_lasts` its new name is on the disk only with that of the file which the caller writes to
    the same directory next: ext4 and XFS keep the order of two renames in one directory.
    `owner` and `group` are names; None keeps the daemon's own. Only root can give files away: without that
    right they are ignored. Raises StorageError, with the old file untouched, when the disk refuses, when
    the path is a symbolic link or no regular file, or when owner or group do not exist.
    """
    data = content.encode() if isinstance(content, str) else content
    owners = _owners(path, owner, group)
    with _writing, _directory(path.parent) as directory:
        label = _old_label(path, directory)
        temporary = f".{path.name}{TEMPORARY_SUFFIX}"
        try:
            _write_temporary(temporary, data, mode, owners, label, directory, path.name)
            faults.reach(f"file:{path.name}:written")
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            _refuse(path, "written", error)
        faults.reach(f"file:{path.name}:renamed")
        if name_lasts:
            _sync_directory(directory, path)
    if label is None:
        restore_label(path)
    faults.reach(f"file:{path.name}:done")


def remove_file(path: Path) -> None:
    """Remove `path` durably; one that is not there is fine. Raises StorageError."""
    if not path.parent.is_dir():
        return
    with _writing, _directory(path.parent) as directory:
        try:
            os.unlink(path.name, dir_fd=directory)
        except FileNotFoundError:
            return
        except OSError as error:
            _refuse(path, "removed", error)
        faults.reach(f"file:{path.name}:removed")
        _sync_directory(directory, path)


def write_link(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target` atomically, replacing a file or link. Raises StorageError."""
    with _writing, _directory(path.parent) as directory:
        temporary = f".{path.name}{TEMPORARY_SUFFIX}"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)
            os.symlink(target, temporary, dir_fd=directory)
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            _refuse(path, "written", error)
        faults.reach(f"file:{path.name}:renamed")
        _sync_directory(directory, path)
    restore_label(path)


def apply_file_change(change: FileChange) -> None:
    """Carry out one file change of a plan. Raises StorageError."""
    if change.after is None:
        remove_file(change.path)
        return
    write_file(change.path, change.after, mode=change.mode, owner=change.owner, group=change.group)


def read_text(path: Path, limit: int = 16 * 1024 * 1024) -> str | None:
    """The text of a regular file, None if it is not there. Undecodable bytes are replaced.

    Raises StorageError if it cannot be read or is larger than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        _refuse(path, "read", error)
    if len(data) > limit:
        raise StorageError(f"{path} is larger than {limit} bytes", "look at what wrote it")
    return data.decode(errors="replace")


def ensure_directory(path: Path, mode: int = 0o755) -> None:
    """Make a directory (and its parents, 0755) if it is missing, and give it `mode`. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
    except OSError as error:
        _refuse(path, "made", error)


def append_line(path: Path, line: bytes, mode: int = 0o640) -> int:
    """Append a whole line durably; returns the size of the file afterwards.

    If the disk takes only a part of the line, that part is taken back, so that the log never holds half a
    line. A line that a power loss cut is ended first. Raises StorageError.
    """
    with _writing, _directory(path.parent) as directory:
        try:
            handle = os.open(
                path.name,
                os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
                mode,
                dir_fd=directory,
            )
        except OSError as error:
            _refuse(path, "opened", error)
        try:
            size = os.fstat(handle).st_size
            data = line.rstrip(b"\n") + b"\n"
            if size > 0 and os.pread(handle, 1, size - 1) != b"\n":
                data = b"\n" + data
            try:
                _write_all(handle, data)
                os.fsync(handle)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, size)
                _refuse(path, "written", error)
            return size + len(data)
        finally:
            os.close(handle)


def rotate(path: Path, keep: int) -> None:
    """`path` becomes `path.1`, `.1` becomes `.2` and so on; what would be number `keep` + 1 is removed."""
    with _writing, _directory(path.parent) as directory:
        try:
            for number in range(keep, 0, -1):
                older = f"{path.name}.{number}"
                newer = f"{path.name}.{number - 1}" if number > 1 else path.name
                with contextlib.suppress(FileNotFoundError):
                    os.rename(newer, older, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            _refuse(path, "rotated", error)
        _sync_directory(directory, path)


def restore_label(path: Path) -> None:
    """Give a new file the SELinux label that the policy has for its path; nothing without SELinux."""
    if not SELINUX_ENFORCE.exists():
        return
    try:
        run(["restorecon", "-F", str(path)], limit_seconds=LABEL_LIMIT_SECONDS)
    except CentralinoError as error:
        raise StorageError(f"{path} could not be labelled: {error}", f"run: restorecon -F {path}") from error


def _write_temporary(
    temporary: str,
    data: bytes,
    mode: int,
    owners: tuple[int, int],
    label: bytes | None,
    directory: int,
    name: str,
) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        faults.reach(f"file:{name}:created")
        _write_all(handle, data)
        if os.geteuid() == 0 and owners != (-1, -1):
            os.fchown(handle, *owners)
        os.fchmod(handle, mode)
        if label is not None:
            os.setxattr(handle, SELINUX_LABEL, label)
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _owners(path: Path, owner: str | None, group: str | None) -> tuple[int, int]:
    try:
        user_id = -1 if owner is None else pwd.getpwnam(owner).pw_uid
        group_id = -1 if group is None else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise StorageError(
            f"{path} was not written: {error.args[0]}", "install the package that makes this account"
        ) from error
    return user_id, group_id


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        _refuse(path, "opened", error)
    try:
        yield handle
    finally:
        os.close(handle)


def _old_label(path: Path, directory: int) -> bytes | None:
    """The label of the file that is replaced; refuses what is not a regular file."""
    try:
        old = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        _refuse(path, "written", error)
    if stat.S_ISLNK(old.st_mode):
        raise StorageError(f"{path} is a symbolic link and was not replaced", "remove the link first")
    if not stat.S_ISREG(old.st_mode):
        raise StorageError(f"{path} is no regular file and was not replaced", "move it away first")
    try:
        return os.getxattr(path, SELINUX_LABEL, follow_symlinks=False)
    except OSError:
        return None


def _sync_directory(directory: int, path: Path) -> None:
    try:
        os.fsync(directory)
    except OSError as error:
        # Some file systems cannot sync a directory; they have nothing more durable to offer.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            _refuse(path, "synced", error)


def _refuse(path: Path, what: str, error: OSError) -> NoReturn:
    remedies = {
        errno.ENOSPC: "free space on that disk",
        errno.EDQUOT: "free space in that quota",
        errno.EFBIG: "free space on that disk",
        errno.EROFS: "the disk is read-only: look for disk errors in the journal",
        errno.EIO: "the disk is failing: look for disk errors in the journal and replace it",
    }
    remedy = remedies.get(error.errno or 0, "look at that path and its permissions")
    raise StorageError(f"{path} could not be {what}: {os.strerror(error.errno or 0)}", remedy) from error
