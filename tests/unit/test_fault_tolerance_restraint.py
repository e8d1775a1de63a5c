"""When a node holds its addresses back, whose words count as fresh, and whose adverts as a claim."""

from __future__ import annotations

import selectors
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fault_tolerance.claims import PERSISTENT_SECONDS, Claims
from fault_tolerance.hearing import Hearing
from fault_tolerance.heartbeat import Heartbeat
from fault_tolerance.restraint import (
    ASK_AFTER_SECONDS,
    FENCE_SECONDS,
    YIELD_AFTER_SECONDS,
    YIELD_SECONDS,
    Restraint,
)
from fault_tolerance.state import RoleState
from fault_tolerance.view import Link, Peer, Rank, Role, View, Vrrp
from tests.support.pair_values import PAIR


class Time:
    """A clock that a test turns; wall and monotonic time differ by a thousand seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + 1000.0


def beat(wall: float, role: Role = Role.MASTER, position: int = 1) -> Heartbeat:
    return Heartbeat(role, 1, Rank(1, position, 1), wall=wall)


def test_words_count_from_when_they_were_spoken_not_from_when_they_arrived() -> None:
    clock = Time()
    hearing = Hearing(clock, clock.wall)
    for _ in range(10):
        hearing.take(beat(clock.wall() + 0.5))
        assert hearing.spoken == pytest.approx(clock.now)
        clock.now += 0.2
    assert hearing.skew == pytest.approx(0.5)
    # The last word lay half a second in a queue.
    hearing.take(beat(clock.wall() + 0.5 - 0.5))
    assert hearing.spoken == pytest.approx(clock.now - 0.5, abs=0.06)


def test_a_clock_that_was_stepped_back_is_forgiven_soon() -> None:
    clock = Time()
    hearing = Hearing(clock, clock.wall)
    hearing.take(beat(clock.wall()))
    for _ in range(60):
        clock.now += 0.2
        hearing.take(beat(clock.wall() - 30))
        assert hearing.spoken is not None and hearing.spoken >= clock.now - 2.0
    assert hearing.skew == pytest.approx(-30, abs=0.1)
    assert hearing.spoken == pytest.approx(clock.now, abs=0.1)


def test_positions_that_grow_are_no_news() -> None:
    hearing = Hearing(Time(), Time().wall)
    assert hearing.take(beat(1, position=1))
    assert not hearing.take(beat(2, position=2))
    assert hearing.take(beat(3, role=Role.SLAVE))


def test_words_that_were_under_way_when_the_master_died_do_not_hold_up_the_takeover() -> None:
    restraint = Restraint()
    restraint.note_vrrp(Vrrp.BACKUP, 100.0)
    restraint.note_vrrp(Vrrp.MASTER, 200.0)
    assert not restraint.hold_back(None, 200.3)
    assert not restraint.hold_back(199.9, 200.3)
    assert not restraint.yielding(200.3)
    assert restraint.waits_for_word
    restraint.link_lost()
    assert not restraint.waits_for_word


def test_a_word_is_waited_for_until_it_comes_or_vrrp_speaks() -> None:
    restraint = Restraint()
    restraint.note_vrrp(Vrrp.MASTER, 200.0)
    assert not restraint.waits_for_word
    assert not restraint.hold_back(199.9, 200.01) and restraint.waits_for_word
    assert restraint.hold_back(200.0 + ASK_AFTER_SECONDS, 200.08) and not restraint.waits_for_word
    restraint.note_vrrp(Vrrp.BACKUP, 210.0)
    restraint.note_vrrp(Vrrp.MASTER, 211.0)
    assert not restraint.hold_back(210.9, 211.01) and restraint.waits_for_word
    restraint.note_vrrp(Vrrp.BACKUP, 211.1)
    assert not restraint.waits_for_word


def test_a_master_that_goes_on_speaking_keeps_its_addresses() -> None:
    restraint = Restraint()
    now = 200.0
    restraint.note_vrrp(Vrrp.MASTER, now)
    for seconds in (*YIELD_SECONDS, YIELD_SECONDS[-1]):
        assert restraint.hold_back(now + YIELD_AFTER_SECONDS + 0.1, now + 0.2)
        assert not restraint.hold_back(now + YIELD_AFTER_SECONDS + 0.2, now + 0.3)
        assert restraint.yielding(now + seconds)
        now += seconds + 1.0
        restraint.note_vrrp(Vrrp.BACKUP, now)
        restraint.note_vrrp(Vrrp.MASTER, now)
    restraint.link_lost()
    assert not restraint.yielding(now)


def test_a_node_that_stood_still_waits_for_its_peer_but_not_for_ever() -> None:
    serving = View(Role.MASTER, 1, Rank(1, 1, 1))
    restraint = Restraint()
    assert not restraint.fenced(serving, None, 100.0)
    restraint.stood_still(100.0)
    assert restraint.fenced(serving, None, 100.1)
    rival = replace(serving, link=Link.UP, peer=Peer(Role.MASTER, 2, Rank(2, 1, 1)))
    assert restraint.fenced(rival, 100.2, 100.2)
    slave = replace(rival, peer=Peer(Role.SLAVE, 1, Rank(1, 1, 1)))
    # Said before the node stood still, and read after it.
    assert restraint.fenced(slave, 98.5, 100.3)
    assert restraint.fenced(slave, 99.6, 100.3)
    assert not restraint.fenced(slave, 99.9, 100.3)
    assert not restraint.fenced(serving, None, 100.4)
    restraint.stood_still(200.0)
    assert not restraint.fenced(serving, None, 200.0 + FENCE_SECONDS)


def advert(router: int = 51, priority: int = 199) -> bytes:
    return bytes([0x45]) + bytes(19) + struct.pack("!BBBBHH", 0x31, router, priority, 1, 30, 0)


def test_adverts_that_go_on_are_a_claim() -> None:
    clock = Time()
    with selectors.DefaultSelector() as selector:
        claims = Claims(PAIR, selector, lambda: None, clock)
        while clock.now < 100.0 + PERSISTENT_SECONDS:
            claims.hear(advert())
            assert not claims.standing
            clock.now += 0.3
        claims.hear(advert())
        assert claims.standing
        clock.now += 2.0
        assert not claims.standing
        claims.hear(advert())
        assert not claims.standing


@pytest.mark.parametrize(
    "packet", [b"", b"\x45", advert(router=9), advert(priority=0), advert()[:21]], ids=lambda p: p.hex()[:8]
)
def test_farewells_and_other_routers_are_none(packet: bytes) -> None:
    clock = Time()
    with selectors.DefaultSelector() as selector:
        claims = Claims(PAIR, selector, lambda: None, clock)
        for _ in range(20):
            claims.hear(packet)
            clock.now += 0.2
        assert not claims.standing


def test_how_long_nobody_watched_is_known_after_a_restart(tmp_path: Path) -> None:
    state = RoleState(tmp_path / "state", tmp_path)
    assert state.unwatched_for() == float("inf")
    before = time.monotonic()
    state.note_watch()
    assert RoleState(tmp_path / "state", tmp_path).unwatched_for() <= time.monotonic() - before
    assert state.free_bytes() > 0
