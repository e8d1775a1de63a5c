"""Positions of MariaDB replication as values, and what two of them say about two nodes. Pure.

A position is what `@@gtid_binlog_state` prints: `domain-server-sequence` for each server that ever wrote,
for example `0-1-17,0-2-21`. With `gtid_strict_mode` and `log_slave_updates` a node holds every transaction
of a server up to the one named, so two positions compare like version vectors.
Source: MariaDB Knowledge Base, "Global Transaction ID", "gtid_binlog_state".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache

_GTID = re.compile(r"\s*(\d+)-(\d+)-(\d+)\s*")


class Comparison(StrEnum):
    """What the own position is, seen from the peer's."""

    IDENTICAL = "identical"
    BEHIND = "behind"
    AHEAD = "ahead"
    DIVERGED = "diverged"


@dataclass(frozen=True, order=True)
class Gtid:
    """One transaction; it orders by domain, then by sequence."""

    domain: int
    sequence: int
    server: int

    def __str__(self) -> str:
        return f"{self.domain}-{self.server}-{self.sequence}"


@dataclass(frozen=True)
class GtidState:
    """The last transaction of each server in each domain."""

    last: frozenset[Gtid] = frozenset()

    def __str__(self) -> str:
        return ",".join(str(gtid) for gtid in sorted(self.last))

    def holds(self, gtid: Gtid) -> bool:
        """Whether this transaction is part of it."""
        return any(
            own.domain == gtid.domain and own.server == gtid.server and own.sequence >= gtid.sequence
            for own in self.last
        )

    def includes(self, other: GtidState) -> bool:
        """Whether every transaction of `other` is part of it."""
        return all(self.holds(gtid) for gtid in other.last)

    @cached_property
    def sequence(self) -> int:
        """How far it is, as one number that grows with every transaction."""
        return sum(gtid.sequence for gtid in self.position)

    @property
    def position(self) -> tuple[Gtid, ...]:
        """The newest transaction of each domain: what `@@gtid_binlog_pos` prints."""
        newest: dict[int, Gtid] = {}
        for gtid in sorted(self.last):
            newest[gtid.domain] = gtid
        return tuple(newest[domain] for domain in sorted(newest))

    @property
    def position_text(self) -> str:
        """`position` as MariaDB reads it."""
        return ",".join(str(gtid) for gtid in self.position)

    def joined(self, other: GtidState) -> GtidState:
        """Everything that either holds."""
        newest: dict[tuple[int, int], Gtid] = {}
        for gtid in sorted(self.last | other.last):
            newest[gtid.domain, gtid.server] = gtid
        return GtidState(frozenset(newest.values()))


@lru_cache(maxsize=16)  # an idle pair reads the same few texts all day
def parse(text: str) -> GtidState:
    """Read `@@gtid_binlog_state`, `@@gtid_slave_pos` and their like. Raises ValueError."""
    return GtidState(frozenset(_parts(text)))


@lru_cache(maxsize=16)
def joined(first: str, second: str) -> GtidState:
    """Everything that either of two texts holds. Raises ValueError."""
    return parse(first).joined(parse(second))


def _parts(text: str) -> Iterator[Gtid]:
    for part in text.split(","):
        if not part.strip():
            continue
        found = _GTID.fullmatch(part)
        if found is None:
            raise ValueError(f"{part.strip()[:64]!r} is no GTID")
        domain, server, sequence = (int(number) for number in found.groups())
        yield Gtid(domain, sequence, server)


def classify(own: GtidState, peer: GtidState) -> Comparison:
    """What a returning node is: it joins, catches up, or holds transactions that its peer has not."""
    own_in_peer, peer_in_own = peer.includes(own), own.includes(peer)
    if own_in_peer:
        return Comparison.IDENTICAL if peer_in_own else Comparison.BEHIND
    return Comparison.AHEAD if peer_in_own else Comparison.DIVERGED


def last_common(own: GtidState, peer: GtidState) -> GtidState:
    """The newest transaction of each domain that both hold, where `own` is one line of history.

    Everything after it in the own log is what the peer has not. Empty for a domain without a common one.
    """
    newest: dict[int, Gtid] = {}
    for mine in own.last:
        for theirs in peer.last:
            if (mine.domain, mine.server) == (theirs.domain, theirs.server):
                newest[mine.domain] = max(newest.get(mine.domain, Gtid(mine.domain, 0, 0)), min(mine, theirs))
    return GtidState(frozenset(newest.values()))
