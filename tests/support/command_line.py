"""The command line against the real daemon on a private bus, for tests: one bus and one daemon at a time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.lab_host import wait_for
from tests.support.private_bus import open_directory, start_bus

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 20.0
CONTROLLING_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass
class Box:
    """A bus, a daemon below a root directory of its own, and the command line on that bus."""

    directory: Path
    daemon: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"unix:path={self.directory / 'bus'}"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {
            **kept,
            "CENTRALINO_BUS": self.address,
            "PYTHONPATH": str(REPOSITORY),
            "LC_ALL": "C.UTF-8",
            "XDG_STATE_HOME": str(self.directory / "state"),
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", "from daemon.cli.start import main; main()", *words]

    def run(
        self,
        *words: str,
        text: str = "",
        environment: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run a command: in this process, which is faster, unless its surroundings matter."""
        if environment is None and not before:
            return self._run_here(words, text)
        return subprocess.run(
            [*before, *self.command(*words)],
            input=text,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            env={**self.environment, **(environment or {})},
            check=False,
        )

    def _run_here(self, words: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
        from daemon.cli.main import run

        output, errors, before = io.StringIO(), io.StringIO(), sys.stdin
        sys.stdin = io.StringIO(text)
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                code = run(["--bus", self.address, *words])
        finally:
            sys.stdin = before
        return subprocess.CompletedProcess(list(words), code, output.getvalue(), errors.getvalue())

    def json(self, *words: str) -> object:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def talk(
        self,
        words: Sequence[str],
        dialogue: Sequence[tuple[str, str]],
        *,
        environment: Mapping[str, str] | None = None,
        columns: int = 80,
    ) -> tuple[int, str]:
        """Run on a terminal; wait for each text, then type the answer. Exit code and all that was shown."""
        leader, follower = pty.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLING_TERMINAL, *self.command(*words)],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env={**self.environment, "TERM": "dumb", **(environment or {})},
            start_new_session=True,
        )
        os.close(follower)
        shown, seen = "", 0
        try:
            for expected, answer in dialogue:
                shown = read_until(leader, shown, seen, expected)
                seen = shown.index(expected, seen) + len(expected)
                os.write(leader, answer.encode())
            shown = read_until(leader, shown, seen, None)
            return process.wait(LIMIT_SECONDS), shown.replace("\r\n", "\n")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(leader)


def read_until(descriptor: int, shown: str, seen: int, expected: str | None) -> str:
    end = time.monotonic() + LIMIT_SECONDS
    while expected is None or expected not in shown[seen:]:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"{expected!r} did not come; shown: {shown}"
        try:
            piece = os.read(descriptor, 4096)
        except OSError:
            piece = b""
        if not piece:
            assert expected is None, f"the command ended before {expected!r}; shown: {shown}"
            return shown
        shown += piece.decode(errors="replace")
    return shown


def start_daemon(directory: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "daemon.main"),
            *("--bus", f"unix:path={directory / 'bus'}", "--root", str(directory / "root")),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=(directory / "daemon.log").open("ab"),
    )
    box = Box(directory, process)
    wait_for(lambda: box.run("jobs", "list").returncode == 0, LIMIT_SECONDS, "the daemon's first answer")
    wait_for(
        lambda: all(job["state"] in ("done", "failed") for job in box.json("jobs", "list")),  # type: ignore[attr-defined]
        LIMIT_SECONDS,
        "the end of the daemon's first job",
    )
    return process


@contextmanager
def running_box() -> Iterator[Box]:
    """A bus and a daemon that has finished its first job."""
    directory = open_directory()
    (directory / "root" / "etc").mkdir(parents=True)
    bus = start_bus(directory)
    try:
        box = Box(directory, start_daemon(directory))
        try:
            yield box
        finally:
            box.daemon.send_signal(signal.SIGTERM)
            box.daemon.wait(LIMIT_SECONDS)
    finally:
        bus.terminate()
        bus.wait()
        shutil.rmtree(directory)


def hostname(box: Box) -> object:
    return box.json("config", "show", "node.hostname")
