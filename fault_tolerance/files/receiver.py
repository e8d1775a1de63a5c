"""What a peer may have this node do: run `rsync --server` into a declared tree, in an epoch that is not past.

Every word is held against what our own sender says; the place comes from this node's own list. A process that
receives has a file that names it (door.py), so that a change of role ends what is on its way.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from daemon.errors import NotAuthorizedError
from daemon.files import ensure_directory, write_file
from fault_tolerance.files import door
from fault_tolerance.files.trees import PARTIAL, REMOVED, Markers, Tree

KEPT_SECONDS = 7 * 86400
END_SECONDS = 2.0

# Short options of a receiving server; after `e.` both sides' abilities follow. No `s`: it would hide words.
_SHORT = re.compile(r"-[vnlogDtpcdrRb]+(e[\w.]*)?")
_LONG = re.compile(
    r"--(delete|delete-delay|delete-missing-args|ignore-missing-args|force|dirs|no-r|stats"
    r"|max-delete=\d+|timeout=\d+|bwlimit=\d+|log-format=[%\w ]+|out-format=[%\w ]+|info=[A-Z0-9,]+"
    rf"|partial-dir={re.escape(PARTIAL)}|backup-dir={re.escape(REMOVED)})"
)
_PAIRS = {"--partial-dir": PARTIAL, "--backup-dir": REMOVED}
_TARGET = re.compile(r"(\d{1,18})/([a-z][a-z0-9-]*)/")


class Gate:
    """Who may send to this node. `directory` is below /run."""

    def __init__(self, directory: Path, trees: Sequence[Tree], markers: Markers) -> None:
        self._directory = directory
        self._trees = {tree.name: tree for tree in trees}
        self._markers = markers
        ensure_directory(directory, 0o700)
        self.shut()

    def open(self, epoch: int) -> None:
        """Take what is of this epoch or newer; what an older one has on its way is ended."""
        write_file(self._directory / door.EPOCH_FILE, f"{epoch}\n", mode=0o600)
        self._end(lambda running: running < epoch)

    def shut(self) -> None:
        """Take nothing; what is on its way is ended."""
        write_file(self._directory / door.EPOCH_FILE, f"{door.CLOSED}\n", mode=0o600)
        self._end(lambda _running: True)

    def argv(self, words: Sequence[str]) -> list[str]:
        """The program for the peer's words. Raises NotAuthorizedError or SourceLostError."""
        options, epoch, name = parse(words)
        allowed(self._directory, epoch)
        if name not in self._trees:
            raise NotAuthorizedError(
                f"this node has no tree {name!r}", "install the same version on both nodes"
            )
        tree = self._trees[name]
        if not self._markers.is_present(tree):
            ensure_directory(tree.path, 0o755)
        self._markers.check(tree)
        program = [sys.executable, "-I", "-S", door.__file__, str(self._directory), str(epoch)]
        return [*program, "rsync", "--server", *options, ".", f"{tree.path}/"]

    def _end(self, which: Callable[[int], bool]) -> None:
        for file, process, epoch in running(self._directory):
            if which(epoch):
                _end_process(process)
                file.unlink(missing_ok=True)


def parse(words: Sequence[str]) -> tuple[list[str], int, str]:
    """The options, epoch and tree of `rsync --server OPTIONS . EPOCH/TREE/`. Raises NotAuthorizedError."""
    if len(words) < 4 or list(words[:2]) != ["rsync", "--server"] or words[-2] != ".":
        raise NotAuthorizedError("the peer did not ask to send files")
    target = _TARGET.fullmatch(words[-1])
    if target is None:
        raise NotAuthorizedError("the peer named no tree")
    options = list(words[2:-2])
    value_of = ""
    for word in options:
        if value_of:
            if word != _PAIRS[value_of]:
                raise NotAuthorizedError(f"the peer may not use {value_of} {word[:80]}")
            value_of = ""
        elif word in _PAIRS:
            value_of = word
        elif not (_SHORT.fullmatch(word) or _LONG.fullmatch(word)):
            raise NotAuthorizedError(f"the peer may not use {word[:80]}")
    if value_of:
        raise NotAuthorizedError(f"the peer may not use {value_of}")
    return options, int(target.group(1)), target.group(2)


def allowed(directory: Path, epoch: int) -> None:
    """Raises NotAuthorizedError for a sender of an older epoch, or when this node takes nothing."""
    if why := door.refusal(str(directory), epoch):
        raise NotAuthorizedError(why)


def running(directory: Path) -> Iterable[tuple[Path, int, int]]:
    """Each process that receives: its file, its number, its epoch."""
    for file in directory.glob(f"{door.PREFIX}*"):
        with suppress(OSError, ValueError):
            yield file, int(file.name.removeprefix(door.PREFIX)), int(file.read_text())


def forget_old(trees: Iterable[Tree], now: float) -> None:
    """Remove for good what was deleted by replication a week ago; the change time tells when."""
    for tree in trees:
        for folder, directories, names in os.walk(tree.path / REMOVED, topdown=False):
            for name in names:
                path = Path(folder) / name
                with suppress(OSError):
                    if path.lstat().st_ctime < now - KEPT_SECONDS:
                        path.unlink()
            for name in directories:
                with suppress(OSError):
                    (Path(folder) / name).rmdir()  # only when nothing is left in it


def _end_process(process: int) -> None:
    for number, seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, END_SECONDS)):
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            try:
                # rsync forks: both halves are in the process group that the door made.
                os.killpg(process, number)
            except ProcessLookupError:
                return
            time.sleep(0.02)
