"""Every order of events: a small systemd, a service that fails in every way, and what must always hold."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.services.backoff import pause_seconds
from daemon.services.catalog import CATALOG, ProbeKind
from daemon.services.decision import Decision, Need, Stop, decide
from daemon.services.model import Action, ActiveState, Finding, Health, Outcome, UnitState
from daemon.services.tracker import Tracker

ASTERISK = next(service for service in CATALOG if service.name == "asterisk")
POLICY = ASTERISK.policy
SOMEBODY = Stop("anna", "2026-01-01T00:00:00+00:00")
ENOUGH_SECONDS = 600.0


class World:
    """One service, its systemd and its tracker. systemd does nothing until `progress` is called."""

    def __init__(self) -> None:
        self.now = 10_000.0
        self.tracker = Tracker(ASTERISK)
        self.unit = UnitState(ActiveState.INACTIVE, "dead")
        self.runs = 0
        self.hung = False
        self.denied = False
        self.starts = True
        self.unkillable = False
        self.database = Health.HEALTHY
        self.shutting_down = False
        self.supervision = True
        self.pending: Action | None = None
        self.restarted_at: list[float] = []
        self.bad_since: float | None = None
        self.set(self.unit)
        self.decision = self.judge()

    # What systemd does.

    def set(self, unit: UnitState) -> None:
        self.unit = unit
        if self.tracker.saw_unit(unit):
            self.tracker.stop = SOMEBODY
        self.heed_start()

    def boot(self) -> None:
        self.runs += 1
        self.hung = False
        self.set(UnitState(ActiveState.ACTIVATING, "start", run=self.runs))
        if self.starts:
            self.set(UnitState(ActiveState.ACTIVE, "running", run=self.runs, up_since=self.now))
        else:
            self.die("exit-code")

    def die(self, result: str) -> None:
        self.runs += 1
        if result == "success":
            self.set(replace(self.unit, active=ActiveState.INACTIVE, sub="dead", result=result, job=0))
        else:
            self.set(UnitState(ActiveState.ACTIVATING, "auto-restart", result=result, run=self.runs))

    def stop_by_job(self) -> None:
        """As systemd reports it: the job is over only after the unit is inactive."""
        if not self.unit.dead:
            self.set(replace(self.unit, active=ActiveState.DEACTIVATING, sub="stop-sigterm", job=7))
            self.judge()
        self.set(UnitState(ActiveState.INACTIVE, "dead", run=self.unit.run, job=7))
        self.judge()
        self.set(UnitState(ActiveState.INACTIVE, "dead", run=self.unit.run))
        self.judge()

    def progress(self) -> None:
        action, self.pending = self.pending, None
        assert action is not Action.START or self.tracker.stop is None
        if action is Action.START:
            self.boot()
        elif action is Action.REPLACE and not self.unit.dead and not self.unkillable:
            self.die("signal")
        elif action is Action.STOP:
            self.stop_by_job()

    # What supervision does.

    def heed_start(self) -> None:
        if self.tracker.stop_is_over:
            self.tracker.stop = None

    def order(self, verb: str) -> None:
        """A person's order begins, or ("") the one under way ends."""
        self.tracker.operation = verb
        self.heed_start()

    def ask(self, kind: ProbeKind) -> None:
        if not self.unit.running:
            return
        if self.hung:
            self.tracker.saw_probe(kind, Outcome(Finding.SILENT, f"{kind}: silent"))
        elif self.denied and kind is ProbeKind.MANAGER_PING:
            self.tracker.saw_probe(kind, Outcome(Finding.DENIED, f"{kind}: denied"))
        else:
            self.tracker.saw_probe(kind, Outcome(Finding.ALIVE, f"{kind}: alive"))

    def judge(self) -> Decision:
        view = self.tracker.view(
            self.now,
            supervision=self.supervision,
            shutting_down=self.shutting_down,
            needs=[Need("mariadb", self.database)],
            dependents_run=(),
        )
        decision = decide(view)
        self.tracker.decided(self.now, decision)
        if decision.action is not Action.NONE:
            self.pending = decision.action
        if decision.spell_over or decision.health in (Health.OFF, Health.STOPPED):
            self.restarted_at = []
        if decision.action in (Action.START, Action.REPLACE) and not decision.replacement:
            self.restarted_at.append(self.now)
        if decision.health.good:
            self.bad_since = None
        elif self.bad_since is None:
            self.bad_since = self.now
        self.decision = decision
        return decision


class OrdersOfEvents(RuleBasedStateMachine):
    """Events in every order; after each one supervision judges and the invariants are checked."""

    @initialize()
    def begin(self) -> None:
        self.world = World()

    @rule()
    def systemd_progresses(self) -> None:
        self.world.progress()
        self.world.judge()

    @precondition(lambda self: self.world.unit.running)
    @rule(result=st.sampled_from(["signal", "exit-code", "oom-kill", "success"]))
    def dies(self, result: str) -> None:
        self.world.die(result)
        self.world.judge()

    @rule(hung=st.booleans(), denied=st.booleans())
    def behaves(self, hung: bool, denied: bool) -> None:
        self.world.hung, self.world.denied = hung, denied

    @rule(starts=st.booleans(), unkillable=st.booleans())
    def box_behaves(self, starts: bool, unkillable: bool) -> None:
        self.world.starts, self.world.unkillable = starts, unkillable

    @rule(kind=st.sampled_from([probe.kind for probe in ASTERISK.probes]), times=st.integers(1, 5))
    def is_asked(self, kind: ProbeKind, times: int) -> None:
        for _ in range(times):
            self.world.ask(kind)
            self.world.judge()

    @rule(health=st.sampled_from([Health.HEALTHY, Health.DOWN, Health.SUSPECT]))
    def database_becomes(self, health: Health) -> None:
        recovered = self.world.database is not Health.HEALTHY and health is Health.HEALTHY
        self.world.database = health
        if recovered:
            self.world.tracker.forgive()
        self.world.judge()

    @rule(seconds=st.one_of(st.floats(0.01, 3.0), st.floats(3.0, 4000.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.judge()

    @rule()
    def time_comes_to_look_again(self) -> None:
        if self.world.decision.look_again is not None:
            self.world.now = self.world.decision.look_again
            self.world.judge()

    @precondition(lambda self: self.world.unit.dead or self.world.tracker.operation)
    @rule()
    def a_person_wants_it_stopped(self) -> None:
        """The intent of an order; on a service that runs, nothing but an order records one."""
        self.world.tracker.stop = SOMEBODY
        if self.world.pending is Action.START:
            self.world.pending = None  # the order's job replaces it
        self.world.judge()

    @rule()
    def a_person_wants_it_to_run(self) -> None:
        self.world.tracker.stop = None
        self.world.judge()

    @precondition(lambda self: self.world.unit.running)
    @rule()
    def a_person_stops_it_for_good(self) -> None:
        """As Operations does: the intent first, then systemd, then back to supervision."""
        world, stop = self.world, Stop("carla", "2026-01-02T00:00:00+00:00")
        world.order("stop")
        world.tracker.stop, world.pending = stop, None
        world.judge()
        world.stop_by_job()
        world.order("")
        world.judge()
        assert world.tracker.stop is stop

    @rule(verb=st.sampled_from(["", "stop", "restart"]))
    def a_person_works(self, verb: str) -> None:
        self.world.order(verb)
        self.world.judge()

    @precondition(lambda self: self.world.unit.running)
    @rule()
    def somebody_uses_systemctl_stop(self) -> None:
        world = self.world
        replacing = world.decision.health is Health.HUNG
        merged = world.pending is Action.STOP  # systemd makes one job of two stops: nobody can tell whose
        world.pending = None  # a new job replaces one that waits
        world.stop_by_job()
        if world.tracker.wanted and not world.tracker.operation and not replacing and not merged:
            assert world.tracker.stop is SOMEBODY
            assert world.decision.action is Action.NONE

    @rule()
    def somebody_uses_systemctl_start(self) -> None:
        if self.world.unit.dead:
            self.world.pending = None  # a new job replaces one that waits
            self.world.boot()
            self.world.judge()

    @rule(wanted=st.booleans(), supervision=st.booleans())
    def settings_change(self, wanted: bool, supervision: bool) -> None:
        self.world.tracker.wanted, self.world.supervision = wanted, supervision
        self.world.judge()

    @rule(shutting_down=st.booleans())
    def box_shuts_down(self, shutting_down: bool) -> None:
        self.world.shutting_down = shutting_down
        self.world.judge()

    @invariant()
    def nothing_is_done_against_a_persons_will(self) -> None:
        world = self.world
        if world.decision.action in (Action.START, Action.REPLACE):
            assert world.tracker.stop is None
            assert world.tracker.wanted
            assert not world.tracker.operation
        if world.decision.action is not Action.NONE:
            assert not world.shutting_down
            assert world.supervision

    @invariant()
    def what_runs_is_not_called_stopped(self) -> None:
        world = self.world
        if world.unit.running and not world.tracker.operation:
            assert world.tracker.stop is None

    @invariant()
    def the_next_look_is_in_the_future(self) -> None:
        decision = self.world.decision
        assert decision.look_again is None or decision.look_again > self.world.now

    @invariant()
    def pauses_between_restarts_grow(self) -> None:
        moments = self.world.restarted_at
        for number, (before, after) in enumerate(itertools.pairwise(moments), start=1):
            due = pause_seconds(number, POLICY.backoff_first, POLICY.backoff_longest)
            assert after - before >= due - 1e-6

    @invariant()
    def long_trouble_is_always_alarmed(self) -> None:
        world = self.world
        deliberate = world.tracker.stop or world.tracker.operation or world.shutting_down
        if deliberate or world.decision.health is Health.UNKNOWN or world.bad_since is None:
            return
        if world.now - world.bad_since >= POLICY.unhealthy_before_alarm:
            assert world.decision.alarm
        else:
            assert world.decision.alarm or world.decision.look_again is not None

    def teardown(self) -> None:
        """Nothing stays stuck: from here, on a box that behaves, the service comes back by itself."""
        world = self.world
        world.starts, world.unkillable, world.denied = True, False, False
        world.database, world.shutting_down, world.supervision = Health.HEALTHY, False, True
        world.tracker.stop, world.tracker.operation, world.tracker.wanted = None, "", True
        ends = world.now + ENOUGH_SECONDS
        while world.now < ends:
            world.judge()
            world.progress()
            for probe in ASTERISK.probes:
                world.ask(probe.kind)
            if world.judge().health is Health.HEALTHY:
                return
            wait = 2.0 if world.decision.look_again is None else world.decision.look_again - world.now
            world.now += min(max(wait, 0.001), 2.0)
        raise AssertionError(f"still not well after {ENOUGH_SECONDS:g} s: {world.decision} with {world.unit}")


def test_a_start_by_systemctl_during_an_order_ends_an_older_stop() -> None:
    events = OrdersOfEvents()
    events.begin()
    events.somebody_uses_systemctl_start()
    events.a_person_stops_it_for_good()
    events.a_person_works("stop")
    events.somebody_uses_systemctl_start()
    events.a_person_works("")
    events.what_runs_is_not_called_stopped()
    events.somebody_uses_systemctl_stop()


OrdersOfEvents.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestOrdersOfEvents = OrdersOfEvents.TestCase
