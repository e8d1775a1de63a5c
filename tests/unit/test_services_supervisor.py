"""Supervision as a whole, on a systemd made of memory: what a person orders, what a crash leads to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from daemon.alarms import Alarms
from daemon.errors import ConflictError, NotFoundError, UnavailableError
from daemon.places import Places
from daemon.platform import Platform
from daemon.services import supervisor
from daemon.services.api import ActOptions, Progress, Verb
from daemon.services.catalog import CATALOG, ProbeKind
from daemon.services.decision import Decision, Stop, View, decide
from daemon.services.draining import CallDrain
from daemon.services.intents import Intents
from daemon.services.manager import Supervision
from daemon.services.model import ActiveState, Finding, Health, LoadState, Outcome, Role, UnitState
from daemon.services.operations import Operations
from daemon.services.spells import Spells
from daemon.services.supervisor import Snapshot, Supervisor
from daemon.services.units import OnChange, Process
from daemon.settings import Settings
from daemon.settings.reach import WorkMode
from daemon.settings.services import ServicePolicy, Services

LIMIT = 10.0
BOOT = "boot-1"


@dataclass
class MemoryUnits:
    """systemd without processes: what it is told happens at once, unless `ignores` names the unit."""

    states: dict[str, UnitState] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    ignores: set[str] = field(default_factory=set)
    broken: bool = False
    going_down: bool = False
    runs: int = 0
    on_change: OnChange = lambda name, state: None
    on_kill: Callable[[], None] = lambda: None

    def start(self, on_change: OnChange) -> None:
        self.on_change = on_change
        for service in CATALOG:
            known = self.states.setdefault(service.name, UnitState(ActiveState.ACTIVE, "running", run=1))
            on_change(service.name, known)

    def close(self) -> None:
        pass

    def process(self, name: str) -> Process:
        return Process(pid=17 if self.states[name].running else 0, changed_at=1.0e9)

    def start_unit(self, name: str) -> None:
        self._called("start", name)
        if name not in self.ignores:
            self.become(name, active=ActiveState.ACTIVATING, sub="start", result="success")
            self.become(name, active=ActiveState.ACTIVE, sub="running")

    def stop_unit(self, name: str) -> None:
        self._called("stop", name)
        self.become(name, active=ActiveState.DEACTIVATING, sub="stop-sigterm", job=9)
        if name not in self.ignores:
            # As systemd does it: the unit is inactive before its job is over.
            self.become(name, active=ActiveState.INACTIVE, sub="dead")
            self.become(name, job=0)

    def kill_unit(self, name: str) -> None:
        self._called("kill", name)
        self.on_kill()
        self.become(name, active=ActiveState.FAILED, sub="failed", result="signal", job=0)

    def shutting_down(self) -> bool:
        return self.going_down

    def crash(self, name: str) -> None:
        self.become(name, active=ActiveState.ACTIVATING, sub="auto-restart", result="signal")

    def become(self, name: str, **changes: object) -> None:
        old = self.states[name]
        new = replace(old, **changes)  # type: ignore[arg-type]
        if old.dead and not new.dead:
            self.runs += 1
            new = replace(new, run=int(time.monotonic() * 1_000_000) + self.runs)
        self.states[name] = new
        self.on_change(name, new)

    def _called(self, verb: str, name: str) -> None:
        self.calls.append((verb, name))
        if self.broken:
            raise UnavailableError("systemd does not answer")


class Box:
    """Supervision with everything around it made of memory, apart from the state files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.units = MemoryUnits()
        self.findings: dict[ProbeKind, Finding] = {}
        self.asked: list[ProbeKind] = []
        self.services = Services()
        self.open()

    def open(self) -> None:
        """A daemon that starts; the services are as they are."""
        self.alarms = Alarms(self.directory / "alarms.json")
        self.intents = Intents(self.directory / "stopped.json", BOOT)
        asks = {kind: self._ask(kind) for kind in ProbeKind}
        self.spells = Spells(self.directory / "restarts.json", BOOT)
        self.supervisor = Supervisor(self.units, asks, self.alarms, self.intents, CATALOG, spells=self.spells)
        self.operations = Operations(self.supervisor, self.units, self.intents, lambda: pytest.fail("drain"))
        self.supervisor.start(self.services, WorkMode.STANDARD, Role.STANDALONE)

    def close(self) -> None:
        self.supervisor.close()
        assert self.alarms.flush()
        assert self.intents.flush()
        assert self.spells.flush()

    def _ask(self, kind: ProbeKind) -> Callable[[float], Outcome]:
        def ask(_limit: float) -> Outcome:
            self.asked.append(kind)
            finding = self.findings.get(kind, Finding.ALIVE)
            return Outcome(
                finding, f"{kind}: {finding}", live_calls=0 if kind is ProbeKind.MANAGER_PING else None
            )

        return ask

    def wait(self, name: str, health: Health) -> str:
        """Wait until the service is so; returns the reason."""
        found = self.supervisor.wait_for(name, lambda seen: seen.decision.health is health, LIMIT)
        assert found is not None, f"{name} is {self.supervisor.snapshots()[name].decision}"
        return found.decision.reason

    def until(self, name: str, wish: Callable[[Snapshot], bool]) -> Snapshot:
        """Wait until the service's snapshot fulfils the wish."""
        found = self.supervisor.wait_for(name, wish, LIMIT)
        assert found is not None, f"{name} is {self.supervisor.snapshots()[name]}"
        return found

    def act(self, name: str, verb: Verb, **options: object) -> object:
        options.setdefault("drain_seconds", 0)
        return self.operations.act(name, verb, ActOptions(**options), lambda *_report: None)  # type: ignore[arg-type]


def well_again(snapshot: Snapshot) -> bool:
    """It was restarted and works."""
    return snapshot.restarts > 0 and snapshot.decision.health is Health.HEALTHY


def well_by_a_person(snapshot: Snapshot) -> bool:
    """Nobody wants it stopped, and it works."""
    return snapshot.stop is None and snapshot.decision.health is Health.HEALTHY


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    made.wait("asterisk", Health.HEALTHY)
    made.wait("mariadb", Health.HEALTHY)
    yield made
    made.close()


def test_good_answers_cost_no_decisions_and_a_bad_one_is_judged_at_once(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []

    def noted(view: View) -> Decision:
        judged.append(view.service.name)
        return decide(view)

    policies = {name: ServicePolicy(probe_interval_seconds=0.5) for name in ("asterisk", "mariadb", "nginx")}
    box.supervisor.configure(Services(policies=policies), WorkMode.STANDARD, Role.STANDALONE)
    box.wait("asterisk", Health.HEALTHY)

    def answered(times: int) -> None:
        before = box.asked.count(ProbeKind.SIP_OPTIONS)
        box.until("asterisk", lambda _seen: box.asked.count(ProbeKind.SIP_OPTIONS) > before + times)

    # The decisions that followed from the change of the policies come first.
    answered(2)
    box.wait("asterisk", Health.HEALTHY)
    monkeypatch.setattr(supervisor, "decide", noted)
    answered(3)
    assert judged == []
    box.findings[ProbeKind.SIP_OPTIONS] = Finding.SILENT
    box.wait("asterisk", Health.SUSPECT)
    assert "asterisk" in judged


def test_a_daemon_that_starts_disturbs_nothing(box: Box) -> None:
    assert box.units.calls == [("stop", "coturn"), ("stop", "keepalived")], "only what must not run here"


def test_a_crash_is_answered_by_one_start(box: Box) -> None:
    box.units.calls.clear()
    box.units.crash("asterisk")
    assert box.until("asterisk", well_again).restarts == 1
    assert box.units.calls == [("start", "asterisk")]


def test_a_hang_is_answered_by_kill_and_start(box: Box) -> None:
    box.units.calls.clear()
    box.findings = {ProbeKind.SIP_OPTIONS: Finding.SILENT, ProbeKind.MANAGER_PING: Finding.SILENT}
    box.units.on_kill = box.findings.clear
    box.until("asterisk", well_again)
    assert box.units.calls == [("kill", "asterisk"), ("start", "asterisk")]


def test_a_systemd_that_refuses_is_asked_again(box: Box) -> None:
    box.units.broken = True
    box.units.crash("nginx")
    box.wait("nginx", Health.DOWN)
    box.units.broken = False
    box.until("nginx", well_again)
    assert box.units.calls.count(("start", "nginx")) >= 2


def test_nothing_is_started_while_the_box_goes_down(box: Box) -> None:
    box.units.calls.clear()
    box.units.going_down = True
    box.units.crash("asterisk")
    assert "shutting down" in box.wait("asterisk", Health.UNKNOWN)
    assert box.units.calls == []
    box.units.stop_unit("nginx")
    assert box.until("nginx", lambda seen: seen.unit.dead and not seen.unit.job).stop is None
    assert box.intents.stops == {}, "the shutdown stopped it, no person"


def test_a_stop_by_a_person_outlives_the_daemon_but_not_the_boot(box: Box) -> None:
    box.act("asterisk", Verb.STOP, who="anna", comment="new card")
    assert "anna" in box.wait("asterisk", Health.STOPPED)
    box.close()
    box.units.calls.clear()
    box.open()
    reason = box.wait("asterisk", Health.STOPPED)
    assert "anna" in reason
    assert "new card" in reason
    assert ("start", "asterisk") not in box.units.calls
    assert Intents(box.directory / "stopped.json", "boot-2").stops == {}
    box.act("asterisk", Verb.START)
    box.wait("asterisk", Health.HEALTHY)
    assert box.intents.stops == {}


def test_a_stop_by_systemctl_is_respected_and_a_start_by_systemctl_too(box: Box) -> None:
    box.units.calls.clear()
    box.units.stop_unit("asterisk")
    assert "systemctl" in box.wait("asterisk", Health.STOPPED)
    box.units.start_unit("asterisk")
    box.until("asterisk", well_by_a_person)
    assert box.intents.stops == {}
    assert box.units.calls == [("stop", "asterisk"), ("start", "asterisk")], "both by the test itself"


def test_a_start_by_systemctl_during_a_stop_by_a_person_is_respected(box: Box) -> None:
    """The order ends after systemd has reported all there is to report."""
    with box.supervisor.operation("asterisk", "stop"):
        box.supervisor.record_stop("asterisk", Stop("anna", "2026-01-01T00:00:00+00:00"))
        box.units.stop_unit("asterisk")
        box.until("asterisk", lambda seen: seen.unit.dead and not seen.unit.job)
        box.units.start_unit("asterisk")
        assert box.until("asterisk", lambda seen: seen.unit.running).stop is not None
    box.until("asterisk", well_by_a_person)
    assert box.intents.stops == {}
    box.units.crash("asterisk")
    box.until("asterisk", well_again)


def test_a_crash_while_calls_are_drained_does_not_leave_the_rest_to_systemds_timer(box: Box) -> None:
    class Crashing(CallDrain):
        def run(self, seconds: float, ended: Callable[[float], bool], progress: Progress) -> bool:
            box.units.crash("asterisk")
            return ended(LIMIT)

    drain = Crashing(box.directory / "ami_secret")
    box.operations = Operations(box.supervisor, box.units, box.intents, lambda: drain)
    box.units.calls.clear()
    box.act("asterisk", Verb.STOP, drain_seconds=60, who="anna")
    assert box.units.calls == [("stop", "asterisk")]
    assert "anna" in box.wait("asterisk", Health.STOPPED)
    assert not box.supervisor.snapshots()["asterisk"].unit.waits_for_restart


def test_an_end_by_itself_is_no_stop_by_a_person(box: Box) -> None:
    """`asterisk -rx 'core stop now'` ends it with status 0; systemd's own fallback would not start it."""
    box.units.become("asterisk", active=ActiveState.INACTIVE, sub="dead")
    assert box.until("asterisk", well_again).stop is None


def test_a_restart_by_a_person_is_one_stop_and_one_start(box: Box) -> None:
    box.units.calls.clear()
    box.act("asterisk", Verb.RESTART)
    assert box.units.calls == [("stop", "asterisk"), ("start", "asterisk")]
    assert box.supervisor.snapshots()["asterisk"].restarts == 0, "no fault of the service"


def test_a_stop_that_is_ignored_becomes_firm(box: Box) -> None:
    box.services = Services(policies={"asterisk": ServicePolicy(stop_limit_seconds=0)})
    box.supervisor.configure(box.services, WorkMode.STANDARD, Role.STANDALONE)
    box.units.ignores.add("asterisk")
    box.units.calls.clear()
    box.act("asterisk", Verb.STOP)
    assert box.units.calls == [("stop", "asterisk"), ("kill", "asterisk")]
    box.wait("asterisk", Health.STOPPED)


def test_a_stop_that_is_cancelled_leaves_supervision_as_it_was(box: Box) -> None:
    def cancelled(*_report: object) -> None:
        raise ConflictError("cancelled")

    with pytest.raises(ConflictError, match="cancelled"):
        box.operations.act("asterisk", Verb.STOP, ActOptions(drain_seconds=0), cancelled)
    box.wait("asterisk", Health.HEALTHY)
    assert box.intents.stops == {}


def test_two_orders_for_one_service_do_not_mix(box: Box) -> None:
    inside, leave = threading.Event(), threading.Event()

    def progress(*_report: object) -> None:
        inside.set()
        assert leave.wait(LIMIT)

    options = ActOptions(drain_seconds=0)
    first = threading.Thread(target=box.operations.act, args=("nginx", Verb.RESTART, options, progress))
    first.start()
    assert inside.wait(LIMIT)
    with pytest.raises(ConflictError, match="under way"):
        box.act("nginx", Verb.STOP)
    leave.set()
    first.join(LIMIT)
    box.wait("nginx", Health.HEALTHY)


def test_orders_that_make_no_sense_are_refused(box: Box) -> None:
    with pytest.raises(NotFoundError, match="no service"):
        box.act("../etc/passwd", Verb.START)
    with pytest.raises(ConflictError, match="reach this box"):
        box.act("sshd", Verb.STOP)
    with pytest.raises(ConflictError, match="keepalived"):
        box.act("keepalived", Verb.START)
    box.units.become("nginx", load=LoadState.MASKED, active=ActiveState.INACTIVE, sub="dead")
    box.wait("nginx", Health.ABSENT)
    with pytest.raises(ConflictError, match="unmask"):
        box.act("nginx", Verb.START)


def test_a_start_that_does_not_work_says_so(box: Box) -> None:
    box.services = Services(policies={"nginx": ServicePolicy(start_limit_seconds=0)})
    box.supervisor.configure(box.services, WorkMode.STANDARD, Role.STANDALONE)
    box.units.stop_unit("nginx")
    box.wait("nginx", Health.STOPPED)
    box.units.ignores.add("nginx")
    with pytest.raises(UnavailableError, match="does not work"):
        box.act("nginx", Verb.START)


def test_a_plan_says_what_would_happen_and_does_nothing(box: Box) -> None:
    box.units.calls.clear()
    plan = box.operations.plan("asterisk", Verb.RESTART, ActOptions())
    assert "Take no new calls" in json.dumps(plan["changes"])
    assert plan["drops_calls"] is False
    notes = box.operations.plan("mariadb", Verb.STOP, ActOptions())["notes"]
    assert any("asterisk" in note for note in notes)  # type: ignore[attr-defined]
    assert box.units.calls == []


def test_an_alarm_is_raised_when_restarts_do_not_help_and_outlives_the_daemon(box: Box) -> None:
    policy = ServicePolicy(restarts_before_alarm=2, backoff_first_seconds=0.1, backoff_longest_seconds=0.2)
    box.services = Services(policies={"nginx": policy})
    box.supervisor.configure(box.services, WorkMode.STANDARD, Role.STANDALONE)
    raised = threading.Event()
    box.alarms.listen(lambda alarm, up: raised.set() if up and alarm.identifier == "service.nginx" else None)
    box.units.ignores.add("nginx")
    box.units.crash("nginx")
    assert raised.wait(LIMIT)
    (alarm,) = box.alarms.standing()
    assert alarm.sentence.startswith("nginx: it ended (signal)")
    box.close()
    box.open()
    assert [known.identifier for known in box.alarms.standing()] == ["service.nginx"], "kept on disk"
    box.units.ignores.clear()
    box.until("nginx", well_again)
    # The restarts are remembered too, so it stands until nginx has worked for a minute.
    (alarm,) = box.alarms.standing()
    assert "works now" in alarm.sentence


def test_a_daemon_that_restarts_forgets_no_restart(box: Box) -> None:
    box.units.crash("nginx")
    box.until("nginx", lambda seen: seen.restarts == 1 and seen.decision.health is Health.HEALTHY)
    box.close()
    box.open()
    box.until("nginx", lambda seen: seen.decision.health is Health.HEALTHY)
    assert box.supervisor.snapshots()["nginx"].restarts == 1
    assert box.supervisor.snapshots()["nginx"].decision.reason == "it works again"


def test_a_probe_that_crashes_is_a_complaint_and_no_end(box: Box) -> None:
    def broken(_limit: float) -> Outcome:
        raise RuntimeError("no such library")

    box.close()
    box.units.calls.clear()
    intents = Intents(box.directory / "stopped.json", BOOT)
    asks = {**{kind: box._ask(kind) for kind in ProbeKind}, ProbeKind.HTTPS_REQUEST: broken}
    box.supervisor = Supervisor(box.units, asks, box.alarms, intents, CATALOG)
    box.supervisor.start(box.services, WorkMode.STANDARD, Role.STANDALONE)
    assert "no such library" in box.wait("nginx", Health.DEGRADED)
    assert ("kill", "nginx") not in box.units.calls


def test_role_off_stops_in_reverse_order(box: Box) -> None:
    box.units.calls.clear()
    box.supervisor.configure(box.services, WorkMode.STANDARD, Role.OFF)
    for name in ("asterisk", "mariadb"):
        assert box.supervisor.wait_for(name, lambda seen: seen.unit.dead, LIMIT)
    assert box.units.calls == [("stop", "asterisk"), ("stop", "mariadb")]
    box.supervisor.configure(box.services, WorkMode.STANDARD, Role.STANDALONE)
    box.wait("asterisk", Health.HEALTHY)
    assert box.units.calls[2:] == [("start", "mariadb"), ("start", "asterisk")]


# --- as the rest of the daemon sees it --------------------------------------------------------------------


@pytest.fixture
def supervision(tmp_path: Path) -> Iterator[Supervision]:
    paths = {name: tmp_path / name for name in ("tls_certificate", "ami_secret", "mariadb_socket")}
    units = {service.name: f"{service.name}.service" for service in CATALOG if not service.probes}
    platform = Platform("test", "1", units, paths)
    (tmp_path / "var/lib/centralino").mkdir(parents=True)
    memory = MemoryUnits()
    made = Supervision(Places(tmp_path), platform, Settings, Alarms(tmp_path / "alarms.json"), units=memory)
    made.start()
    yield made
    made.stop()


def test_services_are_listed_as_the_bus_documents_them(supervision: Supervision) -> None:
    assert supervision._supervisor.wait_for(
        "sshd", lambda seen: seen.decision.health is Health.HEALTHY, LIMIT
    )
    listed = {service["name"]: service for service in supervision.list()}
    assert list(listed) == ["nftables", "networkmanager", "chrony", "sshd", "coturn", "keepalived"]
    expected = {"name", "unit", "state", "healthy", "reason", "since", "restarts", "probes", "pid"}
    assert expected <= set(listed["sshd"])
    assert listed["sshd"]["unit"] == "sshd.service"
    json.dumps(supervision.list())


def test_policies_for_unknown_or_indispensable_services_are_refused(supervision: Supervision) -> None:
    policies = {"sshd": ServicePolicy(enabled=False), "apache": ServicePolicy()}
    problems = supervision.verify(Settings(services=Services(policies=policies)), {})
    assert {problem.path for problem in problems} == {
        "services.policies.sshd.enabled",
        "services.policies.apache",
    }
    assert not supervision.verify(Settings(), {})


def test_a_disabled_service_is_planned_applied_undone_and_applied_twice(supervision: Supervision) -> None:
    old = Settings()
    new = Settings(services=Services(policies={"chrony": ServicePolicy(enabled=False)}))
    assert supervision.plan(old, old) == []
    assert len(supervision.plan(None, old)) == 1
    changes = supervision.plan(old, new)
    assert "Stop chrony" in changes[1].sentence
    for change in (*changes, *changes):
        supervision.apply(change)
    assert supervision._supervisor.snapshots()["chrony"].unit.dead
    for change in supervision.plan(new, old):
        supervision.apply(change)
    assert supervision._supervisor.wait_for("chrony", lambda seen: seen.unit.running, LIMIT)
    assert supervision.observe().healthy
