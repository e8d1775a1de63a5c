"""When a node keeps its hands off the shared addresses although its role would let it have them.

Two cases. A slave whose VRRP fell silent while the master goes on speaking over the peer link holds back,
and listens to VRRP again: soon, then less often. And a node that stood still (frozen, starved, suspended) may
have been replaced meanwhile: it waits until it has heard the peer, or has not for three seconds.
"""

from __future__ import annotations

import logging

from fault_tolerance.keepalived import Adverts
from fault_tolerance.view import SERVING, Link, View, Vrrp

# The peer's word counts only if it was spoken so long after VRRP had fallen silent, and is asked for a little
# later: a master that lives answers at once.
YIELD_AFTER_SECONDS, ASK_AFTER_SECONDS = 0.05, 0.07
YIELD_SECONDS = (3.0, 10.0, 30.0, 60.0)
FENCE_SECONDS = 3.0
STALL_SECONDS = 0.9
# A pause that, with the interval before it, is still shorter than three adverts or the silence of the link.
DEAF_AFTER_SECONDS = {Adverts.STANDARD: 0.5, Adverts.FAST: 0.2}
# Time for keepalived to hear an advert and for the peer link to be dialled anew.
DEAF_SECONDS = 1.5
# A peer that takes over says so at once, and speaks five times a second: its last word is true for so long.
TRUE_FOR_SECONDS = 0.3

log = logging.getLogger(__name__)


class Restraint:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._vrrp = Vrrp.DOWN
        self._vrrp_since = 0.0
        self._yield_until = 0.0
        self._yields = 0
        self.waits_for_word = False
        self._fenced_since = self._fenced_until = 0.0
        self._deaf_until = 0.0

    def note_vrrp(self, vrrp: Vrrp, now: float) -> None:
        """What keepalived says; its changes are timed."""
        if vrrp is not self._vrrp:
            self._vrrp, self._vrrp_since = vrrp, now
            self.waits_for_word = False

    def yielding(self, now: float) -> bool:
        """Whether the addresses are left to a master that VRRP does not hear."""
        return now < self._yield_until

    def hold_back(self, spoken: float | None, now: float) -> bool:
        """Leave the addresses to the master that still speaks; True if that begins now.

        `waits_for_word` tells afterwards whether the next word may make it begin.

        `spoken` is when the peer said what was heard last, not when it arrived: words that were under way
        when the master died, or waited while this node was busy, would hold up the takeover.
        """
        if self.yielding(now):
            return False
        self.waits_for_word = spoken is None or spoken < self._vrrp_since + YIELD_AFTER_SECONDS
        if self.waits_for_word:
            return False
        seconds = YIELD_SECONDS[min(self._yields, len(YIELD_SECONDS) - 1)]
        self._yields += 1
        self._yield_until = now + seconds
        log.warning("VRRP is silent but the peer link says that the master lives; held back %g s", seconds)
        return True

    def link_lost(self) -> None:
        """Nobody speaks any more: nothing to hold back for."""
        self._yield_until, self._yields = 0.0, 0
        self.waits_for_word = False

    def note_pause(self, seconds: float, now: float, adverts: Adverts, *, serving: bool) -> bool:
        """This node did not run for so long; True if it stood still so long that all must be judged anew.

        A slave that did not listen has not heard a silence, else a node that was frozen would overthrow the
        master that went on without it. A node that was `serving` may have been replaced: it gives the
        addresses up until the peer has been heard, or has not been for three seconds.
        """
        if seconds > DEAF_AFTER_SECONDS[adverts]:
            self._deaf_until = now + DEAF_SECONDS
        if seconds <= STALL_SECONDS:
            return False
        log.warning("this node stood still for %.1f s", seconds)
        if serving:
            self.stood_still(now)
        return True

    def deaf(self, now: float) -> bool:
        """Whether this node has not listened for a while, so that silence says nothing."""
        return now < self._deaf_until

    def stood_still(self, now: float) -> None:
        """This node serves and was away."""
        self._fenced_since, self._fenced_until = now, now + FENCE_SECONDS

    def fenced(self, view: View, spoken: float | None, now: float) -> bool:
        """Whether a node that was away must not have the addresses yet.

        Words that lay in a buffer meanwhile do not tell that the peer is no master, unless they are new.
        """
        if now >= self._fenced_until:
            return False
        fresh = view.link is Link.UP and spoken is not None and spoken > self._fenced_since - TRUE_FOR_SECONDS
        if fresh and view.peer is not None and view.peer.role not in SERVING:
            self._fenced_until = 0.0
            return False
        return True
