"""Programs that go on while this one does: the ends of streams to the peer. Short ones use daemon.run."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from daemon.errors import CommandFailedError

END_SECONDS = 2.0
Stream = int | IO[bytes] | None


def start(
    arguments: Sequence[str],
    *,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = subprocess.DEVNULL,
    stderr: Stream = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own. Raises CommandFailedError if that is impossible."""
    words = [str(word) for word in arguments]
    try:
        return subprocess.Popen(
            words,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except OSError as error:
        raise CommandFailedError(f"{words[0]} could not be started: {error.strerror}") from error


def end(process: subprocess.Popen[bytes], limit_seconds: float = END_SECONDS) -> None:
    """Have a program and its children end: asked first, then forced."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit_seconds)


def pipe(stream: IO[bytes] | None) -> IO[bytes]:
    """The end of a pipe that was asked for at the start. Raises CommandFailedError if it was not."""
    if stream is None:
        raise CommandFailedError("a program was started without the pipe that it needs")
    return stream
