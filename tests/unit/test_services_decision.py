"""What supervision decides, as stories: each names what happened to the service."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.services.backoff import pause_seconds
from daemon.services.catalog import CATALOG, Probe, ProbeKind, Service, declared
from daemon.services.decision import Need, ProbeHistory, Stop, View, decide
from daemon.services.model import Action, ActiveState, Health, LoadState, Role, UnitState
from daemon.settings.reach import WorkMode
from daemon.settings.services import ServicePolicy, Services

ASTERISK = next(service for service in CATALOG if service.name == "asterisk")
CHRONY = next(service for service in CATALOG if service.name == "chrony")
SIP, AMI = ProbeKind.SIP_OPTIONS, ProbeKind.MANAGER_PING
UP = UnitState(ActiveState.ACTIVE, "running", run=1, up_since=0.0)
CRASHED = UnitState(ActiveState.ACTIVATING, "auto-restart", result="signal", run=2)
EXITED = UnitState(ActiveState.INACTIVE, "dead", run=1)
FINE = ProbeHistory(ever=True)
WELL = (Need("mariadb", Health.HEALTHY),)
SICK = (Need("mariadb", Health.DOWN),)


def silent(times: int, *, ever: bool = True, what: str = "no answer") -> ProbeHistory:
    return ProbeHistory(failures=times, ever=ever, detail=what)


def view(**changes: object) -> View:
    base = View(ASTERISK, now=1000.0, unit=UP, probes={SIP: FINE, AMI: FINE}, needs=WELL)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_working_service_is_left_alone() -> None:
    decision = decide(view())
    assert (decision.action, decision.health, decision.alarm) == (Action.NONE, Health.HEALTHY, "")


@pytest.mark.parametrize("unit", [CRASHED, EXITED, replace(EXITED, active=ActiveState.FAILED)])
def test_a_dead_service_is_started_at_once(unit: UnitState) -> None:
    decision = decide(view(unit=unit, probes={SIP: ProbeHistory(), AMI: ProbeHistory()}))
    assert (decision.action, decision.health) == (Action.START, Health.DOWN)


def test_two_kinds_of_silence_condemn_a_service_early() -> None:
    assert decide(view(probes={SIP: silent(1), AMI: silent(1)})).health is Health.SUSPECT
    decision = decide(view(probes={SIP: silent(2, what="no SIP"), AMI: silent(1, what="no AMI")}))
    assert (decision.action, decision.health) == (Action.REPLACE, Health.HUNG)
    assert "no SIP" in decision.reason
    assert "no AMI" in decision.reason


def test_one_kind_of_silence_alone_needs_longer() -> None:
    assert decide(view(probes={SIP: silent(3), AMI: FINE})).health is Health.SUSPECT
    assert decide(view(probes={SIP: silent(4), AMI: FINE})).action is Action.REPLACE
    assert decide(view(probes={SIP: FINE, AMI: silent(7)})).health is Health.SUSPECT
    assert decide(view(probes={SIP: FINE, AMI: silent(8)})).action is Action.REPLACE


def test_a_probe_that_never_answered_ends_no_calls() -> None:
    """The manager interface is switched off: calls work, and a restart would change nothing."""
    decision = decide(view(probes={SIP: FINE, AMI: silent(50, ever=False)}))
    assert (decision.action, decision.health) == (Action.NONE, Health.DEGRADED)


def test_a_wrong_password_of_the_prober_is_no_reason_to_restart() -> None:
    denied = ProbeHistory(ever=True, complaint=True, detail="AMI ping: login refused")
    decision = decide(view(probes={SIP: FINE, AMI: denied}, bad_since=900.0))
    assert (decision.action, decision.health) == (Action.NONE, Health.DEGRADED)
    assert "login refused" in decision.alarm


def test_a_service_that_hangs_from_its_start_gets_its_grace_and_no_more() -> None:
    unit = replace(UP, up_since=990.0)
    probes = {SIP: silent(9, ever=False), AMI: silent(9, ever=False)}
    decision = decide(view(unit=unit, probes=probes))
    assert (decision.action, decision.health) == (Action.NONE, Health.STARTING)
    assert decision.look_again == pytest.approx(990.0 + ASTERISK.policy.start_limit)
    assert decide(view(unit=unit, probes=probes, now=1021.0)).action is Action.REPLACE


def test_a_start_that_hangs_is_replaced_when_its_limit_has_passed() -> None:
    began = int((1000.0 - 29) * 1_000_000)
    starting = UnitState(active=ActiveState.ACTIVATING, sub="start", run=began)
    decision = decide(view(unit=starting, probes={SIP: ProbeHistory(), AMI: ProbeHistory()}))
    assert (decision.action, decision.health) == (Action.NONE, Health.STARTING)
    assert decision.look_again == pytest.approx(1000.0 + 1)
    late = replace(starting, run=began - 1_000_001)
    decision = decide(view(unit=late))
    assert (decision.action, decision.health) == (Action.REPLACE, Health.HUNG)
    assert "within 30 s" in decision.reason
    # Pauses grow here as everywhere.
    again = decide(view(unit=late, restarts=3, last_restart=1000.0 - 1))
    assert again.action is Action.NONE
    assert again.alarm
    assert decide(view(unit=late, supervision=False)).action is Action.NONE


def test_a_database_may_recover_as_long_as_it_takes() -> None:
    mariadb = declared(Services())["mariadb"]
    starting = UnitState(active=ActiveState.ACTIVATING, sub="start", run=1)
    decision = decide(replace(view(unit=starting), service=mariadb, now=1000.0 + 10_000))
    assert (decision.action, decision.health) == (Action.NONE, Health.STARTING)


def test_a_hang_that_begins_in_the_grace_of_one_probe_is_still_seen() -> None:
    unit = replace(UP, up_since=999.0)
    assert decide(view(unit=unit, probes={SIP: silent(2), AMI: silent(1)})).action is Action.REPLACE


def test_a_killed_service_is_given_time_to_die_then_killed_again_then_started() -> None:
    hung = {SIP: silent(2), AMI: silent(2)}
    waiting = decide(view(probes=hung, killed_at=999.0, last_restart=999.0, restarts=1))
    assert (waiting.action, waiting.health) == (Action.NONE, Health.HUNG)
    again = decide(view(probes=hung, killed_at=990.0, last_restart=990.0, restarts=1))
    assert again.action is Action.REPLACE
    assert "kernel" in again.reason
    dead = decide(view(unit=CRASHED, killed_at=999.9, last_restart=999.9, restarts=7))
    assert (dead.action, dead.replacement) == (Action.START, True)


def test_a_dead_database_is_the_reason_and_asterisk_waits_for_it() -> None:
    for unit, probes in ((CRASHED, {}), (UP, {SIP: silent(5), AMI: silent(5)})):
        decision = decide(view(unit=unit, probes=probes, needs=SICK))
        assert (decision.action, decision.health) == (Action.NONE, Health.WAITING)
        assert decision.holding
        assert "mariadb" in decision.reason
        waited = decide(view(unit=unit, probes=probes, needs=SICK, held_since=900.0))
        assert waited.action in (Action.START, Action.REPLACE), "it must not wait for ever"


def test_pauses_grow_and_the_reason_says_how_often() -> None:
    decision = decide(view(unit=CRASHED, restarts=3, last_restart=998.0))
    assert decision.action is Action.NONE
    assert decision.look_again == pytest.approx(998.0 + 4.0)
    assert "3 times" in decision.reason
    assert decide(view(unit=CRASHED, restarts=3, last_restart=995.9)).action is Action.START


def test_pause_is_monotone_bounded_and_starts_at_nothing() -> None:
    pauses = [pause_seconds(number, 1.0, 60.0) for number in range(2000)]
    assert pauses[:5] == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60.0
    assert pause_seconds(9, 90.0, 60.0) == 90.0


def test_stability_ends_the_spell() -> None:
    settling = decide(view(restarts=2, last_restart=950.0, good_since=960.0))
    assert (settling.spell_over, settling.look_again) == (False, pytest.approx(1020.0))
    assert decide(view(restarts=2, last_restart=950.0, good_since=940.0)).spell_over


@pytest.mark.parametrize(
    ("changes", "health"),
    [
        ({"stop": Stop("anna", "2026-01-01T00:00:00+00:00", "maintenance")}, Health.STOPPED),
        ({"wanted": False}, Health.OFF),
        ({"operation": "stop"}, Health.STOPPED),
        ({"operation": "restart"}, Health.STARTING),
        ({"shutting_down": True}, Health.UNKNOWN),
        ({"supervision": False}, Health.DOWN),
    ],
)
def test_a_dead_service_is_not_started_when_somebody_wants_it_so(
    changes: dict[str, object], health: Health
) -> None:
    for unit in (CRASHED, EXITED) if "wanted" not in changes else (EXITED,):
        decision = decide(view(unit=unit, **changes))
        assert (decision.action, decision.health) == (Action.NONE, health)


def test_who_stopped_it_when_and_why_is_said() -> None:
    stop = Stop("anna", "2026-01-01T00:00:00+00:00", "new trunk card")
    reason = decide(view(unit=EXITED, stop=stop)).reason
    assert "anna" in reason
    assert "2026-01-01" in reason
    assert "new trunk card" in reason
    assert "centralino services start asterisk" in reason


def test_what_must_not_run_is_stopped_after_what_needs_it() -> None:
    assert decide(view(wanted=False)).action is Action.STOP
    held = decide(view(wanted=False, dependents_run=("asterisk",)))
    assert held.action is Action.NONE
    assert "asterisk" in held.reason


def test_a_job_of_somebody_else_is_not_disturbed() -> None:
    assert decide(view(unit=replace(EXITED, job=17))).action is Action.NONE
    deactivating = replace(UP, active=ActiveState.DEACTIVATING, job=17)
    assert decide(view(unit=deactivating)).action is Action.NONE


def test_an_unmet_condition_excuses_only_what_is_not_required() -> None:
    unmet = UnitState(ActiveState.INACTIVE, "dead", condition=False)
    assert decide(View(CHRONY, now=1.0, unit=unmet)).health is Health.IDLE
    assert decide(view(unit=unmet)).action is Action.START


@pytest.mark.parametrize("load", [LoadState.NOT_FOUND, LoadState.MASKED])
def test_what_is_not_there_is_said_and_alarmed(load: LoadState) -> None:
    unit = UnitState(ActiveState.INACTIVE, "dead", load=load)
    decision = decide(view(unit=unit, bad_since=900.0))
    assert (decision.action, decision.health) == (Action.NONE, Health.ABSENT)
    assert decision.alarm
    assert decide(view(unit=unit, wanted=False)).health is Health.OFF
    assert not decide(View(CHRONY, now=1000.0, unit=unit, bad_since=0.0)).alarm


def test_alarm_comes_by_number_of_restarts_or_by_time_and_stays_until_stable() -> None:
    quick = view(unit=CRASHED, restarts=1, last_restart=999.5, bad_since=999.0)
    assert not decide(quick).alarm
    assert decide(replace(quick, restarts=3)).alarm
    late = decide(replace(quick, bad_since=1000.0 - ASTERISK.policy.unhealthy_before_alarm))
    assert late.alarm.startswith("asterisk: ")
    assert "centralino services logs asterisk" in late.alarm
    settling = view(restarts=3, last_restart=999.0, good_since=999.5, recent_restarts=3)
    assert decide(settling).health is Health.HEALTHY
    assert decide(settling).alarm
    assert not decide(replace(settling, good_since=900.0)).alarm


def test_many_successful_restarts_within_an_hour_are_an_alarm_too() -> None:
    assert "6 times" in decide(view(recent_restarts=6)).alarm
    assert not decide(view(recent_restarts=5)).alarm


def test_a_stopped_service_raises_no_alarm() -> None:
    stop = Stop("anna", "2026-01-01T00:00:00+00:00")
    assert not decide(view(unit=EXITED, stop=stop, bad_since=0.0)).alarm


def test_the_catalogue_is_in_order_and_complete() -> None:
    services = declared(Services())
    assert set(services) == {service.name for service in CATALOG}
    names = list(services)
    for service in services.values():
        assert all(names.index(need) < names.index(service.name) for need in service.needs)
        assert len({probe.kind for probe in service.probes}) == len(service.probes)


def test_who_runs_what_in_which_role_and_mode() -> None:
    def running(role: Role, mode: WorkMode) -> set[str]:
        return {name for name, service in declared(Services()).items() if service.runs_in(role, mode)}

    always = {"nftables", "networkmanager", "chrony", "sshd", "nginx"}
    core = {"mariadb", "asterisk"}
    assert running(Role.OFF, WorkMode.STANDARD) == always
    assert running(Role.STANDALONE, WorkMode.STANDARD) == always | core
    assert running(Role.SLAVE, WorkMode.STANDARD) == always | core | {"keepalived"}
    assert running(Role.MASTER, WorkMode.CLOUD) == always | core | {"coturn"}


def test_the_admin_changes_a_policy() -> None:
    policy = ServicePolicy(
        enabled=False,
        probe_interval_seconds=9.0,
        probe_limit_seconds=3.0,
        failures_before_restart=7,
        drain_seconds=5,
        backoff_first_seconds=2.0,
        backoff_longest_seconds=8.0,
        restarts_before_alarm=1,
    )
    changed = declared(Services(policies={"asterisk": policy}))["asterisk"]
    assert changed.probes == (Probe(SIP, 9.0, 3.0, 7), Probe(AMI, 9.0, 3.0, 7))
    assert (changed.policy.agreement, changed.policy.drain, changed.policy.restarts_before_alarm) == (7, 5, 1)
    assert not changed.runs_in(Role.MASTER, WorkMode.STANDARD)
    assert declared(Services(policies={"nginx": policy}))["asterisk"] == declared(Services())["asterisk"]


def test_every_probe_interval_lets_a_hang_be_replaced_in_time() -> None:
    """The worst case of the declared data, without the start itself: at most 4 s of the 6 s allowed."""
    service: Service = ASTERISK
    gap = max(probe.interval_seconds for probe in service.probes) / len(service.probes)
    rounds = -(-service.policy.agreement // len(service.probes))
    limit = max(probe.limit_seconds for probe in service.probes)
    assert gap + rounds * limit <= 4.0
