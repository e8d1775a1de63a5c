"""What `centralino fault-tolerance status` and `why` show, and the alarms of a pair: sentences from facts."""

from __future__ import annotations

import time

from fault_tolerance.hearing import SKEW_SECONDS
from fault_tolerance.runtime import Runtime
from fault_tolerance.view import SERVING, Link, Obstacle, Role, Sight, Vrrp

Table = dict[str, object]

# Obstacles that come and go with a switch are no alarms.
QUIET = frozenset({Obstacle.STEPPED_DOWN, Obstacle.SHUTTING_DOWN, Obstacle.MANUAL_MODE, Obstacle.MAINTENANCE})


def status(runtime: Runtime) -> Table:
    """The whole truth of this node, and what it has heard of the other one."""
    pair, heard = runtime.pair, runtime.heard
    database, files = runtime.facts().database, runtime.facts().files
    silent, skew = runtime.link.silent_for(), runtime.hearing.skew
    return {
        "role": runtime.role.value,
        "epoch": runtime.state.durable.epoch,
        "mastered": runtime.state.durable.mastered,
        "reason": runtime.reason,
        "since_seconds": round(time.monotonic() - runtime.since, 1),
        "wish": runtime.wish.value,
        "forced": runtime.forced,
        "cloud": pair.cloud,
        "ready": not runtime.obstacles,
        "obstacles": [obstacle.value for obstacle in sorted(runtime.obstacles)],
        "vrrp": runtime.vrrp.state.value if not pair.cloud else None,
        "addresses": [
            {
                "address": str(held.address),
                "interface": held.interface,
                "here": held in runtime.addresses.held,
            }
            for held in pair.shared
        ],
        "link": {
            "state": runtime.link.state.value,
            "peer": str(pair.peer),
            "silent_seconds": None if silent is None else round(silent, 2),
            "trouble": runtime.link.trouble,
        },
        "gateway": {"address": _text(runtime.gateway.target), "state": runtime.gateway.sight.value},
        "witness": {"address": _text(runtime.witness.target), "state": runtime.witness.sight.value},
        "clock_skew_seconds": None if skew is None else round(skew, 3),
        "database": {
            "lag_milliseconds": database.lag_milliseconds,
            "synchronous": database.synchronous,
            "detail": database.detail,
        },
        "files": {"lag_milliseconds": files.lag_milliseconds, "detail": files.detail},
        "work": runtime.executor.work.value,
        "last_work": [
            {"step": step, "seconds": round(seconds, 4)} for step, seconds in runtime.executor.report
        ],
        "failure": runtime.executor.failure,
        "calls": runtime.core.calls,
        "peer": None
        if heard is None
        else {
            "role": heard.role.value,
            "epoch": heard.epoch,
            "ready": not heard.obstacles,
            "obstacles": [obstacle.value for obstacle in sorted(heard.obstacles)],
            "version": heard.version,
            "schema": heard.schema,
            "holds": heard.holds,
            "calls": heard.calls,
            "settings_agree": heard.cluster == runtime.core.digest,
            "secrets_agree": heard.secrets == runtime.core.secrets,
        },
    }


def alarms(runtime: Runtime) -> dict[str, str]:
    """Identifier to sentence, of what is wrong with the pair as this node sees it."""
    found: dict[str, str] = {}
    link, heard = runtime.link.state, runtime.heard
    look = "see: centralino fault-tolerance status"
    if link is not Link.UP:
        what = "has not been met since this node booted" if link is Link.NEVER else "is not heard any more"
        found["pair.peer"] = f"the peer {runtime.pair.peer} {what} ({runtime.link.trouble}); {look}"
    elif heard is not None and runtime.role in SERVING:
        wrong = sorted(heard.obstacles - QUIET)
        if wrong:
            found["pair.not-ready"] = f"the peer could not take over now: {'; '.join(wrong)}; {look}"
        if runtime.exchange.peer_lacks_secrets:
            found["pair.secrets"] = (
                "the peer has not taken over the certificates and secrets of this node; "
                "see there: journalctl -u centralinod"
            )
        if heard.role in SERVING:
            found["pair.two-masters"] = f"both nodes serve; one is stepping down; {look}"
    if runtime.role is Role.MASTER and runtime.facts().database.synchronous is False:
        found["pair.asynchronous"] = (
            "the newest commits may be on this node alone: replication is not synchronous now; " + look
        )
    if runtime.role is Role.MASTER and not runtime.pair.cloud and runtime.vrrp.state is not Vrrp.MASTER:
        found["pair.addresses"] = f"this node is master but does not hold the shared addresses; {look}"
    for part, state in (("database", runtime.facts().database), ("files", runtime.facts().files)):
        if state.alarm:
            found[f"pair.{part}"] = state.alarm
    if runtime.guard.duplicates:
        others = ", ".join(
            f"{address} ({hardware})" for address, hardware in runtime.guard.duplicates.items()
        )
        found["pair.duplicate"] = (
            f"another machine answers for a shared address: {others}; find it and take it away"
        )
    if runtime.disk_full:
        found["pair.disk"] = f"the disk of this node is full, so it cannot take over or go on; {look}"
    for third in (runtime.gateway, runtime.witness):
        if third.sight is Sight.LOST:
            found[f"pair.{third.name}"] = (
                f"the {third.name} {third.target} does not answer; look at the network"
            )
    if apart := clocks_apart(runtime):
        found["pair.clocks"] = f"{apart}; see on both: timedatectl, chronyc tracking"
    if Obstacle.TOO_MANY_MOVES in runtime.obstacles:
        found["pair.moves"] = (
            "the master role has moved too often within an hour, so this node takes over no more by itself; "
            "find the cause, then run: centralino fault-tolerance role slave"
        )
    return found


def why(runtime: Runtime) -> Table:
    """Sentences that answer: why is this node what it is, and may it take over?"""
    view = runtime.view()
    sentences = [f"This node is {view.role.value} (epoch {view.epoch}): {runtime.reason}."]
    if view.role in SERVING:
        peer = view.peer
        if view.link is not Link.UP or peer is None:
            sentences.append("The peer is not heard, so nobody could take over from this node.")
        elif peer.eligible:
            sentences.append("The peer may take over.")
        else:
            sentences += [f"The peer may not take over: {reason}." for reason in sorted(peer.obstacles)]
    elif view.obstacles:
        sentences += [f"It may not take over: {reason}." for reason in sorted(view.obstacles)]
    else:
        sentences.append("It may take over.")
    if apart := clocks_apart(runtime):
        sentences.append(f"That keeps nobody from taking over, but should be mended: {apart}.")
    return {"role": view.role.value, "may_take_over": not view.obstacles, "sentences": sentences}


def clocks_apart(runtime: Runtime) -> str:
    """A sentence if the clocks differ by more than a pair may begin with, else ""."""
    skew = runtime.hearing.skew
    if skew is None or abs(skew) <= SKEW_SECONDS:
        return ""
    way = "ahead of" if skew > 0 else "behind"
    return f"the peer's clock is {abs(skew):.1f} s {way} this node's"


def _text(value: object) -> str | None:
    return None if value is None else str(value)
