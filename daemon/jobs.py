"""Long work with progress: queued by lane, one at a time in each lane, kept for a while after its end."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from daemon.errors import CancelledError, CentralinoError, ConflictError, NotFoundError
from daemon.subsystem import JsonObject

log = logging.getLogger(__name__)

KEPT = 100
LONGEST_QUEUE = 50


class JobState(StrEnum):
    """How far a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Nothing more will change."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass
class Job:
    """One piece of work. `progress` is 0..1 or None (unknown); `result` is JSON types."""

    identifier: str
    kind: str
    who: str
    state: JobState = JobState.QUEUED
    progress: float | None = None
    message: str = ""
    result: object = None
    error: JsonObject | None = None

    def as_json(self) -> JsonObject:
        """As documented for Jobs1 in org.centralino.xml."""
        return {
            "id": self.identifier,
            "kind": self.kind,
            "who": self.who,
            "state": self.state.value,
            "progress": self.progress,
            "message": self.message,
            "result": self.result,
            "error": self.error,
        }


class JobHandle:
    """What running work sees of its job."""

    def __init__(self, job: Job, changed: Callable[[Job], None], wish: threading.Event) -> None:
        self.job = job
        self._changed = changed
        self._wish = wish

    def progress(self, fraction: float | None, message: str) -> None:
        """Tell how far the work is (0..1, None: unknown). Raises CancelledError if it shall end."""
        if self._wish.is_set():
            raise CancelledError(f"{self.job.kind} was cancelled")
        self.job.progress = fraction
        self.job.message = message
        self._changed(self.job)

    @property
    def cancelled(self) -> bool:
        """Whether somebody wishes that the work ends."""
        return self._wish.is_set()


Work = Callable[[JobHandle], object]


@dataclass
class _Entry:
    job: Job
    work: Work
    wish: threading.Event


class Jobs:
    """The queue. `on_change` is called from worker threads with each job that changed."""

    def __init__(self, on_change: Callable[[Job], None] = lambda _job: None) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._entries: dict[str, _Entry] = {}
        self._lanes: dict[str, deque[_Entry]] = {}
        self._closed = False

    def submit(self, kind: str, who: str, work: Work, *, lane: str) -> Job:
        """Queue `work` behind what waits in `lane`. Raises ConflictError when too much waits already."""
        entry = _Entry(Job(secrets.token_hex(6), kind, who), work, threading.Event())
        with self._lock:
            if self._closed:
                raise ConflictError("the daemon is stopping", "try again when it runs")
            if sum(not item.job.state.ended for item in self._entries.values()) >= LONGEST_QUEUE:
                raise ConflictError(f"{LONGEST_QUEUE} jobs wait already", "see `centralino jobs`")
            self._entries[entry.job.identifier] = entry
            self._forget_old()
            # A lane without work has no thread: an idle daemon pays nothing for lanes.
            idle = lane not in self._lanes
            self._lanes.setdefault(lane, deque()).append(entry)
        self._changed(entry.job)
        if idle:
            threading.Thread(target=self._work_off, args=(lane,), name=f"jobs-{lane}", daemon=True).start()
        return entry.job

    def list(self) -> list[Job]:
        """All that is kept, newest first."""
        with self._lock:
            return [entry.job for entry in reversed(self._entries.values())]

    def get(self, identifier: str) -> Job:
        """One job. Raises NotFoundError."""
        with self._lock:
            return self._entry(identifier).job

    def cancel(self, identifier: str) -> None:
        """End a job: at once if it waits, at its next step if it runs.

        Raises NotFoundError, or ConflictError if it has ended already.
        """
        with self._lock:
            entry = self._entry(identifier)
            if entry.job.state.ended:
                raise ConflictError(f"job {identifier} is {entry.job.state} already")
            entry.wish.set()
            if entry.job.state is JobState.QUEUED:
                entry.job.state = JobState.CANCELLED
        self._changed(entry.job)

    def running(self) -> int:
        """How many jobs are not at their end."""
        with self._lock:
            return sum(not entry.job.state.ended for entry in self._entries.values())

    def close(self) -> None:
        """Take no more work; what runs is asked to end, what waits is cancelled."""
        with self._lock:
            self._closed = True
            waiting = [entry for entry in self._entries.values() if not entry.job.state.ended]
            for entry in waiting:
                entry.wish.set()
                if entry.job.state is JobState.QUEUED:
                    entry.job.state = JobState.CANCELLED

    def wait(self, limit_seconds: float) -> bool:
        """Wait until nothing runs; false if something still does after the limit."""
        with self._ended:
            return self._ended.wait_for(
                lambda: all(entry.job.state.ended for entry in self._entries.values()), limit_seconds
            )

    def _entry(self, identifier: str) -> _Entry:
        if identifier not in self._entries:
            raise NotFoundError(f"there is no job {identifier[:64]!r}", "see `centralino jobs`")
        return self._entries[identifier]

    def _forget_old(self) -> None:
        ended = [name for name, entry in self._entries.items() if entry.job.state.ended]
        for name in ended[: max(0, len(self._entries) - KEPT)]:
            del self._entries[name]

    def _work_off(self, lane: str) -> None:
        while True:
            with self._lock:
                queue = self._lanes[lane]
                if not queue:
                    del self._lanes[lane]
                    return
                entry = queue.popleft()
                if entry.job.state is not JobState.QUEUED:
                    continue
                entry.job.state = JobState.RUNNING
            self._changed(entry.job)
            self._do(entry)
            with self._ended:
                self._ended.notify_all()
            self._changed(entry.job)

    def _do(self, entry: _Entry) -> None:
        job = entry.job
        try:
            job.result = entry.work(JobHandle(job, self._changed, entry.wish))
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, CancelledError):
                cause = cause.__cause__
            if not isinstance(error, CentralinoError):
                log.exception("job %s (%s) failed", job.identifier, job.kind)
            job.error = error_as_json(error)
            job.state = JobState.FAILED if cause is None else JobState.CANCELLED
            return
        job.progress = 1.0
        job.state = JobState.DONE

    def _changed(self, job: Job) -> None:
        try:
            self._on_change(job)
        except Exception:
            log.exception("the change of job %s could not be told", job.identifier)


def error_as_json(error: BaseException) -> JsonObject:
    """`name` (the D-Bus error name), `message`, `remedy`, `exit_code`; `problems` of a refused document."""
    if not isinstance(error, CentralinoError):
        return {
            "name": CentralinoError.bus_name(),
            "message": f"internal error: {error}",
            "remedy": "see the journal: journalctl -u centralinod",
            "exit_code": CentralinoError.exit_code,
        }
    problems = getattr(error, "problems", None)
    return {
        "name": error.bus_name(),
        "message": error.message,
        "remedy": error.remedy,
        "exit_code": error.exit_code,
        **({} if problems is None else {"problems": [problem.as_json() for problem in problems]}),
    }
