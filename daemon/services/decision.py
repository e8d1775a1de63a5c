"""What to do about one service: a pure function of what is known, tested over every order of events.

`decide` asks its rules in order; the first that has an opinion wins. Each rule returns a Decision, whose
reason is the sentence that log, status and alarm show, or None. Nothing here reads a clock or the box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from daemon.services.backoff import pause_seconds
from daemon.services.catalog import ProbeKind, Service
from daemon.services.model import Action, ActiveState, Health, LoadState, UnitState

KILL_PATIENCE = 5.0
# systemd needs this long at most to begin what it was asked for.
ACTION_SECONDS = 1.0
MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class ProbeHistory:
    """What one probe found lately.

    `failures` counts unanswered questions since the last answer, `ever` is true once it answered in this run
    of the service, `complaint` says that the newest answer was denied or faulty, `detail` describes it.
    """

    failures: int = 0
    ever: bool = False
    complaint: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Stop:
    """A person stopped the service: who, when (wall clock, for people), and their comment."""

    who: str
    when: str
    comment: str = ""


@dataclass(frozen=True)
class Need:
    """One service that this one needs, and how it is."""

    name: str
    health: Health


@dataclass(frozen=True)
class View:
    """All that `decide` may know of one service; every time is monotonic seconds.

    wanted: role, mode and settings want it to run.
    stop: a person stopped it; operation: the verb of a person's order that is under way, "" if none.
    restarts, last_restart: how many in this bad spell, and when the last was made (None: never).
    killed_at: it was killed as hung, and systemd has not reported its death yet.
    good_since, bad_since: since when it has been good, or has not been.
    held_since: since when a restart is held back because of `needs`.
    recent_restarts: restarts within the last hour.
    dependents_run: names of running services that need this one.
    """

    service: Service
    now: float
    unit: UnitState
    wanted: bool = True
    supervision: bool = True
    stop: Stop | None = None
    operation: str = ""
    shutting_down: bool = False
    probes: Mapping[ProbeKind, ProbeHistory] = field(default_factory=dict)
    restarts: int = 0
    last_restart: float | None = None
    killed_at: float | None = None
    good_since: float | None = None
    bad_since: float | None = None
    held_since: float | None = None
    recent_restarts: int = 0
    needs: tuple[Need, ...] = ()
    dependents_run: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What to do, how the service is, why in one sentence, and when to look again (None: at the next event).

    replacement: the START completes a REPLACE, so it is no further restart of the spell.
    holding: a restart is due and held back because of a service that this one needs.
    spell_over: it has been good long enough, so that the next restart is a first one again.
    alarm: the sentence of the alarm that must stand, "" for none.
    """

    action: Action
    health: Health
    reason: str
    look_again: float | None = None
    replacement: bool = False
    holding: bool = False
    spell_over: bool = False
    alarm: str = ""


def decide(view: View) -> Decision:
    """The one decision for this view; total: every view has one."""
    for rule in _RULES:
        decision = rule(view)
        if decision is not None:
            return _with_alarm(view, decision)
    return _with_alarm(view, _works(view))


def _box_stops(view: View) -> Decision | None:
    if not view.shutting_down:
        return None
    return Decision(Action.NONE, Health.UNKNOWN, "the box is shutting down")


def _not_seen_yet(view: View) -> Decision | None:
    if view.unit.active is not ActiveState.UNKNOWN:
        return None
    return Decision(Action.NONE, Health.UNKNOWN, "systemd has not reported on it yet")


def _person_at_work(view: View) -> Decision | None:
    if not view.operation:
        return None
    health = Health.STOPPED if view.operation == "stop" else Health.STARTING
    return Decision(Action.NONE, health, f"a {view.operation} is under way; see `centralino jobs`")


def _not_installed(view: View) -> Decision | None:
    if view.unit.load in (LoadState.LOADED, LoadState.OTHER):
        return None
    if not view.wanted:
        return Decision(Action.NONE, Health.OFF, _off(view))
    if view.unit.load is LoadState.MASKED:
        reason = "its unit is masked; unmask it with `systemctl unmask`"
    else:
        reason = "its unit is not installed; reinstall the payload"
    return Decision(Action.NONE, Health.ABSENT, reason)


def _not_wanted(view: View) -> Decision | None:
    if view.wanted:
        return None
    if view.unit.dead and not view.unit.waits_for_restart:
        return Decision(Action.NONE, Health.OFF, _off(view))
    if view.dependents_run:
        waits = f"{_off(view)}; it stops after {', '.join(view.dependents_run)}"
        return Decision(Action.NONE, Health.OFF, waits)
    stopping = f"{_off(view)}; it is being stopped"
    if not view.supervision or view.unit.job or view.unit.active is ActiveState.DEACTIVATING:
        return Decision(Action.NONE, Health.OFF, stopping)
    due = _due(view)
    if view.now < due:
        return Decision(Action.NONE, Health.OFF, stopping, look_again=due)
    return Decision(Action.STOP, Health.OFF, stopping)


def _stopped_by_a_person(view: View) -> Decision | None:
    if view.stop is None:
        return None
    comment = f" ({view.stop.comment})" if view.stop.comment else ""
    start = f"start it with `centralino services start {view.service.name}`"
    reason = f"{view.stop.who} stopped it at {view.stop.when}{comment}; {start}"
    return Decision(Action.NONE, Health.STOPPED, reason)


def _being_killed(view: View) -> Decision | None:
    if view.killed_at is None or view.unit.dead:
        return None
    again = view.killed_at + KILL_PATIENCE
    if view.now < again:
        return Decision(Action.NONE, Health.HUNG, "it hung and is being replaced", look_again=again)
    reason = "it hung and SIGKILL has not ended it yet, so the kernel holds it; check its disks and mounts"
    due = max(again, _due(view))
    if not view.supervision:
        return Decision(Action.NONE, Health.HUNG, reason)
    if view.now < due:
        return Decision(Action.NONE, Health.HUNG, reason, look_again=due)
    return Decision(Action.REPLACE, Health.HUNG, reason)


def _condition_unmet(view: View) -> Decision | None:
    if view.service.required or not _lacks_condition(view.unit):
        return None
    reason = "a condition of its unit is not met on this box, so it is not started"
    return Decision(Action.NONE, Health.IDLE, reason)


def _dead(view: View) -> Decision | None:
    unit = view.unit
    if not unit.dead:
        return None
    how = "it is not running" if unit.result == "success" else f"it ended ({unit.result})"
    if _lacks_condition(unit):
        how = "a condition of its unit is not met"
    if unit.job and not unit.waits_for_restart:
        return Decision(Action.NONE, Health.STARTING, f"{how}; systemd is about to start or stop it")
    if not view.supervision:
        start = f"start it with `centralino services start {view.service.name}`"
        return Decision(Action.NONE, Health.DOWN, f"{how} and supervision is off; {start}")
    if view.killed_at is not None:
        reason = "it hung and was killed; it is being started"
        return Decision(Action.START, Health.DOWN, reason, replacement=True)
    held = _held(view, how)
    if held is not None:
        return held
    due = _due(view)
    if view.now < due:
        return Decision(Action.NONE, Health.DOWN, _trying(view, how), look_again=due)
    return Decision(Action.START, Health.DOWN, f"{how}; it is being started")


def _hangs_while_starting(view: View) -> Decision | None:
    """systemd counts run and start in one clock: `unit.run` is when this start began."""
    starts = view.unit.active is ActiveState.ACTIVATING and view.unit.run > 0
    if not starts or not view.supervision or not view.service.policy.kill_slow_start:
        return None
    limit = view.service.policy.start_limit
    ends = view.unit.run / MICROSECONDS + limit
    if view.now < ends:
        return Decision(Action.NONE, Health.STARTING, "it is activating", look_again=ends)
    how = f"its start did not end within {limit:g} s"
    due = _due(view)
    if view.now < due:
        return Decision(Action.NONE, Health.HUNG, _trying(view, how), look_again=due)
    return Decision(Action.REPLACE, Health.HUNG, f"{how}; it is being replaced")


def _changing(view: View) -> Decision | None:
    if view.unit.running:
        return None
    health = Health.STARTING if view.unit.active is ActiveState.ACTIVATING else Health.DOWN
    return Decision(Action.NONE, health, f"it is {view.unit.active.value}")


def _silent(view: View) -> Decision | None:
    failing = {kind: seen for kind, seen in view.probes.items() if seen.failures}
    if not failing:
        return None
    how = "; ".join(seen.detail for seen in failing.values())
    up_since = view.now if view.unit.up_since is None else view.unit.up_since
    grace_ends = up_since + view.service.policy.start_limit
    if not all(seen.ever for seen in failing.values()) and view.now < grace_ends:
        reason = f"it started and does not answer yet: {how}"
        return Decision(Action.NONE, Health.STARTING, reason, look_again=grace_ends)
    verdict = _verdict(view, failing)
    if verdict is not Health.HUNG:
        return Decision(Action.NONE, verdict, how)
    if not view.supervision:
        restart = f"restart it with `centralino services restart {view.service.name}`"
        return Decision(Action.NONE, Health.HUNG, f"{how}, and supervision is off; {restart}")
    held = _held(view, how)
    if held is not None:
        return held
    due = _due(view)
    if view.now < due:
        return Decision(Action.NONE, Health.HUNG, _trying(view, how), look_again=due)
    return Decision(Action.REPLACE, Health.HUNG, f"{how}; it is being replaced")


def _complains(view: View) -> Decision | None:
    complaints = [seen.detail for seen in view.probes.values() if seen.complaint]
    return Decision(Action.NONE, Health.DEGRADED, "; ".join(complaints)) if complaints else None


def _coming_up(view: View) -> Decision | None:
    if all(seen.ever for seen in view.probes.values()):
        return None
    return Decision(Action.NONE, Health.STARTING, "it started and is being asked")


def _works(view: View) -> Decision:
    if view.restarts == 0:
        return Decision(Action.NONE, Health.HEALTHY, "it works")
    stable_at = (view.now if view.good_since is None else view.good_since) + view.service.policy.stable
    if view.now >= stable_at:
        return Decision(Action.NONE, Health.HEALTHY, "it works", spell_over=True)
    return Decision(Action.NONE, Health.HEALTHY, "it works again", look_again=stable_at)


_RULES: tuple[Callable[[View], Decision | None], ...] = (
    _box_stops,
    _not_seen_yet,
    _person_at_work,
    _not_installed,
    _not_wanted,
    _stopped_by_a_person,
    _being_killed,
    _condition_unmet,
    _dead,
    _hangs_while_starting,
    _changing,
    _silent,
    _complains,
    _coming_up,
)


def _verdict(view: View, failing: Mapping[ProbeKind, ProbeHistory]) -> Health:
    """HUNG when two kinds of probe agree, or when one kind alone fails too often.

    A kind that never answered in this run cannot condemn a service that answers another kind: that is a
    wrong configuration (DEGRADED), and a restart would only end its calls.
    """
    if len(failing) >= 2 and sum(seen.failures for seen in failing.values()) >= view.service.policy.agreement:
        return Health.HUNG
    others_answer = any(seen.ever and not seen.failures for seen in view.probes.values())
    for probe in view.service.probes:
        seen = failing.get(probe.kind)
        if seen is not None and seen.failures >= probe.decisive:
            return Health.HUNG if seen.ever or not others_answer else Health.DEGRADED
    return Health.SUSPECT


def _lacks_condition(unit: UnitState) -> bool:
    return unit.active is ActiveState.INACTIVE and not unit.condition


def _due(view: View) -> float:
    """When the next restart may be made."""
    if view.last_restart is None:
        return view.now
    policy = view.service.policy
    return view.last_restart + pause_seconds(view.restarts, policy.backoff_first, policy.backoff_longest)


def _held(view: View, how: str) -> Decision | None:
    """A restart waits while a service that this one needs is unwell, but not for ever."""
    unwell = [need.name for need in view.needs if need.health is not Health.HEALTHY]
    if not unwell:
        return None
    since = view.now if view.held_since is None else view.held_since
    ends = since + view.service.policy.dependency_wait
    if view.now >= ends:
        return None
    reason = f"{how}; it waits for {', '.join(unwell)}, which it needs"
    return Decision(Action.NONE, Health.WAITING, reason, look_again=ends, holding=True)


def _trying(view: View, how: str) -> str:
    if view.last_restart is not None and view.now < view.last_restart + ACTION_SECONDS:
        return f"{how}; it is being started"
    times = "once" if view.restarts == 1 else f"{view.restarts} times"
    return f"{how}; it was restarted {times} and is tried again at growing intervals"


def _off(view: View) -> str:
    return "it does not run in this role, work mode or with these settings"


def _with_alarm(view: View, decision: Decision) -> Decision:
    """Add the alarm that must stand, or the moment at which one becomes due."""
    policy, name = view.service.policy, view.service.name
    deliberate = view.shutting_down or view.stop is not None or bool(view.operation)
    if deliberate or decision.health is Health.UNKNOWN:
        return decision
    logs = f"look at `centralino services logs {name}`"
    often = view.restarts >= policy.restarts_before_alarm
    if decision.health.good:
        flaps = (often and not decision.spell_over) or view.recent_restarts > policy.restarts_an_hour
        if decision.health in (Health.HEALTHY, Health.SUSPECT) and flaps:
            times = f"{view.recent_restarts} times within an hour"
            return replace(decision, alarm=f"{name} was restarted {times} and works now; {logs}")
        return decision
    if not view.service.required and decision.health is Health.ABSENT:
        return decision
    alarm_at = (view.now if view.bad_since is None else view.bad_since) + policy.unhealthy_before_alarm
    if often or view.now >= alarm_at:
        return replace(decision, alarm=f"{name}: {decision.reason}; {logs}")
    again = alarm_at if decision.look_again is None else min(alarm_at, decision.look_again)
    return replace(decision, look_again=again)
