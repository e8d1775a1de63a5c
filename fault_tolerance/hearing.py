"""What this node has heard of its peer: the last heartbeat, how far the clocks differ, when it was spoken."""

from __future__ import annotations

import time
from collections.abc import Callable

from fault_tolerance.heartbeat import Heartbeat

# Clocks further apart are refused when nodes pair, and an alarm of a pair.
SKEW_SECONDS = 1.0
# A clock that was stepped must not make fresh words look older than this.
LONGEST_WAY_SECONDS = 2.0
SKEW_SHARE = 0.1


class Hearing:
    """`heard` stays when the peer falls silent; `skew` is the peer's clock less ours in seconds."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._clock, self._wall = clock, wall
        self.heard: Heartbeat | None = None
        self.skew: float | None = None
        self.spoken: float | None = None

    def take(self, beat: Heartbeat) -> bool:
        """True if the role machine would notice; positions grow all the time and change nothing.

        A heartbeat can only be late, never early: the greatest of the recent differences is the truest, and
        what this one is behind it is how long it was under way.
        """
        difference = beat.wall - self._wall()
        before = self.skew
        self.skew = (
            difference if before is None else max(difference, before + (difference - before) * SKEW_SHARE)
        )
        late = min(max(0.0, self.skew - difference), LONGEST_WAY_SECONDS)
        self.spoken = self._clock() - late
        last, self.heard = self.heard, beat
        return last is None or _outline(last) != _outline(beat)


def _outline(beat: Heartbeat) -> tuple[object, ...]:
    return beat.role, beat.epoch, beat.obstacles, beat.cluster, beat.witness_lost
