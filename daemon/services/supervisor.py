"""The thread that keeps the services running: events in, decisions made, actions carried out.

All memory belongs to this one thread; others speak to it through its queue and read immutable snapshots.
`decide` holds the judgement, this module the plumbing.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from daemon.alarms import Alarms
from daemon.errors import CentralinoError, ConflictError, UnavailableError
from daemon.services.catalog import ProbeKind, Service, declared
from daemon.services.decision import Decision, Need, Stop, decide
from daemon.services.intents import Intents
from daemon.services.model import Action, Finding, Health, Outcome, Role, UnitState
from daemon.services.probing import Ask, Asker, Schedule, schedules
from daemon.services.spells import Spells
from daemon.services.tracker import Tracker
from daemon.services.units import Units
from daemon.settings.reach import WorkMode
from daemon.settings.services import Services

LONGEST_SLEEP = 30.0
QUESTION_SECONDS = 10.0
OUTSIDER = "somebody with systemctl"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """How one service is at one moment, for readers in other threads."""

    service: Service
    unit: UnitState
    decision: Decision
    wanted: bool
    stop: Stop | None
    operation: str
    outcomes: Mapping[ProbeKind, Outcome]
    live_calls: int | None
    restarts: int


@dataclass
class _Watched:
    tracker: Tracker
    schedules: dict[ProbeKind, Schedule] = field(default_factory=dict)


class Supervisor:
    """Start it once; `configure` at any time. `on_change` is called from its thread when a service's health
    or reason changed."""

    def __init__(
        self,
        units: Units,
        asks: Mapping[ProbeKind, Ask],
        alarms: Alarms,
        intents: Intents,
        catalog: tuple[Service, ...],
        *,
        on_change: Callable[[], None] = lambda: None,
        spells: Spells | None = None,
    ) -> None:
        self._spells = spells or Spells()
        self._units = units
        self._asks = dict(asks)
        self._alarms = alarms
        self._intents = intents
        self._catalog = catalog
        self._on_change = on_change
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: list[threading.Event] = []
        self._askers: dict[ProbeKind, Asker] = {}
        self._watched: dict[str, _Watched] = {}
        self._supervision = True
        self._shutting_down = False
        self._news = True
        self._judge_by = 0.0
        self._stale: set[str] = set()
        self._judged = threading.Condition()
        self._snapshots: Mapping[str, Snapshot] = {}
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    # --- from other threads -------------------------------------------------------------------------------

    def start(self, settings: Services, mode: WorkMode, role: Role) -> None:
        """Begin: hear from systemd, ask the probes, act."""
        self._configure(settings, mode, role)
        self._publish()
        self._thread.start()
        self._units.start(lambda name, state: self._events.put(lambda: self._saw_unit(name, state)))

    def close(self) -> None:
        """Let go of the services without touching them."""
        self._units.close()
        self._events.put(None)
        if self._thread.is_alive():
            self._thread.join(QUESTION_SECONDS)
        for asker in self._askers.values():
            asker.close()
        self._spells.flush()

    def configure(self, settings: Services, mode: WorkMode, role: Role) -> None:
        """Judge by these settings, this mode and role from now on; returns when that is so."""
        self._do(lambda: self._configure(settings, mode, role))

    def snapshots(self) -> Mapping[str, Snapshot]:
        """All services, in start order, as last judged."""
        return self._snapshots

    def wait_for(self, name: str, wish: Callable[[Snapshot], bool], limit_seconds: float) -> Snapshot | None:
        """The first snapshot of the service that fulfils the wish, or None if none does within the limit."""
        with self._judged:
            met = self._judged.wait_for(lambda: wish(self._snapshots[name]), limit_seconds)
            return self._snapshots[name] if met else None

    @contextlib.contextmanager
    def operation(self, name: str, verb: str) -> Iterator[None]:
        """Leave the service to a person's order while the block runs. Raises ConflictError if one runs."""
        self._do(lambda: self._begin(name, verb))
        try:
            yield
        finally:
            self._do(lambda: self._end(name))

    def record_stop(self, name: str, stop: Stop | None) -> None:
        """Note that a person wants the service stopped, or (None) running."""
        self._do(lambda: self._record(name, stop))

    def _do(self, work: Callable[[], None]) -> None:
        """Have `work` done and judged by the thread; raises what it raises, or UnavailableError."""
        done = threading.Event()
        failure: list[CentralinoError] = []

        def event() -> None:
            try:
                work()
            except CentralinoError as error:
                failure.append(error)
            finally:
                self._news = True
                self._waiting.append(done)

        self._events.put(event)
        if not done.wait(QUESTION_SECONDS):
            raise UnavailableError("supervision does not answer", "see: journalctl -u centralinod")
        if failure:
            raise failure[0]

    # --- in the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                now = time.monotonic()
                event = self._events.get(timeout=max(0.0, min(LONGEST_SLEEP, self._attention() - now)))
            except queue.Empty:
                event = _NOTHING
            while event is not None:
                self._safely(event)
                try:
                    event = self._events.get_nowait()
                except queue.Empty:
                    break
            if event is None:
                return
            # Most wakes bring one more good answer, which cannot change a decision: those must cost nothing.
            if self._news or time.monotonic() >= self._judge_by:
                self._safely(self._judge)
            self._safely(self._publish)
            for done in self._waiting:
                done.set()
            self._waiting.clear()
            self._safely(self._ask_due)

    def _safely(self, work: Callable[[], None]) -> None:
        """Supervision survives its own mistakes; the journal has them."""
        try:
            work()
        except Exception:
            log.exception("supervision stumbled and goes on")

    def _configure(self, settings: Services, mode: WorkMode, role: Role) -> None:
        self._supervision = settings.supervision
        services = declared(settings, self._catalog)
        watched: dict[str, _Watched] = {}
        for name, service in services.items():
            known = self._watched.get(name) or _Watched(Tracker(service, self._spells.of(name)))
            if service.probes != known.tracker.service.probes or not known.schedules:
                known.schedules = schedules(service.probes)
            known.tracker.adopt(service)
            known.tracker.wanted = service.runs_in(role, mode)
            known.tracker.stop = self._intents.stops.get(name)
            watched[name] = known
        self._watched = watched
        self._stale.update(watched)

    def _begin(self, name: str, verb: str) -> None:
        tracker = self._watched[name].tracker
        if tracker.operation:
            raise ConflictError(f"a {tracker.operation} of {name} is under way", "see `centralino jobs`")
        tracker.operation = verb

    def _end(self, name: str) -> None:
        self._watched[name].tracker.operation = ""
        # A start during the order has been reported already; there may be no further event to notice it by.
        self._heed_start(name)

    def _heed_start(self, name: str) -> None:
        if self._watched[name].tracker.stop_is_over:
            log.info("%s was started again by %s", name, OUTSIDER)
            self._record(name, None)

    def _record(self, name: str, stop: Stop | None) -> None:
        self._watched[name].tracker.stop = stop
        self._intents.record(name, stop)

    def _saw_unit(self, name: str, state: UnitState) -> None:
        watched = self._watched.get(name)
        if watched is None:
            return
        self._news = True
        tracker = watched.tracker
        old_run, was_running = tracker.unit.run, tracker.unit.running
        outside = tracker.saw_unit(state)
        if state.run != old_run or state.running != was_running:
            for schedule in watched.schedules.values():
                schedule.reset(time.monotonic())
        if outside and not self._goes_down():
            log.warning("%s was stopped by %s; it stays stopped until it is started", name, OUTSIDER)
            self._record(name, Stop(OUTSIDER, datetime.now(UTC).isoformat(timespec="seconds")))
        self._heed_start(name)

    def _probed(self, name: str, kind: ProbeKind, run: int, outcome: Outcome) -> None:
        watched = self._watched[name]
        schedule = watched.schedules.get(kind)
        if schedule is None or watched.tracker.unit.run != run or schedule.asked_at is None:
            return
        now = time.monotonic()
        schedule.finish(outcome, now)
        self._take(name, kind, outcome)
        if outcome.finding.failed:
            self._hurry(name, now)

    def _take(self, name: str, kind: ProbeKind, outcome: Outcome) -> None:
        self._news = self._watched[name].tracker.saw_probe(kind, outcome) or self._news
        self._stale.add(name)

    def _hurry(self, name: str, now: float) -> None:
        """A probe failed: ask the service's other probes, and those of what it needs, without waiting."""
        watched = self._watched[name]
        needed = [self._watched[need] for need in watched.tracker.service.needs if need in self._watched]
        for other in (watched, *needed):
            for schedule in other.schedules.values():
                if schedule.answered and schedule.due > now:
                    schedule.hurry(now)

    def _judge(self) -> None:
        changed, acted, self._news = False, False, True
        self._judge_by = time.monotonic() + LONGEST_SLEEP
        for name, watched in self._watched.items():
            tracker = watched.tracker
            before = tracker.decision
            self._judge_one(name, tracker)
            after = tracker.decision
            acted = acted or after.action is not Action.NONE
            if before.health is not Health.HEALTHY and after.health is Health.HEALTHY:
                self._recovered(name)
            if (before.health, before.reason) != (after.health, after.reason):
                changed = True
                level = logging.INFO if after.health.good else logging.WARNING
                log.log(level, "%s is %s: %s", name, after.health.value, after.reason)
            self._update_alarm(name, tracker)
        self._stale.update(self._watched)
        # What was judged first may depend on what was judged last, or done.
        self._news = changed or acted
        self._judge_by = min([self._judge_by, *self._looks()])
        self._spells.keep({name: watched.tracker.spell() for name, watched in self._watched.items()})
        if changed:
            self._safely(self._on_change)

    def _judge_one(self, name: str, tracker: Tracker) -> None:
        now = time.monotonic()
        decision = self._decide(tracker, now)
        if decision.action is not Action.NONE and self._goes_down():
            decision = self._decide(tracker, now)
        tracker.decided(now, decision)
        try:
            if decision.action is Action.START:
                self._units.start_unit(name)
            elif decision.action is Action.REPLACE:
                self._units.kill_unit(name)
            elif decision.action is Action.STOP:
                self._units.stop_unit(name)
        except UnavailableError as error:
            log.error("%s: %s; it is tried again", name, error)

    def _goes_down(self) -> bool:
        """Whether the box shuts down; asked only before something is done, and never taken back."""
        self._shutting_down = self._shutting_down or self._units.shutting_down()
        return self._shutting_down

    def _decide(self, tracker: Tracker, now: float) -> Decision:
        needs = [Need(need, self._watched[need].tracker.decision.health) for need in tracker.service.needs]
        dependents = [
            name
            for name, other in self._watched.items()
            if tracker.service.name in other.tracker.service.needs and not other.tracker.unit.dead
        ]
        view = tracker.view(
            now,
            supervision=self._supervision,
            shutting_down=self._shutting_down,
            needs=needs,
            dependents_run=dependents,
        )
        return decide(view)

    def _recovered(self, name: str) -> None:
        for other in self._watched.values():
            if name in other.tracker.service.needs:
                other.tracker.forgive()

    def _update_alarm(self, name: str, tracker: Tracker) -> None:
        """An alarm ends when the service is good or stopped on purpose, not because the daemon restarted."""
        decision = tracker.decision
        if decision.alarm:
            self._alarms.raise_alarm(f"service.{name}", decision.alarm)
        elif decision.health.good or decision.health is Health.STOPPED:
            self._alarms.clear_alarm(f"service.{name}")

    def _attention(self) -> float:
        """When the thread must look again if nothing happens."""
        times = [self._judge_by]
        for watched in self._watched.values():
            if watched.tracker.unit.running:
                times += [schedule.waits_until() for schedule in watched.schedules.values()]
        return min(times)

    def _looks(self) -> Iterator[float]:
        """The moments at which decisions want to be made again."""
        for watched in self._watched.values():
            if watched.tracker.decision.look_again is not None:
                yield watched.tracker.decision.look_again

    def _ask_due(self) -> None:
        now = time.monotonic()
        for name, watched in self._watched.items():
            if not watched.tracker.unit.running:
                continue
            for kind, schedule in watched.schedules.items():
                if schedule.waits_until() > now:
                    continue
                if schedule.asked_at is None:
                    self._ask(name, kind, schedule, watched.tracker.unit.run, now)
                else:
                    schedule.overdue = True
                    detail = f"{kind.value}: the probe itself hangs"
                    self._take(name, kind, Outcome(Finding.FAULTY, detail))

    def _ask(self, name: str, kind: ProbeKind, schedule: Schedule, run: int, now: float) -> None:
        asker = self._askers.get(kind)
        if asker is None:
            asker = self._askers[kind] = Asker(kind.value, self._asks[kind])
        schedule.begin(now)
        asker.ask(
            schedule.probe.limit_seconds,
            lambda outcome: self._events.put(lambda: self._probed(name, kind, run, outcome)),
        )

    def _publish(self) -> None:
        """Show readers what has changed since the last time."""
        if not self._stale:
            return
        known = {name: self._snapshots.get(name) for name in self._watched}
        fresh = {
            name: self._snapshot(name) if old is None or name in self._stale else old
            for name, old in known.items()
        }
        self._stale.clear()
        with self._judged:
            self._snapshots = fresh
            self._judged.notify_all()

    def _snapshot(self, name: str) -> Snapshot:
        tracker = self._watched[name].tracker
        return Snapshot(
            service=tracker.service,
            unit=tracker.unit,
            decision=tracker.decision,
            wanted=tracker.wanted,
            stop=tracker.stop,
            operation=tracker.operation,
            outcomes=dict(tracker.outcomes),
            live_calls=tracker.live_calls,
            restarts=tracker.restarts_in_all,
        )


def _nothing() -> None:
    """The event of having slept long enough."""


_NOTHING: Callable[[], None] = _nothing
