"""What the two nodes tell each other five times a second: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from fault_tolerance.keepalived import Adverts
from fault_tolerance.view import Obstacle, Peer, Rank, Role

# The peer link must not be slower than VRRP to notice a dead peer, or the promotion waits for it.
INTERVAL_SECONDS = {Adverts.STANDARD: 0.2, Adverts.FAST: 0.15}
SILENCE_SECONDS = {Adverts.STANDARD: 0.9, Adverts.FAST: 0.4}
LONGEST_LINE = 4 * 1024 * 1024
ANSWER_SHARE = 0.1


@dataclass(frozen=True)
class Heartbeat:
    """`wall` is the sender's clock (seconds since 1970), to compare clocks; `cluster` the digest of its
    settings of cluster scope, `secrets` that of the secrets and certificates of the pair; `holds` whether it
    has the shared addresses; `database` and `files` are the replications' own words."""

    role: Role
    epoch: int
    rank: Rank
    obstacles: frozenset[Obstacle] = frozenset()
    version: str = ""
    schema: int = 0
    wall: float = 0.0
    holds: bool = False
    cluster: str = ""
    calls: int | None = None
    database: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, object] = field(default_factory=dict)
    secrets: str = ""
    witness_lost: bool = False

    @property
    def peer(self) -> Peer:
        """What the role machine looks at."""
        return Peer(self.role, self.epoch, self.rank, self.obstacles)


class Pace:
    """When this node speaks. One that `answers` does so when it has heard its peer, so that both cost one
    waking of its process: its own time comes a share of the interval later, and a word that comes no sooner
    than a share before the interval is over is answered at once. Times are monotonic seconds."""

    def __init__(self, interval: float, *, answers: bool) -> None:
        self._interval = interval
        self._spare = ANSWER_SHARE * interval if answers else 0.0
        self._heard = False
        self.next = 0.0

    def heard(self, *, asks: bool = False) -> None:
        """The peer has spoken; one that asks is answered at once."""
        self._heard = True
        if asks:
            self.next = 0.0

    def no_later_than(self, moment: float) -> None:
        """Speak by then."""
        self.next = min(self.next, moment)

    def is_due(self, now: float) -> bool:
        """Asked in each turn of the loop: whether to speak in this one."""
        early = 2 * self._spare if self._heard else 0.0
        self._heard = False
        return now >= self.next - early

    def spoke(self, now: float) -> None:
        """This node spoke."""
        self.next = now + self._interval + self._spare


def encode(beat: Heartbeat) -> bytes:
    """One line."""
    table = {
        "type": "beat",
        "role": beat.role.value,
        "epoch": beat.epoch,
        "rank": [beat.rank.mastered, beat.rank.position, beat.rank.priority],
        "obstacles": sorted(obstacle.name for obstacle in beat.obstacles),
        "version": beat.version,
        "schema": beat.schema,
        "wall": beat.wall,
        "holds": beat.holds,
        "cluster": beat.cluster,
        "secrets": beat.secrets,
        "witness_lost": beat.witness_lost,
        "calls": beat.calls,
        "database": beat.database,
        "files": beat.files,
    }
    return json.dumps(table, separators=(",", ":")).encode() + b"\n"


def decode(table: Mapping[str, object]) -> Heartbeat:
    """Raises ValueError, KeyError or TypeError. An obstacle of a newer version is one of another version."""
    rank = table["rank"]
    obstacles = table["obstacles"]
    if not isinstance(rank, list) or len(rank) != 3 or not isinstance(obstacles, list):
        raise TypeError("rank or obstacles are malformed")
    calls = table["calls"]
    return Heartbeat(
        role=Role(str(table["role"])),
        epoch=_whole(table["epoch"]),
        rank=Rank(_whole(rank[0]), _whole(rank[1]), _whole(rank[2])),
        obstacles=frozenset(
            Obstacle[name] if name in Obstacle.__members__ else Obstacle.OTHER_VERSION for name in obstacles
        ),
        version=str(table["version"]),
        schema=_whole(table["schema"]),
        wall=float(str(table["wall"])),
        holds=table["holds"] is True,
        cluster=str(table["cluster"]),
        secrets=str(table.get("secrets", "")),
        witness_lost=table.get("witness_lost") is True,
        calls=calls if isinstance(calls, int) else None,
        database=_table(table["database"]),
        files=_table(table["files"]),
    )


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _table(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
