"""What an administrator does with a pair, as jobs: pair, dissolve, switch, rehearse."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address

from daemon.engine import Engine
from daemon.errors import ApplyFailedError, CentralinoError, ConflictError, UnavailableError
from daemon.network import netlink
from daemon.network.wire import Question, ask
from daemon.pair import LOOK_LIMIT_SECONDS, FaultToleranceSubsystem, restart_runtime
from daemon.pair_drain import NoNewCalls
from daemon.pair_link import PairLink
from daemon.places import Places
from daemon.run import run
from daemon.settings import Settings, dump
from daemon.settings.base import Address
from daemon.subsystem import JsonObject

PAIRING_SECONDS = 120.0
SWITCH_SECONDS = 60.0
SETTINGS_SECONDS = 20.0
POLL_SECONDS = 0.1
AMI_SECRET = "asterisk-ami"  # noqa: S105 - the name of the file
HELPER = [sys.executable, "-m", "fault_tolerance.service"]
# What the inviting node takes over at once; the rest of the cluster's settings follows over the peer link.
SHARED_FIELDS = (
    "replication_kilobytes_per_second",
    "shared_addresses",
    "witness",
    "profile",
    "virtual_router_id",
    "drain_seconds",
)

Progress = Callable[[float | None, str], None]


class PairJobs:
    """Each method blocks until done; run it as a job of the settings' lane."""

    def __init__(
        self,
        places: Places,
        engine: Engine,
        subsystem: FaultToleranceSubsystem,
        link: PairLink,
    ) -> None:
        self._places = places
        self._engine = engine
        self._subsystem = subsystem
        self._link = link

    # --- forming ------------------------------------------------------------------------------------------

    def invite(self) -> JsonObject:
        """A code for `pair` on the other node. Raises ConflictError if this node has a peer already."""
        if self._engine.settings.fault_tolerance.enabled:
            raise ConflictError("this node has a peer already", "run: centralino fault-tolerance unpair")
        done = run([*HELPER, "invite"], limit_seconds=30.0)
        restart_runtime()
        answer = json.loads(done.output)
        return dict(answer)

    def facts(self, shared: list[JsonObject]) -> JsonObject:
        """This node's facts for a guest that asks."""
        return self._subsystem.pairing_facts(self._engine.settings, None, shared)

    def check_pair(self, peer: Address) -> list[str]:
        """What `pair` would do; raises ConflictError with what stands against it on this node."""
        settings = self._engine.settings
        if settings.fault_tolerance.enabled:
            raise ConflictError("this node has a peer already", "run: centralino fault-tolerance unpair")
        cloud = settings.mode.mode.value == "cloud"
        shared = settings.fault_tolerance.shared_addresses
        if not shared and not cloud:
            raise ConflictError(
                "no shared address is configured",
                "run first: centralino fault-tolerance configure --shared ADDRESS/PREFIX@INTERFACE",
            )
        self._subsystem.pairing_facts(settings, peer, [])
        if used := _in_use(settings):
            raise ConflictError(
                f"a shared address is in use by another machine: {', '.join(used)}",
                "free it, or share another one",
            )
        sentences = [f"Exchange keys with {peer} and pin its host keys."]
        sentences += [f"Share {entry.address} on {entry.interface}." for entry in shared]
        sentences.append("This node becomes master and keeps its data; those of the other node are replaced.")
        return sentences

    def pair(self, peer: Address, port: int, code: str, who: str, progress: Progress) -> JsonObject:
        """Become a pair with the node that made the code."""
        self.check_pair(peer)
        settings = self._engine.settings
        progress(0.1, f"talking to {peer}")
        request = {
            "peer": str(peer),
            "port": port,
            "code": code,
            "facts": self._subsystem.pairing_facts(settings, peer, []),
        }
        done = run(
            [*HELPER, "pair"],
            limit_seconds=PAIRING_SECONDS,
            input_text=json.dumps(request) + "\n",
            check=False,
        )
        if done.status != 0:
            raise _error_of(done.status, done.errors)
        theirs = json.loads(done.output)
        progress(0.7, "keys are exchanged")
        own = {"peer_address": str(peer), "peer_port": port}
        self._become(theirs, own, who, f"paired with {theirs['hostname']}", progress)
        return {"peer": str(peer), "hostname": theirs["hostname"]}

    def join(self, theirs: JsonObject, who: str, progress: Progress) -> JsonObject:
        """The inviting node's part, after the keys were exchanged."""
        section = theirs.get("fault_tolerance")
        given = section if isinstance(section, dict) else {}
        own = {name: given[name] for name in SHARED_FIELDS if name in given}
        own["peer_address"] = theirs["link_address"]
        self._become(theirs, own, who, f"paired with {theirs['hostname']}", progress)
        return {"hostname": str(theirs["hostname"])}

    def _become(
        self, theirs: JsonObject, own: JsonObject, who: str, comment: str, progress: Progress
    ) -> None:
        service = theirs.get("service_address")
        own = {
            **own,
            "enabled": True,
            "peer_service_address": None if service is None else str(service).partition("/")[0],
        }
        self._apply(own, who, comment, progress)

    def unpair(self, who: str, comment: str, progress: Progress) -> JsonObject:
        """Dissolve the pair on this node; it serves alone afterwards if it did before, else stays off the
        shared addresses."""
        self._apply(
            {"enabled": False, "peer_address": None, "peer_service_address": None},
            who,
            comment or "pair dissolved",
            progress,
        )
        run([*HELPER, "forget"], limit_seconds=30.0)
        return {"role": "standalone"}

    def _apply(self, changes: JsonObject, who: str, comment: str, progress: Progress) -> None:
        document = dump(self._engine.settings)
        table = document["fault_tolerance"]
        assert isinstance(table, dict)  # noqa: S101 - the shape of our own schema
        document["fault_tolerance"] = {**table, **changes}
        self._engine.apply(
            json.dumps(document), comment=comment, who=who, confirm_seconds=0, progress=progress
        )

    # --- moving -------------------------------------------------------------------------------------------

    def check_switch(self) -> JsonObject:
        """The status, if this node is master and its peer ready. Raises ConflictError with the reasons."""
        status = self._link.ask("status")
        if status.get("role") != "master":
            raise ConflictError(
                f"this node is {status.get('role')}, not master", "run the switch on the master"
            )
        peer = status.get("peer")
        link = status.get("link")
        if not isinstance(peer, dict) or not isinstance(link, dict) or link.get("state") != "up":
            raise ConflictError("the peer is not heard, so nobody could take over", "see: status")
        if peer.get("role") != "slave" or peer.get("ready") is not True:
            reasons = (
                "; ".join(str(reason) for reason in _list(peer.get("obstacles")))
                or f"it is {peer.get('role')}"
            )
            raise ConflictError(f"the peer is not ready: {reasons}", "see: centralino fault-tolerance why")
        return status

    def switch(self, drain_seconds: int, progress: Progress) -> JsonObject:
        """Hand the master role to the peer, measured; rolled back by itself if the peer does not come up.

        With `drain_seconds` new calls are refused from the beginning to the end, also to that of a rollback.
        """
        calls = self.check_switch().get("calls")
        if drain_seconds <= 0:
            return self._hand_over(calls, progress)
        with NoNewCalls(self._places.secrets / AMI_SECRET) as closed:

            def say(calls: int, left: float) -> None:
                text = f"{calls} calls are live, {closed.refused} new ones were refused"
                progress(0.5 * (1 - left / drain_seconds), f"{text}; waiting {left:.0f} s at most")

            waited = closed.wait(drain_seconds, say)
            self.check_switch()
            moved = self._hand_over(closed.count(), progress)
            return {
                **moved,
                "waited_for_calls_seconds": round(waited, 1),
                "calls_refused": closed.refused,
            }

    def _hand_over(self, calls: object, progress: Progress) -> JsonObject:
        """`calls` are those that end by it, None if nobody can tell."""
        progress(0.6, "handing over")
        # What the peer has not taken when it becomes master, its own settings undo.
        self._wait(
            lambda status: _table(status.get("peer")).get("settings_agree") is True,
            SETTINGS_SECONDS,
            "the peer to take the newest settings; nothing was handed over",
        )
        began = time.monotonic()
        self._link.ask("wish", wish="slave", forced=False)
        silent: float | None = None
        while True:
            status = self._status()
            role = status.get("role")
            peer = status.get("peer")
            now = time.monotonic() - began
            if silent is None and role not in ("master", None):
                silent = now
            if isinstance(peer, dict) and peer.get("role") == "master" and role == "slave":
                return {
                    "moved": True,
                    "seconds": round(now, 2),
                    "waited_for_calls_seconds": 0.0,
                    "calls_refused": 0,
                    "calls_ended": calls,
                }
            if silent is not None and role == "master":
                raise ApplyFailedError(
                    "the peer did not come up, so this node is master again", "see the peer's journal"
                )
            if now > SWITCH_SECONDS:
                raise ApplyFailedError(
                    f"the switch did not end within {SWITCH_SECONDS:g} s; this node is {role}",
                    "see: centralino fault-tolerance status, on both nodes",
                )
            time.sleep(POLL_SECONDS)

    def rehearse(self, progress: Progress) -> JsonObject:
        """Switch to the peer, let it settle, ask it to switch back; a report of both moves."""
        began = datetime.now(UTC).isoformat(timespec="seconds")
        there = self.switch(0, lambda _part, text: progress(None, f"there: {text}"))
        progress(0.5, "the peer serves; letting it settle")
        self._wait(lambda status: status.get("ready") is True, 90.0, "this node to be ready again")
        progress(0.6, "asking for the role back")
        start = time.monotonic()
        self._link.ask("handback")
        self._wait(lambda status: status.get("role") == "master", SWITCH_SECONDS, "the role to come back")
        seconds = round(time.monotonic() - start, 2)
        self._wait(
            lambda status: _table(status.get("peer")).get("ready") is True, 90.0, "the peer to be ready again"
        )
        return {"when": began, "there": there, "back": {"moved": True, "seconds": seconds}}

    def _wait(self, wish: Callable[[JsonObject], bool], limit_seconds: float, what: str) -> None:
        deadline = time.monotonic() + limit_seconds
        while not wish(self._status()):
            if time.monotonic() > deadline:
                raise ApplyFailedError(
                    f"waited {limit_seconds:g} s for {what}", "see: centralino fault-tolerance status"
                )
            time.sleep(POLL_SECONDS)

    def _status(self) -> JsonObject:
        try:
            return self._link.ask("status")
        except UnavailableError:
            return {}


def _in_use(settings: Settings) -> list[str]:
    """Shared addresses that some machine answers for."""
    rows = {row.name: row for row in netlink.links(LOOK_LIMIT_SECONDS)}
    questions = [
        Question(entry.interface, rows[entry.interface].hardware_address, ip_address(str(entry.address.ip)))
        for entry in settings.fault_tolerance.shared_addresses
        if entry.interface in rows
    ]
    found = ask(questions) if questions else {}
    return [f"{question.target} ({hardware})" for question, hardware in found.items()]


def _error_of(status: int, text: str) -> CentralinoError:
    said = (text.strip() or "the pairing failed without a word").splitlines()[-1]
    for kind in CentralinoError.__subclasses__():
        if kind.exit_code == status and kind.__name__ != "InvalidSettingsError":
            return kind(said)
    return CentralinoError(said)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _table(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}
