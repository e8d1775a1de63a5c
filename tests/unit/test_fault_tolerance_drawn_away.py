"""The gateway as witness of where the shared address is: what proves it, and what proves nothing.

The sockets' part is proven in the lab (`test_pair_on_a_bad_network.py`); here answers are put in by hand.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from fault_tolerance.drawn_away import (
    CALM_SECONDS,
    HURRIES_FOR_SECONDS,
    HURRY_SECONDS,
    LONELY_SECONDS,
    NOTICED_SECONDS,
    PROOFS,
    DrawnAway,
    writes_after,
)
from fault_tolerance.keepalived import Held
from fault_tolerance.sights import Address, echo_request, is_echo_reply
from fault_tolerance.view import Link, Peer, Rank, Role, Sight, View
from tests.support import pair_values

OWN, SHARED, GATEWAY = (ip_address(f"192.0.2.{last}") for last in (11, 10, 1))
PAIR = replace(pair_values.PAIR, own_service=OWN, shared=(Held(ip_interface(f"{SHARED}/24"), "eth0"),))


class Box:
    """A socket pair stands for each raw socket; `answer` says which questions the gateway answers."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.judged = 0
        self.now = 100.0
        self.far: dict[Address, socket.socket] = {}
        self.asked: list[Address] = []
        self.present = True
        self.misled = 0
        self.drawn = DrawnAway(PAIR, self.selector, self._judged, self._misled, self._open)

    def _open(self, target: Address, source: Address) -> socket.socket:
        assert target == GATEWAY
        if source == SHARED and not self.present:
            raise OSError(99, "not here")
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        near.setblocking(False)
        far.setblocking(False)
        self.far[source] = far
        return near

    def _judged(self) -> None:
        self.judged += 1

    def _misled(self, now: float) -> None:
        assert now == self.now
        self.misled += 1

    def turn(self, *answered: Address, lonely: float | None = 0.5, serving: bool = True) -> None:
        """One question from each, answered if its source is among `answered`."""
        self.now = self.drawn.due(lonely)
        self.drawn.look(self.now, GATEWAY, serving=serving, lonely_for=lonely)
        for source, far in self.far.items():
            with suppress(BlockingIOError):
                question = far.recv(100)
                self.asked.append(source)
                if source in answered:
                    far.send(b"\x45" + bytes(19) + b"\x00" + question[1:])
        for key, _ in self.selector.select(0):
            key.data()

    def close(self) -> None:
        self.drawn.close()
        for far in self.far.values():
            far.close()


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box()
    yield made
    made.close()


def test_it_stands_when_only_the_own_address_is_answered_for_a_while(box: Box) -> None:
    box.turn(OWN, SHARED, lonely=None)
    for _ in range(PROOFS):
        box.turn(OWN)
        assert not box.drawn.standing
    box.turn(OWN)
    assert box.drawn.standing
    assert box.judged == 1


@pytest.mark.parametrize(
    "story",
    [
        pytest.param([()] * 20, id="a gateway that answers nothing"),
        pytest.param([(OWN,)] * 20, id="a gateway that never answered the shared address"),
        pytest.param([(OWN, SHARED)] + [()] * 20, id="a gateway that fell silent"),
        pytest.param([(OWN, SHARED)] + [(SHARED,)] * 20, id="the other way round"),
        pytest.param([(OWN, SHARED), *([(OWN,)] * (PROOFS - 1) + [()]) * 4], id="a question lost in between"),
        pytest.param([(OWN, SHARED), *[(OWN,), (SHARED,)] * 10], id="one answer for each two questions"),
    ],
)
def test_what_proves_nothing(box: Box, story: list[tuple[Address, ...]]) -> None:
    for answers in story:
        box.turn(*answers)
        assert not box.drawn.standing
    box.turn(OWN, SHARED)
    assert not box.drawn.standing


def test_an_answer_to_the_shared_address_ends_it(box: Box) -> None:
    for answers in [(OWN, SHARED), *[(OWN,)] * (PROOFS + 1)]:
        box.turn(*answers)
    assert box.drawn.standing
    box.turn(OWN, SHARED)
    box.turn(OWN, SHARED)
    assert not box.drawn.standing


def test_a_gateway_misled_while_the_peer_is_heard_is_told_again_and_is_no_proof(box: Box) -> None:
    box.turn(OWN, SHARED, lonely=None)
    for _ in range(PROOFS + 2):
        box.turn(OWN, lonely=None)
    assert box.misled == PROOFS + 1
    for _ in range(PROOFS):
        box.turn(OWN)
        assert not box.drawn.standing
    box.turn(OWN)
    assert box.drawn.standing
    assert box.misled == PROOFS + 2, "questions asked alone tell nobody"


def test_a_node_that_does_not_serve_forgets(box: Box) -> None:
    for answers in [(OWN, SHARED), *[(OWN,)] * (PROOFS + 1)]:
        box.turn(*answers)
    box.turn(OWN, serving=False)
    assert not box.drawn.standing
    for _ in range(PROOFS + 2):
        box.turn(OWN)
    assert not box.drawn.standing, "the shared address was never answered since"


def test_a_shared_address_that_is_not_here_is_tried_again(box: Box) -> None:
    box.present = False
    box.turn(OWN)
    assert box.asked == []
    box.present = True
    box.turn(OWN, SHARED)
    assert set(box.asked) == {OWN, SHARED}


def test_the_two_are_asked_in_turns() -> None:
    order: list[Address] = []

    class Noted(socket.socket):
        source: Address

        def send(self, data: object, *_: object) -> int:
            order.append(self.source)
            return 8

    def opened(_target: Address, source: Address) -> socket.socket:
        made = Noted(socket.AF_INET, socket.SOCK_DGRAM)
        made.source = source
        return made

    drawn = DrawnAway(PAIR, selectors.DefaultSelector(), lambda: None, lambda _now: None, opened)
    for _ in range(2):
        drawn.look(drawn.due(0.0) + 100.0, GATEWAY, serving=True, lonely_for=0.0)
    drawn.close()
    assert order in ([OWN, SHARED, SHARED, OWN], [SHARED, OWN, OWN, SHARED])


def test_questions_are_rare_unless_the_peer_has_just_fallen_silent(box: Box) -> None:
    box.turn(OWN, SHARED)
    waits = {lonely: box.drawn.due(lonely) - box.now for lonely in (None, 0.0, HURRIES_FOR_SECONDS)}
    assert waits == pytest.approx(
        {None: CALM_SECONDS, 0.0: HURRY_SECONDS, HURRIES_FOR_SECONDS: LONELY_SECONDS}
    )


def test_an_ipv6_gateway_is_no_witness_of_an_ipv4_address(box: Box) -> None:
    box.drawn.look(box.now, ip_address("2001:db8::1"), serving=True, lonely_for=0.0)
    assert box.asked == []


def test_a_pair_without_shared_addresses_asks_nobody() -> None:
    selector = selectors.DefaultSelector()
    drawn = DrawnAway(replace(PAIR, shared=(), cloud=True), selector, lambda: None, lambda _now: None)
    drawn.look(100.0, GATEWAY, serving=True, lonely_for=0.0)
    assert not selector.get_map()


def test_a_new_master_writes_only_when_a_replaced_one_must_have_noticed() -> None:
    rank = Rank(0, 0, 1)
    dead = View(Role.SLAVE, 1, rank, link=Link.LOST, peer=Peer(Role.MASTER, 1, rank), gateway=Sight.SEEN)
    assert writes_after(dead) == NOTICED_SECONDS > (PROOFS + 1) * HURRY_SECONDS
    assert writes_after(replace(dead, peer=None)) == NOTICED_SECONDS, "a node that was never met"
    handed_over = replace(dead, peer=Peer(Role.JOINING, 1, rank))
    for at_once in (replace(dead, link=Link.UP), replace(dead, gateway=Sight.UNSET), handed_over):
        assert writes_after(at_once) == 0.0


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_is_known_by_its_number(version: int) -> None:
    request = echo_request(version, 7)
    reply = bytes([0 if version == 4 else 129]) + request[1:]
    packet = (b"\x45" + bytes(19) if version == 4 else b"") + reply
    assert is_echo_reply(packet, version)
    assert is_echo_reply(packet, version, 7)
    assert not is_echo_reply(packet, version, 8)
    assert not is_echo_reply(request, version)
    assert not is_echo_reply(b"", version)
