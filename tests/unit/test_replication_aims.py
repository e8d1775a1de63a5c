"""Who wins when orders meet: a database that is being opened while the node is told to step down."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import pytest

from daemon.errors import UnavailableError
from fault_tolerance.database import closing, replica
from fault_tolerance.database.closing import CONFIRMATION_MILLISECONDS, PULSE
from fault_tolerance.database.door import begun
from fault_tolerance.database.look import GIVE_UP_SECONDS, Aim, Look
from fault_tolerance.database.replica import COPY_SILENCE_SECONDS, DOUBT_SECONDS, MariaDb
from fault_tolerance.database.server import Server
from fault_tolerance.database.session import Row, Session
from fault_tolerance.database.stuck import Stuck
from fault_tolerance.view import Obstacle


class Channel:
    def command(self, channel: object, words: Sequence[str] = ()) -> list[str]:
        return ["true", str(channel), *words]

    def remote_shell(self, channel: object) -> list[str]:
        return ["true"]


class Statements:
    """A session that does nothing but remember."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def do(self, *statements: str) -> None:
        self.done += statements

    def rows(self, statement: str, values: tuple[object, ...] = ()) -> list[Row]:
        return []

    def text(self, statement: str) -> str:
        return "" if "gtid" in statement else "a lineage"


@pytest.fixture
def part(tmp_path: Path) -> Iterator[MariaDb]:
    """No server answers: the keeper finds nothing to do."""
    (tmp_path / "etc").mkdir()
    server = Server(
        socket=tmp_path / "none.sock",
        home=tmp_path / "home",
        configuration=tmp_path / "etc",
        unit="mariadb.service",
        owner="nobody",
        owner_id=os.getuid(),
        user=1,
        group=1,
        number=7,
        state=tmp_path / "state",
        run=tmp_path / "run",
    )
    made = MariaDb(server, Channel())
    yield made
    made.close()


def opened(part: MariaDb, aim: Aim) -> list[str]:
    own = Statements()
    try:
        part._open(cast(Session, own), time.monotonic() + 1, aim)
    except UnavailableError:
        assert "SET GLOBAL read_only = OFF" not in own.done
    return own.done


def test_an_opening_ends_when_the_aim_is_another_one(part: MariaDb) -> None:
    part._aim = Aim.READ_ONLY  # what a demotion does before its turn
    assert "SET GLOBAL read_only = OFF" not in opened(part, Aim.WRITABLE)
    part._aim = Aim.WRITABLE
    assert "SET GLOBAL read_only = OFF" in opened(part, Aim.WRITABLE)


def test_the_first_commit_waits_only_for_a_peer_that_hands_over(part: MariaDb) -> None:
    part._aim = Aim.WRITABLE
    short = "SET GLOBAL rpl_semi_sync_master_timeout = 1"
    heard = {"answers": True, "sequence": 1, "writable": True}
    for said in ({}, heard):  # never met, or dead with its last word that it serves
        part.heard(said)
        done = opened(part, Aim.WRITABLE)
        # What waits already would hold up the pulse.
        switch = "SET GLOBAL rpl_semi_sync_master_enabled = "
        patient = f"{short[:-1]}{CONFIRMATION_MILLISECONDS}"
        assert done[-5:] == [f"{switch}OFF", short, f"{switch}ON", PULSE, patient]
        assert "SET GLOBAL read_only = OFF" in done[:-5]
    part.heard({**heard, "writable": False})
    assert short not in opened(part, Aim.WRITABLE)


class Replica(Statements):
    """One that receives the peer's last transactions while it is asked."""

    def __init__(self, received: list[int], *, receiving: bool = True) -> None:
        super().__init__()
        self.received = received
        self.receiving = receiving
        self.asked = 0

    def variables(self, _pattern: str) -> dict[str, str]:
        return {"Slave_running": "ON" if self.receiving else "OFF"}

    def rows(self, statement: str, values: tuple[object, ...] = ()) -> list[Row]:
        self.asked += 1
        if statement != "SHOW SLAVE STATUS":
            return [{"ro": "1", "state": "", "applied": "", "semi": "0", "confirms": "1"}]
        newest = self.received.pop(0) if len(self.received) > 1 else self.received[0]
        io = "Yes" if self.receiving else "No"
        return [{"Gtid_IO_Pos": f"0-1-{newest}", "Slave_IO_Running": io, "Slave_SQL_Running": "Yes"}]


def test_a_promotion_waits_for_what_the_peer_had_when_it_closed(part: MariaDb) -> None:
    part.heard({"answers": True, "sequence": 7, "writable": True})
    part._receive_the_rest(cast(Session, Replica([5])))  # it has not closed: nothing to wait for
    part.heard({"answers": True, "sequence": 7, "writable": False})
    replica = Replica([5, 6, 7])
    part._receive_the_rest(cast(Session, replica))
    assert replica.received == [7]
    with pytest.raises(UnavailableError, match="not all of its transactions"):
        part._receive_the_rest(cast(Session, Replica([6], receiving=False)))
    with pytest.raises(UnavailableError, match="not all of its transactions"):
        part._receive_the_rest(cast(Session, Replica([6])))
    # From here on the role machine knows that this node is behind.
    part._receive_the_rest(cast(Session, Replica([6])))


def test_a_master_is_durable_before_it_takes_a_write(part: MariaDb) -> None:
    part._aim = Aim.WRITABLE
    done = opened(part, Aim.WRITABLE)
    assert done.index("SET GLOBAL sync_binlog = 1") < done.index("SET GLOBAL read_only = OFF")
    assert done.index("FLUSH LOCAL BINARY LOGS") < done.index("SET GLOBAL read_only = OFF")


def test_a_database_is_ready_before_it_is_open_and_stays_closed_when_the_role_moves_on(part: MariaDb) -> None:
    notes: list[str] = []
    part._aim = Aim.WRITABLE
    own = Statements()
    own.done = notes
    soon = time.monotonic() + 0.1
    part._open(cast(Session, own), 0.0, Aim.WRITABLE, soon, lambda: notes.append("ready"))
    assert time.monotonic() >= soon
    assert notes.index("SET GLOBAL sync_binlog = 1") < notes.index("ready")
    assert notes.index("ready") < notes.index("SET GLOBAL read_only = OFF")

    def step_down() -> None:
        part._aim = Aim.READ_ONLY

    del notes[:]
    with pytest.raises(UnavailableError, match="role changed"):
        part._open(cast(Session, own), 0.0, Aim.WRITABLE, time.monotonic() + 3600, step_down)
    assert "SET GLOBAL read_only = OFF" not in notes


class Closing(Statements):
    """A server that closes only when the session of a client that came back meanwhile has been ended."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[int] = [1]
        self.came_back, self.ended = threading.Event(), threading.Event()

    def do(self, *statements: str) -> None:
        super().do(*statements)
        for statement in statements:
            if statement.startswith("KILL CONNECTION "):
                self.clients.remove(int(statement.split()[-1]))
                if self.came_back.is_set():
                    self.ended.set()
            elif statement == "SET GLOBAL read_only = ON":
                self.clients.append(2)
                self.came_back.set()
                if not self.ended.wait(5):
                    raise UnavailableError("the database does not answer")

    def rows(self, statement: str, values: tuple[object, ...] = ()) -> list[Row]:
        return [{"id": number} for number in self.clients]

    def number(self, statement: str) -> int:
        return 1


def test_a_client_that_comes_back_at_once_does_not_hold_the_closing_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = Closing()
    monkeypatch.setattr(closing, "session", lambda _socket, _limit: nullcontext(server))
    closing.shut(cast(Session, server), tmp_path, time.monotonic() + 5)
    order = [statement for statement in server.done if statement.startswith(("KILL", "SET GLOBAL read_only"))]
    assert order == ["KILL CONNECTION 1", "SET GLOBAL read_only = ON", "KILL CONNECTION 2"]


def test_without_a_server_nothing_may_be_taken_over_and_nobody_waits(part: MariaDb, tmp_path: Path) -> None:
    began = time.monotonic()
    assert part.state().obstacles == {Obstacle.REPLICA_BROKEN}
    assert part.heartbeat() == {"answers": False}
    assert part.position() == 0
    assert time.monotonic() - began < 1
    with pytest.raises(UnavailableError):
        part.make_writable(1)
    assert "read_only = ON" in (tmp_path / "etc/70-centralino-pair.cnf").read_text()


def test_a_slave_gives_no_copy_of_itself(part: MariaDb) -> None:
    with pytest.raises(UnavailableError, match="not master"):
        part.serve_argv(["seed"])
    with pytest.raises(UnavailableError, match="only a slave"):
        part.seed_from_peer(lambda _share, _text: None)


def test_a_node_that_stood_still_opens_when_the_peer_is_known_not_to_write(part: MariaDb) -> None:
    now = time.monotonic()
    assert part._may_open(now)
    part._still_at = now - 1.0
    assert not part._may_open(now)  # silence, and not long enough
    assert part._may_open(now + DOUBT_SECONDS)
    part.heard({"answers": True, "sequence": 1, "writable": True})
    assert not part._may_open(now + DOUBT_SECONDS)
    part.heard({"answers": True, "sequence": 1, "writable": False})
    assert part._may_open(now)
    part._still_at = time.monotonic()  # these words lay here while it stood still
    assert not part._may_open(part._still_at)
    part._aim = Aim.WRITABLE
    opened(part, Aim.WRITABLE)
    assert part._still_at is None


class Killing(Statements):
    """A session that finds one other, whose end lets an order go on."""

    def __init__(self, frees: threading.Event) -> None:
        super().__init__()
        self._frees = frees

    def rows(self, statement: str, values: tuple[object, ...] = ()) -> list[Row]:
        return [{"id": 5}]

    def do(self, *statements: str) -> None:
        if "KILL CONNECTION 5" in statements:
            self._frees.set()


@pytest.mark.parametrize("ends", [True, False], ids=["with its session", "never"])
def test_a_closing_does_not_wait_for_an_order_that_hangs(
    part: MariaDb, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """As on a node that thaws: what opens the database waits for commits, and those for a peer that left."""
    part.close()  # the keeper; the test takes its place
    began, frees, fenced = threading.Event(), threading.Event(), list[object]()
    monkeypatch.setattr(replica, "fence", lambda *given: fenced.append(given))
    monkeypatch.setattr(replica.settings, "write", lambda *_given: None)
    if ends:
        monkeypatch.setattr(closing, "session", lambda *_given: nullcontext(Killing(frees)))

    def order() -> None:
        with part._turn:
            began.set()
            frees.wait(10)

    hanging = threading.Thread(target=order)
    hanging.start()
    try:
        assert began.wait(5)
        part.make_read_only(1.0)
        # No server answers here, so it ends with the fence either way; what counts is that it comes to it.
        assert part._aim is Aim.READ_ONLY and fenced
        assert frees.is_set() is ends
    finally:
        frees.set()
        hanging.join()


class Waiting(Statements):
    """A session that counts so many that wait for the lock of a copy."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def number(self, statement: str) -> int:
        assert "backup lock" in statement
        return self._count

    def end(self) -> None:
        pass


@pytest.mark.parametrize(
    ("waiting", "patience"),
    [(0, COPY_SILENCE_SECONDS), (1, GIVE_UP_SECONDS)],
    ids=["nobody waits", "one waits"],
)
def test_a_copy_for_a_peer_that_fell_silent_is_ended(
    part: MariaDb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int, patience: float
) -> None:
    part.close()  # the keeper; the test takes its place
    part._watching = cast(Session, Waiting(waiting))
    with subprocess.Popen(["sleep", "60"]) as copy:
        (tmp_path / "run" / f"seed-{copy.pid}").write_text(begun(str(copy.pid)))
        part.heard({"answers": True, "sequence": 1, "writable": False})
        heard = time.monotonic()
        for seconds in (0.0, patience - 0.1):
            monkeypatch.setattr(time, "monotonic", lambda late=seconds: heard + late)
            part._end_copy_of_a_silent_peer()
            assert copy.poll() is None
        monkeypatch.setattr(time, "monotonic", lambda: heard + patience + 0.1)
        part._end_copy_of_a_silent_peer()
        assert copy.wait(5) == -signal.SIGKILL
    part._end_copy_of_a_silent_peer()


def test_a_calm_database_is_looked_at_half_as_often(part: MariaDb) -> None:
    part.close()  # the keeper; the test takes its place
    replica = Replica([5])

    def watch() -> bool:
        """Whether the server was asked."""
        before = replica.asked
        part._watch()
        return replica.asked > before

    part._watching = cast(Session, replica)
    assert [watch() for _ in range(5)] == [True, True, False, True, False]
    part._look = None
    assert watch()
    replica.receiving = False
    part._whole_due = 0.0
    assert [watch() for _ in range(3)] == [True, True, True]


class Connections(Statements):
    """A master's, with one list of ended ones for each time it is asked."""

    def __init__(self, *ended: list[int]) -> None:
        super().__init__()
        self.ended = list(ended)

    def rows(self, statement: str, values: tuple[object, ...] = ()) -> list[Row]:
        return [{"id": number} for number in self.ended.pop(0)]


def test_only_an_ended_connection_that_stays_is_freed() -> None:
    own, stuck = cast(Session, Connections([], [7], [8], [8, 9], [])), Stuck()
    assert [stuck.judge(own) for _ in range(5)] == [False, False, False, True, False]


def test_a_master_frees_nothing_while_somebody_may_be_waiting_or_the_peer_is_away(part: MariaDb) -> None:
    now = time.monotonic()
    assert not part._awaits_peer(Look(now), now)
    part.heard({"answers": True, "sequence": 1, "writable": False})
    now = time.monotonic()
    assert part._awaits_peer(Look(now), now)
    assert not part._awaits_peer(Look(now, waiting=1), now)
    assert not part._awaits_peer(Look(now, listeners=1), now)
    assert not part._awaits_peer(Look(now), now + 5)
    part.heard({"answers": True, "sequence": 1, "writable": True})
    assert not part._awaits_peer(Look(now), now)
