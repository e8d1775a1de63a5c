"""A person's orders: start, stop and restart one service, with a plan beforehand and progress meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from daemon.errors import ApplyFailedError, ConflictError, NotFoundError, UnavailableError
from daemon.services.api import ActOptions, Progress, Verb
from daemon.services.decision import Stop
from daemon.services.draining import CallDrain, said
from daemon.services.intents import Intents
from daemon.services.model import Finding, LoadState
from daemon.services.supervisor import Snapshot, Supervisor
from daemon.services.units import Units
from daemon.subsystem import JsonObject

LOOK_SECONDS = 1.0
KILL_SECONDS = 10.0

log = logging.getLogger(__name__)


class Operations:
    """Carries out orders in the caller's thread; supervision leaves the service alone meanwhile."""

    def __init__(
        self, supervisor: Supervisor, units: Units, intents: Intents, drain: Callable[[], CallDrain]
    ) -> None:
        self._supervisor = supervisor
        self._units = units
        self._intents = intents
        self._drain = drain

    def plan(self, name: str, verb: Verb, options: ActOptions) -> JsonObject:
        """What `act` would do: `sentence`, `changes`, `notes`, `drops_calls`, `live_calls`."""
        snapshot = self._checked(name, verb)
        service, stops = snapshot.service, verb is not Verb.START and not snapshot.unit.dead
        drain = self._patience(snapshot, options)
        changes, notes = [], []
        if stops and service.drains and drain:
            changes.append(
                f"Take no new calls and wait up to {drain:g} s until the calls that are up have ended."
            )
        if stops:
            firm = f", SIGKILL after {service.policy.stop_limit:g} s" if service.policy.kill else ""
            changes.append(f"Stop {name}{firm}.")
        if verb is Verb.STOP:
            changes.append(f"Leave {name} stopped until it is started again or the box boots.")
        if verb is not Verb.STOP and (stops or snapshot.unit.dead):
            changes.append(f"Start {name} and wait until it answers.")
        if verb is Verb.START and not snapshot.unit.dead:
            notes.append(f"{name} runs already.")
        calls = snapshot.live_calls
        drops = stops and service.drains and not (drain > 0) and calls != 0
        if stops and calls:
            notes.append(f"{said(calls)} now.")
        needing = [
            other
            for other, known in self._supervisor.snapshots().items()
            if name in known.service.needs and not known.unit.dead
        ]
        if stops and needing:
            notes.append(f"{', '.join(needing)} needs it and works badly meanwhile.")
        return {
            "sentence": f"{verb.value.capitalize()} {name}.",
            "changes": [{"sentence": change} for change in changes],
            "notes": notes,
            "drops_calls": drops,
            "live_calls": calls,
        }

    def act(self, name: str, verb: Verb, options: ActOptions, progress: Progress) -> JsonObject:
        """Do it and wait for the end; whatever `progress` raises ends the waiting and is raised again."""
        snapshot = self._checked(name, verb)
        begun = time.monotonic()
        with self._supervisor.operation(name, verb.value):
            if verb is Verb.START:
                self._supervisor.record_stop(name, None)
            if verb is Verb.STOP:
                self._stop_for_good(snapshot, options, progress)
            if verb is Verb.RESTART and not snapshot.unit.dead:
                self._stop(snapshot, options, progress)
            if verb is Verb.RESTART:
                self._supervisor.record_stop(name, None)
            if verb is not Verb.STOP:
                self._start(snapshot, progress)
        log.info("%s of %s by %s (%s)", verb.value, name, options.who, options.comment or "no comment")
        return {"name": name, "verb": verb.value, "seconds": round(time.monotonic() - begun, 3)}

    def stop_before_box(self, name: str, seconds: float, progress: Progress) -> None:
        """Drain and stop a service because the box is about to go down."""
        snapshot = self._snapshot(name)
        if snapshot.unit.dead:
            return
        with self._supervisor.operation(name, Verb.STOP.value):
            options = ActOptions(drain_seconds=int(seconds), who="the coming reboot or poweroff")
            self._stop_for_good(snapshot, options, progress)

    def _checked(self, name: str, verb: Verb) -> Snapshot:
        snapshot = self._snapshot(name)
        if snapshot.unit.load in (LoadState.NOT_FOUND, LoadState.MASKED):
            raise ConflictError(f"{name} cannot be acted on: {snapshot.decision.reason}")
        if verb is Verb.STOP and snapshot.service.locks_out:
            raise ConflictError(f"without {name} nobody could reach this box any more", "restart it instead")
        if verb is not Verb.STOP and not snapshot.wanted:
            raise ConflictError(
                f"{name} was not started: {snapshot.decision.reason}", "see `centralino status`"
            )
        return snapshot

    def _snapshot(self, name: str) -> Snapshot:
        snapshot = self._supervisor.snapshots().get(name)
        if snapshot is None:
            raise NotFoundError(f"there is no service {name[:64]!r}", "see `centralino services list`")
        return snapshot

    def _stop_for_good(self, snapshot: Snapshot, options: ActOptions, progress: Progress) -> None:
        name = snapshot.service.name
        when = datetime.now(UTC).isoformat(timespec="seconds")
        self._supervisor.record_stop(name, Stop(options.who, when, options.comment))
        try:
            if not self._intents.flush():
                log.warning(
                    "the disk does not take that %s was stopped; it will not outlive this daemon", name
                )
            self._stop(snapshot, options, progress)
        except BaseException:
            if not self._snapshot(name).unit.dead:
                self._supervisor.record_stop(name, None)
            raise

    def _stop(self, snapshot: Snapshot, options: ActOptions, progress: Progress) -> None:
        service = snapshot.service
        name = service.name
        patience = self._patience(snapshot, options)
        if service.drains and patience and snapshot.unit.running:
            progress(0.0, f"{name} takes no new calls")
            drained = self._drain().run(patience, lambda seconds: self._ended(name, seconds), progress)
            # After a crash meanwhile, systemd would start it again by its timer unless it is told to stop.
            if drained and not self._snapshot(name).unit.waits_for_restart:
                return
        progress(None, f"{name} is being stopped")
        self._units.stop_unit(name)
        if self._watch(name, service.policy.stop_limit, progress, f"{name} is being stopped"):
            return
        if not service.policy.kill:
            raise ApplyFailedError(f"{name} did not stop within {service.policy.stop_limit:g} s", "try again")
        log.warning("%s did not stop within %g s and is killed", name, service.policy.stop_limit)
        self._units.kill_unit(name)
        if not self._ended(name, KILL_SECONDS):
            raise ApplyFailedError(f"{name} does not even end by SIGKILL", "check the box's disks and mounts")

    def _start(self, snapshot: Snapshot, progress: Progress) -> None:
        service = snapshot.service
        name = service.name
        progress(None, f"{name} is being started")
        if self._snapshot(name).unit.dead:
            self._units.start_unit(name)
        ends = time.monotonic() + service.policy.start_limit
        while time.monotonic() < ends:
            if self._supervisor.wait_for(name, _answers, min(LOOK_SECONDS, ends - time.monotonic())):
                return
            progress(None, f"{name} is being started")
        now = self._snapshot(name)
        said_by_probes = "; ".join(outcome.detail for outcome in now.outcomes.values())
        raise UnavailableError(
            f"{name} was started and does not work after {service.policy.start_limit:g} s"
            f" ({now.unit.active.value}{': ' if said_by_probes else ''}{said_by_probes})",
            f"supervision keeps trying; look at `centralino services logs {name}`",
        )

    def _watch(self, name: str, limit_seconds: float, progress: Progress, message: str) -> bool:
        ends = time.monotonic() + limit_seconds
        while (left := ends - time.monotonic()) > 0:
            if self._ended(name, min(LOOK_SECONDS, left)):
                return True
            progress(None, f"{message}; SIGKILL in {max(0.0, ends - time.monotonic()):.0f} s at the latest")
        return False

    def _ended(self, name: str, seconds: float) -> bool:
        return self._supervisor.wait_for(name, _over, seconds) is not None

    @staticmethod
    def _patience(snapshot: Snapshot, options: ActOptions) -> float:
        return (
            snapshot.service.policy.drain if options.drain_seconds is None else float(options.drain_seconds)
        )


def _over(snapshot: Snapshot) -> bool:
    """Dead, and systemd is done with it."""
    return snapshot.unit.dead and snapshot.unit.job == 0


def _answers(snapshot: Snapshot) -> bool:
    kinds = [probe.kind for probe in snapshot.service.probes]
    lives = {Finding.ALIVE, Finding.DENIED, Finding.FAULTY}
    outcomes = [snapshot.outcomes.get(kind) for kind in kinds]
    return snapshot.unit.running and all(
        outcome is not None and outcome.finding in lives for outcome in outcomes
    )
