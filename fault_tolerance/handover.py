"""A role that was handed over may be taken back while the peer cannot have acknowledged anything alone; a
node that goes down sees its role taken over."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable

from fault_tolerance.heartbeat import Heartbeat
from fault_tolerance.peer_link import PeerLink
from fault_tolerance.roles import Edge
from fault_tolerance.view import SERVING, Link, Role

HANDING = frozenset({"switchover", "service_link_lost", "core_failed"})
# Of the time for which commits wait for this node (database/look.py, GIVE_UP_SECONDS), what is certain: the
# peer may have opened its database half a second before it says so, and live a moment after its last word.
CONFIRMED_SECONDS = 1.0
# A node that goes down waits so long for its peer to serve.
TAKEN_OVER_SECONDS = 3.0
SPEAK_SECONDS = 0.1


class Handover:
    """`open` from the step down until the peer serves or this node becomes something else."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._peer_writes_since: float | None = None
        self.open = False

    def took(self, edge: Edge, *, link_up: bool) -> None:
        """This node took an edge."""
        if edge.target in SERVING or edge.target in (Role.DEMOTING, Role.OFF):
            self.open, self._peer_writes_since = edge.name in HANDING and link_up, None

    def heard(self, *, peer_writes: bool) -> None:
        """A heartbeat came."""
        now = self._clock()
        if self._peer_writes_since is None:
            self._peer_writes_since = now if peer_writes else None
        elif now - self._peer_writes_since > CONFIRMED_SECONDS:
            self.open = False


def see_taken_over(
    link: PeerLink,
    selector: selectors.BaseSelector,
    speak: Callable[[], None],
    heard: Callable[[], Heartbeat | None],
) -> None:
    """Go on to speak until the peer serves: what it still lacks comes over connections that end with this
    node."""
    deadline = time.monotonic() + TAKEN_OVER_SECONDS
    while link.state is Link.UP and time.monotonic() < deadline:
        last = heard()
        if last is not None and last.role is Role.MASTER:
            return
        speak()
        for key, _ in selector.select(SPEAK_SECONDS):
            key.data()
