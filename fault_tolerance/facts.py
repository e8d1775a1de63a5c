"""From what the parts say to the view that the role machine judges: obstacles, as data and one function."""

from __future__ import annotations

from dataclasses import dataclass

from fault_tolerance.contracts import ReplicaState
from fault_tolerance.heartbeat import Heartbeat
from fault_tolerance.view import SERVING, Link, Obstacle, Rank, Role, Sight

MOST_MOVES_AN_HOUR = 6


@dataclass(frozen=True)
class Facts:
    """What this node knows beside the role; see `Obstacle` for what each can mean.
    `handed_over`: this node handed the role to a peer that fell silent before it acknowledged anything alone,
    so that nobody has newer data than this node."""

    role: Role
    rank: Rank
    link: Link
    heard: Heartbeat | None
    gateway: Sight
    witness: Sight
    carrier: bool
    version: str
    schema: int
    database: ReplicaState
    database_answers: bool
    database_starting: bool
    files: ReplicaState
    core_failed: bool
    disk_full: bool
    maintenance: bool
    stepped_down: bool
    moves: int
    shutting_down: bool
    manual: bool
    handed_over: bool


def obstacles(facts: Facts) -> frozenset[Obstacle]:
    """Why this node may not take over; empty when it may."""
    heard = facts.heard
    found = {
        Obstacle.PEER_NEVER_MET: facts.link is Link.NEVER,
        Obstacle.GATEWAY_LOST: facts.gateway is Sight.LOST,
        Obstacle.SERVICE_LINK_DOWN: not facts.carrier,
        Obstacle.MAINTENANCE: facts.maintenance,
        Obstacle.CORE_FAILED: facts.core_failed,
        Obstacle.DISK_FULL: facts.disk_full,
        Obstacle.STEPPED_DOWN: facts.stepped_down and not facts.handed_over,
        Obstacle.TOO_MANY_MOVES: facts.moves >= MOST_MOVES_AN_HOUR,
        Obstacle.SHUTTING_DOWN: facts.shutting_down,
        Obstacle.MANUAL_MODE: facts.manual and not _both_begin(facts),
    }
    # A witness that neither node reached is dead; one that the peer reached may be on its side of a cut.
    found[Obstacle.WITNESS_LOST] = facts.witness is Sight.LOST and not (heard and heard.witness_lost)
    if heard is not None:
        found[Obstacle.OTHER_VERSION] = heard.version != facts.version
        found[Obstacle.OTHER_SCHEMA] = heard.schema != facts.schema
        found[Obstacle.PEER_NEWER] = _peer_newer(facts, heard)
    missing = {obstacle for obstacle, holds in found.items() if holds}
    replicas = facts.database.obstacles | facts.files.obstacles
    if facts.role is Role.SLAVE and not facts.handed_over:
        missing |= replicas
    elif facts.role not in (Role.MASTER, Role.PROMOTING):
        # A node that follows nobody does not replicate, and need not: ranks say whose data are newer. A half
        # copy, or a database that does not answer, keeps it from serving all the same.
        missing |= replicas & {Obstacle.SEEDING}
        if not facts.database_answers:
            missing.add(Obstacle.DATABASE_STARTING if facts.database_starting else Obstacle.REPLICA_BROKEN)
    return frozenset(missing)


def newer_mastery(facts: Facts) -> int | None:
    """The master's mastery, if what this slave has is now the data of that one and was not before."""
    heard = facts.heard
    if facts.role is not Role.SLAVE or facts.link is not Link.UP or facts.database.obstacles:
        return None
    if heard is None or heard.role not in SERVING or heard.rank.mastered <= facts.rank.mastered:
        return None
    return heard.rank.mastered


def _both_begin(facts: Facts) -> bool:
    """In cloud mode too, two nodes that both begin need no person: the public address is where it was, at the
    one that was master last, and that one's rank is the greater."""
    heard = facts.heard
    return (
        facts.role is Role.JOINING
        and facts.link is Link.UP
        and heard is not None
        and heard.role is Role.JOINING
        and facts.rank.mastered > heard.rank.mastered
    )


def _peer_newer(facts: Facts, heard: Heartbeat) -> bool:
    """A follower's data are judged by its replication (what it has received, it has); a node that follows
    nobody must compare: later mastery beats earlier, then the position."""
    own = (facts.rank.mastered, facts.rank.position)
    if facts.role is Role.SLAVE:
        return heard.rank.mastered > facts.rank.mastered and not facts.handed_over
    if facts.role in (Role.MASTER, Role.PROMOTING):
        return False
    return (heard.rank.mastered, heard.rank.position) > own
