"""MongoDB's part against a double that keeps the server's rules of elections and reconfigurations."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from daemon.errors import UnavailableError
from fault_tolerance.database.mongo import MongoDb, initial, with_master

A, B = "10.0.0.1:27017", "10.0.0.2:27017"


class ServerError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Member:
    """One server of a set, alone in its view: it is primary when it is the only voter."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.config: dict[str, Any] | None = None
        self.frozen = False
        self.primary = False
        self.deaf = False

    def command(self, name: str, value: Any = 1, **arguments: Any) -> dict[str, Any]:
        if self.deaf:
            raise ServerError(6, "no answer")
        method = getattr(self, f"do_{name}")
        answer: dict[str, Any] = method(value, **arguments)
        return answer

    def do_replSetGetConfig(self, _value: Any) -> dict[str, Any]:  # noqa: N802
        if self.config is None:
            raise ServerError(94, "no replset config has been received")
        return {"config": dict(self.config)}

    def do_replSetInitiate(self, config: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        assert self.config is None
        self.take(config)
        return {"ok": 1}

    def do_replSetReconfig(self, config: dict[str, Any], force: bool = False) -> dict[str, Any]:  # noqa: N802
        assert self.config is not None
        if config["version"] <= self.config["version"]:
            raise ServerError(103, "version must grow")
        if not self.primary and not force:
            raise ServerError(10107, "not primary")
        self.take(config)
        return {"ok": 1}

    def take(self, config: dict[str, Any]) -> None:
        for member in config["members"]:
            if member["votes"] == 0 and member["priority"] != 0:
                raise ServerError(103, "a member without a vote must have priority 0")
        before = {member["_id"]: member["host"] for member in (self.config or config)["members"]}
        assert before == {member["_id"]: member["host"] for member in config["members"]}, "numbers stay"
        self.config = config
        self.elect()

    def elect(self) -> None:
        assert self.config is not None
        voters = [member["host"] for member in self.config["members"] if member["votes"]]
        self.primary = voters == [self.host] and not self.frozen

    def do_hello(self, _value: Any) -> dict[str, Any]:
        return {"isWritablePrimary": self.primary}

    def do_replSetStepDown(self, _value: Any, **_arguments: Any) -> dict[str, Any]:  # noqa: N802
        if not self.primary:
            raise ServerError(10107, "not primary")
        self.primary = False
        raise ServerError(91, "connection closed")

    def do_replSetFreeze(self, seconds: int) -> dict[str, Any]:  # noqa: N802
        if self.primary and seconds:
            raise ServerError(95, "cannot freeze a primary")
        self.frozen = seconds > 0
        if self.config is not None:
            self.elect()
        return {"ok": 1}

    def do_replSetGetStatus(self, _value: Any) -> dict[str, Any]:  # noqa: N802
        moments = [datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC) for second in (10, 7)]
        return {"members": [{"health": 1, "optimeDate": moment} for moment in moments]}


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
