"""The one way in which the daemon starts other programs: an argument list and a time limit, no shell."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.errors import CommandFailedError

DEFAULT_LIMIT_SECONDS = 30.0
NOT_INHERITED = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"})


@dataclass(frozen=True)
class Completed:
    """What a command left behind; `output` and `errors` are text (undecodable bytes replaced)."""

    arguments: tuple[str, ...]
    status: int
    output: str
    errors: str


def run(
    arguments: Sequence[str],
    *,
    limit_seconds: float = DEFAULT_LIMIT_SECONDS,
    input_text: str | None = None,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
) -> Completed:
    """Run a program and wait for it.

    Secrets belong into `input_text` or `environment`, never into `arguments`: those are visible to every
    user of the box. Raises CommandFailedError if it cannot start, overruns `limit_seconds`, or (with
    `check`) ends with a status other than 0; the message holds the last line that it wrote to stderr.
    """
    words = tuple(str(word) for word in arguments)
    try:
        done = subprocess.run(
            words,
            input=input_text,
            stdin=subprocess.DEVNULL if input_text is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_seconds,
            env={**_inherited(), "LC_ALL": "C.UTF-8", **(environment or {})},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailedError(f"{words[0]} did not end within {limit_seconds:g} s") from error
    except OSError as error:
        raise CommandFailedError(f"{words[0]} could not be started: {error.strerror}") from error
    if check and done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "it wrote nothing").splitlines()[-1]
        raise CommandFailedError(f"{words[0]} ended with status {done.returncode}: {last}")
    return Completed(words, done.returncode, done.stdout, done.stderr)


def _inherited() -> dict[str, str]:
    """Our environment without what systemd gave to us alone: `asterisk -rx` would report itself ready."""
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}


def run_on_terminal(arguments: Sequence[str]) -> int:
    """Run a program that a person works with (an editor, a login) on this terminal; its exit status.

    There is no time limit, because a person thinks as long as it takes. Raises CommandFailedError if it
    cannot start.
    """
    words = tuple(str(word) for word in arguments)
    try:
        return subprocess.run(words, check=False).returncode
    except OSError as error:
        raise CommandFailedError(f"{words[0]} could not be started: {error.strerror}") from error
