"""What watches over a network change: sessions as the kernel lists them, and the judgement of silence."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from daemon.errors import CommandFailedError
from daemon.network import netlink
from daemon.network import sessions as sessions_module
from daemon.network import trial as trial_module
from daemon.network.before import Gateway
from daemon.network.checks import check_pair
from daemon.network.manager import Manager
from daemon.network.sessions import Session, Traffic, listed, sessions
from daemon.network.trial import Trial
from daemon.network.truth import Link, Truth
from daemon.settings import Settings

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TABLE4 = HEAD + (
    "   0: 0B004D0A:0016 65004D0A:C350 01 00000024:00000000 01:00000014 00000002     0        0 1 1\n"
    "   1: 0100007F:0016 0100007F:C351 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
    "   2: 0B004D0A:0016 66004D0A:C352 06 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
    "   3: 0B004D0A:01BB 67004D0A:C353 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
)
TABLE6 = HEAD + (
    "   0: B80D0120000000000000000001000000:0016 B80D0120000000000000000002000000:D431 01"
    " 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
    "   1: 0000000000000000FFFF00000B004D0A:0016 0000000000000000FFFF000069004D0A:D432 01"
    " 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
)
LINK = Link(
    "eth0", "02:00:00:00:00:01", 1500, True, True, addresses=(ip_interface("10.77.0.11/24"),), index=2
)
TRUTH = Truth({"eth0": LINK}, ("10.77.0.1 via eth0",))
DESK = Session(ip_address("10.77.0.11"), ip_address("10.77.0.101"), 50000)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, ...]:
    four, six = tmp_path / "tcp", tmp_path / "tcp6"
    four.write_text(TABLE4)
    six.write_text(TABLE6)
    return four, six, tmp_path / "none"


def test_only_established_sessions_from_elsewhere_count(
    tables: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "connections", lambda port, _limit: listed(port, tables))
    assert sessions() == {
        DESK: Traffic(0x24, 2),
        Session(ip_address("2001:db8::1"), ip_address("2001:db8::2"), 54321): Traffic(0, 0),
        # An IPv4 peer of a socket that listens on both families.
        Session(ip_address("10.77.0.11"), ip_address("10.77.0.105"), 54322): Traffic(0, 0),
    }


def test_a_kernel_that_does_not_answer_is_read(
    tables: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_port: int, _limit: float) -> list[netlink.ConnectionRow]:
        raise CommandFailedError("the kernel refuses to show its network: No such file or directory")

    monkeypatch.setattr(netlink, "connections", refuse)
    monkeypatch.setattr(sessions_module, "listed", lambda port: listed(port, tables))
    assert DESK in sessions()


@pytest.mark.parametrize(("listening_on", "asked"), [("127.0.0.1",) * 2, ("::1",) * 2, ("::", "127.0.0.1")])
def test_the_kernel_and_its_tables_tell_the_same(listening_on: str, asked: str) -> None:
    """Of real connections, to one of which more is sent than its peer reads."""
    family = socket.AF_INET6 if ":" in listening_on else socket.AF_INET
    both = listening_on == "::"
    with (
        socket.create_server((listening_on, 0), family=family, dualstack_ipv6=both) as listening,
        socket.create_connection((asked, port := listening.getsockname()[1])),
        socket.create_connection((asked, port)),
        listening.accept()[0] as unread,
    ):
        unread.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                unread.send(bytes(65536))
        found = netlink.connections(port, 1.0)
        assert {(str(row.local), bool(row.unacknowledged)) for row in found} == {
            (asked, True),
            (asked, False),
        }
        assert set(found) == set(listed(port))
    assert netlink.connections(port, 1.0) == []


class World:
    """The wire and the kernel as a test says they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answering: set[Gateway] = {("eth0", ip_address("10.77.0.1"))}
        self.serving = {ip_address("10.77.0.53")}
        self.sessions: dict[Session, Traffic] = {DESK: Traffic(0, 0)}
        self.way: int | None = 2
        monkeypatch.setattr(trial_module, "_answering", lambda gateways, *_: self.answering & set(gateways))
        monkeypatch.setattr(trial_module, "_serves", lambda server, *_: server in self.serving)
        monkeypatch.setattr(trial_module, "sessions", lambda: dict(self.sessions))
        monkeypatch.setattr(trial_module, "_way", lambda _session: self.way)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def settings(**network: object) -> Settings:
    return Settings.model_validate_json(json.dumps({"network": network}))


def begun(tmp_path: Path, old: Settings, trouble: str | None = None) -> Trial:
    made = Trial(Manager(), lambda _limit: TRUTH, tmp_path, lambda: trouble)
    made.begin(old, 60, checkpoint=False)
    return made


def test_all_well_is_no_trouble(world: World, tmp_path: Path) -> None:
    assert begun(tmp_path, settings()).trouble(settings(dns={"servers": ["10.77.0.53"]})) is None


def test_a_gateway_that_fell_silent_is_named(world: World, tmp_path: Path) -> None:
    trial = begun(tmp_path, settings())
    world.answering = set()
    assert trial.trouble(settings()) == "the gateway 10.77.0.1 does not answer on eth0"


def test_a_gateway_that_was_silent_before_is_not_held_against_the_change(
    world: World, tmp_path: Path
) -> None:
    world.answering = set()
    assert begun(tmp_path, settings()).trouble(settings()) is None


def test_name_servers_of_which_none_answers_are_trouble(world: World, tmp_path: Path) -> None:
    trial = begun(tmp_path, settings())
    one_of_two = settings(dns={"servers": ["10.77.0.54", "10.77.0.53"]})
    assert trial.trouble(one_of_two) is None
    none = settings(dns={"servers": ["10.77.0.54"]})
    assert trial.trouble(none) == "no name server answers (10.77.0.54)"
    assert begun(tmp_path, none).trouble(none) is None


def test_a_session_whose_way_back_changed_or_that_answers_no_more_is_trouble(
    world: World, tmp_path: Path
) -> None:
    trial = begun(tmp_path, settings())
    world.way = 3
    assert trial.trouble(settings()) == "the way back to the SSH session from 10.77.0.101 has changed"
    world.way = 2
    world.sessions = {DESK: Traffic(100, 3)}
    assert trial.trouble(settings()) == "the SSH session from 10.77.0.101 does not answer any more"
    world.sessions = {}  # its owner logged out
    assert trial.trouble(settings()) is None


def test_a_session_to_an_address_that_the_admin_gave_up_is_no_trouble(world: World, tmp_path: Path) -> None:
    gone = Session(ip_address("10.77.0.99"), ip_address("10.77.0.101"), 50000)
    world.sessions = {gone: Traffic(0, 0)}
    trial = begun(tmp_path, settings())
    world.way = None
    assert trial.trouble(settings()) is None


PAIR = Settings.model_validate_json(
    json.dumps(
        {
            "fault_tolerance": {
                "enabled": True,
                "peer_address": "10.77.0.12",
                "management_address": "10.77.0.11",
                "shared_addresses": [{"address": "10.77.0.200/24", "interface": "eth0", "primary": True}],
            }
        }
    )
)


class Clock:
    """Time passes by waiting alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("daemon.network.trial.time.monotonic", lambda: self.now)
        monkeypatch.setattr("daemon.network.trial.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def watched(tmp_path: Path, clock: Clock, trouble: Callable[[float], str | None]) -> Trial:
    """A change at second 0; `trouble` says what the runtime says of the peer at a moment after it."""
    made = Trial(Manager(), lambda _limit: TRUTH, tmp_path, lambda: trouble(clock.now))
    made.begin(PAIR, 60, checkpoint=False)
    return made


def test_a_peer_that_is_seen_no_more_is_trouble_also_when_that_takes_its_time(
    world: World, clock: Clock, tmp_path: Path
) -> None:
    """The peer's words come in until it hangs up."""
    trial = watched(tmp_path, clock, lambda now: "the peer is not heard" if now >= 3.0 else None)
    assert trial.trouble(PAIR) == "the peer is not heard"


def test_a_peer_that_was_not_seen_before_is_no_trouble_after(
    world: World, clock: Clock, tmp_path: Path
) -> None:
    assert watched(tmp_path, clock, lambda _now: "the peer is not heard").trouble(PAIR) is None
    assert clock.now == 0.0


def test_a_link_to_the_peer_that_is_dialled_anew_is_waited_for(
    world: World, clock: Clock, tmp_path: Path
) -> None:
    trial = watched(tmp_path, clock, lambda now: "not yet" if 2.0 < now < 7.0 else None)
    assert trial.trouble(PAIR) is None
    assert clock.now >= 7.0


def test_a_node_without_peer_waits_for_none(world: World, clock: Clock, tmp_path: Path) -> None:
    assert watched(tmp_path, clock, lambda _now: None).trouble(settings()) is None
    assert clock.now == 0.0


def test_a_daemon_that_restarts_judges_by_what_was_true_before(world: World, tmp_path: Path) -> None:
    world.answering = set()
    begun(tmp_path, settings(dns={"servers": ["10.77.0.54"]}), "the peer is not seen")

    def restarted() -> Trial:
        made = Trial(Manager(), lambda _limit: TRUTH, tmp_path, lambda: "the peer is not seen")
        assert made.resume()
        return made

    assert restarted().trouble(settings(dns={"servers": ["10.77.0.54"]})) is None
    world.way = 3
    assert restarted().trouble(settings()) == "the way back to the SSH session from 10.77.0.101 has changed"
    restarted().end()
    assert not Trial(Manager(), lambda _limit: TRUTH, tmp_path, lambda: None).resume()


@pytest.mark.parametrize("text", ["", "no JSON", "{}", '{"silent_gateways": 3}'])
def test_a_damaged_memory_judges_nothing(world: World, tmp_path: Path, text: str) -> None:
    trial = begun(tmp_path, settings())
    (tmp_path / "network-trial.json").write_text(text)
    assert not trial.resume()
    trial.end()


def pair(interface: dict[str, object]) -> Settings:
    document = {
        "network": {"interfaces": {"eth0": interface}},
        "fault_tolerance": {
            "enabled": True,
            "peer_address": "10.77.0.12",
            "management_address": "10.77.0.11",
            "shared_addresses": [{"address": "10.77.0.200/24", "interface": "eth0", "primary": True}],
        },
    }
    return Settings.model_validate_json(json.dumps(document))


def test_a_pair_keeps_what_it_lives_by() -> None:
    fine: dict[str, object] = {"ipv4": "static", "ipv6": "off", "addresses": ["10.77.0.11/24"]}
    assert check_pair(pair(fine)) == []
    assert check_pair(Settings()) == []
    down = check_pair(pair({**fine, "enabled": False}))
    assert "carries the shared address 10.77.0.200" in down[0].message
    moved = check_pair(pair({**fine, "addresses": ["10.99.0.11/24"]}))
    assert [problem.path for problem in moved] == [
        "network.interfaces.eth0.addresses",
        "fault_tolerance.management_address",
    ]
    same = check_pair(pair({**fine, "addresses": ["10.77.0.11/24", "10.77.0.12/24"]}))
    assert "would be this node's own address" in same[0].message
    assert all(problem.remedy for problem in (*down, *moved, *same))
