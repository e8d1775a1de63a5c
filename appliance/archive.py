"""Archives whose bytes depend on contents alone: sorted names, one time stamp, numeric owners."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO


def walk(root: Path) -> Iterator[Path]:
    """Everything below a directory, parents first, each directory's names in byte order."""
    for path in sorted(root.iterdir(), key=lambda entry: entry.name.encode(errors="surrogateescape")):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from walk(path)


def write_tar(
    stream: BinaryIO,
    root: Path,
    epoch: int,
    *,
    prefix: str = "",
    owners: bool = False,
    members: Iterable[Path] | None = None,
    mode: Callable[[tarfile.TarInfo], int] | None = None,
) -> None:
    """Write a directory as a tar (pax; extended attributes are kept).

    No member is younger than `epoch` (Unix time). With `owners` the numeric owners are kept, otherwise all
    is root's and every time is `epoch`. Hard links inside the tree stay hard links.
    """
    seen: dict[tuple[int, int], str] = {}
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path in walk(root) if members is None else members:
            name = f"{prefix}{path.relative_to(root).as_posix()}"
            info = archive.gettarinfo(path, arcname=name)
            if info is None:  # a socket
                continue
            state = path.lstat()
            if info.islnk() or (state.st_nlink > 1 and info.isreg()):
                first = seen.setdefault((state.st_dev, state.st_ino), name)
                info.type, info.linkname = (
                    (tarfile.REGTYPE, "") if first == name else (tarfile.LNKTYPE, first)
                )
                info.size = state.st_size if first == name else 0
            info.uname = info.gname = ""
            if not owners:
                info.uid = info.gid = 0
            info.mtime = min(int(state.st_mtime), epoch) if owners else epoch
            if mode is not None:
                info.mode = mode(info)
            info.pax_headers = _extended_attributes(path) if owners else {}
            if info.isreg():
                with path.open("rb") as source:
                    archive.addfile(info, source)
            else:
                archive.addfile(info)


def _extended_attributes(path: Path) -> dict[str, str]:
    """File capabilities and the like, as GNU tar and libarchive write them."""
    values = {name: os.getxattr(path, name, follow_symlinks=False) for name in _attribute_names(path)}
    return {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in values.items()
    }


def _attribute_names(path: Path) -> list[str]:
    names = os.listxattr(path, follow_symlinks=False)
    return sorted(name for name in names if name.startswith(("security.capability", "user.")))
