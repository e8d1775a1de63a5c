"""The one way in which the daemon starts other programs: an argument list and a time limit, no shell."""

from __future__ import annotations

import os
import selectors
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.errors import CommandFailedError

DEFAULT_LIMIT_SECONDS = 30.0
_PIECE = 1 << 16
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


class Conversation:
    """A helper program that answers each line that it is given by one line; started when it is first asked.

    It is ended when nobody has asked for `idle_seconds`, so that it costs no memory while nothing happens.
    Safe to use from every thread; one question at a time.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        idle_seconds: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._arguments = tuple(arguments)
        self._idle_seconds = idle_seconds
        self._environment = dict(environment or {})
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None
        self._asked = 0.0

    def ask(self, line: str, limit_seconds: float = DEFAULT_LIMIT_SECONDS) -> str:
        """The answer to a line. Raises CommandFailedError if none comes in time; the next question then
        begins with a fresh program."""
        with self._lock:
            try:
                return self._talk(line, limit_seconds)
            except BaseException:
                self._end()
                raise
            finally:
                self._asked = time.monotonic()
                if self._timer is None and self._process is not None:
                    self._wait(self._idle_seconds)

    def close(self) -> None:
        """End the program."""
        with self._lock:
            self._end()

    def _talk(self, line: str, limit_seconds: float) -> str:
        name = self._arguments[0]
        ends = time.monotonic() + limit_seconds
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = self._started()
        process = self._process
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - both are pipes
        waiting, answer = memoryview(line.encode() + b"\n"), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            while not answer.endswith(b"\n"):
                ready = selector.select(max(0.0, ends - time.monotonic()))
                if not ready:
                    raise CommandFailedError(f"{name} did not answer within {limit_seconds:g} s")
                for key, _events in ready:
                    if key.fileobj is process.stdout:
                        piece = os.read(key.fd, _PIECE)
                        if not piece:
                            raise CommandFailedError(f"{name} ended without an answer")
                        answer += piece
                        continue
                    try:
                        waiting = waiting[os.write(key.fd, waiting) :]
                    except BrokenPipeError as error:
                        raise CommandFailedError(f"{name} ended without an answer") from error
                    if not waiting:
                        selector.unregister(process.stdin)
        return answer.decode(errors="replace")

    def _started(self) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**_inherited(), "LC_ALL": "C.UTF-8", **self._environment},
            )
        except OSError as error:
            raise CommandFailedError(
                f"{self._arguments[0]} could not be started: {error.strerror}"
            ) from error
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        with self._lock:
            self._timer = None
            left = self._asked + self._idle_seconds - time.monotonic()
            if self._process is None or left <= 0:
                self._end()
            else:
                self._wait(left)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


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
