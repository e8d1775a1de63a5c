"""A change on trial: what watches over it, the early return, the return on demand."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from daemon.clock import Clock
from daemon.engine import Engine
from daemon.errors import ApplyFailedError, NotFoundError, Problem, StorageError
from daemon.settings import Settings
from daemon.settings.revisions import Head, Phase, RevisionState, RevisionStore
from daemon.subsystem import Change, State


class Name:
    """Keeps the node's name as its only state, and watches over changes on trial."""

    name = "node"
    sections: tuple[str, ...] = ("node",)

    def __init__(self) -> None:
        self.log: list[str] = []
        self.looked = threading.Event()
        self.hostname = ""
        self.trouble: str | None = None
        self.broken = False

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        return []

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        if old is not None and old.node.hostname == new.node.hostname:
            return []
        return [Change(self.name, "Name it", risky=True, detail={"hostname": new.node.hostname})]

    def apply(self, change: Change) -> None:
        self.hostname = str(change.detail["hostname"])
        self.log.append(self.hostname)

    def observe(self) -> State:
        return State(True)

    def trial_begins(self, changes: Sequence[Change], old: Settings, seconds: int) -> None:
        self.log.append(f"begins with {len(changes)} for {seconds}")

    def trial_resumes(self) -> None:
        self.log.append("resumes")

    def trial_trouble(self, new: Settings) -> str | None:
        if self.broken:
            raise OSError("the check itself is broken")
        self.log.append("looks")
        self.looked.set()
        return self.trouble

    def trial_ends(self) -> None:
        self.log.append("ends")


@pytest.fixture
def name() -> Name:
    return Name()


@pytest.fixture
def engine(tmp_path: Path, name: Name) -> Engine:
    clock = Clock(tmp_path / "run" / "boot")
    made = Engine(RevisionStore(tmp_path / "revisions"), [name], clock=clock, program="1")
    made.start()
    name.log.clear()
    return made


def document(hostname: str) -> str:
    return f'{{"node": {{"hostname": "{hostname}"}}}}'


def test_a_change_on_trial_is_watched_from_before_its_first_step_until_it_is_kept(
    engine: Engine, name: Name
) -> None:
    assert engine.apply(document("pbx1"), confirm_seconds=60).confirm_by
    assert name.log == ["begins with 1 for 60", "pbx1", "looks"]
    engine.confirm()
    assert name.log[3:] == ["ends"]


class SlowDisk(RevisionStore):
    """Takes the head of a change on trial only when the box was looked at, or refuses it then."""

    def __init__(self, directory: Path, looked: threading.Event, *, full: bool) -> None:
        super().__init__(directory)
        self._looked = looked
        self._full = full

    def move_head(self, head: Head) -> None:
        if head.intent is not None and head.intent.phase is Phase.UNCONFIRMED:
            assert self._looked.wait(10)
            if self._full:
                raise StorageError("the disk is full")
        super().move_head(head)


@pytest.mark.parametrize("full", [False, True])
def test_the_box_is_looked_at_while_the_disk_takes_the_change(tmp_path: Path, name: Name, full: bool) -> None:
    disk = SlowDisk(tmp_path / "revisions", name.looked, full=full)
    engine = Engine(disk, [name], clock=Clock(tmp_path / "run" / "boot"), program="1")
    engine.start()
    name.log.clear()
    if not full:
        assert engine.apply(document("pbx1"), confirm_seconds=60).confirm_by
        engine.stop()
        return
    with pytest.raises(StorageError, match="the disk is full"):
        engine.apply(document("pbx1"), confirm_seconds=60)
    assert name.log == ["begins with 1 for 60", "pbx1", "looks", "centralino", "ends"]
    assert (engine.revision, engine.pending()) == (1, None)


def test_a_change_that_waits_for_nothing_is_not_watched(engine: Engine, name: Name) -> None:
    engine.apply(document("pbx1"), confirm_seconds=0)
    assert "looks" not in name.log


def test_trouble_brings_the_old_state_back_at_once_and_names_the_reason(engine: Engine, name: Name) -> None:
    name.trouble = "the gateway 192.0.2.1 does not answer on eth0"
    with pytest.raises(ApplyFailedError, match=r"put back: the gateway 192\.0\.2\.1 does not answer"):
        engine.apply(document("pbx1"), confirm_seconds=60)
    assert name.hostname == "centralino"
    assert (engine.revision, engine.pending()) == (1, None)
    newest = engine.history(1)[0]
    assert (newest.state, newest.reason) == (
        RevisionState.ROLLED_BACK,
        "was not kept: the gateway 192.0.2.1 does not answer on eth0",
    )
    name.trouble = None
    assert engine.apply(document("pbx1"), confirm_seconds=60).confirm_by


def test_a_check_that_is_itself_broken_neither_keeps_nor_breaks_the_change(
    engine: Engine, name: Name
) -> None:
    name.broken = True
    assert engine.apply(document("pbx1"), confirm_seconds=60).confirm_by
    assert engine.pending() is not None


def test_whoever_declines_need_not_wait_for_the_deadline(engine: Engine, name: Name) -> None:
    with pytest.raises(NotFoundError, match="no change waits"):
        engine.return_now("was taken back by admin")
    engine.apply(document("pbx1"), confirm_seconds=3600)
    assert engine.return_now("was taken back by admin") == 2
    assert (name.hostname, engine.pending()) == ("centralino", None)
    assert engine.history(1)[0].reason == "was taken back by admin"


@pytest.mark.parametrize("trouble", [None, "the gateway 192.0.2.1 does not answer on eth0"])
def test_a_daemon_that_restarts_within_the_trial_looks_again(
    tmp_path: Path, engine: Engine, name: Name, trouble: str | None
) -> None:
    engine.apply(document("pbx1"), confirm_seconds=3600)
    engine.stop()
    name.log.clear()
    name.trouble = trouble
    again = Engine(RevisionStore(tmp_path / "revisions"), [name], clock=Clock(tmp_path / "run" / "boot"))
    again.start()
    again.stop()
    assert name.log[:2] == ["resumes", "looks"]
    if trouble is None:
        assert again.pending() is not None
    else:
        assert (again.pending(), name.hostname) == (None, "centralino")
        assert again.history(1)[0].reason == f"was not kept: {trouble}"
