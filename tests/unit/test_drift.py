"""Drift that stands raises one alarm a subsystem, and ends with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from daemon.alarms import Alarms
from daemon.clock import Clock
from daemon.drift import DriftWatch
from daemon.engine import Engine
from daemon.errors import Problem
from daemon.settings import Settings
from daemon.settings.revisions import RevisionStore
from daemon.subsystem import Change, State


class Seen:
    """A subsystem that reports what a test tells it to."""

    sections: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self.drift: tuple[str, ...] = ()

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        return []

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        return []

    def apply(self, change: Change) -> None:
        raise AssertionError("nothing is changed here")

    def observe(self) -> State:
        return State(not self.drift, drift=self.drift)


def test_drift_that_stands_is_an_alarm_until_it_is_gone(tmp_path: Path) -> None:
    node, firewall = Seen("node"), Seen("firewall")
    store = RevisionStore(tmp_path / "revisions")
    engine = Engine(store, [node, firewall], clock=Clock(tmp_path / "boot"))
    alarms = Alarms(tmp_path / "alarms.json")
    watch = DriftWatch(engine, alarms)
    node.drift = firewall.drift = ("/etc/hostname was changed by hand", "and more")
    watch.look()
    assert alarms.standing() == ()  # a change under way looks the same for a moment
    watch.look()
    (alarm,) = alarms.standing()
    assert alarm.identifier == "drift.node"
    assert "/etc/hostname was changed by hand (and 1 more)" in alarm.sentence
    assert "centralino config repair" in alarm.sentence
    node.drift = ()
    watch.look()
    assert alarms.standing() == ()
