"""The parts around the role machine: what is said, kept, pinned and refused."""

from __future__ import annotations

import itertools
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest

from daemon.errors import CommandFailedError, ConflictError, InvalidSettingsError, StorageError
from fault_tolerance import cluster, heartbeat
from fault_tolerance.announce import gratuitous_arp, unsolicited_advertisement
from fault_tolerance.cluster import Core
from fault_tolerance.contracts import ReplicaState
from fault_tolerance.facts import MOST_MOVES_AN_HOUR, Facts, obstacles
from fault_tolerance.heartbeat import INTERVAL_SECONDS, Heartbeat, Pace
from fault_tolerance.keepalived import Adverts, Held
from fault_tolerance.keys import checked
from fault_tolerance.pair import as_json, from_json, read
from fault_tolerance.pairing import fingerprint, new_code, read_code, refuse_unfit
from fault_tolerance.peer_link import PeerLink, ssh_arguments
from fault_tolerance.provider import Provider
from fault_tolerance.runtime import Runtime
from fault_tolerance.state import RoleState
from fault_tolerance.status import clocks_apart
from fault_tolerance.verdicts import Verdicts
from fault_tolerance.view import Link, Obstacle, Rank, Role, Sight, Vrrp
from fault_tolerance.vrrp import Keepalived
from tests.support import pair_values

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8Zcn3yq5kVHBOTJ1Bf4vUQmXhZ0mWUmY0V1h0T3s5u"

PAIR = replace(
    pair_values.PAIR,
    shared=(Held(ip_interface("10.77.0.200/24"), "eth0"), Held(ip_interface("fd77::200/64"), "eth0")),
    adverts=Adverts.FAST,
    witness=ip_address("10.77.0.1"),
)

FOLLOWING = Facts(
    role=Role.SLAVE,
    rank=Rank(3, 90, 1),
    link=Link.UP,
    heard=Heartbeat(Role.MASTER, 3, Rank(3, 100, 2), version="1", schema=1),
    gateway=Sight.SEEN,
    witness=Sight.SEEN,
    carrier=True,
    version="1",
    schema=1,
    database=ReplicaState(),
    database_answers=True,
    database_starting=False,
    files=ReplicaState(),
    core_failed=False,
    disk_full=False,
    maintenance=False,
    stepped_down=False,
    moves=0,
    shutting_down=False,
    manual=False,
    handed_over=False,
)


def test_a_pair_survives_its_file(tmp_path: Path) -> None:
    file = tmp_path / "pair.json"
    assert read(file) is None
    file.write_text(json.dumps(as_json(PAIR)))
    assert read(file) == PAIR
    assert from_json(as_json(replace(PAIR, cloud=True, shared=(), witness=None))).interface == ""


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"own": "nonsense"}'])
def test_a_damaged_pair_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "pair.json"
    file.write_text(text)
    with pytest.raises(StorageError, match=r"pair\.json"):
        read(file)


def test_exactly_one_node_dials_and_one_is_second() -> None:
    other = replace(
        PAIR, own=PAIR.peer, peer=PAIR.own, own_service=PAIR.peer_service, peer_service=PAIR.own_service
    )
    assert {PAIR.dials, other.dials} == {True, False}
    assert {PAIR.second, other.second} == {True, False}


def words_of(pace: Pace, peer: Callable[[int], float], count: int) -> list[float]:
    """When a node speaks whose peer's word number n arrives at `peer(n)`, for as many words."""
    spoken: list[float] = []
    number, now = 0, 0.0
    while len(spoken) < count:
        if pace.is_due(now):
            pace.spoke(now)
            spoken.append(now)
        while (arrival := peer(number)) <= now:
            number += 1
        now = min(pace.next, arrival)
        if now == arrival:
            pace.heard()
    return spoken


@pytest.mark.parametrize("interval", INTERVAL_SECONDS.values())
@pytest.mark.parametrize("phase", [0.01, 0.3, 0.5, 0.9])
def test_one_that_answers_soon_speaks_when_its_peer_does(interval: float, phase: float) -> None:
    def peer(number: int) -> float:
        return (number + phase) * interval * 1.005

    spoken = words_of(Pace(interval, answers=True), peer, 40)
    heard = [peer(number) for number in range(60)]
    assert all(moment in heard for moment in spoken[-20:])
    between = [after - before for before, after in itertools.pairwise(spoken)]
    assert all(0.79 * interval < pause < 1.11 * interval for pause in between)


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("every", [0.001, 1000.0])
def test_no_peer_makes_a_node_speak_much_sooner_or_later(answers: bool, every: float) -> None:
    spoken = words_of(Pace(0.2, answers=answers), lambda number: 0.5 + number * every, 30)
    between = [after - before for before, after in itertools.pairwise(spoken)]
    assert min(between) > 0.17
    assert max(between) < 0.23
    assert answers or max(between) - min(between) < 1e-9


def test_a_question_is_asked_in_time_and_answered_at_once() -> None:
    for answers in (True, False):
        pace = Pace(0.2, answers=answers)
        pace.spoke(10.0)
        assert not pace.is_due(10.07)
        pace.no_later_than(10.07)
        pace.no_later_than(10.15)
        assert pace.is_due(10.07)
        pace.spoke(10.07)
        pace.heard()
        assert not pace.is_due(10.08)
        pace.heard(asks=True)
        assert pace.is_due(10.08)
        pace.spoke(10.08)
        assert not pace.is_due(10.09)


@pytest.mark.parametrize(
    ("own", "peer", "holds", "answered"),
    [
        (Role.MASTER, Role.SLAVE, True, True),
        (Role.MASTER, Role.SLAVE, False, False),
        (Role.SLAVE, Role.SLAVE, True, False),
        # Two that serve would answer each other without end.
        (Role.MASTER, Role.MASTER, True, False),
    ],
)
def test_a_master_answers_a_slave_that_has_the_addresses(
    own: Role, peer: Role, holds: bool, answered: bool
) -> None:
    runtime = Mock(role=own, heard=None, _pace=Pace(0.2, answers=False))
    runtime._pace.spoke(10.0)
    Runtime._take_beat(cast(Runtime, runtime), Heartbeat(peer, 1, Rank(1, 1, 1), holds=holds))
    assert runtime._pace.is_due(10.05) is answered


def test_a_heartbeat_arrives_as_it_was_sent() -> None:
    beat = Heartbeat(
        Role.SLAVE,
        7,
        Rank(6, 10**15, 1),
        frozenset({Obstacle.SEEDING, Obstacle.GATEWAY_LOST}),
        "1.0",
        1,
        1234.5,
        True,
        "digest",
        3,
        {"lag": 4},
        {"lag": 5},
        "digest of secrets",
    )
    line = heartbeat.encode(beat)
    assert line.count(b"\n") == 1
    assert len(line) < 1200
    assert heartbeat.decode(json.loads(line)) == beat


def test_an_obstacle_of_a_newer_version_is_an_obstacle() -> None:
    table = json.loads(heartbeat.encode(Heartbeat(Role.SLAVE, 1, Rank(1, 1, 1))))
    table["obstacles"] = ["FROM_THE_FUTURE"]
    assert heartbeat.decode(table).obstacles == {Obstacle.OTHER_VERSION}


def test_a_malformed_heartbeat_is_refused() -> None:
    table = json.loads(heartbeat.encode(Heartbeat(Role.SLAVE, 1, Rank(1, 1, 1))))
    for key, value in (
        ("role", "king"),
        ("epoch", "1"),
        ("rank", [1, 2]),
        ("obstacles", None),
        ("rank", [1, 2, True]),
    ):
        with pytest.raises((ValueError, TypeError, KeyError)):
            heartbeat.decode({**table, key: value})


def test_a_follower_in_step_may_take_over_though_the_master_counts_further() -> None:
    assert obstacles(FOLLOWING) == frozenset()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"link": Link.NEVER}, Obstacle.PEER_NEVER_MET),
        ({"gateway": Sight.LOST}, Obstacle.GATEWAY_LOST),
        ({"witness": Sight.LOST}, Obstacle.WITNESS_LOST),
        ({"disk_full": True}, Obstacle.DISK_FULL),
        ({"carrier": False}, Obstacle.SERVICE_LINK_DOWN),
        ({"core_failed": True}, Obstacle.CORE_FAILED),
        ({"maintenance": True}, Obstacle.MAINTENANCE),
        ({"moves": MOST_MOVES_AN_HOUR}, Obstacle.TOO_MANY_MOVES),
        ({"version": "2"}, Obstacle.OTHER_VERSION),
        ({"schema": 2}, Obstacle.OTHER_SCHEMA),
        ({"database": ReplicaState(frozenset({Obstacle.SEEDING}))}, Obstacle.SEEDING),
        ({"files": ReplicaState(frozenset({Obstacle.REPLICA_BROKEN}))}, Obstacle.REPLICA_BROKEN),
        ({"rank": Rank(2, 500, 1)}, Obstacle.PEER_NEWER),
        # Nobody has written since the role was handed over; a database that is away cannot serve still.
        (
            {"rank": Rank(2, 500, 1), "handed_over": True, "stepped_down": True, "carrier": False},
            Obstacle.SERVICE_LINK_DOWN,
        ),
        ({"handed_over": True, "database_answers": False}, Obstacle.REPLICA_BROKEN),
        ({"role": Role.JOINING}, Obstacle.PEER_NEWER),
        ({"manual": True}, Obstacle.MANUAL_MODE),
        ({"shutting_down": True}, Obstacle.SHUTTING_DOWN),
        ({"stepped_down": True}, Obstacle.STEPPED_DOWN),
    ],
)
def test_each_fact_is_its_obstacle(change: dict[str, object], found: Obstacle) -> None:
    assert obstacles(replace(FOLLOWING, **change)) == {found}  # type: ignore[arg-type]


def test_a_witness_that_neither_node_reaches_is_dead_and_no_obstacle() -> None:
    master = replace(FOLLOWING.heard, witness_lost=True)  # type: ignore[type-var]
    assert obstacles(replace(FOLLOWING, witness=Sight.LOST, heard=master)) == frozenset()


def test_who_follows_nobody_need_not_replicate_but_must_have_a_whole_database() -> None:
    alone = replace(FOLLOWING, role=Role.JOINING, rank=Rank(4, 0, 1))
    broken = ReplicaState(frozenset({Obstacle.REPLICA_BROKEN}))
    assert obstacles(replace(alone, database=broken)) == frozenset()
    assert obstacles(replace(alone, database_answers=False)) == {Obstacle.REPLICA_BROKEN}
    starting = replace(alone, database_answers=False, database_starting=True)
    assert obstacles(starting) == {Obstacle.DATABASE_STARTING}
    half = ReplicaState(frozenset({Obstacle.SEEDING}))
    assert obstacles(replace(alone, database=half)) == {Obstacle.SEEDING}


def test_in_a_cloud_only_two_beginners_need_no_person() -> None:
    slave = replace(FOLLOWING, manual=True)
    assert Obstacle.MANUAL_MODE in obstacles(slave)
    begins = Heartbeat(Role.JOINING, 3, Rank(2, 100, 2), version="1", schema=1)
    both = replace(slave, role=Role.JOINING, heard=begins)
    assert obstacles(both) == frozenset()
    assert Obstacle.MANUAL_MODE in obstacles(replace(both, rank=Rank(2, 100, 1)))
    assert Obstacle.MANUAL_MODE in obstacles(replace(both, heard=replace(begins, role=Role.OFF)))


def test_a_masters_own_replication_is_no_obstacle() -> None:
    broken = ReplicaState(frozenset({Obstacle.REPLICA_BROKEN}))
    assert obstacles(replace(FOLLOWING, role=Role.MASTER, database=broken)) == frozenset()


def test_the_epoch_is_on_the_disk_before_anybody_goes_by_it(tmp_path: Path) -> None:
    state = RoleState(tmp_path / "state", tmp_path)
    state.change(epoch=5, mastered=4)
    again = RoleState(tmp_path / "state", tmp_path)
    assert (again.durable.epoch, again.durable.mastered) == (5, 4)
    again.change(epoch=3)
    assert again.durable.epoch == 5


def test_a_damaged_role_file_makes_the_node_the_older_one(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    RoleState(directory, tmp_path).change(epoch=5, mastered=5)
    (directory / "role.json").write_text("\0\0\0")
    assert RoleState(directory, tmp_path).durable.mastered == 0


def test_moves_are_counted_for_an_hour(tmp_path: Path) -> None:
    now = 10_000.0
    state = RoleState(tmp_path / "state", tmp_path, clock=lambda: now)
    state.change(moved=True)
    now += 1800
    state.change(moved=True)
    assert state.moves_in_last_hour() == 2
    now += 1801
    assert state.moves_in_last_hour() == 1
    # A clock that was set back does not make moves of the future count for ever.
    now -= 9000
    assert state.moves_in_last_hour() == 0


def test_the_role_of_this_boot_is_gone_after_a_boot(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    state = RoleState(tmp_path / "state", run)
    assert state.role_of_this_boot() is None
    state.note_role(Role.MASTER)
    assert RoleState(tmp_path / "state", run).role_of_this_boot() is Role.MASTER


def test_verdict_files_begin_closed_and_are_one_digit(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    verdicts.adopt()
    assert ((tmp_path / "verdict").read_text(), (tmp_path / "serving").read_text()) == ("1\n", "0\n")
    assert verdicts.write(may_hold=True, serving=True)
    assert not verdicts.write(may_hold=True, serving=True)
    assert ((tmp_path / "verdict").read_text(), (tmp_path / "serving").read_text()) == ("0\n", "1\n")
    # A runtime that is restarted finds them as they were.
    Verdicts(tmp_path).adopt()
    assert (tmp_path / "verdict").read_text() == "0\n"


def test_a_code_is_read_as_people_write_it() -> None:
    code = new_code(HOST_KEY)
    secret, shown = read_code(f" {code.lower().replace('-', ' ')} ")
    assert shown == fingerprint(HOST_KEY)
    assert len(secret) == 10
    assert new_code(HOST_KEY) != code
    with pytest.raises(InvalidSettingsError, match="not complete"):
        read_code(code[:-1])


def test_unfit_nodes_are_refused_with_every_reason() -> None:
    own = {
        "version": "1",
        "schema": 1,
        "mode": "standard",
        "machine": "a",
        "hostname": "one",
        "service_address": "10.77.0.11/24",
        "wall": time.time(),
    }
    fit = {**own, "machine": "b", "hostname": "two", "service_address": "10.77.0.12/24"}
    refuse_unfit(own, fit, time.time())
    unfit = {
        **fit,
        "version": "2",
        "schema": 2,
        "mode": "cloud",
        "wall": time.time() - 5,
        "machine": "a",
        "hostname": "one",
        "service_address": "10.99.0.12/24",
    }
    with pytest.raises(ConflictError) as refused:
        refuse_unfit(own, unfit, time.time())
    for word in ("version", "schema", "work mode", "clocks", "machine id", "called one", "same subnet"):
        assert word in str(refused.value)
    for seconds in (-0.9, 0.9):
        refuse_unfit(own, {**fit, "wall": 1000 + seconds}, 1000)
    for seconds in (-1.1, 1.1):
        with pytest.raises(ConflictError, match=r"clocks of the two nodes are 1\.1 s apart"):
            refuse_unfit(own, {**fit, "wall": 1000 + seconds}, 1000)
    refuse_unfit({**own, "packet_bytes": 1500}, {**fit, "packet_bytes": 1500}, time.time())
    with pytest.raises(ConflictError, match="1500 bytes here and of 9000 bytes there"):
        refuse_unfit({**own, "packet_bytes": 1500}, {**fit, "packet_bytes": 9000}, time.time())


def test_only_public_keys_are_pinned() -> None:
    assert checked(f"{HOST_KEY} root@node") == HOST_KEY
    for text in ("", "ssh-ed25519 x", f'command="rm" {HOST_KEY}', "-----BEGIN OPENSSH PRIVATE KEY-----"):
        with pytest.raises(ValueError, match="no public key"):
            checked(text)


def test_the_client_trusts_the_pinned_keys_alone() -> None:
    words = ssh_arguments(PAIR, ["heartbeat"])
    assert words[0] == "ssh"
    for option in (
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
        "GlobalKnownHostsFile=/dev/null",
    ):
        assert option in words
    assert words[-2:] == ["10.78.0.12", "heartbeat"]


def test_announcements_are_as_the_standards_have_them() -> None:
    hardware = bytes.fromhex("024c00000001")
    request, reply = gratuitous_arp(ip_address("10.77.0.200"), hardware)  # type: ignore[arg-type]
    assert request[:6] == reply[:6] == b"\xff" * 6
    assert request[20:22] == b"\0\1" and reply[20:22] == b"\0\2"
    assert request[28:32] == request[38:42] == ip_address("10.77.0.200").packed
    frame = unsolicited_advertisement(ip_address("fd77::200"), hardware)  # type: ignore[arg-type]
    assert frame[:6] == bytes.fromhex("333300000001")
    assert frame[54] == 136 and frame[58] == 0x20
    total = sum(frame[index] << 8 | frame[index + 1] for index in range(22, 54, 2)) + 58 + 32
    total += sum(frame[index] << 8 | frame[index + 1] for index in range(54, 86, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF


CORE = Core(digest="new", document={"schema": 1})
FOLLOWER = Heartbeat(Role.SLAVE, 3, Rank(3, 90, 1), version="1", schema=1, cluster="old")
LEADER = Heartbeat(Role.MASTER, 3, Rank(3, 90, 2), version="1", schema=1, cluster="new")


def test_only_a_master_offers_settings_and_only_to_a_slave_that_has_others() -> None:
    message = cluster.offer(CORE, Role.MASTER, 3, 1, FOLLOWER)
    assert message is not None and message["document"] == {"schema": 1}
    assert cluster.offer(CORE, Role.SLAVE, 3, 1, FOLLOWER) is None
    assert cluster.offer(CORE, Role.MASTER, 3, 1, None) is None
    assert cluster.offer(CORE, Role.MASTER, 3, 2, FOLLOWER) is None
    assert cluster.offer(CORE, Role.MASTER, 3, 1, replace(FOLLOWER, role=Role.JOINING)) is None
    assert cluster.offer(CORE, Role.MASTER, 3, 1, replace(FOLLOWER, cluster="new")) is None


def test_settings_of_a_master_of_yesterday_overwrite_nothing() -> None:
    message = cluster.offer(CORE, Role.MASTER, 3, 1, FOLLOWER)
    assert message is not None
    own = Core(digest="old", document={"schema": 1})
    assert cluster.refusal(message, own, Role.SLAVE, 3, 1, LEADER) is None
    assert "older epoch" in str(cluster.refusal(message, own, Role.SLAVE, 4, 1, LEADER))
    assert "schema" in str(cluster.refusal(message, own, Role.SLAVE, 3, 2, LEADER))
    assert cluster.refusal(message, own, Role.MASTER, 3, 1, LEADER) is not None
    assert cluster.refusal(message, own, Role.SLAVE, 3, 1, replace(LEADER, role=Role.SLAVE)) is not None
    assert cluster.refusal({**message, "document": []}, own, Role.SLAVE, 3, 1, LEADER) is not None


def test_a_provider_is_asked_once_the_peer_is_silent_and_its_no_leaves_the_slave_a_slave() -> None:
    asked: list[str] = []
    verdict: list[Exception] = []

    def hook(verb: str) -> None:
        asked.append(verb)
        if verdict:
            raise verdict[0]

    def now(_name: str, work: Callable[[], None]) -> None:
        with suppress(CommandFailedError):
            work()

    provider = Provider(hook, now, lambda: None)
    provider.look(Link.UP, 0.1, ready=True)
    provider.look(Link.LOST, 2.0, ready=True)
    provider.look(Link.LOST, 6.0, ready=False)
    assert asked == []
    verdict.append(CommandFailedError("the peer runs"))
    provider.look(Link.LOST, 6.0, ready=True)
    assert (asked, provider.peer_is_dead) == (["confirm"], False)
    verdict.clear()
    provider.look(Link.LOST, 8.0, ready=True)
    assert provider.peer_is_dead
    provider.look(Link.UP, 0.1, ready=True)
    assert not provider.peer_is_dead
    Provider(None, now, lambda: None).look(Link.LOST, 60.0, ready=True)


def test_an_event_storm_is_one_look_and_its_last_word_counts(tmp_path: Path) -> None:
    selector = selectors.DefaultSelector()
    changes: list[Vrrp] = []
    keepalived = Keepalived(
        PAIR, selector, lambda: changes.append(keepalived.said), tmp_path, tmp_path / "conf"
    )
    keepalived.listen()
    words = ["MASTER", "BACKUP"] * 100 + ["FAULT"]
    with (tmp_path / "notify").open("wb", buffering=0) as fifo:
        for word in words:
            fifo.write(f'INSTANCE "centralino" {word} 100\n'.encode())
        fifo.write(b'GROUP "other" MASTER 100\nINSTANCE "cent')
    for key, _ in selector.select(1):
        key.data()
    assert changes == [Vrrp.FAULT]
    # It does not run, whatever it said last.
    assert keepalived.state is Vrrp.DOWN
    keepalived.close(stop=False)
    assert Keepalived(PAIR, selector, lambda: None, tmp_path, tmp_path / "conf").said is Vrrp.FAULT


def test_keepalived_lives_while_both_its_processes_do(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[bytes]:
        """A process by the name of keepalived."""
        found = subprocess.Popen(
            ["bash", "-c", "printf keepalived > /proc/$$/comm; echo; read"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert found.stdout is not None
        found.stdout.readline()
        (tmp_path / name).write_text(f"{found.pid}\n")
        return found

    def looked() -> tuple[Vrrp, bool]:
        keepalived.look()
        return keepalived.state, keepalived.frozen

    keepalived = Keepalived(PAIR, selectors.DefaultSelector(), lambda: None, tmp_path, tmp_path / "conf")
    first, second = start("keepalived.pid"), start("vrrp.pid")
    try:
        assert looked() == (Vrrp.BACKUP, False)
        second.kill()
        second.wait()
        assert looked() == (Vrrp.DOWN, False)
        second = start("vrrp.pid")
        assert looked() == (Vrrp.BACKUP, False)
        second.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, second.pid, os.WSTOPPED)
        assert looked() == (Vrrp.DOWN, True)
        keepalived.kill()
        assert (first.wait(), second.wait()) == (-signal.SIGKILL, -signal.SIGKILL)
        assert looked() == (Vrrp.DOWN, False)
    finally:
        keepalived.close(stop=False)
        for process in (first, second):
            process.kill()
            process.communicate()


def test_the_last_words_of_a_node_that_hangs_up_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over a client that takes its time."""
    arrived = tmp_path / "arrived"
    client = ["sh", "-c", 'sleep 0.1; exec cat > "$0"', str(arrived)]
    monkeypatch.setattr("fault_tolerance.peer_link.ssh_arguments", lambda _pair, _words: client)
    with selectors.DefaultSelector() as selector:
        link = PeerLink(PAIR, selector, lambda _table: None, tmp_path / "met")
        link.look()
        link.send(b"closed, at 7\n")
        link.close()
        assert arrived.read_text() == "closed, at 7\n"
        assert not selector.get_map()


@pytest.mark.parametrize(
    ("skew", "sentence"),
    [
        (None, ""),
        (0.9, ""),
        (-1.0, ""),
        (2.5, "the peer's clock is 2.5 s ahead of this node's"),
        (-3600.0, "the peer's clock is 3600.0 s behind this node's"),
    ],
)
def test_clocks_that_differ_are_told_of(skew: float | None, sentence: str) -> None:
    runtime = SimpleNamespace(hearing=SimpleNamespace(skew=skew))
    assert clocks_apart(cast(Runtime, runtime)) == sentence
