"""When a database is one that cannot start any more, and what becomes of it, without a server."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from fault_tolerance.database import wreck
from fault_tolerance.database.gtid import GtidState
from fault_tolerance.database.look import Look, Said, follows, slave_state, unanswered
from fault_tolerance.view import Obstacle

DATA = Path("/nonexistent")
MASTER = Said(0.0, writable=True, synchronous=False, sequence=5)


def shown(pid: int, ended: int, code: int, status: int) -> str:
    return (
        f"MainPID={pid}\nExecMainExitTimestampMonotonic={ended}\nExecMainCode={code}\n"
        f"ExecMainStatus={status}\n"
    )


def after_two_minutes(
    monkeypatch: pytest.MonkeyPatch, code: int, status: int, *, pid: int = 0, starts: int = 20, **said: bool
) -> bool:
    """Of a server that does not answer and was started so often, each time with this end."""
    watched, found = wreck.Wreck("mariadb.service", DATA), False
    for second in range(120):
        text = shown(pid, 1 + second * starts // 120, code, status)
        monkeypatch.setattr(wreck, "ask", lambda _unit, text=text: wreck.parse(text))
        heard = Said(float(second), said.get("writable", True), False, 5, answers=said.get("answers", True))
        found = watched.judge(float(second), heard) or found
        assert not (found and second < wreck.REFUSING_SECONDS)
    return found


@pytest.mark.parametrize(("code", "status"), [(1, 1), (1, 7), (2, 6), (3, 6), (2, 11)])
def test_a_server_that_ends_at_each_start_is_replaced(
    monkeypatch: pytest.MonkeyPatch, code: int, status: int
) -> None:
    assert after_two_minutes(monkeypatch, code, status)


@pytest.mark.parametrize(
    ("code", "status", "pid", "starts"),
    [
        pytest.param(1, 1, 0, 2, id="it was started twice only"),
        pytest.param(1, 1, 99, 20, id="it is alive: a long recovery"),
        pytest.param(2, 9, 0, 20, id="somebody kills it"),
        pytest.param(1, 0, 0, 20, id="it ended well"),
        pytest.param(1, 203, 0, 20, id="its program is gone"),
        pytest.param(0, 0, 0, 20, id="it never came as far as the program"),
    ],
)
def test_what_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, code: int, status: int, pid: int, starts: int
) -> None:
    assert not after_two_minutes(monkeypatch, code, status, pid=pid, starts=starts)


def test_only_a_peer_that_serves_gives_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not after_two_minutes(monkeypatch, 1, 1, writable=False)
    assert not after_two_minutes(monkeypatch, 1, 1, answers=False)
    monkeypatch.setattr(wreck, "ask", lambda _unit: wreck.parse(shown(0, 1, 1, 1)))
    watched = wreck.Wreck("mariadb.service", DATA)
    assert not any(watched.judge(float(second), MASTER) for second in range(10, 200))


def test_a_second_copy_waits_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, copies = wreck.Wreck("mariadb.service", DATA), []
    for second in range(8000):
        text = shown(0, 1 + second // 5, 1, 1)
        monkeypatch.setattr(wreck, "ask", lambda _unit, text=text: wreck.parse(text))
        if watched.judge(float(second), Said(float(second), True, False, 5)):
            copies.append(second)
            watched.answered()
    assert len(copies) == 3
    assert all(later - sooner >= 3600 for sooner, later in pairwise(copies))


def test_a_server_that_answers_again_is_no_wreck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wreck, "ask", lambda _unit: wreck.parse(shown(0, 1, 1, 1)))
    watched = wreck.Wreck("mariadb.service", DATA)
    watched.judge(1.0, None)
    assert "replication start --what db" in watched.sentence(master=False)
    watched.answered()
    assert watched.sentence(master=False) == ""


def compared(
    monkeypatch: pytest.MonkeyPatch, lacks: int | None, said: Said | None, *, pid: int = 0
) -> wreck.Wreck:
    """A master's server that ends at each start for two minutes, and a peer that lacks so much of its log."""
    watched = wreck.Wreck("mariadb.service", DATA)
    monkeypatch.setattr(wreck, "lacking", lambda _data, _peer: lacks)
    for second in range(120):
        text = shown(pid, 1 + second // 5, 1, 1)
        monkeypatch.setattr(wreck, "ask", lambda _unit, text=text: wreck.parse(text))
        heard = said and replace(said, moment=float(second))
        watched.compare(float(second), heard, GtidState())
        assert watched.lacks is None or second >= wreck.REFUSING_SECONDS
    return watched


SLAVE = Said(0.0, writable=False, synchronous=False, sequence=5)


def test_a_master_finds_out_what_its_peer_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared(monkeypatch, 0, SLAVE).told() == {"lacks": 0}
    watched = compared(monkeypatch, 3, SLAVE)
    assert watched.told() == {"lacks": 3} and "lacks 3 transactions" in watched.sentence(master=True)
    watched.answered()
    assert watched.told() == {} and watched.sentence(master=True) == ""


@pytest.mark.parametrize("said", [None, MASTER, replace(SLAVE, answers=False)])
def test_only_a_slave_that_answers_can_be_compared(
    monkeypatch: pytest.MonkeyPatch, said: Said | None
) -> None:
    assert compared(monkeypatch, 0, said).told() == {}


def test_a_log_that_does_not_tell_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared(monkeypatch, None, SLAVE).told() == {}
    assert compared(monkeypatch, 0, SLAVE, pid=99).told() == {}


def test_a_slave_stands_in_for_a_master_that_lost_nothing_but_its_database() -> None:
    own = Look(10.0, lineage="one pair's")
    waits = unanswered(None, 0, 10.0)
    assert waits is not None and slave_state(own, waits, None, 10.0).obstacles == frozenset()
    assert follows(own, waits) and not follows(None, waits)
    for lacks in (1, None, "0"):
        said = unanswered(MASTER, lacks, 10.0)
        assert slave_state(own, said, None, 10.0).obstacles == {Obstacle.REPLICA_BROKEN}
        assert not follows(own, said)
    # Without a history of the pair it has nothing to stand in with.
    assert slave_state(replace(own, lineage=""), waits, None, 10.0).obstacles == {Obstacle.REPLICA_BROKEN}
    assert unanswered(None, None, 10.0) is None


def test_what_is_marked_is_kept_and_told(tmp_path: Path) -> None:
    data, old = tmp_path / "data", tmp_path / "data.old"
    data.mkdir()
    (data / "ibdata1").write_text("rows")
    wreck.mark(data, keep=True)
    data.rename(old)
    wreck.put_away(old)
    kept = wreck.find(tmp_path / "evidence", tmp_path)
    assert kept.directory is not None
    assert (kept.directory / "ibdata1").read_text() == "rows"
    assert str(kept.directory) in kept.sentence() and kept.place == str(kept.directory)


def test_what_could_start_is_not_kept(tmp_path: Path) -> None:
    data, old = tmp_path / "data", tmp_path / "data.old"
    data.mkdir()
    wreck.mark(data, keep=True)
    wreck.mark(data, keep=False)  # it answered meanwhile
    data.rename(old)
    wreck.put_away(old)
    assert wreck.find(tmp_path, tmp_path) == wreck.Kept()
    assert not old.exists()
    assert wreck.Kept().sentence() == wreck.Kept().place == ""
