"""The memory of one service: turns events into the View that `decide` judges, and notes what was done.

No clock and no box in here either: every method takes the monotonic time at which the event happened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from daemon.services.catalog import ProbeKind, Service
from daemon.services.decision import Decision, Need, ProbeHistory, Stop, View
from daemon.services.model import Action, ActiveState, Finding, Health, Outcome, UnitState
from daemon.services.spells import Spell

HOUR = 3600.0
REMEMBERED_RESTARTS = 100


class Tracker:
    """What is known of one service. Not safe to share between threads: the supervisor owns it."""

    def __init__(self, service: Service, spell: Spell | None = None) -> None:
        """`spell` is what was remembered of it before the daemon restarted."""
        spell = spell or Spell()
        self.service = service
        self.unit = UnitState()
        self.wanted = True
        self.stop: Stop | None = None
        self.operation = ""
        self.decision = Decision(Action.NONE, Health.UNKNOWN, "systemd has not reported on it yet")
        self.outcomes: dict[ProbeKind, Outcome] = {}
        self.live_calls: int | None = None
        self.restarts_in_all = spell.in_all
        self._probes = _fresh(service)
        self._restarts = spell.restarts
        self._last_restart = spell.last_restart
        self._killed_at: float | None = None
        self._good_since: float | None = None
        self._bad_since: float | None = None
        self._held_since: float | None = None
        self._recent: deque[float] = deque(spell.recent, maxlen=REMEMBERED_RESTARTS)
        self._stopping_by_job = False
        self._stopping_by_us = False

    def spell(self) -> Spell:
        """What must be remembered of its restarts."""
        return Spell(self._restarts, self._last_restart, self.restarts_in_all, tuple(self._recent))

    def adopt(self, service: Service) -> None:
        """Use another policy for the same service; what was seen of it stays."""
        known = self._probes
        self.service = service
        self._probes = {kind: known.get(kind, seen) for kind, seen in _fresh(service).items()}

    def saw_unit(self, unit: UnitState) -> bool:
        """systemd reports; true if somebody stopped the unit by systemd, outside of this program."""
        old, self.unit = self.unit, unit
        if unit.run != old.run or not unit.running:
            self._probes = _fresh(self.service)
            self.outcomes = {}
            self.live_calls = None
        if not unit.dead and (old.dead or unit.run != old.run):
            # It runs anew: whatever was killed is gone.
            self._killed_at = None
        if unit.active is ActiveState.DEACTIVATING:
            self._stopping_by_job = self._stopping_by_job or unit.job != 0
            self._stopping_by_us = self._stopping_by_us or bool(self.operation)
            return False
        ended = unit.active is ActiveState.INACTIVE and unit.job == 0
        ours = self._stopping_by_us or bool(self.operation) or self._killed_at is not None
        outside = ended and self._stopping_by_job and not ours and self.wanted and self.stop is None
        if ended or unit.running:
            self._stopping_by_job = False
        if ended or unit.run != old.run:
            self._stopping_by_us = False
        return outside

    @property
    def stop_is_over(self) -> bool:
        """A person stopped it, and it runs or comes up by no order of ours: somebody started it."""
        unit = self.unit
        coming = unit.running or (unit.active is ActiveState.ACTIVATING and not unit.waits_for_restart)
        return self.stop is not None and coming and not self.operation

    def saw_probe(self, kind: ProbeKind, outcome: Outcome) -> bool:
        """A probe reports; false if that tells `decide` nothing new."""
        known = self._probes.get(kind)
        if known is None or outcome.finding is Finding.UNSURE:
            return False
        self.outcomes[kind] = outcome
        if outcome.live_calls is not None:
            self.live_calls = outcome.live_calls
        if outcome.finding.failed:
            seen = replace(known, failures=known.failures + 1, complaint=False, detail=outcome.detail)
        else:
            complains = outcome.finding is not Finding.ALIVE
            seen = ProbeHistory(failures=0, ever=True, complaint=complains, detail=outcome.detail)
        self._probes[kind] = seen
        return seen != known

    def forgive(self) -> None:
        """A service that this one needs came back: what was silent meanwhile must be asked again."""
        self._probes = {kind: replace(seen, failures=0) for kind, seen in self._probes.items()}

    def view(
        self,
        now: float,
        *,
        supervision: bool,
        shutting_down: bool,
        needs: Sequence[Need],
        dependents_run: Sequence[str],
    ) -> View:
        """Everything that `decide` may know, at `now`."""
        while self._recent and self._recent[0] < now - HOUR:
            self._recent.popleft()
        return View(
            service=self.service,
            now=now,
            unit=self.unit,
            wanted=self.wanted,
            supervision=supervision,
            stop=self.stop,
            operation=self.operation,
            shutting_down=shutting_down,
            probes=dict(self._probes),
            restarts=self._restarts,
            last_restart=self._last_restart,
            killed_at=self._killed_at,
            good_since=self._good_since,
            bad_since=self._bad_since,
            held_since=self._held_since,
            recent_restarts=len(self._recent),
            needs=tuple(needs),
            dependents_run=tuple(dependents_run),
        )

    def decided(self, now: float, decision: Decision) -> None:
        """Note a decision, and the action in it as carried out at `now`."""
        self.decision = decision
        if decision.health.good:
            self._bad_since = None
            self._good_since = now if self._good_since is None else self._good_since
        else:
            self._good_since = None
            self._bad_since = now if self._bad_since is None else self._bad_since
        if not decision.holding:
            self._held_since = None
        elif self._held_since is None:
            self._held_since = now
        if decision.spell_over or (decision.health in (Health.OFF, Health.STOPPED) and not _acts(decision)):
            self._restarts, self._last_restart = 0, None
        if not _acts(decision):
            return
        self._last_restart = now
        if decision.action is Action.REPLACE:
            self._killed_at = now
        if decision.action is Action.STOP:
            self._stopping_by_us = True
        if decision.action is Action.START:
            self._killed_at = None
        if not decision.replacement:
            self._restarts += 1
            if decision.action is not Action.STOP:
                self.restarts_in_all += 1
                self._recent.append(now)


def _acts(decision: Decision) -> bool:
    return decision.action is not Action.NONE


def _fresh(service: Service) -> dict[ProbeKind, ProbeHistory]:
    return {probe.kind: ProbeHistory() for probe in service.probes}
