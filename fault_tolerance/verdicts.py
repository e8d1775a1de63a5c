"""The two files that keepalived tracks: written before they are needed, so nothing waits for Python later.

Written in place and never truncated: one digit over one digit, so a reader sees the old or the new one, and
keepalived (all versions) is told by the kernel when the file is closed.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from fault_tolerance.pair import VRRP_RUN

log = logging.getLogger(__name__)


class Verdicts:
    """Starts closed: this node may not hold the addresses and does not serve."""

    def __init__(self, directory: Path = VRRP_RUN) -> None:
        self._verdict = directory / "verdict"
        self._serving = directory / "serving"
        self._written: dict[Path, str] = {}

    def adopt(self) -> None:
        """Make files that are not there; those of a runtime before this one stay until they are written."""
        self._verdict.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        for path, closed in ((self._verdict, "1"), (self._serving, "0")):
            if not path.exists():
                self._put(path, closed)

    def write(self, *, may_hold: bool, serving: bool | None = None) -> bool:
        """True when something changed; `serving` None leaves the priority as it is."""
        changed = self._put(self._verdict, "0" if may_hold else "1")
        if serving is None:
            return changed
        return self._put(self._serving, "1" if serving else "0") or changed

    def _put(self, path: Path, digit: str) -> bool:
        if self._written.get(path) == digit:
            return False
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(handle, f"{digit}\n".encode(), 0)
        finally:
            os.close(handle)
        self._written[path] = digit
        return True


def close_files(directory: Path = VRRP_RUN) -> None:
    """For a node that leaves its pair."""
    with contextlib.suppress(OSError):
        Verdicts(directory).write(may_hold=False, serving=False)
