"""Runs the probes, each in a thread of its own with blocking sockets, and asks each at its time.

A question that blocks holds up no other one. Times are monotonic seconds.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from daemon.services.catalog import Probe, ProbeKind
from daemon.services.model import Finding, Outcome

Ask = Callable[[float], Outcome]
Report = Callable[[Outcome], None]

# After a failure, or before the first answer, questions follow each other at least this far apart.
AFTER_FAILURE = 1.0
BEFORE_ANSWER = 0.25
# A probe that has not come back this long after its limit hangs itself, on a file or in the kernel.
OVERDUE = 5.0


class Asker:
    """The thread behind one kind of probe."""

    def __init__(self, name: str, ask: Ask) -> None:
        self._ask = ask
        self._orders: queue.SimpleQueue[tuple[float, Report] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"probe {name}", daemon=True)
        self._thread.start()

    def ask(self, limit_seconds: float, report: Report) -> None:
        """Ask once; `report` is called from the thread."""
        self._orders.put((limit_seconds, report))

    def close(self) -> None:
        """End the thread after the question under way."""
        self._orders.put(None)

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            limit_seconds, report = order
            try:
                outcome = self._ask(limit_seconds)
            except Exception as error:
                outcome = Outcome(Finding.FAULTY, f"the probe itself failed: {error!r}")
            report(outcome)


@dataclass
class Schedule:
    """When to ask one probe of one service: at `due`; `asked_at` is None while no question is under way.

    `phase` (0..1] spreads the probes of a service, so that the first to notice a hang notices early.
    """

    probe: Probe
    phase: float
    due: float = 0.0
    asked_at: float | None = None
    answered: bool = False
    overdue: bool = False

    @property
    def kind(self) -> ProbeKind:
        """Which probe."""
        return self.probe.kind

    def begin(self, now: float) -> None:
        """A question goes out."""
        self.asked_at = now
        self.overdue = False

    def finish(self, outcome: Outcome, now: float) -> None:
        """The answer to the question under way came."""
        begun = now if self.asked_at is None else self.asked_at
        self.asked_at = None
        if outcome.finding.failed:
            self.due = max(now, begun + (AFTER_FAILURE if self.answered else BEFORE_ANSWER))
        elif outcome.finding is Finding.UNSURE:
            self.due = now
        else:
            self.due = begun + self.probe.interval_seconds * (1.0 if self.answered else self.phase)
            self.answered = True

    def hurry(self, now: float) -> None:
        """Another probe failed: ask now, unless a question is under way."""
        self.due = min(self.due, now)

    def reset(self, now: float) -> None:
        """A new run of the service: ask now, and forget the question to the old one."""
        self.due = now
        self.asked_at = None
        self.answered = False
        self.overdue = False

    def waits_until(self) -> float:
        """When this schedule wants attention next."""
        if self.asked_at is None:
            return self.due
        return float("inf") if self.overdue else self.asked_at + self.probe.limit_seconds + OVERDUE


def schedules(probes: tuple[Probe, ...]) -> dict[ProbeKind, Schedule]:
    """Schedules for the probes of one service, spread over their interval."""
    return {
        probe.kind: Schedule(probe, phase=(number + 1) / len(probes)) for number, probe in enumerate(probes)
    }
