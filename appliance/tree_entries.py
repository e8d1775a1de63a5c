"""A root tree as a sorted list of entries: the one order in which disks, archives and lists are written.

Directory order on the build host depends on the host's file system, so nothing here relies on it. Files may
be added, replaced or left out without touching the tree itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path

from appliance.errors import InputError


class Kind(StrEnum):
    """What an entry is; sockets are left out, they belong to running programs."""

    DIRECTORY = "directory"
    FILE = "file"
    SYMLINK = "symlink"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    FIFO = "fifo"


@dataclass(frozen=True)
class Addition:
    """A file (`content`), symbolic link (`target`) or directory (neither) put over the tree."""

    content: bytes | None = None
    target: str | None = None
    mode: int = 0o644


@dataclass(frozen=True)
class Entry:
    """One name of the tree.

    `path` is relative to the root, bytes, without a leading slash (`b""` is the root itself); `size` and
    `mtime` (seconds since 1970, never after the limit given to `walk`) are as they will be written. A file
    has `source` or `content`. `same_as` names the earlier path of which this is another hard link.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    source: Path | None = None
    content: bytes | None = None
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    links: int = 1
    same_as: bytes | None = None
    attributes: tuple[tuple[str, bytes], ...] = ()

    def read(self) -> bytes:
        """The content of a file."""
        if self.content is not None:
            return self.content
        assert self.source is not None, self.path  # noqa: S101 (an entry without either is a defect here)
        return self.source.read_bytes()


@dataclass
class _State:
    root: Path
    excluded: tuple[str, ...]
    emptied: tuple[str, ...]
    latest: int
    additions: dict[bytes, dict[bytes, Addition]]
    first_path: dict[tuple[int, int], bytes] = field(default_factory=dict)
    link_count: dict[tuple[int, int], int] = field(default_factory=dict)


_KINDS = {
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFIFO: Kind.FIFO,
}


def walk(
    root: Path,
    *,
    latest: int,
    additions: Mapping[str, Addition] | None = None,
    excluded: Sequence[str] = (),
    emptied: Sequence[str] = (),
) -> list[Entry]:
    """All entries of the tree at `root`, parents first, siblings sorted by name.

    `latest` clamps modification times (seconds since 1970): what the build touched gets the time of the
    inputs. `additions` maps relative paths to what lies over the tree; missing parent directories are made.
    `excluded` are shell patterns of relative paths left out with all below them. Of directories named in
    `emptied` only the contents are left out; files that match its patterns become empty. Raises
    InputError if `root` is no directory or a name holds a line break.
    """
    if not root.is_dir():
        raise InputError(
            f"{root} is not a directory", "give the root tree that `centralino-build image` made"
        )
    state = _State(root, tuple(excluded), tuple(emptied), latest, _group(additions or {}))
    entries = list(_walk_directory(state, b"", os.lstat(root)))
    # The number of links is known only once every name was seen, excluded ones being no links.
    return [entry if entry.links == 1 else _with_links(state, entry) for entry in entries]


def _with_links(state: _State, entry: Entry) -> Entry:
    assert entry.source is not None  # noqa: S101 (only files of the tree have several links)
    status = os.lstat(entry.source)
    return Entry(**{**entry.__dict__, "links": state.link_count[(status.st_dev, status.st_ino)]})


def _group(additions: Mapping[str, Addition]) -> dict[bytes, dict[bytes, Addition]]:
    """Additions by their directory, with the parents that lead to them."""
    grouped: dict[bytes, dict[bytes, Addition]] = {}
    for path, addition in additions.items():
        parts = os.fsencode(path.strip("/")).split(b"/")
        for depth in range(1, len(parts)):
            parent, name = b"/".join(parts[: depth - 1]), parts[depth - 1]
            grouped.setdefault(parent, {}).setdefault(name, Addition(mode=0o755))
        grouped.setdefault(b"/".join(parts[:-1]), {})[parts[-1]] = addition
    return grouped


def _matches(path: bytes, patterns: tuple[str, ...]) -> bool:
    text = os.fsdecode(path)
    return any(text == pattern or fnmatchcase(text, pattern) for pattern in patterns)


def _walk_directory(state: _State, path: bytes, status: os.stat_result) -> Iterator[Entry]:
    yield _entry(state, path, status)
    directory = os.fsencode(state.root) + (b"/" + path if path else b"")
    names: set[bytes] = set()
    if os.fsdecode(path) not in state.emptied:
        names = set(os.listdir(directory))  # noqa: PTH208 (bytes, as the disk has them)
    added = state.additions.get(path, {})
    for name in sorted(names | added.keys()):
        child = path + b"/" + name if path else name
        if b"\n" in name or b"\r" in name:
            raise InputError(f"the name {child!r} in the root tree holds a line break", "remove that file")
        addition = added.get(name)
        if addition is None and _matches(child, state.excluded):
            continue
        try:
            child_status: os.stat_result | None = os.lstat(directory + b"/" + name)
        except (FileNotFoundError, NotADirectoryError):
            child_status = None
        if child_status is not None and stat.S_ISDIR(child_status.st_mode):
            yield from _walk_directory(state, child, child_status)
        elif addition is not None:
            yield from _added(state, child, addition)
        elif child_status is not None and stat.S_IFMT(child_status.st_mode) in _KINDS:
            yield _entry(state, child, child_status)


def _added(state: _State, path: bytes, addition: Addition) -> Iterator[Entry]:
    if addition.content is not None:
        yield Entry(path, Kind.FILE, addition.mode, mtime=state.latest, size=len(addition.content),
                    content=addition.content)  # fmt: skip
    elif addition.target is not None:
        target = os.fsencode(addition.target)
        yield Entry(path, Kind.SYMLINK, 0o777, mtime=state.latest, size=len(target), target=target)
    else:
        yield Entry(path, Kind.DIRECTORY, addition.mode, mtime=state.latest)
        for name, below in sorted(state.additions.get(path, {}).items()):
            yield from _added(state, path + b"/" + name, below)


def _entry(state: _State, path: bytes, status: os.stat_result) -> Entry:
    source = state.root / os.fsdecode(path)
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    key = (status.st_dev, status.st_ino)
    same_as: bytes | None = None
    empty = kind is Kind.FILE and _matches(path, state.emptied)
    if kind is Kind.FILE and status.st_nlink > 1 and not empty:
        same_as = state.first_path.setdefault(key, path)
        state.link_count[key] = state.link_count.get(key, 0) + 1
    return Entry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=min(int(status.st_mtime), state.latest),
        size=status.st_size if kind in (Kind.FILE, Kind.SYMLINK) and not empty else 0,
        source=None if empty else source,
        content=b"" if empty else None,
        target=os.fsencode(source.readlink()) if kind is Kind.SYMLINK else b"",
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        links=2 if same_as is not None else 1,
        same_as=None if same_as in (None, path) else same_as,
        attributes=() if kind is Kind.SYMLINK else _attributes(source),
    )


def _attributes(source: Path) -> tuple[tuple[str, bytes], ...]:
    """File capabilities, labels and access lists; user attributes are the host's business."""
    names = os.listxattr(source, follow_symlinks=False)
    wanted = sorted(name for name in names if name.startswith(("security.", "system.posix_acl_")))
    return tuple((name, os.getxattr(source, name, follow_symlinks=False)) for name in wanted)
