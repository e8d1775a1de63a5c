"""What the database's part makes of what it sees, without a server."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import CancelledError, NotFoundError, StorageError, UnavailableError
from fault_tolerance.database import door, evidence, seed, serve, settings
from fault_tolerance.database.forward import user_of
from fault_tolerance.database.gtid import GtidState, parse
from fault_tolerance.database.look import (
    ARRIVAL_SECONDS,
    Drought,
    Lag,
    Look,
    Patience,
    Said,
    errant,
    is_synchronous,
    look,
    master_state,
    slave_state,
)
from fault_tolerance.database.session import Row, Session, library
from fault_tolerance.view import Obstacle

WELL = Look(
    10.0, state=parse("0-1-5"), received=parse("0-1-5"), configured=True, receiving=True, applying=True
)
SYNCHRONOUS = Said(10.0, writable=True, synchronous=True, sequence=5)


def test_a_replica_in_step_may_take_over() -> None:
    assert slave_state(WELL, SYNCHRONOUS, 0.0, 10.1).obstacles == frozenset()


def test_a_dead_peer_leaves_the_replica_as_good_as_it_was() -> None:
    """The connection goes with the master: that alone must not keep its slave from taking over."""
    cut = Look(15.0, state=WELL.state, received=WELL.received, configured=True, applying=True, trouble="lost")
    assert slave_state(cut, SYNCHRONOUS, 0.0, 15.0).obstacles == frozenset()


def test_a_master_that_went_on_alone_is_not_replaced() -> None:
    alone = Said(10.0, writable=True, synchronous=False, sequence=5)
    assert slave_state(WELL, alone, 0.0, 60.0).obstacles == {Obstacle.REPLICA_BEHIND}


def test_a_closed_master_is_replaced_only_with_everything_it_had() -> None:
    closed = Said(10.0, writable=False, synchronous=False, sequence=5)
    assert slave_state(WELL, closed, 0.0, 10.0).obstacles == frozenset()
    more = Said(10.0, writable=False, synchronous=False, sequence=6)
    assert slave_state(WELL, more, 0.0, 10.0).obstacles == {Obstacle.REPLICA_BEHIND}


def test_a_master_whose_database_died_counts_by_its_last_words() -> None:
    dead = Said(12.0, writable=True, synchronous=True, sequence=5, answers=False)
    assert slave_state(WELL, dead, 0.0, 12.0).obstacles == frozenset()
    cut = replace(WELL, receiving=False, trouble="error connecting to master")
    assert slave_state(cut, dead, 0.0, 12.0).obstacles == frozenset()
    assert slave_state(cut, replace(dead, synchronous=False), 0.0, 12.0).obstacles == {
        Obstacle.REPLICA_BEHIND
    }
    assert slave_state(cut, replace(dead, answers=True), 0.0, 12.0).obstacles == {Obstacle.REPLICA_BROKEN}


def drought(*, breaks: int, more: int = 6, gains: bool = False) -> list[bool]:
    """Two minutes of a slave whose connection breaks so often; `more` is where the peer stands."""
    patience, found = Drought(), []
    for second in range(120):
        broken = second % (120 // breaks) == 5 if breaks else False
        received = parse(f"0-1-{5 + second // 30}") if gains else WELL.received
        own = replace(WELL, moment=float(second), received=received, receiving=not broken)
        found.append(patience.judge(own, Said(float(second), True, False, sequence=more)))
    return found


def test_a_peer_whose_log_cannot_be_read_is_noticed() -> None:
    """Half an event in it, from a full disk: the server says nothing, the replica asks anew for ever."""
    found = drought(breaks=20)
    assert not any(found[:60]) and all(found[60:])


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(drought(breaks=0), id="one large transaction takes long"),
        pytest.param(drought(breaks=20, gains=True, more=99), id="something comes now and then"),
        pytest.param(drought(breaks=20, more=5), id="the peer has no more"),
    ],
)
def test_what_is_no_drought(found: list[bool]) -> None:
    assert not any(found)


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (None, "does not answer"),
        (Look(1.0), "does not replicate"),
        (Look(1.0, configured=True, receiving=True, trouble="Duplicate entry"), "Duplicate entry"),
        (Look(1.0, configured=True, receiving=True), "somebody stopped it"),
    ],
)
def test_a_broken_replica_says_why(own: Look | None, text: str) -> None:
    state = slave_state(own, SYNCHRONOUS, None, 10.0)
    assert state.obstacles == {Obstacle.REPLICA_BROKEN}
    assert text in state.detail


def test_a_replica_far_behind_waits() -> None:
    assert slave_state(WELL, SYNCHRONOUS, 6000.0, 10.0).obstacles == {Obstacle.REPLICA_BEHIND}
    assert slave_state(WELL, None, None, 10.0).obstacles == {Obstacle.REPLICA_BEHIND}


def test_a_master_alone_says_so() -> None:
    assert master_state(WELL, SYNCHRONOUS, 10.0).synchronous is False
    assert "would be lost" in master_state(WELL, SYNCHRONOUS, 10.0).detail
    assert master_state(Look(1.0, synchronous=True), SYNCHRONOUS, 10.0).synchronous is True


def test_a_master_that_hears_nobody_promises_nothing_for_the_next_commit() -> None:
    """Nothing was committed since: all of it is on both nodes."""
    spoken = replace(SYNCHRONOUS, lag_milliseconds=0.0)
    alone = master_state(Look(100.0, synchronous=True), spoken, 100.0)
    assert alone.synchronous is True and alone.lag_milliseconds is None
    assert "is not heard now" in alone.detail
    together = master_state(Look(10.0, synchronous=True), spoken, 10.0)
    assert together.detail == "each commit is on both nodes" and together.lag_milliseconds == 0.0


def test_synchronous_needs_a_peer_that_is_there() -> None:
    assert is_synchronous({"Rpl_semi_sync_master_status": "ON", "Rpl_semi_sync_master_clients": "1"})
    assert not is_synchronous({"Rpl_semi_sync_master_status": "ON", "Rpl_semi_sync_master_clients": "0"})
    assert not is_synchronous({"Rpl_semi_sync_master_status": "OFF", "Rpl_semi_sync_master_clients": "1"})
    assert not is_synchronous({})


def test_errant_transactions_are_the_own_ones_that_the_peer_lacks() -> None:
    own = Look(1.0, state=parse("0-1-5,0-2-6"))
    assert errant(own, 2, parse("0-1-9"))
    assert not errant(own, 2, parse("0-1-9,0-2-6"))
    assert not errant(own, 3, parse("0-1-4"))


def test_lag_is_the_age_of_what_is_not_applied() -> None:
    lag = Lag()
    assert lag.milliseconds(WELL) is None
    lag.heard(9.0, 5)
    assert lag.milliseconds(WELL) == 0
    lag.heard(9.6, 6)
    lag.heard(9.8, 7)
    assert lag.milliseconds(WELL) == pytest.approx(400)
    lag.heard(9.9, 3)  # another history
    assert lag.milliseconds(WELL) == 0


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6), st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_the_nodes_never_share_a_number(own: object, peer: object) -> None:
    first, second = ip_address(str(own)), ip_address(str(peer))
    if first == second:
        return
    numbers = settings.server_id(first, second), settings.server_id(second, first)
    assert numbers[0] != numbers[1]
    assert all(1 <= number < 2**32 for number in numbers)


def test_the_database_of_a_pair_starts_read_only(tmp_path: Path) -> None:
    settings.write(tmp_path, 7)
    assert "read_only = ON" in (tmp_path / settings.FILE_NAME).read_text()
    assert settings.is_written(tmp_path, 7)
    assert not settings.is_written(tmp_path, 8)
    settings.remove(tmp_path)
    assert not settings.is_written(tmp_path, 7)


def test_the_role_sets_what_no_loss_needs() -> None:
    text = (Path(__file__).parents[2] / "roles/database/templates/centralino.cnf.j2").read_text()
    lines = [line.strip() for line in text.splitlines()]
    for line in (
        "gtid_strict_mode = ON",
        "log_slave_updates = ON",
        "sync_binlog = 1",
        "innodb_flush_log_at_trx_commit = 1",
        "rpl_semi_sync_master_wait_point = AFTER_SYNC",
        "rpl_semi_sync_master_timeout = 2000",
    ):
        assert line in lines
    # Crash recovery would cut off what a master had acknowledged.
    assert not any(line.startswith("rpl_semi_sync_slave_enabled") for line in lines)


def test_the_peer_may_ask_for_two_things() -> None:
    places = (Path("/run/db.sock"), Path("/data"), 990, 991, Path("/run/doors"))
    stream = serve.argv(["stream"], *places)
    assert stream[3:10] == [
        *(door.__file__, "/run/doors", "stream"),
        *("setpriv", "--reuid=990", "--regid=991", "--clear-groups"),
    ]
    assert serve.argv(["seed"], *places)[-2:] == ["/run/db.sock", "/data"]
    for words in ([], ["stream", "x"], ["seed;id"], ["--help"]):
        with pytest.raises(NotFoundError):
            serve.argv(words, *places)


def test_a_new_connection_of_the_peer_ends_what_is_left_of_the_last_one(tmp_path: Path) -> None:
    """Of its own kind alone, and nothing else that has got the number of one that is gone."""

    def enter(kind: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-I", "-S", door.__file__, str(tmp_path), kind, "sleep", "60"]
        process = subprocess.Popen(words)
        limit = time.monotonic() + 10
        while b"sleep" not in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0]:
            assert time.monotonic() < limit
            time.sleep(0.01)
        return process

    seeding, before = enter("seed"), enter("stream")
    bystander = subprocess.Popen(["sleep", "60"])
    (tmp_path / f"stream-{bystander.pid}").write_text("12345")
    after = enter("stream")
    try:
        assert before.wait(10) == -signal.SIGKILL
        assert seeding.poll() is None
        assert bystander.poll() is None
        assert {path.name for path in tmp_path.iterdir()} == {f"seed-{seeding.pid}", f"stream-{after.pid}"}
    finally:
        for process in (seeding, bystander, after):
            process.kill()
            process.wait()


def test_the_owner_of_a_loopback_connection_is_known() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            import os

            assert user_of(client.getsockname()[1], port) == os.getuid()
    assert user_of(1, 2) is None


LOG = b"""\
# at 4
#261124 20:07:32 server id 1  end_log_pos 256 CRC32 0x1 \tStart: binlog v 4
#261124 20:07:33 server id 1  end_log_pos 300 CRC32 0x1 \tGTID 0-1-5 trans
### INSERT INTO `c`.`t`
###   @1=5
COMMIT/*!*/;
#261124 20:07:34 server id 1  end_log_pos 400 CRC32 0x1 \tGTID 0-1-6 trans
### INSERT INTO `c`.`t`
###   @1=6
COMMIT/*!*/;
#261124 20:07:34 server id 2  end_log_pos 500 CRC32 0x1 \tGTID 0-2-7 ddl
DROP TABLE x
DELIMITER ;
# End of log file
"""


def test_only_what_the_peer_lacks_becomes_evidence() -> None:
    found = [b"".join(block) for block in evidence.missing(LOG.splitlines(keepends=True), parse("0-1-5"))]
    assert len(found) == 2
    assert b"@1=6" in found[0]
    assert b"DROP TABLE x" in found[1]
    assert b"DELIMITER" not in found[1]
    assert not list(evidence.missing(LOG.splitlines(keepends=True), parse("0-1-9,0-2-9")))


PULSES = b"""\
#261124 20:07:33 server id 1  end_log_pos 300 CRC32 0x1 \tGTID 0-1-5 trans
#261124 20:07:33 server id 1  end_log_pos 350 \tTable_map: `centralino_pair`.`pulse` mapped to number 18
### UPDATE `centralino_pair`.`pulse`
#261124 20:07:34 server id 1  end_log_pos 400 CRC32 0x1 \tGTID 0-1-6 trans
#261124 20:07:34 server id 1  end_log_pos 450 \tTable_map: `centralino_pair`.`pulse` mapped to number 18
#261124 20:07:34 server id 1  end_log_pos 450 \tTable_map: `centralino`.`cdr` mapped to number 19
### INSERT INTO `centralino`.`cdr`
DELIMITER ;
"""


def test_the_pulse_of_a_master_is_no_loss() -> None:
    (found,) = evidence.missing(PULSES.splitlines(keepends=True), GtidState())
    assert b"GTID 0-1-6" in found[0]


def test_a_session_that_has_ended_is_no_refusal() -> None:
    """Else the keeper would hold on to it for ever."""
    ended = Session(library().connect(defer_connect=True), "the database")
    with pytest.raises(UnavailableError, match="the session has ended"):
        ended.rows("SELECT 1")


def test_no_log_no_evidence(tmp_path: Path) -> None:
    assert evidence.export(tmp_path, tmp_path / "kept", parse("0-1-5"), GtidState()) is None
    assert not list((tmp_path / "kept").iterdir())


def test_a_copy_says_where_it_was_taken(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        seed.copied_position(tmp_path)
    (tmp_path / "xtrabackup_binlog_info").write_text("centralino-bin.000001\t512\t0-1-5\n")
    assert str(seed.copied_position(tmp_path)) == "0-1-5"
    (tmp_path / "mariadb_backup_binlog_info").write_text("centralino-bin.000001\t512\t\n")
    assert seed.copied_position(tmp_path) == GtidState()


def test_a_peer_that_says_nothing_can_be_given_up(tmp_path: Path) -> None:
    """Its database may be away for a while: whoever cancels does not wait for it, and the old data stay."""
    (tmp_path / "data").mkdir()
    seeding = seed.Seeding(tmp_path, "root", ["sleep", "60"])
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CancelledError):
        seed.receive(seeding, lambda _share, _text: None, cancelled)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_size_leaves_the_log_of_changes_out(tmp_path: Path) -> None:
    (tmp_path / "mysql").mkdir()
    (tmp_path / "mysql/table.ibd").write_bytes(b"x" * 1000)
    (tmp_path / "centralino-bin.000001").write_bytes(b"x" * 5000)
    assert serve.size(tmp_path) == 1000


def test_a_master_says_that_it_will_be_alone_before_its_server_gives_up_waiting() -> None:
    patience = Patience()

    def seen(moment: float, waiting: int, confirmed: int) -> bool:
        own = Look(moment, writable=True, synchronous=True, waiting=waiting, confirmed=confirmed)
        judged = patience.judge(own)
        assert master_state(judged, None, judged.moment).synchronous is judged.on_both
        return judged.on_both

    assert seen(0.0, 0, 7) and seen(0.25, 3, 9) and seen(0.5, 3, 12)
    # Confirmations come, so however many wait, nobody waits for long.
    assert all(seen(1.0 + number / 4, 4, 20 + number) for number in range(20))
    assert seen(10.0, 2, 50) and seen(10.75, 4, 50)
    assert not seen(11.0, 4, 50)
    assert not seen(11.25, 4, 50)
    assert seen(11.5, 1, 54)
    assert seen(30.0, 0, 54) and seen(40.0, 1, 54)


def test_a_node_that_stood_still_has_not_waited_meanwhile() -> None:
    patience = Patience()

    def judged(moment: float) -> Look:
        return patience.judge(Look(moment, writable=True, synchronous=True, waiting=1))

    assert not judged(0.0).late
    # The server's clock says that it has waited for ten seconds; the keeper begins to wait.
    assert not judged(10.0).late
    assert [judged(10.0 + quarter / 4).late for quarter in range(1, 5)] == [False] * 3 + [True]
    assert [judged(11.0 + quarter / 4).hopeless for quarter in range(1, 5)] == [False] * 3 + [True]
    assert not judged(17.0).late


def test_what_a_closed_master_had_may_be_on_its_way_for_a_moment() -> None:
    more = Said(10.1, writable=False, synchronous=False, sequence=6, since=10.0)
    arriving = 10.0 + ARRIVAL_SECONDS / 2
    assert slave_state(WELL, more, 0.0, arriving).obstacles == frozenset()
    assert slave_state(WELL, more, 0.0, 10.0 + ARRIVAL_SECONDS).obstacles == {Obstacle.REPLICA_BEHIND}
    cut = replace(WELL, receiving=False)
    assert slave_state(cut, more, 0.0, arriving).obstacles == {Obstacle.REPLICA_BEHIND}


class Server:
    """Answers as MariaDB does, and counts the costly question."""

    def __init__(self, *, writable: bool, position: str, replica: dict[str, str] | None) -> None:
        self.writable, self.position, self.replica = writable, position, replica
        self.running, self.whole = True, 0

    def rows(self, statement: str, _values: tuple[object, ...] = ()) -> list[Row]:
        if statement == "SHOW SLAVE STATUS":
            self.whole += 1
            return [] if self.replica is None else [dict(self.replica)]
        semi = "ON" if self.writable else "OFF"
        own = {"ro": str(int(not self.writable)), "semi": semi, "confirms": "1"}
        return [{**own, "state": self.position, "applied": ""}]

    def variables(self, pattern: str) -> dict[str, str]:
        return {"Slave_running": "ON" if self.running else "OFF"} if pattern == "Slave_running" else {}


REPLICA = {"Gtid_IO_Pos": "0-1-5", "Slave_IO_Running": "Yes", "Slave_SQL_Running": "Yes"}


def test_a_replica_is_asked_in_whole_only_when_something_may_have_changed() -> None:
    server = Server(writable=False, position="0-1-5", replica=REPLICA)
    asked = cast(Session, server)
    before = look(asked, 1.0, "lineage")
    assert look(asked, 1.25, "lineage", before) == replace(before, moment=1.25)
    assert server.whole == 1
    server.position = "0-1-6"
    assert look(asked, 1.5, "lineage", before).state.sequence == 6
    assert server.whole == 2
    server.position, server.running = "0-1-5", False
    server.replica = {**REPLICA, "Slave_SQL_Running": "No"}
    assert look(asked, 1.75, "lineage", before).applying is False
    server.writable = True
    assert look(asked, 2.0, "lineage", before).configured is True
    assert server.whole == 4


def test_a_master_that_follows_nobody_is_not_asked_whom_it_follows() -> None:
    server = Server(writable=True, position="0-1-5", replica=None)
    asked = cast(Session, server)
    before = look(asked, 1.0, "lineage")
    server.position = "0-1-9"
    assert look(asked, 1.25, "lineage", before).state.sequence == 9
    assert server.whole == 1
    server.writable = False
    look(asked, 1.5, "lineage", before)
    assert server.whole == 2
