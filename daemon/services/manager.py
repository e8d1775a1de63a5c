"""Supervision as the rest of the daemon sees it: a subsystem of the engine and the answerer of Services1."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from daemon.alarms import Alarms
from daemon.clock import Clock
from daemon.errors import ApplyFailedError, NotFoundError, Problem
from daemon.places import Places
from daemon.platform import Platform
from daemon.services import logs
from daemon.services.api import ActOptions, Progress, Verb
from daemon.services.catalog import CATALOG, ProbeKind, declared
from daemon.services.draining import LOOPBACK, CallDrain
from daemon.services.intents import Intents
from daemon.services.model import Finding, Health, Role
from daemon.services.operations import Operations
from daemon.services.probes.https import HttpsProbe
from daemon.services.probes.manager_interface import PORT, ManagerProbe
from daemon.services.probes.mariadb import ask_mariadb
from daemon.services.probes.sip import ask_sip
from daemon.services.spells import Spells
from daemon.services.supervisor import Snapshot, Supervisor
from daemon.services.units import SystemdUnits, Units
from daemon.settings import Settings, dump, restore
from daemon.subsystem import Change, JsonObject, State

INTENTS_FILE = "stopped-services.json"
SPELLS_FILE = "restarts.json"
SIP_PORT = 5060
HTTPS_PORT = 443
HEALTH_PATH = "/health"

log = logging.getLogger(__name__)


class Supervision:
    """`daemon.services.api.ServiceManager` on a real box.

    `settings` and `role` give what is in force now; they are asked when supervision starts and whenever
    `refresh` is called. `on_change` is called when a service's health changed, from supervision's own thread,
    which must not be kept waiting and must not be called back from there.
    """

    name = "services"
    sections: tuple[str, ...] = ("services",)

    def __init__(
        self,
        places: Places,
        platform: Platform,
        settings: Callable[[], Settings],
        alarms: Alarms,
        *,
        role: Callable[[], Role] = lambda: Role.STANDALONE,
        on_change: Callable[[], None] = lambda: None,
        units: Units | None = None,
    ) -> None:
        self._settings = settings
        self._role = role
        self._catalog = tuple(service for service in CATALOG if service.name in platform.units)
        self._unit_names = {service.name: platform.units[service.name] for service in self._catalog}
        self._units: Units = units or SystemdUnits(self._unit_names)
        https = HttpsProbe(LOOPBACK, HTTPS_PORT, platform.paths["tls_certificate"], HEALTH_PATH)
        secret, database = platform.paths["ami_secret"], platform.paths["mariadb_socket"]
        asks = {
            ProbeKind.SIP_OPTIONS: lambda limit: ask_sip(LOOPBACK, SIP_PORT, limit),
            ProbeKind.MANAGER_PING: ManagerProbe(LOOPBACK, PORT, secret).ask,
            ProbeKind.SQL_PING: lambda limit: ask_mariadb(database, limit),
            ProbeKind.HTTPS_REQUEST: https.ask,
        }
        boot = Clock(places.boot_marker).boot()
        intents = Intents(places.state / INTENTS_FILE, boot)
        spells = Spells(places.run / SPELLS_FILE, boot)
        self._supervisor = Supervisor(
            self._units, asks, alarms, intents, self._catalog, on_change=on_change, spells=spells
        )
        self._operations = Operations(self._supervisor, self._units, intents, lambda: CallDrain(secret))

    # --- Services1 ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch, on threads of its own; returns at once."""
        settings = self._settings()
        self._supervisor.start(settings.services, settings.mode.mode, self._role())

    def stop(self) -> None:
        """Stop watching; the services themselves go on."""
        self._supervisor.close()

    def refresh(self) -> None:
        """Judge by the settings and the role of now; call it after a change of role."""
        self._judge_by(self._settings())

    def list(self) -> Sequence[JsonObject]:
        """One object a service, in start order, from memory."""
        return [self._as_json(name, snapshot) for name, snapshot in self._supervisor.snapshots().items()]

    def plan_act(self, name: str, verb: Verb, options: ActOptions) -> JsonObject:
        """The dry run of `act`. Raises NotFoundError, ConflictError."""
        return self._operations.plan(name, verb, options)

    def act(self, name: str, verb: Verb, options: ActOptions, progress: Progress) -> JsonObject:
        """Do it and wait for the end. Raises NotFoundError, ConflictError, ApplyFailedError,
        UnavailableError."""
        return self._operations.act(name, verb, options, progress)

    def logs(self, name: str, lines: int, cursor: str) -> JsonObject:
        """The newest lines of the service's journal. Raises NotFoundError, UnavailableError."""
        unit = self._unit_names.get(name)
        if unit is None:
            raise NotFoundError(f"there is no service {name[:64]!r}", "see `centralino services list`")
        return logs.read(unit, lines, cursor)

    def drain(self, seconds: int, progress: Progress) -> None:
        """Stop what carries calls, gracefully within the limit; before a reboot or poweroff.

        Without a limit nothing is done: the end of the box itself ends the calls.
        """
        if seconds <= 0:
            return
        for service in reversed(self._catalog):
            if service.drains:
                self._operations.stop_before_box(service.name, seconds, progress)

    def live_calls(self) -> int | None:
        """Calls that are up now, None if nobody can tell."""
        counts = [snapshot.live_calls for snapshot in self._supervisor.snapshots().values()]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    # --- subsystem ----------------------------------------------------------------------------------------

    def verify(self, settings: Settings, _facts: Mapping[str, object]) -> Sequence[Problem]:
        """Policies name services that exist; what would lock the admin out stays enabled."""
        problems: list[Problem] = []
        by_name = {service.name: service for service in self._catalog}
        for name, policy in settings.services.policies.items():
            path = f"services.policies.{name}"
            service = by_name.get(name)
            if service is None:
                known = ", ".join(sorted(by_name))
                problems.append(Problem(path, "is no service of this box", f"use one of: {known}"))
            elif service.locks_out and not policy.enabled:
                message = "cannot be disabled, nobody could reach this box any more"
                problems.append(Problem(f"{path}.enabled", message, "leave it enabled"))
        return problems

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        """One change for the new way of judging, and one for each service that starts or stops by it."""
        role = self._role()
        before = None if old is None else _judged_by(old)
        if before == _judged_by(new):
            return []
        detail = {"settings": dump(new)}
        changes: list[Change] = []
        services = declared(new.services, self._catalog)
        for name, service in services.items():
            runs = service.runs_in(role, new.mode.mode)
            ran = runs
            if old is not None:
                ran = declared(old.services, self._catalog)[name].runs_in(role, old.mode.mode)
            if runs != ran:
                sentence = (
                    f"Start {name}." if runs else f"Stop {name}, which shall not run by these settings."
                )
                changes.append(Change(self.name, sentence, drops_calls=service.drains and not runs))
        return [Change(self.name, "Supervise the services by the new settings.", detail=detail), *changes]

    def apply(self, change: Change) -> None:
        """Judge by the settings in the change, and wait until what they forbid has stopped."""
        document = change.detail.get("settings")
        if not isinstance(document, dict):
            return
        settings = restore(document)
        self._judge_by(settings)
        for name, snapshot in reversed(tuple(self._supervisor.snapshots().items())):
            if snapshot.wanted or snapshot.unit.dead or not settings.services.supervision:
                continue
            limit = snapshot.service.policy.stop_limit + snapshot.service.policy.backoff_first
            if self._supervisor.wait_for(name, lambda now: now.unit.dead, limit) is None:
                raise ApplyFailedError(f"{name} did not stop within {limit:g} s", "try again")

    def observe(self) -> State:
        """Healthy if every required service is; `facts` holds `live_calls`."""
        bad = [
            (name, snapshot)
            for name, snapshot in self._supervisor.snapshots().items()
            if not snapshot.decision.health.good and snapshot.service.required
        ]
        reasons = tuple(f"{name}: {snapshot.decision.reason}" for name, snapshot in bad)
        drift = tuple(
            f"{name} should run and does not"
            for name, snapshot in bad
            if snapshot.wanted and snapshot.unit.dead
        )
        return State(not bad, reasons, drift, {"live_calls": self.live_calls()})

    # ------------------------------------------------------------------------------------------------------

    def _judge_by(self, settings: Settings) -> None:
        self._supervisor.configure(settings.services, settings.mode.mode, self._role())

    def _as_json(self, name: str, snapshot: Snapshot) -> JsonObject:
        process = self._units.process(name)
        decision = snapshot.decision
        changed = datetime.fromtimestamp(process.changed_at, UTC) if process.changed_at else None
        quiet = decision.health is Health.HEALTHY and not decision.alarm
        return {
            "name": name,
            "unit": self._unit_names[name],
            "state": snapshot.unit.active.value,
            "substate": snapshot.unit.sub,
            "health": decision.health.value,
            "healthy": decision.health.good,
            "required": snapshot.service.required,
            "wanted": snapshot.wanted and snapshot.stop is None,
            "reason": "" if quiet else decision.reason,
            "since": changed.isoformat(timespec="seconds") if changed else "",
            "restarts": snapshot.restarts + process.restarts,
            "pid": process.pid,
            "live_calls": snapshot.live_calls,
            "probes": [
                {
                    "name": kind.value,
                    "healthy": outcome.finding is Finding.ALIVE,
                    "finding": outcome.finding.value,
                    "reason": outcome.detail,
                    "seconds": round(outcome.seconds, 4),
                }
                for kind, outcome in snapshot.outcomes.items()
            ],
        }


def _judged_by(settings: Settings) -> tuple[object, ...]:
    return settings.services, settings.mode.mode
