"""The pause before the next restart: none, then doubling up to a bound; it never ends in giving up."""

from __future__ import annotations


def pause_seconds(restarts: int, first: float, longest: float) -> float:
    """Seconds between the last restart and the next, after `restarts` restarts in one bad spell."""
    if restarts <= 0:
        return 0.0
    doublings = min(restarts - 1, 32)
    return min(first * float(2**doublings), max(first, longest))
