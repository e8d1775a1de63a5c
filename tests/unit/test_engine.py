"""verify, plan, apply, confirm: order, undo, refusals, conflicts, drift, a full disk."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from daemon import faults
from daemon.clock import Clock
from daemon.engine import Engine
from daemon.errors import (
    ApplyFailedError,
    ConflictError,
    InvalidSettingsError,
    NotFoundError,
    Problem,
    StorageError,
)
from daemon.files import FileChange, apply_file_change, read_text
from daemon.settings import Settings
from daemon.settings.revisions import RevisionState, RevisionStore
from daemon.subsystem import Change, State


class HandClock(Clock):
    """Time that a test moves by hand."""

    def __init__(self) -> None:
        super().__init__(Path("/dev/null"))
        self.now = 1000.0
        self.name = "boot-1"

    def seconds(self) -> float:
        return self.now

    def boot(self) -> str:
        return self.name


class Section:
    """A subsystem with one file that holds what it is told; `refuses` makes its apply fail."""

    def __init__(self, directory: Path, name: str, log: list[str]) -> None:
        self.name = name
        self.sections: tuple[str, ...] = (name,)
        self.file = directory / name
        self.log = log
        self.refuses: set[str] = set()
        self.risky = False
        self.problems: list[Problem] = []
        self.broken_view = False

    def wanted(self, settings: Settings) -> str:
        return str(settings.node.hostname if self.name == "node" else settings.mail.server) + "\n"

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        assert set(facts) == {"node", "mail"}
        return self.problems

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        before, after = read_text(self.file), self.wanted(new)
        if before == after or (old is not None and self.wanted(old) == after):
            return []
        change = FileChange(self.file, before, after)
        return [Change(self.name, f"Write {after.strip()}.", (change,), risky=self.risky)]

    def apply(self, change: Change) -> None:
        after = str(change.files[0].after).strip()
        self.log.append(f"{self.name}={after}")
        if after in self.refuses:
            raise ApplyFailedError(f"{after} is refused", "choose another")
        apply_file_change(change.files[0])

    def observe(self) -> State:
        if self.broken_view:
            raise ValueError("no view")
        return State(True, facts={"file": read_text(self.file)})


class Box:
    """An engine with two subsystems, `node` before `mail`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log: list[str] = []
        self.clock = HandClock()
        self.node, self.mail = Section(directory, "node", self.log), Section(directory, "mail", self.log)
        self.told = 0
        self.engine = self.open()
        self.engine.start()
        self.log.clear()

    def open(self) -> Engine:
        store = RevisionStore(self.directory / "revisions")
        return Engine(store, [self.node, self.mail], program="1", clock=self.clock, on_change=self.changed)

    def changed(self) -> None:
        self.told += 1

    def state(self) -> tuple[str | None, str | None]:
        return read_text(self.node.file), read_text(self.mail.file)

    def states(self) -> dict[int, str]:
        return {revision.revision: revision.state.value for revision in self.engine.history(0)}


def document(node: str, mail: str = "None") -> str:
    server = "" if mail == "None" else f', "mail": {{"server": "{mail}", "sender": "a@b.example"}}'
    return f'{{"node": {{"hostname": "{node}"}}{server}}}'


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.engine.stop()
    faults.install(None)


def test_the_first_start_makes_the_box_match_the_defaults(box: Box) -> None:
    assert box.state() == ("centralino\n", "None\n")
    assert box.engine.revision == 1
    assert box.engine.reasons() == []


def test_a_start_without_a_change_touches_nothing(box: Box) -> None:
    box.node.file.write_text("changed by hand\n")
    box.open().start()
    assert box.log == []


def test_another_version_of_the_program_renders_everything_anew(box: Box) -> None:
    box.node.file.write_text("from an older renderer\n")
    newer = Engine(
        RevisionStore(box.directory / "revisions"), [box.node, box.mail], program="2", clock=box.clock
    )
    newer.start()
    assert box.log == ["node=centralino"]


def test_a_dry_run_touches_nothing_and_says_everything(box: Box) -> None:
    box.node.risky = True
    plan = box.engine.propose(document("pbx1", "m.example")).as_json()
    assert [change["sentence"] for change in plan["changes"]] == ["Write pbx1.", "Write m.example."]  # type: ignore[attr-defined]
    assert plan["needs_confirm"] is True
    assert '+  hostname: "pbx1"' in str(plan["diff"])
    assert (box.log, box.engine.revision, box.told) == ([], 1, 0)


def test_changes_are_applied_in_order_and_stored(box: Box) -> None:
    applied = box.engine.apply(document("pbx1", "m.example"), who="maria", comment="why not")
    assert box.log == ["node=pbx1", "mail=m.example"]
    assert box.state() == ("pbx1\n", "m.example\n")
    newest = box.engine.history(1)[0]
    assert (newest.revision, newest.who, newest.comment, newest.base) == (2, "maria", "why not", 1)
    assert (newest.state, applied.revision, applied.confirm_by) == (RevisionState.CONFIRMED, 2, None)
    assert box.told == 1


def test_a_failure_undoes_in_reverse_and_says_so(box: Box) -> None:
    box.mail.refuses = {"bad.example"}
    with pytest.raises(ApplyFailedError, match=r"old state was put back: bad\.example is refused"):
        box.engine.apply(document("pbx1", "bad.example"))
    assert box.log == ["node=pbx1", "mail=bad.example", "node=centralino"]
    assert box.state() == ("centralino\n", "None\n")
    assert box.states() == {1: "confirmed", 2: "failed"}
    assert box.engine.reasons() == []
    box.engine.apply(document("pbx2"))
    assert box.states()[3] == "confirmed"


def test_an_undo_that_fails_is_a_reason_until_a_retry_succeeds(box: Box) -> None:
    box.mail.refuses = {"bad.example"}
    box.node.refuses = {"centralino"}
    with pytest.raises(ApplyFailedError, match="could not be put back"):
        box.engine.apply(document("pbx1", "bad.example"))
    assert box.engine.settings == Settings()
    assert len(box.engine.reasons()) == 1
    assert box.engine.needs_retry()
    with pytest.raises(ConflictError):
        box.engine.apply(document("pbx9"))
    box.node.refuses = set()
    box.engine.retry()
    assert (box.state(), box.engine.reasons()) == (("centralino\n", "None\n"), [])
    assert box.states() == {1: "confirmed", 2: "failed"}
    assert not box.engine.needs_retry()


def test_an_unexpected_exception_of_a_subsystem_is_undone_too(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(_change: Change) -> None:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(box.mail, "apply", explode)
    with pytest.raises(ApplyFailedError, match="by accident"):
        box.engine.apply(document("pbx1", "m.example"))
    assert box.state()[0] == "centralino\n"


def test_problems_of_the_box_refuse_and_warnings_do_not(box: Box) -> None:
    box.mail.problems = [Problem("mail.server", "does not resolve", "check the name", fatal=False)]
    assert box.engine.apply(document("pbx1")).revision == 2
    box.mail.problems = [Problem("mail.server", "does not resolve", "check the name")]
    with pytest.raises(InvalidSettingsError, match="does not resolve"):
        box.engine.apply(document("pbx2"))
    assert box.state()[0] == "pbx1\n"


def test_nothing_is_applied_from_a_refused_document(box: Box) -> None:
    with pytest.raises(InvalidSettingsError):
        box.engine.apply('{"node": {"hostname": "fine"}, "mail": {"port": "25"}}')
    assert (box.log, box.engine.revision, box.states()) == ([], 1, {1: "confirmed"})


def test_the_same_document_again_makes_no_revision(box: Box) -> None:
    assert box.engine.apply("{}").revision == 1
    assert box.states() == {1: "confirmed"}


def test_somebody_elses_change_in_between_is_not_overwritten(box: Box) -> None:
    box.engine.apply(document("pbx1"), base=1)
    with pytest.raises(ConflictError, match="edited from revision 1, but 2"):
        box.engine.apply(document("pbx2"), base=1)
    with pytest.raises(ConflictError):
        box.engine.propose(document("pbx2"), base=1)


def test_a_risky_change_waits_for_confirm(box: Box) -> None:
    box.node.risky = True
    applied = box.engine.apply(document("pbx1"))
    assert applied.confirm_by is not None
    pending = box.engine.pending()
    assert pending is not None
    assert (pending["revision"], pending["returns_to"], pending["seconds_left"]) == (2, 1, 60)
    assert box.state()[0] == "pbx1\n"
    assert box.engine.confirm() == 2
    assert box.states() == {1: "confirmed", 2: "confirmed"}
    with pytest.raises(NotFoundError):
        box.engine.confirm()


def test_no_other_change_while_one_waits(box: Box) -> None:
    box.engine.apply(document("pbx1"), confirm_seconds=60)
    with pytest.raises(ConflictError, match="still unconfirmed"):
        box.engine.apply(document("pbx2"))


def test_without_confirm_the_box_returns_by_itself(box: Box) -> None:
    returned = threading.Event()
    box.engine.apply(document("pbx1", "m.example"), confirm_seconds=1)
    box.clock.now += 2
    told = box.changed
    box.changed = lambda: (told(), returned.set())[0]  # type: ignore[method-assign, func-returns-value]
    box.engine._listener = box.changed
    assert returned.wait(20), "the timer did not fire"
    assert box.state() == ("centralino\n", "None\n")
    assert box.states() == {1: "confirmed", 2: "rolled_back"}
    assert box.engine.pending() is None


def test_an_early_timer_waits_for_the_rest(box: Box) -> None:
    box.engine.apply(document("pbx1"), confirm_seconds=60)
    box.clock.now += 59
    box.engine.expire()
    assert box.engine.pending() is not None
    box.clock.now += 2
    box.engine.expire()
    assert box.state()[0] == "centralino\n"


def test_a_daemon_killed_in_between_keeps_the_deadline(box: Box) -> None:
    box.engine.apply(document("pbx1"), confirm_seconds=60)
    box.engine.stop()
    box.clock.now += 30
    again = box.open()
    again.start()
    pending = again.pending()
    assert pending is not None
    assert pending["seconds_left"] == 30
    assert again.settings.node.hostname == "pbx1"
    again.confirm()
    assert again.revision == 2
    again.stop()


def test_a_daemon_that_was_away_past_the_deadline_returns(box: Box) -> None:
    box.engine.apply(document("pbx1"), confirm_seconds=60)
    box.engine.stop()
    box.clock.now += 61
    again = box.open()
    again.expire()
    assert again.settings.node.hostname == "centralino"
    assert box.state()[0] == "centralino\n"


def test_a_reboot_before_confirm_returns_at_once(box: Box) -> None:
    box.engine.apply(document("pbx1"), confirm_seconds=600)
    box.engine.stop()
    box.clock.name, box.clock.now = "boot-2", 5.0
    again = box.open()
    again.start()
    assert (again.revision, box.state()[0], again.pending()) == (1, "centralino\n", None)
    assert again.history(1)[0].reason == "was not confirmed before the reboot"


def test_rollback_is_an_apply_of_an_old_revision(box: Box) -> None:
    import json

    box.engine.apply(document("pbx1"))
    box.engine.apply(document("pbx2"))
    box.engine.apply(json.dumps(box.engine.document(2)), comment="rollback to 2")
    assert box.state()[0] == "pbx1\n"
    assert box.engine.revision == 4
    assert box.engine.diff(2, 0) == ""
    with pytest.raises(NotFoundError):
        box.engine.document(99)


def test_a_subsystem_that_cannot_look_is_a_reason_not_a_crash(box: Box) -> None:
    box.mail.broken_view = True
    states = box.engine.observe()
    assert states["node"].healthy
    assert not states["mail"].healthy
    assert "no view" in states["mail"].reasons[0]


def test_sections_without_a_subsystem_are_named(box: Box) -> None:
    stored = box.engine.stored_only()
    assert "firewall" in stored
    assert not {"node", "mail", "history"} & set(stored)


def test_two_applies_at_once_are_done_one_after_the_other(box: Box) -> None:
    threads = [
        threading.Thread(target=box.engine.apply, args=(document(f"pbx{number}"),)) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert box.engine.revision == 5
    assert box.state()[0] == f"{box.engine.settings.node.hostname}\n"


class FullDisk:
    """No file of this process may grow beyond so many bytes: what a full disk does, without needing one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __enter__(self) -> None:
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.before[1]))

    def __exit__(self, *_error: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


@pytest.mark.parametrize("limit", [0, 100, 1000])
def test_a_full_disk_during_commit_changes_nothing(box: Box, limit: int) -> None:
    with FullDisk(limit), pytest.raises(StorageError) as caught:
        box.engine.apply(document("pbx1"))
    assert "free space" in caught.value.remedy
    assert (box.state()[0], box.engine.revision, box.engine.reasons()) == ("centralino\n", 1, [])
    assert box.engine.apply(document("pbx1")).revision == 2


def test_a_full_disk_during_apply_puts_the_old_state_back(box: Box) -> None:
    full = FullDisk(0)

    def fill(name: str) -> None:
        if name == "change:mail:before":
            full.__enter__()
        if name == "undo:all:before":
            full.__exit__()

    faults.install(fill)
    with pytest.raises(StorageError, match="nothing was changed"):
        box.engine.apply(document("pbx1", "m.example"))
    faults.install(None)
    assert (box.state(), box.engine.revision) == (("centralino\n", "None\n"), 1)
    assert box.states() == {1: "confirmed", 2: "failed"}


def test_a_disk_that_stays_full_is_a_reason_and_the_retry_heals(box: Box) -> None:
    full = FullDisk(0)
    faults.install(lambda name: full.__enter__() if name == "change:mail:before" else None)
    try:
        with pytest.raises(ApplyFailedError, match="could not be put back"):
            box.engine.apply(document("pbx1", "m.example"))
        assert box.engine.reasons()
        faults.install(None)
        box.engine.retry()
        assert box.engine.reasons()
    finally:
        full.__exit__()
    box.engine.retry()
    assert (box.state(), box.engine.reasons()) == (("centralino\n", "None\n"), [])


def test_repair_brings_back_what_other_hands_changed(box: Box) -> None:
    assert box.engine.propose_repair().changes == ()
    box.node.file.write_text("by hand\n")
    plan = box.engine.propose_repair()
    assert [change.sentence for change in plan.changes] == ["Write centralino."]
    assert box.state()[0] == "by hand\n"
    box.node.risky = True
    assert not plan.needs_confirm
    box.engine.repair()
    assert box.state()[0] == "centralino\n"
    assert (box.engine.revision, len(box.engine.history(0)), box.engine.pending()) == (1, 1, None)


def test_a_repair_that_fails_or_is_cut_off_is_tried_again(box: Box) -> None:
    box.node.file.write_text("by hand\n")
    box.node.refuses.add("centralino")
    with pytest.raises(ApplyFailedError):
        box.engine.repair()
    assert box.engine.needs_retry()
    box.node.refuses.clear()
    again = box.open()
    again.start()
    assert box.state()[0] == "centralino\n"
    assert not again.needs_retry()


def test_nothing_is_repaired_while_a_change_waits_for_confirm(box: Box) -> None:
    box.engine.apply(document("pbx1"), confirm_seconds=60)
    with pytest.raises(ConflictError):
        box.engine.repair()
