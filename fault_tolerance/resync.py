"""The replication job of an administrator (S-FT-07): a full resynchronization, watched from outside.

It lives in the role runtime, so that it goes on when centralinod restarts; there is one at a time.
"""

from __future__ import annotations

import logging
import threading
from enum import StrEnum

from daemon.errors import CancelledError, CentralinoError, ConflictError, InvalidSettingsError, Problem
from fault_tolerance.contracts import DatabaseReplica, FileReplica

log = logging.getLogger(__name__)

DATABASE_SHARE = 0.5


class What(StrEnum):
    """What is copied anew."""

    DATABASE = "db"
    FILES = "files"
    ALL = "all"


class Resync:
    """`start`, `state` and `cancel` return at once."""

    def __init__(self, database: DatabaseReplica, files: FileReplica) -> None:
        self._database = database
        self._files = files
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._progress: float | None = None
        self._text = ""
        self._error: CentralinoError | None = None
        self._done = False

    def start(self, what: str, *, role: str, accept_deletions: bool = False) -> dict[str, object]:
        """Begin. Raises InvalidSettingsError, or ConflictError when one runs or the role has no such copy."""
        try:
            wanted = What(what)
        except ValueError:
            problem = Problem("what", f"{what[:32]!r} is nothing that is replicated", "use db, files or all")
            raise InvalidSettingsError([problem]) from None
        if role == "master" and wanted is What.DATABASE:
            raise ConflictError(
                "this node is master: its database is the one that is copied", "run it on the slave"
            )
        if role not in ("master", "slave"):
            raise ConflictError(f"this node is {role}, neither master nor slave", "see: centralino why")
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise ConflictError("a resynchronization runs already", "see: centralino replication status")
            self._cancelled.clear()
            self._progress, self._text, self._error, self._done = None, "starting", None, False
            self._thread = threading.Thread(
                target=self._run, args=(wanted, role, accept_deletions), name="resync", daemon=True
            )
            self._thread.start()
        return self.state()

    def state(self) -> dict[str, object]:
        """`running`, `progress` (0..1 or None), `message`, `done`, `error` (None or a sentence)."""
        running = self._thread is not None and self._thread.is_alive()
        error = self._error
        return {
            "running": running,
            "progress": self._progress,
            "message": self._text,
            "done": self._done,
            "error": None if error is None else error.message,
            "remedy": "" if error is None else error.remedy,
        }

    def cancel(self) -> None:
        """End it at its next step; what this node has stays."""
        self._cancelled.set()

    def _run(self, what: What, role: str, accept_deletions: bool) -> None:
        begin, end = 0.0, 1.0

        def progress(share: float | None, text: str) -> None:
            if self._cancelled.is_set():
                raise CancelledError("the resynchronization was cancelled", "start it again any time")
            self._progress = None if share is None else begin + share * (end - begin)
            self._text = text

        try:
            if what is not What.FILES and role == "slave":
                end = DATABASE_SHARE if what is What.ALL else 1.0
                self._database.seed_from_peer(progress)
            if what is not What.DATABASE:
                begin, end = (DATABASE_SHARE, 1.0) if what is What.ALL and role == "slave" else (0.0, 1.0)
                self._files.resynchronize(progress, accept_deletions)
            self._progress, self._text, self._done = 1.0, "everything is equal to the master", True
        except CentralinoError as error:
            log.warning("the resynchronization ended: %s", error)
            self._error = error
        except Exception as error:
            log.exception("the resynchronization failed")
            self._error = CentralinoError(f"internal error: {error}", "see the journal")
