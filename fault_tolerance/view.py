"""What one node knows at one moment: the only input of its decisions. No clock, no box, no network here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a node is; `joining` serves nothing and knows of no master yet."""

    STANDALONE = "standalone"
    JOINING = "joining"
    SLAVE = "slave"
    PROMOTING = "promoting"
    MASTER = "master"
    DEMOTING = "demoting"
    OFF = "off"


SERVING = frozenset({Role.MASTER, Role.PROMOTING})


class Wish(StrEnum):
    """What an administrator asked for and the node has not reached yet (S-FT-10)."""

    NONE = "none"
    MASTER = "master"
    SLAVE = "slave"
    OFF = "off"


class Vrrp(StrEnum):
    """What keepalived last said of the service addresses; `down` when it does not run."""

    MASTER = "master"
    BACKUP = "backup"
    FAULT = "fault"
    DOWN = "down"


class Link(StrEnum):
    """The peer link: `never` means that the two have not met since this node booted."""

    UP = "up"
    LOST = "lost"
    NEVER = "never"


class Sight(StrEnum):
    """Whether a third party (gateway, witness) answers; `unset` when none is configured."""

    SEEN = "seen"
    LOST = "lost"
    UNSET = "unset"


class Work(StrEnum):
    """How far the executor is with the promotion or demotion that was ordered last."""

    IDLE = "idle"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Obstacle(StrEnum):
    """Why a node may not take over, as the sentences that status, alarms, log and `why` share."""

    NOT_PAIRED = "this node has no peer"
    PEER_NEVER_MET = "the peer has not been met since this node booted, so it may hold newer data"
    GATEWAY_LOST = "this node does not reach its gateway"
    WITNESS_LOST = "this node does not reach the witness, which its peer may reach"
    SERVICE_LINK_DOWN = "the interface of the shared addresses has no link"
    REPLICA_BROKEN = "database replication is broken"
    REPLICA_BEHIND = "the database replica is behind the peer"
    DATABASE_STARTING = "the database has not answered yet, so it is not known how new its data are"
    SEEDING = "the database is being copied from the peer"
    PEER_NEWER = "the peer holds newer data and is not the one that asks"
    MAINTENANCE = "maintenance was declared on this node"
    OTHER_VERSION = "the peer runs another version"
    OTHER_SCHEMA = "the peer's settings have another schema"
    DISK_FULL = "the disk of this node is full"
    CORE_FAILED = "the PBX core cannot run on this node"
    STEPPED_DOWN = "this node stepped down a moment ago and leaves the way to its peer"
    TOO_MANY_MOVES = "the role has moved too often within the last hour; a person must look"
    SHUTTING_DOWN = "this node is shutting down"
    MANUAL_MODE = "in cloud mode the role is moved by hand or by the provider hook"
    LICENCE_MISSING = "the licence does not allow a pair"


# An administrator who insists may step over these; the others would lose data or cannot work at all.
OVERRIDABLE = frozenset(
    {
        Obstacle.PEER_NEVER_MET,
        Obstacle.GATEWAY_LOST,
        Obstacle.WITNESS_LOST,
        Obstacle.REPLICA_BEHIND,
        Obstacle.STEPPED_DOWN,
        Obstacle.TOO_MANY_MOVES,
        Obstacle.MANUAL_MODE,
        Obstacle.OTHER_VERSION,
    }
)


@dataclass(frozen=True, order=True)
class Rank:
    """Who should be master when nobody is; the greater one wins. `priority` differs between the two nodes.

    `mastered` is the epoch in which the node last was master, `position` its database position as one
    number that grows with every transaction.
    """

    mastered: int
    position: int
    priority: int


@dataclass(frozen=True)
class Peer:
    """What the other node said in its last heartbeat."""

    role: Role
    epoch: int
    rank: Rank
    obstacles: frozenset[Obstacle] = frozenset()

    @property
    def eligible(self) -> bool:
        """Whether it may take over by its own judgement."""
        return not self.obstacles


@dataclass(frozen=True)
class View:
    """Everything that `decide` looks at.

    `epoch` is the newest that this node has ever seen. `peer` stays what was heard last when the link is
    lost. `forced` says that an administrator insisted, which steps over the overridable obstacles; it holds
    until the peer or a third party is seen again. `yielding` is what YIELD_ADDRESSES set.
    `acquainted` says that the two have talked for a while, so that each knows what the other knows.
    `peer_claims` says that the peer's adverts go on although this node serves and cannot talk to it.
    `drawn_away` says that the gateway sends what is for the shared addresses to another machine.
    `handed_over` says that this node has handed the role to a peer that has acknowledged nothing alone since.
    """

    role: Role
    epoch: int
    rank: Rank
    link: Link = Link.NEVER
    peer: Peer | None = None
    vrrp: Vrrp = Vrrp.DOWN
    gateway: Sight = Sight.UNSET
    witness: Sight = Sight.UNSET
    obstacles: frozenset[Obstacle] = frozenset()
    wish: Wish = Wish.NONE
    forced: bool = False
    work: Work = Work.IDLE
    core_failed: bool = False
    yielding: bool = False
    peer_claims: bool = False
    drawn_away: bool = False
    acquainted: bool = True
    handed_over: bool = False

    @property
    def eligible(self) -> bool:
        """Whether this node may take over by itself."""
        return not self.obstacles

    @property
    def link_up(self) -> bool:
        """Whether the peer's words are fresh."""
        return self.link is Link.UP and self.peer is not None

    @property
    def sees_anybody(self) -> bool:
        """Whether the peer or a third party is seen."""
        return self.link is Link.UP or Sight.SEEN in (self.gateway, self.witness)

    @property
    def isolated(self) -> bool:
        """Neither the peer nor any third party is seen, and at least one third party is configured."""
        thirds = [sight for sight in (self.gateway, self.witness) if sight is not Sight.UNSET]
        return self.link is not Link.UP and bool(thirds) and all(sight is Sight.LOST for sight in thirds)
