"""A database that cannot start any more: when that is certain, and what becomes of it.

After a power loss MariaDB can refuse its own log, at every start anew. A slave then takes a copy of its
peer's database. What it had cannot be read, so all of it is kept: a mark in the data directory travels with
it when the copy takes its place, and has it named `data.kept-TIME` where others are thrown away. The same
becomes of one that has transactions of its own in a log that cannot be read to its end.
"""

from __future__ import annotations

import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from daemon.errors import UnavailableError
from daemon.files import write_file
from daemon.run import run
from fault_tolerance.database.evidence import lacking
from fault_tolerance.database.gtid import GtidState
from fault_tolerance.database.look import FRESH_SECONDS, Said
from fault_tolerance.database.session import session

MARK = "centralino-keep"
NAME = "data.kept-%Y%m%dT%H%M%SZ"
# Each start that ends by itself with an error brings this closer, a server that is alive puts it off: a long
# recovery is work, and one that hangs is ended by supervision. A minute, because what passes by itself has
# passed by then; and a copy in vain costs nothing but its room.
REFUSING_SECONDS, REFUSED_STARTS = 60.0, 3
# A copy that did not help will not help soon either; one that has replaced nothing may be tried again.
COPY_AGAIN_SECONDS, COPY_RETRY_SECONDS = 3600.0, 60.0
ASK_SECONDS, ASK_LIMIT_SECONDS = 2.0, 5.0
COMPARE_AGAIN_SECONDS = 10.0
# By these it ended itself; what ends it by another one is somebody else. From 200 on systemd speaks, not it.
OWN_SIGNALS = frozenset({signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV})
SYSTEMD_STATUS = 200
WAY_OUT = (
    "its starts fail: after a minute of that, and at most once an hour, a copy of the peer's takes its place"
    " and what it was is kept (at once: centralino replication start --what db)"
)
MASTER_WAY_OUT = (
    "its starts fail: after a minute of that the peer serves, if it holds all that the log of changes"
    " here does"
)
MASTER_LACKS = (
    "; it lacks {} transactions: repair the database here, or go on without them by dissolving the pair there"
    " (centralino fault-tolerance unpair)"
)


class Wreck:
    """Counts the starts that failed since the server answered last. `lacks` is how many transactions of a
    master's log its peer does not hold, None while unknown."""

    def __init__(self, unit: str, data: Path) -> None:
        self._unit, self._data = unit, data
        self.not_before = 0.0
        self.answered()

    def answered(self) -> None:
        """It runs."""
        self._since: float | None = None
        self._ask_at = self._compare_at = 0.0
        self._refused: frozenset[str] = frozenset()
        self.lacks: int | None = None

    def sentence(self, *, master: bool) -> str:
        """What will be done about it, "" while nothing says that its starts fail."""
        if not self._refused:
            return ""
        if not master:
            return WAY_OUT
        return MASTER_WAY_OUT + (MASTER_LACKS.format(self.lacks) if self.lacks else "")

    def told(self) -> dict[str, object]:
        """For the peer."""
        return {} if self.lacks is None else {"lacks": self.lacks}

    def judge(self, now: float, said: Said | None) -> bool:
        """Whether only a copy helps, and the peer serves and can give one; asked while nobody answers here,
        and true at most once an hour.

        Raises CommandFailedError if systemd does not say.
        """
        if not self._certain(now) or said is None or not said.serves(now) or now < self.not_before:
            return False
        self.not_before = now + COPY_AGAIN_SECONDS
        return True

    def compare(self, now: float, said: Said | None, peer: GtidState) -> None:
        """Find out whether the peer, which stands at `peer`, holds all that a master's log holds: then it can
        serve in its place.

        Raises CommandFailedError if systemd does not say or mariadb-binlog is missing.
        """
        here = said is not None and said.answers and not said.writable and now - said.moment <= FRESH_SECONDS
        if self.lacks == 0 or not self._certain(now) or not here or now < self._compare_at:
            return
        self._compare_at = now + COMPARE_AGAIN_SECONDS
        self.lacks = lacking(self._data, peer)

    def _certain(self, now: float) -> bool:
        """Whether it will not start any more, as far as anybody can tell; asks every few seconds."""
        if self._since is None:
            self._since = now
        if now < self._ask_at:
            return False
        self._ask_at = now + ASK_SECONDS
        unit = ask(self._unit)
        if unit.refused:
            self._refused |= {unit.ended}
        lasts = now - self._since >= REFUSING_SECONDS and len(self._refused) >= REFUSED_STARTS
        return lasts and not unit.alive


@dataclass(frozen=True)
class Unit:
    """What systemd knows of the server: whether its process is there, and when and how the last one ended."""

    alive: bool
    ended: str
    refused: bool


def ask(unit: str) -> Unit:
    """Raises CommandFailedError."""
    names = "MainPID", "ExecMainExitTimestampMonotonic", "ExecMainCode", "ExecMainStatus"
    words = ["systemctl", "show", f"--property={','.join(names)}", unit]
    return parse(run(words, limit_seconds=ASK_LIMIT_SECONDS).output)


def parse(text: str) -> Unit:
    """Source: org.freedesktop.systemd1(5); ExecMainCode is the si_code of sigaction(2): 1 exited, 2 killed,
    3 dumped."""
    found = dict(line.partition("=")[::2] for line in text.splitlines())
    code, status = found.get("ExecMainCode", "0"), int(found.get("ExecMainStatus") or 0)
    refused = 0 < status < SYSTEMD_STATUS if code == "1" else code in ("2", "3") and status in OWN_SIGNALS
    return Unit(found.get("MainPID", "0") != "0", found.get("ExecMainExitTimestampMonotonic", ""), refused)


def answers(socket: Path) -> bool:
    """Whether the server lets anybody in."""
    with suppress(UnavailableError), session(socket, ASK_LIMIT_SECONDS):
        return True
    return False


def mark(data: Path, *, keep: bool) -> None:
    """Have a data directory kept when a copy takes its place, or not. Raises StorageError."""
    if keep and data.is_dir():
        write_file(data / MARK, "This database, or its log of changes, could not be read any more.\n")
    else:
        (data / MARK).unlink(missing_ok=True)


def put_away(old: Path) -> None:
    """What a copy has replaced is thrown away, or kept if it is marked."""
    if (old / MARK).exists():
        old.rename(old.with_name(time.strftime(NAME, time.gmtime())))
    else:
        shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Kept:
    """What waits for a person: transactions of this node alone as SQL, a database that could not be read."""

    file: Path | None = None
    directory: Path | None = None

    @property
    def place(self) -> str:
        """The newest, "" for none."""
        return str(self.file or self.directory or "")

    def sentence(self) -> str:
        """What an alarm says of it, "" for nothing."""
        told = []
        if self.file is not None:
            told.append(
                f"transactions that this node alone had were kept in {self.file}; look, and take the file"
                " away"
            )
        if self.directory is not None:
            told.append(
                "this node's database could not start any more, or its log not be read, and a copy of the"
                f" peer's took its place; what it was is kept in {self.directory} and may hold transactions"
                f" that the peer never got; look, and take it away: rm -r {self.directory}"
            )
        return "; ".join(told)


def find(evidence: Path, home: Path) -> Kept:
    """What is kept now."""
    return Kept(max(evidence.glob("*.sql"), default=None), max(home.glob("data.kept-*"), default=None))
