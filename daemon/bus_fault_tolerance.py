"""The methods of org.centralino.FaultTolerance1: from JSON text to the role runtime and the pair's jobs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING

from daemon.authorization import Caller, reads, writes
from daemon.bus import BUS_NAME, Handler
from daemon.bus_api import SETTINGS_LANE
from daemon.errors import InvalidSettingsError, Problem, UnavailableError
from daemon.jobs import JobHandle, Jobs
from daemon.pair_link import PairLink
from daemon.settings.base import Address
from daemon.subsystem import JsonObject

if TYPE_CHECKING:
    from daemon.pair_jobs import PairJobs

LANE = "fault_tolerance"
SECRET_NAMES = frozenset({"code"})
ROLES = ("master", "slave", "off")


def fault_tolerance_handlers(
    pair: Callable[[], PairJobs] | None, link: PairLink, jobs: Jobs
) -> dict[str, Handler]:
    """Every method of FaultTolerance1 by its full name; away from a live box they say so."""
    methods = _FaultTolerance(pair, link, jobs)
    table: Mapping[str, Handler] = {
        "Status": methods.status,
        "Why": methods.why,
        "Facts": methods.facts,
        "Invite": methods.invite,
        "Pair": methods.pair,
        "Join": methods.join,
        "Unpair": methods.unpair,
        "Role": methods.role,
        "Switch": methods.switch,
        "Rehearse": methods.rehearse,
        "Maintenance": methods.maintenance,
    }
    return {f"{BUS_NAME}.FaultTolerance1.{name}": handler for name, handler in table.items()}


def _summary(options: str) -> dict[str, object]:
    table = _options(options)
    return {name: value for name, value in table.items() if name not in SECRET_NAMES}


class _FaultTolerance:
    def __init__(self, pair: Callable[[], PairJobs] | None, link: PairLink, jobs: Jobs) -> None:
        self._pair = pair
        self._link = link
        self._jobs = jobs

    @reads
    def status(self, _caller: Caller) -> str:
        if self._link.role_word() == "standalone":
            return _text({"role": "standalone", "paired": False})
        return _text({"paired": True, **self._link.ask("status")})

    @reads
    def why(self, _caller: Caller) -> str:
        if self._link.role_word() == "standalone":
            return _text(
                {"role": "standalone", "may_take_over": False, "sentences": ["This node has no peer."]}
            )
        return _text(self._link.ask("why"))

    @reads
    def facts(self, _caller: Caller, options: str) -> str:
        shared = _options(options).get("shared")
        return _text(self._live().facts(shared if isinstance(shared, list) else []))

    @writes(_summary)
    def invite(self, _caller: Caller, options: str) -> str:
        if _options(options).get("dry_run") is True:
            return _text({"sentence": "Make a code with which another node may pair within 15 minutes."})
        return _text(self._live().invite())

    @writes(_summary)
    def pair(self, caller: Caller, options: str) -> str:
        table, pair = _options(options), self._live()
        peer, port = _address(table.get("peer")), table.get("port", 22)
        if table.get("dry_run") is True:
            return _text({"sentence": f"Become a pair with {peer}.", "notes": pair.check_pair(peer)})
        code = str(table.get("code", ""))
        return self._submit(
            "pair",
            caller,
            lambda handle: pair.pair(
                peer, port if isinstance(port, int) else 22, code, caller.shown, handle.progress
            ),
        )

    @writes(lambda facts: {"characters": len(facts)})
    def join(self, caller: Caller, facts: str) -> str:
        theirs, pair = _options(facts), self._live()
        return self._submit("join", caller, lambda handle: pair.join(theirs, caller.shown, handle.progress))

    @writes(_summary)
    def unpair(self, caller: Caller, options: str) -> str:
        table, pair = _options(options), self._live()
        if table.get("dry_run") is True:
            return _text(
                {"sentence": "Dissolve the pair on this node: it serves alone, without the shared addresses."}
            )
        comment = str(table.get("comment", ""))
        return self._submit(
            "unpair", caller, lambda handle: pair.unpair(caller.shown, comment, handle.progress)
        )

    @writes(lambda role, options: {"role": role[:16], **_summary(options)})
    def role(self, _caller: Caller, role: str, options: str) -> str:
        table = _options(options)
        if role not in ROLES:
            raise InvalidSettingsError([Problem("role", "is no role", f"use one of {', '.join(ROLES)}")])
        forced = table.get("forced") is True
        if table.get("dry_run") is True:
            why = self._link.ask("why")
            return _text(
                {
                    "sentence": f"Ask this node to become {role}{', by force' if forced else ''}.",
                    "notes": why.get("sentences", []),
                    "drops_calls": role != "master" and why.get("role") == "master",
                }
            )
        return _text(self._link.ask("wish", wish=role, forced=forced))

    @writes(_summary)
    def switch(self, caller: Caller, options: str) -> str:
        table, pair = _options(options), self._live()
        drain = table.get("drain_seconds", 0)
        seconds = drain if isinstance(drain, int) else 0
        if table.get("dry_run") is True:
            status = pair.check_switch()
            calls = status.get("calls")
            return _text(
                {
                    "sentence": f"Hand the master role to the peer, after {seconds} s at most for calls.",
                    "notes": ["The peer is ready."],
                    "drops_calls": bool(calls) or calls is None,
                }
            )
        return self._submit("switch", caller, lambda handle: pair.switch(seconds, handle.progress))

    @writes(_summary)
    def rehearse(self, caller: Caller, options: str) -> str:
        pair = self._live()
        if _options(options).get("dry_run") is True:
            pair.check_switch()
            return _text({"sentence": "Switch to the peer and back, and report both.", "drops_calls": True})
        return self._submit("rehearse", caller, lambda handle: pair.rehearse(handle.progress))

    @writes(_summary)
    def maintenance(self, _caller: Caller, options: str) -> str:
        return _text(self._link.ask("maintenance", on=_options(options).get("on") is True))

    def _submit(self, kind: str, caller: Caller, work: Callable[[JobHandle], JsonObject]) -> str:
        lane = LANE if kind in ("switch", "rehearse") else SETTINGS_LANE
        return self._jobs.submit(kind, caller.shown, work, lane=lane).identifier

    def _live(self) -> PairJobs:
        if self._pair is None:
            raise UnavailableError("a pair cannot be managed here", "this is not a live box")
        return self._pair()


def _options(text: str) -> JsonObject:
    try:
        table: object = json.loads(text or "{}")
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise InvalidSettingsError([Problem("options", "are no JSON object", "")])
    return table


def _address(value: object) -> Address:
    try:
        return ip_address(str(value).strip())
    except ValueError:
        raise InvalidSettingsError(
            [Problem("peer", f"{str(value)[:64]!r} is no IP address", "write it like 192.0.2.12")]
        ) from None


def _text(value: object) -> str:
    return json.dumps(value)
