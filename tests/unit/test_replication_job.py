"""The replication job (S-FT-07) in the runtime and on the bus; the replications themselves are doubles."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from daemon.authorization import Caller
from daemon.bus_replication import replication_handlers
from daemon.errors import ConflictError, InvalidSettingsError, UnavailableError
from daemon.jobs import Jobs, JobState
from daemon.pair_link import PairLink
from fault_tolerance.contracts import DatabaseReplica, FileReplica, Progress
from fault_tolerance.resync import Resync


class Part:
    """Both replications: goes on step by step as the test lets it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.go = threading.Event()
        self.failure: Exception | None = None

    def seed_from_peer(self, progress: Progress) -> None:
        self._work("db", progress)

    def resynchronize(self, progress: Progress, accept_deletions: bool = False) -> None:
        self._work("files!" if accept_deletions else "files", progress)

    def _work(self, name: str, progress: Progress) -> None:
        progress(0.5, f"half of {name}")
        while not self.go.wait(0.01):
            progress(0.5, f"half of {name}")
        if self.failure is not None:
            raise self.failure
        self.done.append(name)


def resync(part: Part) -> Resync:
    return Resync(cast(DatabaseReplica, part), cast(FileReplica, part))


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("what", "role", "expected"),
    [
        ("db", "slave", ["db"]),
        ("files", "slave", ["files"]),
        ("all", "slave", ["db", "files"]),
        ("all", "master", ["files"]),
        ("files", "master", ["files"]),
    ],
)
def test_each_role_copies_what_it_can(what: str, role: str, expected: list[str]) -> None:
    part = Part()
    part.go.set()
    job = resync(part)
    job.start(what, role=role)
    until(lambda: job.state()["running"] is False)
    assert part.done == expected
    assert job.state()["done"] is True
    assert job.state()["progress"] == 1.0


def test_progress_runs_from_start_to_end_over_both() -> None:
    part = Part()
    job = resync(part)
    job.start("all", role="slave")
    until(lambda: job.state()["progress"] == 0.25)
    assert job.state()["message"] == "half of db"
    with pytest.raises(ConflictError, match="runs already"):
        job.start("all", role="slave")
    job.cancel()
    until(lambda: job.state()["running"] is False)
    assert "cancelled" in str(job.state()["error"])
    part.go.set()
    job.start("files", role="slave", accept_deletions=True)
    until(lambda: job.state()["done"] is True)
    assert part.done == ["files!"]


def test_what_cannot_be_is_refused() -> None:
    job = resync(Part())
    with pytest.raises(InvalidSettingsError):
        job.start("everything", role="slave")
    with pytest.raises(ConflictError, match="is the one that is copied"):
        job.start("db", role="master")
    with pytest.raises(ConflictError, match="neither"):
        job.start("all", role="joining")


def test_a_failure_is_told_with_its_remedy() -> None:
    part = Part()
    part.failure = UnavailableError("the peer is away", "look at the cable")
    part.go.set()
    job = resync(part)
    job.start("db", role="slave")
    until(lambda: job.state()["running"] is False)
    assert (job.state()["error"], job.state()["remedy"]) == ("the peer is away", "look at the cable")


class Link:
    """centralinod's line to the runtime: answers from a real Resync."""

    def __init__(self, part: Part) -> None:
        self.resync = resync(part)

    def role_word(self) -> str:
        return "slave"

    def ask(self, method: str, **arguments: Any) -> object:
        match method:
            case "resync":
                return self.resync.start(str(arguments["what"]), role="slave")
            case "resync-state":
                return self.resync.state()
            case "resync-cancel":
                self.resync.cancel()
                return {}
        return {"role": "slave", "database": {}, "files": {}, "obstacles": []}


ROOT = Caller(":1.5", 0, "root", frozenset())


@pytest.fixture
def part() -> Part:
    return Part()


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def methods(part: Part, jobs: Jobs) -> dict[str, Callable[..., str | None]]:
    found = replication_handlers(cast(PairLink, Link(part)), jobs)
    return {name.rpartition(".")[2]: handler for name, handler in found.items()}


def start(methods: dict[str, Callable[..., str | None]], **options: object) -> str:
    return str(methods["Start"](ROOT, json.dumps(options)))


def test_the_job_on_the_bus_follows_the_runtime(
    methods: dict[str, Callable[..., str | None]], part: Part, jobs: Jobs
) -> None:
    identifier = start(methods, what="db")
    until(lambda: jobs.get(identifier).message == "half of db")
    assert jobs.get(identifier).progress == 0.5
    assert json.loads(str(methods["Status"](ROOT)))["resync"]["running"] is True
    part.go.set()
    until(lambda: jobs.get(identifier).state is JobState.DONE)
    assert part.done == ["db"]


def test_cancelling_the_job_ends_the_work(
    methods: dict[str, Callable[..., str | None]], part: Part, jobs: Jobs
) -> None:
    identifier = start(methods, what="files")
    until(lambda: jobs.get(identifier).state is JobState.RUNNING)
    jobs.cancel(identifier)
    until(lambda: jobs.get(identifier).state is JobState.CANCELLED)
    part.go.set()
    assert part.done == []


def test_a_dry_run_starts_nothing(methods: dict[str, Callable[..., str | None]], jobs: Jobs) -> None:
    answer = json.loads(start(methods, what="db", dry_run=True))
    assert "Throw this node's database away" in answer["sentence"]
    assert jobs.list() == []
    with pytest.raises(InvalidSettingsError):
        start(methods, what="moon")
    with pytest.raises(InvalidSettingsError):
        methods["Start"](ROOT, "[]")
