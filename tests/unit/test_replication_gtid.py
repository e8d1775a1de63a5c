"""Positions as version vectors: what a returning node is, for every history that two nodes can have had."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fault_tolerance.database.gtid import Comparison, Gtid, GtidState, classify, last_common, parse


@dataclass
class History:
    """A node's log of changes as MariaDB keeps it in strict mode, to derive a position from."""

    log: list[Gtid] = field(default_factory=list)

    def write(self, server: int) -> None:
        newest = max((gtid.sequence for gtid in self.log), default=0)
        self.log.append(Gtid(0, newest + 1, server))

    @property
    def state(self) -> GtidState:
        last: dict[int, Gtid] = {}
        for gtid in self.log:
            last[gtid.server] = gtid
        return GtidState(frozenset(last.values()))


writers = st.lists(st.sampled_from([1, 2]), max_size=12)


@given(writers, st.integers(0, 6), st.integers(0, 6))
def test_common_history_then_each_alone(common: list[int], own_alone: int, peer_alone: int) -> None:
    own = History()
    for server in common:
        own.write(server)
    peer = History(list(own.log))
    for _ in range(own_alone):
        own.write(1)
    for _ in range(peer_alone):
        peer.write(2)
    expected = {
        (False, False): Comparison.IDENTICAL,
        (False, True): Comparison.BEHIND,
        (True, False): Comparison.AHEAD,
        (True, True): Comparison.DIVERGED,
    }[own_alone > 0, peer_alone > 0]
    assert classify(own.state, peer.state) is expected
    shared = last_common(own.state, peer.state)
    assert shared.last == (frozenset(own.log[len(common) - 1 : len(common)]) if common else frozenset())
    after = [gtid for gtid in own.log if not peer.state.holds(gtid)]
    assert after == own.log[len(common) :]


states = st.lists(st.builds(Gtid, st.integers(0, 2), st.integers(1, 9), st.integers(1, 3)), max_size=6).map(
    lambda found: GtidState().joined(GtidState(frozenset(found)))
)


@given(states, states)
def test_the_two_nodes_agree_on_what_they_are(first: GtidState, second: GtidState) -> None:
    mirrored = {
        Comparison.IDENTICAL: Comparison.IDENTICAL,
        Comparison.BEHIND: Comparison.AHEAD,
        Comparison.AHEAD: Comparison.BEHIND,
        Comparison.DIVERGED: Comparison.DIVERGED,
    }
    assert classify(second, first) is mirrored[classify(first, second)]
    assert (classify(first, second) is Comparison.IDENTICAL) == (first == second)


@given(states, states)
def test_joined_holds_both_and_nothing_else(first: GtidState, second: GtidState) -> None:
    both = first.joined(second)
    assert both.includes(first)
    assert both.includes(second)
    assert both.last <= first.last | second.last


@given(states)
def test_text_and_back(state: GtidState) -> None:
    assert parse(str(state)) == state


@pytest.mark.parametrize("text", ["0-1", "a-b-c", "0-1-2;0-2-3", "0-1--2"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no GTID"):
        parse(text)


def test_position_is_the_newest_of_each_domain() -> None:
    assert parse("0-1-17, 0-2-21,3-1-2").position_text == "0-2-21,3-1-2"
    assert parse("0-1-17,0-2-21").sequence == 21
    assert parse("").position_text == ""
