"""What the lab asks of its host: one way to start programs, control groups, and waiting with a limit.

Everything that a lab starts lives below one control group, `centralino-lab/LAB`, so that one write ends it
all, whatever it forked. On hosts with the old hierarchy (`name=systemd` beside an empty cgroup2, as many
containers and build machines have) a node is put into both, as systemd inside expects.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from appliance.errors import BuildError

Value = TypeVar("Value")
CGROUP_TOP = "centralino-lab"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
}


class LabError(BuildError):
    """The lab, or something that runs in it, failed; the message says what, where and what to look at."""

    exit_code = 11


class LabTimeoutError(LabError):
    """A condition did not become true in time."""


@dataclass(frozen=True)
class Result:
    """What a command left behind; `seconds` is its wall time as seen from the host."""

    arguments: tuple[str, ...]
    status: int
    output: str
    errors: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the command ended with status 0."""
        return self.status == 0

    def check(self) -> Result:
        """Return self, or raise LabError with the last lines that the command wrote."""
        if self.status == 0:
            return self
        said = (self.errors.strip() or self.output.strip() or "it wrote nothing").splitlines()[-5:]
        raise LabError(f"`{' '.join(self.arguments)}` ended with status {self.status}: " + " | ".join(said))


def execute(
    arguments: Sequence[str],
    *,
    limit_seconds: float = 30.0,
    input_text: str | None = None,
    environment: Mapping[str, str] | None = None,
    groups: Sequence[Path] = (),
    shown: Sequence[str] = (),
    check: bool = True,
) -> Result:
    """Run a program to its end, inside the control groups `groups`.

    The lab has a helper beside `appliance.run` because a node is no place for good manners: a command must
    enter control groups before it starts, gets an environment free of the caller's, and is ended by SIGKILL
    at once, as a frozen node answers no other signal. `shown` replaces the argument list in messages.
    """
    words = tuple(str(word) for word in arguments)
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL if input_text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**ENVIRONMENT, **(environment or {})},
            start_new_session=True,
            preexec_fn=_entrance(groups),
        )
    except OSError as error:
        raise LabError(
            f"{words[0]} could not be started: {error.strerror}; install it on this host"
        ) from error
    try:
        output, errors = process.communicate(input_text, timeout=limit_seconds)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        told = (errors.strip() or output.strip() or "nothing").splitlines()[-3:]
        raise LabTimeoutError(
            f"`{' '.join(shown or words)}` did not end within {limit_seconds:g} s; it had written: "
            + " | ".join(told)
        ) from error
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    result = Result(tuple(shown or words), process.returncode, output, errors, time.monotonic() - began)
    return result.check() if check else result


def start(
    arguments: Sequence[str],
    log: Path,
    *,
    groups: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that stays, in its own session, with all its output appended to `log`."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [str(word) for word in arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**ENVIRONMENT, **(environment or {})},
            start_new_session=True,
            preexec_fn=_entrance(groups),
        )


def wait_for(
    condition: Callable[[], Value],
    limit_seconds: float,
    what: str,
    *,
    interval_seconds: float = 0.1,
) -> Value:
    """Return the first truthy value of `condition`; a LabError in it counts as "not yet".

    Raises LabTimeoutError that names `what`, the limit and the last error or value seen.
    """
    end = time.monotonic() + limit_seconds
    while True:
        try:
            value = condition()
            last = f"the last value was {value!r}"
            if value:
                return value
        except LabError as error:
            last = f"the last error was: {error}"
        if time.monotonic() >= end:
            raise LabTimeoutError(f"{what} did not happen within {limit_seconds:g} s; {last}")
        time.sleep(interval_seconds)


def _entrance(groups: Sequence[Path]) -> Callable[[], None] | None:
    """A function for the child, between fork and exec, that moves it into the control groups."""
    doors = [str(group / "cgroup.procs") for group in groups]
    if not doors:
        return None

    def enter() -> None:
        for door in doors:
            descriptor = os.open(door, os.O_WRONLY)
            os.write(descriptor, b"0")
            os.close(descriptor)

    return enter


@cache
def hierarchies() -> tuple[Path, ...]:
    """Mount points of the cgroup2 tree (first) and, where present, of the old `name=systemd` tree."""
    unified: Path | None = None
    named: Path | None = None
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, options, *_ = line.split()
        if kind == "cgroup2" and unified is None:
            unified = Path(target)
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            named = Path(target)
    if unified is None:
        raise LabError("this host has no cgroup2 mount; run `mount -t cgroup2 none /sys/fs/cgroup` first")
    return (unified, named) if named else (unified,)


def _removed(directory: Path) -> bool:
    """Remove an empty control group; false while the kernel is not done with it."""
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


@dataclass(frozen=True)
class ControlGroup:
    """One control group by its path below the roots of the hierarchies."""

    name: str

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its directory in each hierarchy, cgroup2 first."""
        return tuple(top / CGROUP_TOP / self.name for top in hierarchies())

    def make(self) -> tuple[Path, ...]:
        """Create it where it is missing and return its directories."""
        for path in self.paths:
            path.mkdir(parents=True, exist_ok=True)
        return self.paths

    def processes(self) -> Iterator[int]:
        """Process ids of the group and all groups below it."""
        # os.walk, unlike glob, goes on when a group (a login session, say) goes away while we look.
        for folder, _, _ in os.walk(self.paths[0]):
            try:
                yield from (int(word) for word in (Path(folder) / "cgroup.procs").read_text().split())
            except OSError:
                continue

    def kill(self, limit_seconds: float = 10.0) -> None:
        """SIGKILL to everything in it, at one stroke where the kernel can (5.14), and wait for the end."""
        if not self.paths[0].is_dir():
            return
        self.strike()
        wait_for(lambda: not any(self.processes()), limit_seconds, f"the end of all processes of {self.name}")

    def strike(self) -> None:
        """The SIGKILL alone, without waiting."""
        stroke = self.paths[0] / "cgroup.kill"
        if stroke.exists():
            stroke.write_text("1")
            return
        self.freeze(True)
        for process in list(self.processes()):
            os.kill(process, signal.SIGKILL)
        self.freeze(False)

    def freeze(self, frozen: bool, limit_seconds: float = 10.0) -> None:
        """Stop or continue every process of it, and wait until the kernel says so."""
        (self.paths[0] / "cgroup.freeze").write_text("1" if frozen else "0")
        wait_for(
            lambda: self.frozen is frozen, limit_seconds, f"{'freezing' if frozen else 'thawing'} {self.name}"
        )

    @property
    def frozen(self) -> bool:
        """Whether it is frozen now."""
        try:
            return "frozen 1" in (self.paths[0] / "cgroup.events").read_text()
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the empty group and those below it, in every hierarchy."""
        for path in self.paths:
            for directory in sorted(path.glob("**/"), key=lambda each: len(each.parts), reverse=True):
                # A process that is dying is listed no more and holds its group for a moment longer.
                wait_for(partial(_removed, directory), 10.0, f"the end of {directory}", interval_seconds=0.01)
