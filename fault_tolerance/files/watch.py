"""What happens in the trees, from the kernel: inotify(7) by way of inotify_simple."""

from __future__ import annotations

import logging
import os
import select
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import StorageError
from fault_tolerance.files.pending import Pending
from fault_tolerance.files.trees import OURS, Tree, files_below

if TYPE_CHECKING:
    from inotify_simple import Event

log = logging.getLogger(__name__)


@dataclass
class _Watched:
    tree: Tree
    pending: Pending
    # Files in each directory, to know how many went with one that was moved away.
    counts: dict[str, int] = field(default_factory=dict)


class Watch:
    """Watches trees from `add` to `close`; `read` is called by one thread, `lock` guards the pendings.

    Raises StorageError when the kernel gives no watch. `overflow` is called when events were lost: then only
    a full pass knows.
    """

    def __init__(self, overflow: Callable[[], None]) -> None:
        from inotify_simple import INotify, flags

        self._flags = flags
        self._mask = (
            flags.CLOSE_WRITE
            | flags.CREATE
            | flags.DELETE
            | flags.MOVED_FROM
            | flags.MOVED_TO
            | flags.ATTRIB
            | flags.ONLYDIR
            | flags.DONT_FOLLOW
            | flags.EXCL_UNLINK
        )
        self._overflow = overflow
        try:
            self._inotify = INotify()
        except OSError as error:
            raise StorageError(
                f"the replicated trees cannot be watched: {os.strerror(error.errno or 0)}",
                "raise fs.inotify.max_user_instances",
            ) from error
        self._places: dict[int, tuple[_Watched, str]] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        # The last rename that began in a tree: its cookie, and how many files were counted as lost.
        self._moved = (0, 0)

    def add(self, tree: Tree, pending: Pending) -> None:
        """Watch all directories of a tree and count its files. Raises StorageError."""
        watched = _Watched(tree, pending)
        pending.files = 0
        self._watch(watched, "")
        for name, directory in files_below(tree.path):
            if directory:
                self._watch(watched, name)
            else:
                pending.files += 1
                parent = name.rpartition("/")[0]
                watched.counts[parent] = watched.counts.get(parent, 0) + 1

    def ready(self, limit_seconds: float) -> bool:
        """Wait for events; whether there are any. Raises OSError or ValueError once it is closed."""
        readable, _, _ = select.select([self._inotify.fileno()], [], [], limit_seconds)
        return bool(readable)

    def read(self, limit_seconds: float) -> bool:
        """Note what the events say; whether there were any."""
        events = self._inotify.read(timeout=round(limit_seconds * 1000))
        for event in events:
            self._note(event, time.monotonic())
        return bool(events)

    def close(self) -> None:
        """Forget everything."""
        self._inotify.close()

    def _watch(self, watched: _Watched, inside: str) -> None:
        try:
            number = self._inotify.add_watch(watched.tree.path / inside, self._mask)
        except (FileNotFoundError, NotADirectoryError):
            return  # it is gone again; its parent tells
        except OSError as error:
            raise StorageError(
                f"{watched.tree.path} cannot be watched: {os.strerror(error.errno or 0)}",
                "raise fs.inotify.max_user_watches",
            ) from error
        self._places[number] = (watched, inside)
        self._numbers[watched.tree.name, inside] = number
        watched.counts.setdefault(inside, 0)

    def _note(self, event: Event, now: float) -> None:
        flags = self._flags
        if event.mask & flags.Q_OVERFLOW:
            log.warning("the kernel dropped events of the replicated trees: they are compared as a whole")
            self._overflow()
            return
        if event.mask & flags.IGNORED:
            self._places.pop(event.wd, None)
            return
        place = self._places.get(event.wd)
        if place is None or not event.name or event.name.startswith(OURS):
            return
        watched, inside = place
        name = f"{inside}/{event.name}".lstrip("/")
        if event.mask & flags.ISDIR:
            self._directory(watched, name, event, now)
        else:
            self._file(watched, inside, name, event, now)

    def _file(self, watched: _Watched, inside: str, name: str, event: Event, now: float) -> None:
        flags, pending, mask = self._flags, watched.pending, event.mask
        if mask & (flags.DELETE | flags.MOVED_FROM):
            watched.counts[inside] = max(0, watched.counts.get(inside, 0) - 1)
            self._moved = (event.cookie, pending.note_gone(name, now))
        elif mask & (flags.CREATE | flags.MOVED_TO):
            watched.counts[inside] = watched.counts.get(inside, 0) + 1
            if mask & flags.MOVED_TO or _is_whole(watched.tree.path / name):
                pending.note_changed(name, now, new=1, back=self._back(event))
            else:
                pending.note_born(name)
        else:
            pending.note_changed(name, now)

    def _back(self, event: Event) -> int:
        """How many files were counted as lost when this rename began."""
        cookie, counted = self._moved
        return counted if event.cookie and event.cookie == cookie else 0

    def _directory(self, watched: _Watched, name: str, event: Event, now: float) -> None:
        flags, pending, mask = self._flags, watched.pending, event.mask
        if mask & (flags.DELETE | flags.MOVED_FROM):
            below = [path for path in watched.counts if path == name or path.startswith(f"{name}/")]
            lost = sum(watched.counts.pop(path) for path in below)
            for path in below:
                number = self._numbers.pop((watched.tree.name, path), None)
                if number is not None:
                    self._places.pop(number, None)
                    if mask & flags.MOVED_FROM:
                        self._forget(number)
            self._moved = (event.cookie, pending.note_gone(name, now, lost=lost))
            return
        pending.note_changed(name, now, back=self._back(event))
        if mask & (flags.CREATE | flags.MOVED_TO):
            self._new_directory(watched, name, now)

    def _new_directory(self, watched: _Watched, name: str, now: float) -> None:
        """Watch it first and look into it then, so that nothing falls in between."""
        self._watch(watched, name)
        top: Path = watched.tree.path / name
        for inside, directory in files_below(top):
            path = f"{name}/{inside}"
            if directory:
                self._watch(watched, path)
                watched.pending.note_changed(path, now)
                continue
            parent = path.rpartition("/")[0]
            watched.counts[parent] = watched.counts.get(parent, 0) + 1
            watched.pending.note_changed(path, now, new=1)

    def _forget(self, number: int) -> None:
        try:
            self._inotify.rm_watch(number)
        except OSError:
            return  # the kernel forgot it already


def _is_whole(path: Path) -> bool:
    """Whether a new entry has its contents at once: a link. A file gets them until it is closed."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return not stat.S_ISREG(found.st_mode) or found.st_nlink > 1
