"""The two moments at which a database changes sides: nothing received is lost, nothing more is written."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from daemon.errors import CentralinoError, CommandFailedError, UnavailableError
from daemon.run import run
from fault_tolerance.database.gtid import parse
from fault_tolerance.database.look import look
from fault_tolerance.database.session import REPLICA_USER, Session, session

APPLY_ROUND_SECONDS = 0.01
# A slave writes to its disk once a second and not with each transaction, else it could not keep up with a
# master whose clients write side by side: what it loses with its power the master still has.
LAZY = ("SET GLOBAL innodb_flush_log_at_trx_commit = 2", "SET GLOBAL sync_binlog = 0")
# A master writes each commit, and what came before the first as well.
DURABLE = (
    "SET GLOBAL innodb_flush_log_at_trx_commit = 1",
    "SET GLOBAL sync_binlog = 1",
    "FLUSH LOCAL ENGINE LOGS",
    "FLUSH LOCAL BINARY LOGS",
)
# A transaction of our own: only one makes the server notice whether somebody can confirm commits.
PULSE = "REPLACE INTO centralino_pair.pulse (one, moment) VALUES (1, NOW(6))"
# How long the server waits for a confirmation before it acknowledges without one. Long, because its clock
# runs on while the machine stands still, and it asks nobody whether this node is master still: the keeper
# does, and gives up sooner (`wait_for_nobody`). Without a keeper the writers wait once for so long.
CONFIRMATION_MILLISECONDS = 60_000
# The server kills a client's session and answers at once; the session ends a moment later.
KILL_ROUND_SECONDS = 0.05
BUSY_SECONDS = 0.5
UNIT_LIMIT_SECONDS = 5.0


def drain(own: Session, deadline: float) -> None:
    """Apply everything that was received, then forget the peer. `deadline` is monotonic.

    Raises CommandFailedError when the replica is broken, UnavailableError when the time is over.
    """
    if not own.rows("SHOW SLAVE STATUS"):
        return
    own.do("STOP SLAVE IO_THREAD")
    while True:
        seen = look(own, time.monotonic(), "-")
        if seen.state.includes(seen.received):
            break
        if not seen.applying:
            raise CommandFailedError(
                f"the replica cannot apply what it has received: {seen.trouble or 'it was stopped'}",
                "run on the slave: centralino replication start --what db",
            )
        if time.monotonic() > deadline:
            missing = seen.received.sequence - seen.state.sequence
            raise UnavailableError(f"{missing} received transactions could not be applied in time")
        time.sleep(APPLY_ROUND_SECONDS)
    own.do("STOP SLAVE", "RESET SLAVE ALL")


def wait_for_nobody(own: Session) -> None:
    """Let commits of a master whose peer is dead not wait for it, nor those that wait already.

    Off and on releases what waits (one that waits holds up all others, also ours). The server finds out with
    our own transaction, in a millisecond; once the peer listens again, commits wait for it as before.
    """
    own.do(
        "SET GLOBAL rpl_semi_sync_master_enabled = OFF",
        "SET GLOBAL rpl_semi_sync_master_timeout = 1",
        "SET GLOBAL rpl_semi_sync_master_enabled = ON",
        PULSE,
        f"SET GLOBAL rpl_semi_sync_master_timeout = {CONFIRMATION_MILLISECONDS}",
    )


def begin_log_anew(own: Session) -> None:
    """Have the log of changes begin here if it lacks what the data hold.

    A slave writes it lazily: after a power loss its end may be gone, while the data are whole. A master with
    such a log would be taken for one that knows less than its peer, and give it a copy again and again.
    """
    logged = parse(own.text("SELECT @@gtid_binlog_state"))
    held = logged.joined(parse(own.text("SELECT @@gtid_slave_pos")))
    if not logged.includes(held):
        own.do("RESET MASTER", f"SET GLOBAL gtid_binlog_state = '{held}'")


def shut(own: Session, socket: Path, deadline: float) -> None:
    """Refuse writes, and prove it. Raises UnavailableError or CommandFailedError.

    Sessions are killed first: what waits for the peer's confirmation must not be acknowledged to its client
    by a node that steps down. A client that comes back at once may commit before the server refuses it, and
    wait for the peer as well; the server closes only after that, so a second session goes on killing.
    """
    spared = own.number("SELECT CONNECTION_ID()")
    closed = threading.Event()

    def kill_latecomers() -> None:
        with suppress(CentralinoError):
            while not closed.wait(KILL_ROUND_SECONDS):
                kill_sessions(other, spared)

    left = deadline - time.monotonic()
    own.do(f"SET SESSION lock_wait_timeout = {max(1, int(left))}")
    with session(socket, max(1.0, left / 2)) as other:
        kill_sessions(other, spared)
        killer = threading.Thread(target=kill_latecomers, name="database-latecomers", daemon=True)
        killer.start()
        try:
            own.do("SET GLOBAL read_only = ON")
        finally:
            closed.set()
            killer.join()
        while kill_sessions(other, spared):
            if time.monotonic() > deadline:
                raise UnavailableError("sessions of the database do not end")
            time.sleep(KILL_ROUND_SECONDS)
    own.do("SET GLOBAL rpl_semi_sync_master_enabled = OFF")
    if own.number("SELECT @@read_only") != 1:
        raise UnavailableError("the database stayed writable")


@contextmanager
def turn_at_last(turn: threading.RLock, socket: Path, limit_seconds: float) -> Iterator[bool]:
    """The turn, or False if whoever has it does not end.

    It takes milliseconds, unless it waits in the server for commits, which wait for the peer: all of them end
    with their sessions.
    """
    taken = turn.acquire(timeout=BUSY_SECONDS)
    if not taken:
        with suppress(CentralinoError), session(socket, limit_seconds) as own:
            kill_sessions(own, spared=0)
        taken = turn.acquire(timeout=limit_seconds)
    try:
        yield taken
    finally:
        if taken:
            turn.release()


def kill_sessions(own: Session, spared: int) -> int:
    """End every session of a client but this one and the `spared` one; how many there were."""
    return _kill(
        own,
        "SELECT ID AS id FROM information_schema.PROCESSLIST WHERE ID NOT IN (CONNECTION_ID(), %s)"
        " AND USER NOT IN ('system user', 'event_scheduler', %s) AND COMMAND <> 'Daemon'",
        spared,
        REPLICA_USER,
    )


def have_listeners_ask_anew(own: Session) -> None:
    """End what the peer has open here: it asks but once, as it connects, whether it is to confirm commits.

    A server that comes back has no confirmations before its keeper has seen it, and the peer may be sooner.
    """
    _kill(own, "SELECT ID AS id FROM information_schema.PROCESSLIST WHERE USER = %s", REPLICA_USER)


def _kill(own: Session, question: str, *values: int | str) -> int:
    """End the sessions that `question` finds."""
    rows = own.rows(question, values)
    for row in rows:
        with suppress(CommandFailedError):  # it ended by itself
            own.do(f"KILL CONNECTION {int(str(row['id']))}")
    return len(rows)


def fence(unit: str, socket: Path, deadline: float) -> None:
    """End a server that does not close; its configuration has it come back read-only.

    Raises UnavailableError if even its end is not certain.
    """
    run(["systemctl", "kill", "--signal=SIGKILL", unit], limit_seconds=UNIT_LIMIT_SECONDS, check=False)
    while time.monotonic() < deadline:
        words = ["systemctl", "show", "--property=ActiveState", "--value", unit]
        if run(words, limit_seconds=UNIT_LIMIT_SECONDS).output.strip() != "active":
            return
        # It may be back already: then it came up read-only, or it is not the one that was killed.
        with suppress(CentralinoError), session(socket, 1) as own:
            if own.number("SELECT @@read_only") == 1:
                return
        time.sleep(KILL_ROUND_SECONDS)
    raise UnavailableError("the database could be neither closed nor killed")
