"""The role machine: a table of edges and the pure function that picks one.

The machine is level-triggered: it is asked again whenever anything changes and every second besides, so a
lost or repeated event changes nothing. Rows are tried in order and the first whose guard holds is taken;
rows that step down stand before rows that step up, so the safe side wins. docs/roles.md is made from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from fault_tolerance.view import OVERRIDABLE, SERVING, Link, Obstacle, Role, View, Vrrp, Wish, Work


class Action(StrEnum):
    """What the executor does for an edge, in the order given."""

    NEW_EPOCH = "write an epoch greater than any seen to disk"
    RECORD_MASTERY = "write to disk that this node has served in its epoch"
    ADOPT_EPOCH = "write the peer's epoch to disk"
    PROMOTE = "make this node serve: database writable, SIP open, trunks on, jobs on"
    DEMOTE = "make this node silent and verify it: SIP closed, database read-only, addresses gone"
    FOLLOW = "replicate from the peer"
    SEND_FILES = "send files in the new epoch, for the peer takes none of an older one"
    STOP_SERVICES = "stop the PBX core"
    START_SERVICES = "start the PBX core, silent"
    YIELD_ADDRESSES = "hold keepalived in fault until the two signals agree"
    CLAIM_ADDRESSES = "have keepalived take the shared addresses and announce them"
    REBOOT = "reboot this node at once: what cannot be verified must not go on"
    CLEAR_WISH = "the administrator's wish is reached"


Guard = Callable[[View], bool]


@dataclass(frozen=True)
class Edge:
    """One row of the table; `name` is what tests and the journal call it."""

    name: str
    sources: frozenset[Role]
    guard: Guard
    target: Role
    actions: tuple[Action, ...]
    reason: str


@dataclass(frozen=True)
class Decision:
    """The edge to take, or None to stay; `reason` is a sentence either way."""

    edge: Edge | None
    target: Role
    actions: tuple[Action, ...]
    reason: str


def may_promote(view: View) -> bool:
    """Whether this node may promote itself now: no obstacle, or a forced wish over overridable ones.

    In cloud mode the wish itself is what is missing, so it needs no force.
    """
    if not view.obstacles:
        return True
    if view.wish is not Wish.MASTER:
        return False
    return view.obstacles <= (OVERRIDABLE if view.forced else {Obstacle.MANUAL_MODE})


def address_verdict(view: View) -> str | None:
    """Why this node may not hold the shared addresses, or None when it may: what keepalived's file says.

    A slave that is ready may: keepalived then moves the addresses without waiting for anything of ours.
    """
    if view.role in SERVING:
        return None
    if view.role is not Role.SLAVE:
        return f"the role is {view.role.value}"
    if view.yielding:
        return "the peer link says that the master lives"
    return min((obstacle.value for obstacle in view.obstacles), default=None)


def _peer_serves(view: View) -> bool:
    return view.link_up and view.peer is not None and view.peer.role in SERVING


def _peer_outranks(view: View) -> bool:
    """Both serve: the greater epoch stays, then the greater rank."""
    peer = view.peer
    if not view.link_up or peer is None or peer.role not in SERVING:
        return False
    return (peer.epoch, peer.rank) > (view.epoch, view.rank)


def _peer_can_serve(view: View) -> bool:
    return view.link_up and view.peer is not None and view.peer.eligible and view.peer.role is Role.SLAVE


def _wins_election(view: View) -> bool:
    """Nobody serves and both are heard: the greater rank among the eligible takes over."""
    peer = view.peer
    if not view.link_up or peer is None or peer.role in SERVING or peer.role is Role.DEMOTING:
        return False
    if peer.role is Role.OFF:
        return may_promote(view)
    return may_promote(view) and (not peer.eligible or view.rank > peer.rank)


def _peer_still_starts(view: View) -> bool:
    """Whether the peer cannot say yet how new its data are: to come first now might be to lose them."""
    peer = view.peer
    return peer is not None and peer.role is Role.JOINING and Obstacle.DATABASE_STARTING in peer.obstacles


def _both_signals_silent(view: View) -> bool:
    return view.link is Link.LOST and view.vrrp is Vrrp.MASTER


def _roles(*roles: Role) -> frozenset[Role]:
    return frozenset(roles)


EDGES: tuple[Edge, ...] = (
    # What is under way ends first.
    Edge(
        "demotion_unverified",
        _roles(Role.DEMOTING),
        lambda view: view.work is Work.FAILED,
        # It never says that it has stepped down: the peer takes over when this node is silent.
        Role.DEMOTING,
        (Action.REBOOT,),
        "the demotion could not be verified, so this node reboots",
    ),
    Edge(
        "demoted_to_off",
        _roles(Role.DEMOTING),
        lambda view: view.work is Work.DONE and view.wish is Wish.OFF,
        Role.OFF,
        (Action.STOP_SERVICES, Action.CLEAR_WISH),
        "services are off as asked",
    ),
    Edge(
        "demoted",
        _roles(Role.DEMOTING),
        lambda view: view.work is Work.DONE,
        Role.JOINING,
        (Action.CLEAR_WISH,),
        "this node has stepped down and looks for the master",
    ),
    # Stepping down.
    Edge(
        "off_asked",
        _roles(Role.PROMOTING, Role.MASTER),
        lambda view: view.wish is Wish.OFF,
        Role.DEMOTING,
        (Action.DEMOTE,),
        "an administrator switches the services off",
    ),
    Edge(
        "off_asked_of_silent_node",
        _roles(Role.JOINING, Role.SLAVE),
        lambda view: view.wish is Wish.OFF,
        Role.OFF,
        (Action.STOP_SERVICES, Action.CLEAR_WISH),
        "an administrator switches the services off",
    ),
    Edge(
        "peer_outranks",
        _roles(Role.PROMOTING, Role.MASTER),
        _peer_outranks,
        Role.DEMOTING,
        (Action.DEMOTE,),
        "the peer serves with the newer epoch",
    ),
    Edge(
        "isolated",
        _roles(Role.PROMOTING, Role.MASTER),
        lambda view: view.isolated and not view.forced,
        Role.DEMOTING,
        (Action.DEMOTE,),
        "neither the peer nor gateway or witness are seen, so the peer may be master already",
    ),
    Edge(
        "peer_claims",
        _roles(Role.PROMOTING, Role.MASTER),
        lambda view: view.peer_claims and view.link is not Link.UP and not view.forced,
        Role.DEMOTING,
        (Action.DEMOTE,),
        "the peer cannot be talked to, but its adverts say that it is master",
    ),
    Edge(
        "drawn_away",
        _roles(Role.MASTER),
        lambda view: view.drawn_away and view.link is not Link.UP and not view.forced,
        Role.DEMOTING,
        (Action.DEMOTE,),
        "the peer cannot be talked to, and the gateway sends what is for the shared addresses elsewhere",
    ),
    Edge(
        "promotion_failed",
        _roles(Role.PROMOTING),
        lambda view: view.work is Work.FAILED,
        Role.DEMOTING,
        (Action.DEMOTE, Action.CLEAR_WISH),
        "the promotion failed and is taken back",
    ),
    Edge(
        "service_link_lost",
        _roles(Role.MASTER),
        lambda view: view.vrrp is Vrrp.FAULT and _peer_can_serve(view),
        Role.DEMOTING,
        (Action.DEMOTE,),
        "the shared addresses cannot be served here and the peer is ready",
    ),
    Edge(
        "core_failed",
        _roles(Role.MASTER),
        lambda view: view.core_failed and _peer_can_serve(view),
        Role.DEMOTING,
        (Action.DEMOTE,),
        "the PBX core, its database or its disk cannot go on here and the peer is ready",
    ),
    Edge(
        "switchover",
        _roles(Role.MASTER),
        lambda view: view.wish is Wish.SLAVE and (_peer_can_serve(view) or view.forced),
        Role.DEMOTING,
        (Action.DEMOTE,),
        "an administrator hands the role to the peer",
    ),
    # A promotion of the peer that never served, or served apart and stepped down: whoever serves now goes on.
    Edge(
        "epoch_behind",
        _roles(Role.MASTER),
        lambda view: (
            view.link_up
            and view.peer is not None
            and view.peer.role not in SERVING
            and view.peer.epoch > view.epoch
        ),
        Role.MASTER,
        (Action.NEW_EPOCH, Action.RECORD_MASTERY, Action.SEND_FILES),
        "the silent peer has seen a newer epoch, so this node, which serves, takes a newer one",
    ),
    # Following.
    Edge(
        "peer_is_master",
        _roles(Role.JOINING),
        lambda view: _peer_serves(view),
        Role.SLAVE,
        (Action.ADOPT_EPOCH, Action.FOLLOW, Action.START_SERVICES, Action.CLEAR_WISH),
        "the peer is master",
    ),
    # It listens to VRRP again, and takes the role back when that is silent as well.
    Edge(
        "switch_unanswered",
        _roles(Role.JOINING),
        lambda view: view.handed_over and view.link is Link.LOST and may_promote(view),
        Role.SLAVE,
        (),
        "the peer fell silent before it served with the role that this node handed to it",
    ),
    Edge(
        "epoch_adopted",
        _roles(Role.SLAVE),
        lambda view: _peer_serves(view) and view.peer is not None and view.peer.epoch > view.epoch,
        Role.SLAVE,
        (Action.ADOPT_EPOCH, Action.FOLLOW),
        "the master has taken a newer epoch",
    ),
    Edge(
        "master_lost_while_both_wait",
        _roles(Role.SLAVE),
        lambda view: (
            view.link_up
            and view.peer is not None
            and view.peer.role in _roles(Role.SLAVE, Role.JOINING, Role.OFF)
            and not may_promote(view)
        ),
        Role.JOINING,
        (),
        "the peer is no longer master and this node may not take over",
    ),
    Edge(
        "services_on_asked",
        _roles(Role.OFF),
        lambda view: view.wish in (Wish.SLAVE, Wish.MASTER),
        Role.JOINING,
        (Action.START_SERVICES,),
        "an administrator switches the services on",
    ),
    # Stepping up.
    Edge(
        "promoted",
        _roles(Role.PROMOTING),
        lambda view: view.work is Work.DONE,
        Role.MASTER,
        (Action.RECORD_MASTERY, Action.CLAIM_ADDRESSES, Action.CLEAR_WISH),
        "this node serves",
    ),
    Edge(
        "master_dead",
        _roles(Role.SLAVE),
        lambda view: _both_signals_silent(view) and may_promote(view),
        Role.PROMOTING,
        (Action.NEW_EPOCH, Action.PROMOTE),
        "the master is silent on VRRP and on the peer link",
    ),
    Edge(
        "master_stepped_down",
        _roles(Role.SLAVE),
        _wins_election,
        Role.PROMOTING,
        (Action.NEW_EPOCH, Action.PROMOTE),
        "the peer is no longer master",
    ),
    Edge(
        "first_master",
        _roles(Role.JOINING),
        lambda view: _wins_election(view) and view.acquainted and not _peer_still_starts(view),
        Role.PROMOTING,
        (Action.NEW_EPOCH, Action.PROMOTE),
        "no node is master and this one comes first",
    ),
    Edge(
        "master_asked",
        _roles(Role.JOINING, Role.SLAVE),
        lambda view: view.wish is Wish.MASTER and may_promote(view) and not _peer_serves(view),
        Role.PROMOTING,
        (Action.NEW_EPOCH, Action.PROMOTE),
        "an administrator makes this node master",
    ),
)

# Why a node stays, tried in order; the first that holds is shown.
STAYING: tuple[tuple[frozenset[Role], Guard, tuple[Action, ...], str], ...] = (
    (
        _roles(Role.SLAVE, Role.JOINING),
        lambda view: view.vrrp is Vrrp.MASTER and _peer_serves(view),
        (Action.YIELD_ADDRESSES,),
        "VRRP is silent, but the peer link says that the master lives",
    ),
    # A peer that steps down has let go already: to hold on is right, and saves a second of the switch.
    (
        _roles(Role.SLAVE, Role.JOINING),
        lambda view: view.vrrp is Vrrp.MASTER,
        (),
        "VRRP is silent, and it is not clear yet whether to take over",
    ),
    (
        _roles(Role.SLAVE),
        lambda view: view.link is Link.LOST and not may_promote(view),
        (),
        "the peer is not heard any more, and this node may not take over",
    ),
    (
        _roles(Role.SLAVE),
        lambda view: view.link is Link.LOST,
        (),
        "the peer link is lost, but VRRP still hears the master",
    ),
    (
        _roles(Role.MASTER),
        lambda view: view.vrrp is Vrrp.BACKUP and not _peer_serves(view),
        (Action.CLAIM_ADDRESSES,),
        "this node is master but does not hold the shared addresses yet",
    ),
    (_roles(Role.PROMOTING), lambda view: True, (), "the promotion is under way"),
    (_roles(Role.DEMOTING), lambda view: True, (), "the demotion is under way"),
    (_roles(Role.MASTER), lambda view: True, (), "this node serves"),
    (_roles(Role.SLAVE), lambda view: True, (), "the peer serves and this node follows"),
    (_roles(Role.JOINING), lambda view: view.link is not Link.UP, (), "the peer has not been met yet"),
    (_roles(Role.JOINING), lambda view: True, (), "no node may be master yet"),
    (_roles(Role.OFF), lambda view: True, (), "the services are off as asked"),
    (_roles(Role.STANDALONE), lambda view: True, (), "this node has no peer"),
)


def decide(view: View) -> Decision:
    """The next step of this node; pure, total, and never both demoting and promoting."""
    for edge in EDGES:
        if view.role in edge.sources and edge.guard(view):
            return Decision(edge, edge.target, edge.actions, edge.reason)
    for roles, guard, actions, reason in STAYING:
        if view.role in roles and guard(view):
            return Decision(None, view.role, actions, reason)
    raise AssertionError(f"no sentence for {view.role}")
