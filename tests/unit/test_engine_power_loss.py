"""Power loss at every write point: the next start holds exactly the old or the new revision, and the box
matches it.

Each case runs in a child process that kills itself (SIGKILL) at the n-th fault point; the parent then starts
as the next boot would. The points are enumerated by a first run, so a new write point is tested by itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from daemon import faults
from daemon.clock import Clock
from daemon.engine import Engine
from daemon.errors import ApplyFailedError, CentralinoError, Problem
from daemon.files import FileChange, apply_file_change, read_text
from daemon.hostname import Hostname
from daemon.places import Places
from daemon.settings import Settings, parse
from daemon.settings.revisions import RevisionState, RevisionStore
from daemon.subsystem import Change, State

OLD = '{"node": {"hostname": "old"}, "mail": {"server": "old.example.com", "sender": "a@example.com"}}'
NEW = '{"node": {"hostname": "new"}, "mail": {"server": "new.example.com", "sender": "a@example.com"}}'
# The second file of this one is refused by the subsystem, so the first must be put back.
BAD = '{"node": {"hostname": "bad"}, "mail": {"server": "bad.example.com", "sender": "a@example.com"}}'
FILES = ("relay.conf", "sender.conf")


class MailFiles:
    """A subsystem of two files in two changes; refuses to write the second for one server."""

    name = "mail"
    sections: tuple[str, ...] = ("mail",)

    def __init__(self, places: Places) -> None:
        self.places = places

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        return []

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        if old is not None and old.mail == new.mail:
            return []
        changes = []
        for name in FILES:
            path = self.places.on_box(f"/etc/{name}")
            before, after = read_text(path), f"{new.mail.server}\n"
            if before != after:
                changes.append(
                    Change(self.name, f"Write {name}.", (FileChange(path, before, after),), risky=True)
                )
        return changes

    def apply(self, change: Change) -> None:
        for file in change.files:
            if file.path.name == FILES[1] and file.after == "bad.example.com\n":
                raise ApplyFailedError("the second file is refused")
            apply_file_change(file)

    def observe(self) -> State:
        return State(True)


class Boot(Clock):
    """A clock in a boot of its own, as after a reset."""

    def __init__(self, name: str) -> None:
        super().__init__(Path("/dev/null"))
        self.name = name

    def boot(self) -> str:
        return self.name


def engine_at(root: Path, boot: str = "first") -> Engine:
    places = Places(root)
    store = RevisionStore(places.revisions)
    return Engine(store, [Hostname(places), MailFiles(places)], program="1", clock=Boot(boot))


def box(root: Path) -> tuple[str | None, ...]:
    return tuple(read_text(root / "etc" / name) for name in ("hostname", *FILES))


def expected(settings: Settings) -> tuple[str, ...]:
    return (f"{settings.node.hostname}\n", *(f"{settings.mail.server}\n" for _ in FILES))


def in_child(work: Callable[[], None], dies_at: int | None, names: Path) -> bool:
    """Run `work` in a child that dies at its `dies_at`-th fault point; returns whether it died there."""
    child = os.fork()
    if child == 0:
        seen: list[str] = []

        def point(name: str) -> None:
            seen.append(name)
            if len(seen) - 1 == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

        faults.install(point)
        status = 0
        try:
            work()
        except CentralinoError:
            pass
        except BaseException:
            status = 1
        names.write_text("\n".join(seen))
        os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def points_of(work: Callable[[Path], None], before: Path, scratch: Path) -> list[str]:
    shutil.copytree(before, scratch / "recording")
    names = scratch / "names"
    assert not in_child(lambda: work(scratch / "recording"), None, names)
    shutil.rmtree(scratch / "recording")
    return names.read_text().splitlines()


def settle_and_check(root: Path, allowed: Sequence[str]) -> None:
    """The next boot, twice: one of the allowed documents is in force, and the box matches it."""
    engine = engine_at(root, "second")
    engine.start()
    assert engine.reasons() == []
    assert engine.pending() is None
    assert engine.settings in [parse(text) for text in allowed]
    assert box(root) == expected(engine.settings)
    states = {revision.revision: revision.state for revision in engine.history(0)}
    assert states[engine.revision] is RevisionState.CONFIRMED
    assert RevisionState.PENDING not in states.values()
    again = engine_at(root, "third")
    again.start()
    assert (again.revision, box(root)) == (engine.revision, expected(engine.settings))
    # And the box goes on: the next change is applied.
    again.apply('{"node": {"hostname": "next"}}', confirm_seconds=0)
    assert box(root)[0] == "next\n"


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory in memory where there is one: hundreds of boots, each with its fsyncs."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield Path(directory)


@pytest.fixture
def old_box(disk: Path) -> Path:
    root = disk / "old"
    (root / "etc").mkdir(parents=True)
    engine = engine_at(root)
    engine.start()
    engine.apply(OLD, confirm_seconds=0)
    assert box(root) == expected(parse(OLD))
    return root


def apply_new(root: Path) -> None:
    engine_at(root).apply(NEW, confirm_seconds=0)


def apply_and_confirm(root: Path) -> None:
    engine = engine_at(root)
    engine.apply(NEW, confirm_seconds=600)
    engine.confirm()
    engine.stop()


def apply_and_leave(root: Path) -> None:
    engine = engine_at(root)
    engine.apply(NEW, confirm_seconds=600)
    engine.stop()


def apply_and_expire(root: Path) -> None:
    apply_and_leave(root)
    engine_at(root, "second").start()


def apply_bad(root: Path) -> None:
    engine_at(root).apply(BAD, confirm_seconds=0)


@pytest.mark.parametrize(
    ("work", "allowed", "at_least"),
    [
        (apply_new, (OLD, NEW), 20),
        (apply_and_confirm, (OLD, NEW), 25),
        (apply_and_leave, (OLD,), 20),
        (apply_and_expire, (OLD,), 35),
        (apply_bad, (OLD,), 20),
    ],
)
def test_power_loss_at_every_write_point(
    work: Callable[[Path], None], allowed: Sequence[str], at_least: int, old_box: Path, disk: Path
) -> None:
    points = points_of(work, old_box, disk)
    assert len(points) >= at_least, points
    for number, name in enumerate(points):
        root = disk / f"cut-{number}"
        shutil.copytree(old_box, root)
        assert in_child(lambda root=root: work(root), number, disk / "names"), name  # type: ignore[misc]
        try:
            settle_and_check(root, allowed)
        except AssertionError as error:
            raise AssertionError(f"after power loss at point {number} ({name}): {error}") from error
        shutil.rmtree(root)


def test_power_loss_at_every_write_point_of_the_first_start(disk: Path) -> None:
    empty = disk / "empty"
    (empty / "etc").mkdir(parents=True)

    def first_start(root: Path) -> None:
        engine_at(root).start()

    points = points_of(first_start, empty, disk)
    assert len(points) >= 10
    for number, name in enumerate(points):
        root = disk / f"cut-{number}"
        shutil.copytree(empty, root)
        assert in_child(lambda root=root: first_start(root), number, disk / "names"), name  # type: ignore[misc]
        engine = engine_at(root, "second")
        engine.start()
        assert engine.settings == Settings(), name
        assert box(root)[0] == "centralino\n", name
        shutil.rmtree(root)


def test_power_loss_during_the_recovery_from_a_power_loss(old_box: Path, disk: Path) -> None:
    points = points_of(apply_new, old_box, disk)
    halfway = next(number for number, name in enumerate(points) if name == "file:relay.conf:done")
    broken = disk / "broken"
    shutil.copytree(old_box, broken)
    assert in_child(lambda: apply_new(broken), halfway, disk / "names")

    def recover(root: Path) -> None:
        engine_at(root, "second").start()

    recovery = points_of(recover, broken, disk)
    assert len(recovery) >= 10
    for number, name in enumerate(recovery):
        root = disk / f"cut-{number}"
        shutil.copytree(broken, root)
        assert in_child(lambda root=root: recover(root), number, disk / "names"), name  # type: ignore[misc]
        settle_and_check(root, (OLD,))
        shutil.rmtree(root)
