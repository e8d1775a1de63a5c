"""MongoDB's part against a double: its rules called directly, and through pymongo over the wire protocol."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from mongo_double import Member, ServerError, WireServer

from daemon.errors import CommandFailedError, UnavailableError
from daemon.platform import Platform
from fault_tolerance.contracts import nothing
from fault_tolerance.database import has_mongodb
from fault_tolerance.database.both import BothDatabases
from fault_tolerance.database.mongo import MongoDb, connect, host, initial, with_master
from fault_tolerance.unreplicated import NoDatabase

A, B = "10.0.0.1:27017", "10.0.0.2:27017"


def part(member: Member, own: str, peer: str) -> MongoDb:
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    return MongoDb(member, own, peer, ServerError, lambda: now[0], wait)


def test_the_first_master_makes_the_set_and_the_slave_has_no_vote() -> None:
    server = Member(A)
    part(server, A, B).make_writable(5)
    assert server.primary
    assert server.config is not None
    assert [member["votes"] for member in server.config["members"]] == [1, 0]


def test_promotion_by_force_and_the_numbers_stay() -> None:
    slave = Member(B)
    slave.config = initial(A, B)
    part(slave, B, A).make_writable(5)
    assert slave.primary
    assert [(member["host"], member["votes"]) for member in slave.config["members"]] == [(A, 0), (B, 1)]


def test_demotion_stays_down_until_it_is_promoted_again() -> None:
    server = Member(A)
    mongo = part(server, A, B)
    mongo.make_writable(5)
    mongo.make_read_only(5)
    assert not server.primary
    assert server.frozen
    mongo.make_writable(5)
    assert server.primary


def test_a_server_that_does_not_answer_is_no_success() -> None:
    server = Member(A)
    server.config = initial(A, B)
    server.deaf = True
    with pytest.raises(UnavailableError):
        part(server, A, B).make_writable(1)
    with pytest.raises(UnavailableError):
        part(server, A, B).make_read_only(1)


def test_lag_is_the_distance_of_the_members() -> None:
    assert part(Member(A), A, B).lag_seconds() == 3.0


def test_a_new_voter_raises_the_version_and_keeps_the_rest() -> None:
    config = {**initial(A, B), "version": 7, "term": 3, "settings": {"electionTimeoutMillis": 5000}}
    after = with_master(config, B, A)
    assert (after["version"], after["settings"]) == (8, {"electionTimeoutMillis": 5000})
    assert "term" not in after


# --- through pymongo --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fault_tolerance.database.both.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("fault_tolerance.database.both.RETRY_SECONDS", 0.05)


@pytest.fixture
def server() -> Iterator[tuple[Member, WireServer]]:
    member = Member(A)
    with WireServer(member) as wire:
        yield member, wire


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_pymongo_speaks_to_a_member_from_its_first_day(server: tuple[Member, WireServer]) -> None:
    """Not initiated yet, primary, frozen, primary by force again: each command as the library sends it."""
    member, wire = server
    mongo = connect(wire.uri, A, B)
    mongo.make_writable(5)
    assert member.primary
    assert mongo.is_primary()
    assert mongo.lag_seconds() == 3.0
    mongo.make_read_only(5)
    assert member.frozen
    assert not mongo.is_primary()
    mongo.make_writable(5)
    assert member.primary
    assert member.config is not None
    assert member.config["version"] == 2
    assert wire.commands.count("replSetReconfig") == 1


class Relational(NoDatabase):
    """MariaDB, whose orders are noted."""

    def __init__(self) -> None:
        self.orders: list[str] = []

    def make_writable(
        self, limit_seconds: float, not_before: float = 0.0, ready: Callable[[], None] = nothing
    ) -> None:
        self.orders.append("writable")

    def make_read_only(self, limit_seconds: float) -> None:
        self.orders.append("read-only")


def both(wire: WireServer, stop: Callable[[], None] = lambda: None) -> tuple[BothDatabases, list[str]]:
    units: list[str] = []

    def stopping() -> None:
        units.append("stop")
        stop()

    made = BothDatabases(Relational(), connect(wire.uri, A, B), stopping, lambda: units.append("start"))
    return made, units


def test_both_are_promoted_and_both_step_down(server: tuple[Member, WireServer]) -> None:
    member, wire = server
    made, units = both(wire)
    try:
        made.make_writable(5)
        until(lambda: member.primary)
        until(lambda: "MongoDB is primary" in made.state().detail)
        assert made.state().alarm == ""
        made.make_read_only(5)
        assert not member.primary
        until(lambda: "MongoDB is secondary" in made.state().detail)
        made.follow(5)
        made.make_writable(5)
        until(lambda: member.primary)
        assert units == []
    finally:
        made.close()


def test_a_promotion_does_not_wait_for_mongodb_and_says_what_is_wrong(
    server: tuple[Member, WireServer],
) -> None:
    member, wire = server
    member.deaf = True
    made, _ = both(wire)
    try:
        made.make_writable(5)
        until(lambda: "MongoDB" in made.state().alarm)
        assert made.state().obstacles == frozenset()
        member.deaf = False
        until(lambda: member.primary)
        until(lambda: made.state().alarm == "")
    finally:
        made.close()


def test_a_mongodb_that_does_not_step_down_is_stopped_and_comes_back_later(
    server: tuple[Member, WireServer],
) -> None:
    member, wire = server
    made, units = both(wire)
    try:
        made.make_writable(5)
        until(lambda: member.primary)
        member.deaf = True
        made.make_read_only(3)
        assert units[0] == "stop"
        member.deaf, member.primary = False, False
        until(lambda: "start" in units)
    finally:
        made.close()


def test_a_demotion_fails_when_mongodb_can_neither_step_down_nor_be_stopped(
    server: tuple[Member, WireServer],
) -> None:
    member, wire = server

    def refuse() -> None:
        raise CommandFailedError("systemctl did not end")

    made, _ = both(wire, refuse)
    try:
        made.make_writable(5)
        until(lambda: member.primary)
        member.deaf = True
        with pytest.raises(CommandFailedError):
            made.make_read_only(3)
    finally:
        made.close()
    until(lambda: all(thread.name != "mongodb-keeper" for thread in threading.enumerate()))


def test_only_a_box_that_has_it_replicates_it(tmp_path: Path) -> None:
    file = tmp_path / "mongod.conf"
    named = Platform("test", "1", {"mongodb": "mongod.service"}, {"mongodb_config": file})
    assert not has_mongodb(named)
    file.write_text("replication: {replSetName: centralino}")
    assert has_mongodb(named)
    assert not has_mongodb(Platform("test", "1", {}, {"mongodb_config": file}))


def test_members_are_named_as_both_reach_them() -> None:
    assert host(ip_address("10.0.0.1")) == A
    assert host(ip_address("fd00::1")) == "[fd00::1]:27017"
