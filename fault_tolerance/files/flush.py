"""What rsync received reaches the disk at once: it leaves that to the kernel, which may take half a minute.

A node that loses its power meanwhile would come back without files that its peer was told are here; if it is
master then, they would be deleted at the peer, too. rsync 3.1.3 cannot flush by itself.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0


def flush(folders: Sequence[Path]) -> None:
    """Write out the file systems of those folders that exist, each once; a failure is logged."""
    library = ctypes.CDLL(None, use_errno=True)
    done: set[int] = set()
    for folder in folders:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # a tree that is not there yet
        try:
            device = os.fstat(descriptor).st_dev
            if device not in done and library.syncfs(descriptor) != 0:
                log.warning("what was received below %s: %s", folder, os.strerror(ctypes.get_errno()))
            done.add(device)
        finally:
            os.close(descriptor)


class Flusher:
    """Flushes once a second while something arrives. `busy` says whether something is arriving now."""

    def __init__(self, folders: Sequence[Path], busy: Callable[[], bool]) -> None:
        self._folders = folders
        self._busy = busy
        self._arrived = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="files-flush", daemon=True).start()

    def note(self) -> None:
        """Something begins to arrive."""
        self._arrived.set()

    def end(self) -> None:
        """No more."""
        self._ended.set()
        self._arrived.set()

    def _run(self) -> None:
        while True:
            self._arrived.wait()
            if self._ended.wait(INTERVAL_SECONDS):
                return
            # Asked before the flush: what ends during it is flushed the next time.
            if not self._busy():
                self._arrived.clear()
            flush(self._folders)
