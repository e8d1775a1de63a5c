"""A node that has MongoDB beside MariaDB: `contracts.DatabaseReplica` for the two of them.

MariaDB decides when a node may take over and is what a promotion waits for; callers must not wait for
MongoDB, which is promoted beside and tried again until it is primary. A demotion waits for both: a node that
cannot prove that neither takes writes must not go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from daemon.errors import CentralinoError, UnavailableError
from fault_tolerance.contracts import DatabaseReplica, Progress, ReplicaState, nothing
from fault_tolerance.database.mongo import MongoDb

LOOK_SECONDS = 5.0
RETRY_SECONDS = 1.0
# An attempt of the keeper is short, because a demotion waits for its turn behind it; an election may take
# longer than that, and is not to be disturbed by the next attempt.
ATTEMPT_SECONDS = 1.0
ELECTION_SECONDS = 12.0
SPARE_SECONDS = 1.0

log = logging.getLogger(__name__)


class BothDatabases:
    """See the module's text. Orders may come from any thread."""

    def __init__(
        self,
        relational: DatabaseReplica,
        documents: MongoDb,
        stop: Callable[[], None],
        start: Callable[[], None],
    ) -> None:
        """`stop` ends MongoDB for certain or raises CentralinoError, `start` has it run; either may be
        repeated."""
        self._relational = relational
        self._documents = documents
        self._stop, self._start = stop, start
        self._stopped = False
        self._patient_until = 0.0
        self._turn = threading.Lock()
        self._writable = False
        self._text = "MongoDB has not been asked yet"
        self._trouble = ""
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="mongodb-keeper", daemon=True)
        self._keeper.start()

    def make_writable(
        self, limit_seconds: float, not_before: float = 0.0, ready: Callable[[], None] = nothing
    ) -> None:
        """See the contract; MongoDB follows as soon as MariaDB is open."""
        self._relational.make_writable(limit_seconds, not_before, ready)
        self._writable, self._patient_until = True, 0.0
        self._wake.set()

    def make_read_only(self, limit_seconds: float) -> None:
        """See the contract. Raises what either raises, after both were tried; a MongoDB that does not step
        down, or does not answer, is stopped."""
        self._writable = False
        trouble: list[CentralinoError] = []

        def step_down() -> None:
            try:
                with self._turn:
                    self._documents.make_read_only(limit_seconds / 2)
            except CentralinoError as error:
                log.error("%s; it is stopped", error)
                try:
                    self._stop()
                    self._stopped = True
                except CentralinoError as second:
                    trouble.append(second)

        other = threading.Thread(target=step_down, name="mongodb-step-down", daemon=True)
        other.start()
        try:
            self._relational.make_read_only(limit_seconds)
        finally:
            other.join(limit_seconds + SPARE_SECONDS)
        if other.is_alive():
            raise UnavailableError(f"MongoDB did not step down within {limit_seconds:g} s")
        if trouble:
            raise trouble[0]

    def follow(self, limit_seconds: float) -> None:
        """See the contract. The new master's configuration names this node: MongoDB follows by itself."""
        self._writable = False
        self._wake.set()
        self._relational.follow(limit_seconds)

    def position(self) -> int:
        """See the contract."""
        return self._relational.position()

    def state(self) -> ReplicaState:
        """See the contract; MongoDB is no obstacle, but what is wrong with it is an alarm."""
        found = self._relational.state()
        alarm = "; ".join(text for text in (found.alarm, self._trouble) if text)
        return replace(found, detail=f"{found.detail}; {self._trouble or self._text}", alarm=alarm)

    def seed_from_peer(self, progress: Progress) -> None:
        """See the contract; a member of a replica set copies what it lacks by itself."""
        self._relational.seed_from_peer(progress)

    def heartbeat(self) -> dict[str, object]:
        """See the contract."""
        return self._relational.heartbeat()

    def heard(self, facts: dict[str, object]) -> None:
        """See the contract."""
        self._relational.heard(facts)

    def serve_argv(self, words: Sequence[str]) -> list[str]:
        """See the contract."""
        return self._relational.serve_argv(words)

    def close(self) -> None:
        """See the contract."""
        self._ended.set()
        self._wake.set()
        self._relational.close()
        self._keeper.join(SPARE_SECONDS)

    def _keep(self) -> None:
        wait = 0.0
        while not self._ended.is_set():
            self._wake.wait(wait)
            self._wake.clear()
            if self._ended.is_set():
                return
            try:
                with self._turn:
                    wait = self._look()
            except CentralinoError as error:
                if self._trouble != str(error):
                    log.warning("%s", error)
                self._trouble, wait = str(error), RETRY_SECONDS
            except Exception:
                log.exception("MongoDB could not be looked after")
                self._trouble = "MongoDB could not be looked after; see the journal"
                wait = LOOK_SECONDS

    def _look(self) -> float:
        """Bring it to where the role has it; when to look again. A demotion that waits for its turn finds
        `_writable` off."""
        if self._stopped:
            self._start()
            self._stopped = False
        if self._documents.is_primary() is not self._writable:
            now = time.monotonic()
            if not self._writable:
                self._documents.make_read_only(ATTEMPT_SECONDS)
                return RETRY_SECONDS
            if now >= self._patient_until:
                self._documents.claim()
                self._patient_until = now + ELECTION_SECONDS
                self._text, self._trouble = "MongoDB takes over", ""
                return RETRY_SECONDS
            raise UnavailableError("MongoDB is not primary yet", "see: journalctl -u mongod")
        lag = self._documents.lag_seconds()
        shown = (
            "its members do not both answer" if lag is None else f"its slower member is {lag:.0f} s behind"
        )
        self._text, self._trouble = f"MongoDB is {'primary' if self._writable else 'secondary'}, {shown}", ""
        return LOOK_SECONDS
