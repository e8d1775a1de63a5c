"""Secrets of the pair: what a slave takes over, from whom, and that nothing of it is ever said aloud."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from daemon.engine import Engine
from daemon.errors import UnavailableError
from daemon.jobs import Job, Jobs, JobState
from daemon.pair_link import PairLink
from daemon.pair_secrets import PairSecrets
from daemon.places import Places
from daemon.secrets import SecretStore
from daemon.services.model import Role as ServiceRole
from daemon.settings import Settings
from daemon.settings.scopes import secret_names
from daemon.shared_secrets import Digest, digest, pack, take_secrets
from fault_tolerance.cluster import PATIENCE_SECONDS, SECRETS_SECONDS, Exchange
from fault_tolerance.heartbeat import Heartbeat
from fault_tolerance.view import Rank, Role

NAMES = ("mail", "turn")
VALUE = "correct-horse-battery-staple"


def places(root: Path) -> Places:
    made = Places(root)
    made.secrets.mkdir(parents=True)
    made.state.mkdir(parents=True)
    return made


@pytest.fixture
def master(tmp_path: Path) -> Places:
    made = places(tmp_path / "master")
    SecretStore(made.secrets).set("mail", VALUE)
    SecretStore(made.secrets).set("asterisk-ami", "of this node alone")
    return made


@pytest.fixture
def slave(tmp_path: Path) -> Places:
    made = places(tmp_path / "slave")
    SecretStore(made.secrets).set("turn", "of before the pair")
    SecretStore(made.secrets).set("asterisk-ami", "of the slave alone")
    return made


class Link:
    """The slave's runtime."""

    def __init__(self) -> None:
        self.status: dict[str, object] = {"role": "slave", "epoch": 7}

    def role(self) -> ServiceRole:
        return ServiceRole.SLAVE

    def ask(self, _method: str) -> dict[str, object]:
        return self.status


class InForce:
    """The settings in force."""

    settings = Settings()
    revision = 1


def secrets_of(
    slave: Places, fetch: Callable[[], str], link: Link, jobs: Jobs, told: list[frozenset[str]] | None = None
) -> PairSecrets:
    heard = (lambda _names: None) if told is None else told.append
    return PairSecrets(
        slave,
        lambda: cast(Engine, InForce),
        lambda: jobs,
        lambda: cast(PairLink, link),
        None,
        heard,
        fetch,
    )


def done(jobs: Jobs) -> Job:
    limit = time.monotonic() + 20
    while not (job := jobs.list()[0]).state.ended:
        assert time.monotonic() < limit
        time.sleep(0.01)
    return job


def message(master: Places, epoch: int) -> str:
    return json.dumps({"epoch": epoch, **pack(master, NAMES)})


def test_settings_of_the_pair_name_the_secrets_that_travel() -> None:
    names = secret_names(Settings())
    assert {"mail", "turn"} <= set(names)
    assert "asterisk-ami" not in names


def test_the_slave_has_the_same_afterwards_and_keeps_its_own(master: Places, slave: Places) -> None:
    told: list[frozenset[str]] = []
    jobs = Jobs()
    secrets_of(slave, lambda: message(master, 7), Link(), jobs, told).take()
    assert done(jobs).state is JobState.DONE
    mine = SecretStore(slave.secrets)
    assert mine.get("mail") == VALUE
    assert not mine.has("turn"), "the master has none"
    assert mine.get("asterisk-ami") == "of the slave alone"
    assert (slave.secrets / "mail").stat().st_mode & 0o777 == 0o600
    assert told == [frozenset(NAMES)]
    assert digest(pack(slave, NAMES)) == digest(pack(master, NAMES))
    # Again: nothing changes, nobody is told.
    assert take_secrets(slave, dict(cast(dict[str, object], pack(master, NAMES)["secrets"]))) == frozenset()


@pytest.mark.parametrize(
    ("status", "epoch"),
    [
        ({"role": "slave", "epoch": 8}, 7),
        ({"role": "master", "epoch": 7}, 7),
        ({"role": "joining", "epoch": 7}, 7),
        ({}, 7),
    ],
)
def test_the_older_epoch_and_who_is_no_slave_overwrite_nothing(
    master: Places, slave: Places, status: dict[str, object], epoch: int
) -> None:
    link, jobs = Link(), Jobs()
    link.status = status
    before = pack(slave, NAMES)
    secrets_of(slave, lambda: message(master, epoch), link, jobs).take()
    assert done(jobs).state is JobState.FAILED
    assert pack(slave, NAMES) == before


def test_a_promotion_while_the_answer_is_on_its_way_stops_it(master: Places, slave: Places) -> None:
    link, jobs = Link(), Jobs()

    def fetch() -> str:
        link.status = {"role": "promoting", "epoch": 8}
        return message(master, 7)

    before = pack(slave, NAMES)
    secrets_of(slave, fetch, link, jobs).take()
    assert done(jobs).state is JobState.FAILED
    assert pack(slave, NAMES) == before


@pytest.mark.parametrize("cut", [1, 30, 70])
def test_what_breaks_off_changes_nothing_and_is_not_said(
    master: Places, slave: Places, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    jobs, before = Jobs(), pack(slave, NAMES)
    secrets_of(slave, lambda: message(master, 7)[:-cut], Link(), jobs).take()
    job = done(jobs)
    assert job.state is JobState.FAILED
    assert pack(slave, NAMES) == before
    assert VALUE not in json.dumps(job.as_json()) + caplog.text


def test_an_ssh_that_dies_in_the_middle_quotes_nothing(
    monkeypatch: pytest.MonkeyPatch, slave: Places
) -> None:
    script = f"import sys; sys.stdout.write('{VALUE}'); sys.stdout.flush(); sys.exit(3)"
    monkeypatch.setattr("daemon.pair_secrets.FETCH", (sys.executable, "-c", script))
    from daemon.pair_secrets import fetch_from_master

    with pytest.raises(UnavailableError) as refused:
        fetch_from_master()
    assert VALUE not in str(refused.value)


def test_the_program_for_the_peer_writes_no_value_into_its_words() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "daemon.shared_secrets", "7", "no-such-secret"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    # The names alone are arguments; what there is comes over the stream.
    table: dict[str, Any] = json.loads(done.stdout)
    assert (table["epoch"], table["secrets"]) == (7, {"no-such-secret": None})


def test_the_digest_follows_every_change(master: Places) -> None:
    kept = Digest(master)
    first = kept.now(NAMES)
    assert kept.now(NAMES) == first == digest(pack(master, NAMES))
    SecretStore(master.secrets).set("turn", "another")
    second = kept.now(NAMES)
    assert second != first
    SecretStore(master.secrets).set("asterisk-ami", "of no concern")
    assert kept.now(NAMES) == second


def test_a_slave_asks_for_what_differs_and_not_all_the_time() -> None:
    now = [0.0]
    asked: list[float] = []
    exchange = Exchange(lambda _document: None, lambda: asked.append(now[0]), lambda: now[0])
    leader = Heartbeat(Role.MASTER, 7, Rank(7, 0, 0), secrets="new")
    exchange.core.secrets = "old"
    for moment in (0.0, 1.0, SECRETS_SECONDS + 0.1):
        now[0] = moment
        exchange.heard(Role.SLAVE, 7, leader)
    assert asked == [0.0, SECRETS_SECONDS + 0.1]
    exchange.core.secrets = "new"
    now[0] = 100.0
    exchange.heard(Role.SLAVE, 7, leader)
    assert len(asked) == 2
    # Neither from a master of yesterday, nor as anything but a slave, nor from one that says nothing.
    exchange.core.secrets = "old"
    for role, epoch, beat in (
        (Role.SLAVE, 8, leader),
        (Role.MASTER, 7, leader),
        (Role.JOINING, 7, leader),
        (Role.SLAVE, 7, Heartbeat(Role.MASTER, 7, Rank(7, 0, 0))),
        (Role.SLAVE, 7, Heartbeat(Role.SLAVE, 7, Rank(7, 0, 0), secrets="new")),
    ):
        exchange.heard(role, epoch, beat)
    assert len(asked) == 2


def test_a_master_whose_peer_does_not_take_them_over_says_so() -> None:
    now = [0.0]
    exchange = Exchange(lambda _document: None, lambda: None, lambda: now[0])
    exchange.core.secrets = "new"
    follower = Heartbeat(Role.SLAVE, 7, Rank(7, 0, 0), secrets="")
    exchange.heard(Role.MASTER, 7, follower)
    assert not exchange.peer_lacks_secrets
    now[0] = PATIENCE_SECONDS + 1
    exchange.heard(Role.MASTER, 7, follower)
    assert exchange.peer_lacks_secrets
    exchange.heard(Role.MASTER, 7, Heartbeat(Role.SLAVE, 7, Rank(7, 0, 0), secrets="new"))
    assert not exchange.peer_lacks_secrets
