"""Writes a small state file from a thread of its own, so that a disk that stalls or is full stalls nobody."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from daemon.errors import StorageError
from daemon.files import write_file

RETRY_SECONDS = 30.0

log = logging.getLogger(__name__)


class LaterWriter:
    """The file holds the newest text soon after `put`; texts in between may be skipped, none is torn.

    While the disk refuses, the newest text is kept and tried again every RETRY_SECONDS.
    """

    def __init__(self, file: Path, mode: int = 0o600) -> None:
        self._file = file
        self._mode = mode
        self._changed = threading.Condition()
        self._text: str | None = None
        self._busy = False
        self._thread: threading.Thread | None = None

    def put(self, text: str) -> None:
        """Have `text` written; returns at once."""
        with self._changed:
            self._text = text
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"write {self._file.name}", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def flush(self, limit_seconds: float) -> bool:
        """Wait until the newest text is on disk; false if it is not within the limit."""
        with self._changed:
            return self._changed.wait_for(lambda: self._text is None and not self._busy, limit_seconds)

    def _run(self) -> None:
        refused = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._text is not None)
                text, self._text, self._busy = self._text or "", None, True
            try:
                write_file(self._file, text, mode=self._mode)
            except StorageError as error:
                if not refused:
                    log.error("%s; it is tried again until it succeeds", error)
                refused = True
            else:
                refused = False
            with self._changed:
                if refused and self._text is None:
                    self._text = text
                self._busy = False
                self._changed.notify_all()
                if refused:
                    self._changed.wait(RETRY_SECONDS)
