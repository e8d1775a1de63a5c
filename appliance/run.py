"""The one way in which the builder starts other programs: an argument list, a time limit, a log, no shell.

Each program gets a session and process group of its own, so that a terminal's Ctrl-C reaches this process
alone, which then ends the whole group in order: SIGINT, SIGTERM, SIGKILL.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from appliance.errors import CommandFailedError, HostError

DEFAULT_LIMIT_SECONDS = 600.0
LAST_LINES = 12
# How long a group may take to end after each signal; kiwi unmounts on SIGINT, which takes a moment.
GRACE_SECONDS = ((signal.SIGINT, 5.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))


@dataclass(frozen=True)
class Completed:
    """What a program left behind; text, undecodable bytes replaced.

    With a log both streams went there, in order, and `output` is what this run added to it.
    """

    arguments: tuple[str, ...]
    status: int
    output: str
    errors: str


def require(programs: Mapping[str, str]) -> None:
    """Check that programs exist: `{"mcopy": "mtools"}`, program to the package that holds it.

    Raises HostError naming every missing one and its package at once.
    """
    missing = {name: package for name, package in programs.items() if find_program(name) is None}
    if missing:
        raise HostError(
            f"this host lacks {', '.join(sorted(missing))}",
            f"install the package{'s' if len(set(missing.values())) > 1 else ''} "
            f"{', '.join(sorted(set(missing.values())))}",
        )


def find_program(name: str) -> Path | None:
    """Where a program lies; the system directories count even when a user's PATH lacks them."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    return None if found is None else Path(found)


def run(
    arguments: Sequence[str | Path],
    *,
    limit_seconds: float = DEFAULT_LIMIT_SECONDS,
    log: Path | None = None,
    input_text: str | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    remedy: str = "",
) -> Completed:
    """Run a program and wait for it.

    `environment` is added to this process's own; secrets belong there or into `input_text`, never into
    `arguments`, which go to the log and are visible to every user of the host. With `log` everything that
    the program writes is appended to that file while it runs. Raises HostError if the program does not
    exist, CommandFailedError if it overruns `limit_seconds` or (with `check`) ends with a status other
    than 0; on any exception, KeyboardInterrupt included, the whole process group is ended first.
    """
    words = tuple(str(word) for word in arguments)
    with tempfile.TemporaryFile() as spare_output, tempfile.TemporaryFile() as spare_errors:
        if log is None:
            return _run(words, spare_output, spare_errors, limit_seconds, None, input_text, environment, cwd,
                        check, remedy)  # fmt: skip
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab+") as stream:
            stream.write(f"\n$ {shlex.join(words)}\n".encode())
            stream.flush()
            return _run(
                words, stream, stream, limit_seconds, log, input_text, environment, cwd, check, remedy
            )


def _run(
    words: tuple[str, ...],
    output: IO[bytes],
    errors: IO[bytes],
    limit_seconds: float,
    log: Path | None,
    input_text: str | None,
    environment: Mapping[str, str] | None,
    cwd: Path | None,
    check: bool,
    remedy: str,
) -> Completed:
    start = output.seek(0, os.SEEK_END)
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL if input_text is None else subprocess.PIPE,
            stdout=output,
            stderr=errors,
            env={**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", **(environment or {})},
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"{words[0]} could not be started: {error.strerror}", remedy) from error
    try:
        process.communicate(None if input_text is None else input_text.encode(), timeout=limit_seconds)
    except subprocess.TimeoutExpired as error:
        _end_group(process)
        raise CommandFailedError(
            f"{words[0]} did not end within {limit_seconds:g} s",
            remedy,
            log=log,
            last_lines=_tail(output, start),
        ) from error
    except BaseException:
        _end_group(process)
        raise
    text = _read(output, start)
    error_text = "" if errors is output else _read(errors, 0)
    if check and process.returncode != 0:
        lines = [line for line in (error_text.strip() or text.strip()).splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else "it wrote nothing"
        raise CommandFailedError(
            f"{words[0]} ended with status {process.returncode}: {reason}",
            remedy,
            log=log,
            last_lines=lines[-LAST_LINES:],
        )
    return Completed(words, process.returncode, text, error_text)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the program and all that it started, politely first."""
    for number, seconds in GRACE_SECONDS:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
            break
    # The leader is gone; whatever it left in its group goes at once.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read(stream: IO[bytes], start: int) -> str:
    stream.seek(start)
    return stream.read().decode(errors="replace")


def _tail(stream: IO[bytes], start: int) -> list[str]:
    return [line for line in _read(stream, start).splitlines() if line.strip()][-LAST_LINES:]


def isolated(arguments: Iterable[str | Path], *, network: bool) -> list[str]:
    """The same command in mount and process namespaces of its own; without `network` also cut off from it.

    Mounts made inside vanish with the last process inside, and every process inside dies with the first,
    so that nothing of a failed or interrupted build stays behind. What the host unmounts meanwhile goes away
    inside as well (`slave`): a private copy would keep its disk in use until the build ends. Needs root.
    """
    words = [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    if not network:
        words.append("--net")
    return [*words, "--", *(str(word) for word in arguments)]
