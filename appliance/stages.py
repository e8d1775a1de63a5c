"""A build as small stages: declared inputs, one action, an output kept by content.

A stage whose inputs were seen before costs nothing. Whatever an action depends on must be in `inputs`;
an action writes only into the directory that it is given and to the log.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from appliance.cache import Cache, Entry, JsonValue, digest_json, free_bytes, remove_tree
from appliance.errors import BuildError, CommandFailedError, HostError
from appliance.interruptions import interruptible
from appliance.progress import Progress


@dataclass(frozen=True)
class Stage:
    """One step: `name` keys the cache, `title` is what a person reads, `inputs` decide whether it runs.

    `action(output, context)` fills the empty directory `output`. `needs_bytes` is the free space without
    which it is not even begun.
    """

    name: str
    title: str
    inputs: JsonValue
    action: Callable[[Path, BuildContext], None]
    needs_bytes: int = 0

    @property
    def key(self) -> str:
        """The digest of name and inputs."""
        return digest_json({"stage": self.name, "inputs": self.inputs})


@dataclass
class BuildContext:
    """What every stage of one build shares.

    `log` is the build's log file (pass it to `run`), `epoch` the SOURCE_DATE_EPOCH that every output uses,
    `mirrors` what the command line
    names (`[NAME=]URL`), `cleanup` closes whatever a stage leaves open, also on
    Ctrl-C. `made` collects the stages that ran or were found, for the report.
    """

    cache: Cache
    log: Path
    progress: Progress
    epoch: int
    mirrors: tuple[str, ...] = ()
    wheel_directories: tuple[Path, ...] = ()
    cold: bool = False
    cleanup: ExitStack = field(default_factory=ExitStack)
    made: list[tuple[str, bool, float]] = field(default_factory=list)

    def build(self, stage: Stage) -> Entry:
        """Find the stage's output in the cache or make it. Raises BuildError; nothing half-made stays."""
        if not self.cold and (entry := self.cache.find(stage.name, stage.key)):
            self.progress.found(stage.title)
            self.made.append((stage.name, False, 0.0))
            return entry
        with self.cache.locked(f"{stage.name}-{stage.key}"):
            if not self.cold and (entry := self.cache.find(stage.name, stage.key)):
                self.progress.found(stage.title)
                self.made.append((stage.name, False, 0.0))
                return entry
            return self._make(stage)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show work whose result is not kept in the cache, and how long it will take as far as is known."""
        started = time.monotonic()
        with self.progress.step(title, self.cache.step_seconds(title)):
            yield
        self.cache.remember_step(title, time.monotonic() - started)

    def _make(self, stage: Stage) -> Entry:
        if stage.needs_bytes > (free := free_bytes(self.cache.directory)):
            raise HostError(
                f"{stage.title}: {self.cache.directory} has {free >> 20} MiB free of the "
                f"{stage.needs_bytes >> 20} MiB needed",
                "free some, or point CENTRALINO_CACHE to a larger disk",
            )
        last = self.cache.last_record(stage.name)
        started = time.monotonic()
        with (
            self.cache.making(stage.name, stage.key) as output,
            self.progress.step(stage.title, None if last is None else last.seconds),
        ):
            with self.log.open("a") as stream:
                stream.write(f"\n=== {stage.name}: {stage.title} ({stage.key[:16]})\n")
            stage.action(output, self)
            entry = self.cache.keep(stage.name, stage.key, output, stage.inputs, time.monotonic() - started)
        self.made.append((stage.name, True, round(entry.seconds, 3)))
        self.cache.prune(stage.name)
        return entry


@contextmanager
def build_context(
    purpose: str,
    *,
    epoch: int,
    mirrors: tuple[str, ...] = (),
    wheel_directories: tuple[Path, ...] = (),
    cold: bool = False,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Iterator[BuildContext]:
    """Open a build: log, progress, cleanup.

    On failure the log is kept and its path goes into the error's remedy; a log of a success is kept as
    well, among the newest. SIGTERM is treated like Ctrl-C: everything is undone, nothing half-made stays.
    """
    cache = Cache() if cache is None else cache
    log = cache.new_log(purpose)
    context = BuildContext(
        cache=cache,
        log=log,
        progress=Progress() if progress is None else progress,
        epoch=epoch,
        mirrors=mirrors,
        wheel_directories=wheel_directories,
        cold=cold,
    )
    log.touch()
    with plain_umask(), interruptible(), context.cleanup, context.progress:
        try:
            yield context
        except CommandFailedError as error:
            if error.log is None:
                with log.open("a") as stream:
                    stream.write("\n".join((str(error), *error.last_lines)) + "\n")
                error.log = log
            raise
        except BuildError as error:
            with log.open("a") as stream:
                stream.write(f"{error}\n")
            raise


@contextmanager
def plain_umask() -> Iterator[None]:
    """Inside, new files are readable by all, whatever the user's umask: trees must not depend on it."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` to write; becomes `target` by rename on success, vanishes on any failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        yield partial
        if not partial.exists():
            raise BuildError(f"{target} was not made", "this is a defect of the builder; please report it")
        if partial.is_dir() and target.exists():
            remove_tree(target)
        partial.replace(target)
    finally:
        if partial.is_dir() and not partial.is_symlink():
            remove_tree(partial)
        else:
            partial.unlink(missing_ok=True)


def quiet() -> bool:
    """Whether standard error is no terminal, so that progress must be plain lines."""
    return not sys.stderr.isatty()
