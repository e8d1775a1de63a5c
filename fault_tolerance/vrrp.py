"""keepalived as the runtime sees it: its words from the FIFO, its processes from /proc, its death noticed.

Two processes matter: the one that systemd started and its child that speaks VRRP. If either is gone or
stopped (SIGSTOP), VRRP is `down` whatever was said last, and the addresses that it left are somebody else's
to take away (`runtime`). systemd starts a dead one again; a frozen one is killed first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import selectors
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daemon.errors import CentralinoError
from daemon.files import ensure_directory, write_file
from daemon.run import run
from fault_tolerance.keepalived import Election, render
from fault_tolerance.pair import KEEPALIVED_FILE, VRRP_RUN, Pair
from fault_tolerance.view import Vrrp

UNIT = "centralino-vrrp.service"
FIFO = "notify"
PID_FILES = ("keepalived.pid", "vrrp.pid")
WORDS = {"MASTER": Vrrp.MASTER, "BACKUP": Vrrp.BACKUP, "FAULT": Vrrp.FAULT, "STOP": Vrrp.DOWN}
SYSTEMCTL_LIMIT_SECONDS = 10.0
STATUS_BYTES = 512
_LINE = re.compile(r'^INSTANCE "[^"]*" ([A-Z]+)')

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Process:
    """`status` is its open /proc/PID/stat."""

    number: int
    status: int


class Keepalived:
    """`on_change` is called from the loop when its state changed."""

    def __init__(
        self,
        pair: Pair,
        selector: selectors.BaseSelector,
        on_change: Callable[[], None],
        directory: Path = VRRP_RUN,
        configuration: Path = KEEPALIVED_FILE,
    ) -> None:
        self._pair = pair
        self._selector = selector
        self._on_change = on_change
        self._directory = directory
        self._configuration = configuration
        self._fifo: int | None = None
        self._said = _remembered(directory)
        self._alive = False
        self._frozen = False
        self._processes: dict[str, _Process] = {}
        self._buffer = b""

    def start(self) -> None:
        """Write the configuration, listen, and have it run. Raises StorageError."""
        ensure_directory(self._directory)
        election = Election(
            own=self._pair.own_service,
            peer=self._pair.peer_service,
            interface=self._pair.interface,
            shared=self._pair.shared,
            router=self._pair.router,
            adverts=self._pair.adverts,
            second=self._pair.second,
            directory=self._directory,
        )
        text = render(election)
        try:
            before = self._configuration.read_text()
        except OSError:
            before = ""
        self.listen()
        if text != before:
            write_file(self._configuration, text, mode=0o600)
        self._systemctl("restart" if text != before else "start")

    def listen(self) -> None:
        """Make the FIFO and hear it. Read and write: it never ends for want of a writer, and keepalived never
        finds no reader."""
        fifo = self._directory / FIFO
        if not (fifo.exists() and stat.S_ISFIFO(fifo.stat().st_mode)):
            fifo.unlink(missing_ok=True)
            os.mkfifo(fifo, 0o600)
        self._fifo = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._fifo, selectors.EVENT_READ, self._readable)

    @property
    def state(self) -> Vrrp:
        """What counts."""
        return self._said if self._alive and not self._frozen else Vrrp.DOWN

    @property
    def said(self) -> Vrrp:
        """Its last word, whether it lives or not."""
        return self._said

    @property
    def frozen(self) -> bool:
        """Whether one of its processes is stopped."""
        return self._frozen

    def look(self) -> None:
        """Whether its processes live; called each 300 ms."""
        states = [self._state_of(name) for name in PID_FILES]
        alive = all(states)
        frozen = any(state in ("T", "t") for state in states)
        if (alive, frozen) != (self._alive, self._frozen):
            if frozen:
                log.warning("keepalived is frozen")
            elif not alive:
                log.warning("keepalived does not run")
                # The next one begins anew and says so; what this one said is void.
                self._say(Vrrp.BACKUP)
            self._alive, self._frozen = alive, frozen
            self._on_change()

    def kill(self) -> None:
        """End frozen processes at once; systemd starts it again."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.number, signal.SIGKILL)

    def restart(self) -> None:
        """For when systemd did not."""
        self._systemctl("restart")

    def close(self, *, stop: bool) -> None:
        """Listen no more; with `stop` end it, which takes the addresses off this node."""
        if self._fifo is not None:
            self._selector.unregister(self._fifo)
            os.close(self._fifo)
            self._fifo = None
        while self._processes:
            os.close(self._processes.popitem()[1].status)
        if stop:
            self._systemctl("stop")

    def _readable(self) -> None:
        """Take every word that waits; only the last one counts, which collapses storms."""
        if self._fifo is None:
            return
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fifo, 4096):
                self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        last: Vrrp | None = None
        for line in lines:
            if (found := _LINE.match(line.decode(errors="replace"))) and found[1] in WORDS:
                last = WORDS[found[1]]
        if last is not None:
            log.info("VRRP: %s", last.value)
            self._say(last)
            self.look()
            self._on_change()

    def _say(self, word: Vrrp) -> None:
        self._said = word
        with contextlib.suppress(OSError):
            (self._directory / "said").write_text(word.value)

    def _state_of(self, name: str) -> str:
        """The letter of proc(5), "" when there is no such keepalived. Its file in /proc stays open, which
        costs a tenth of finding it anew, and never shows another process that got its number."""
        known = self._processes.get(name)
        if known is not None:
            if letter := _letter(known.status):
                return letter
            os.close(self._processes.pop(name).status)
        try:
            number = int((self._directory / name).read_text())
            status = os.open(f"/proc/{number}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError):
            return ""
        if letter := _letter(status):
            self._processes[name] = _Process(number, status)
        else:
            os.close(status)
        return letter

    def _systemctl(self, verb: str) -> None:
        try:
            run(["systemctl", "--no-block", verb, UNIT], limit_seconds=SYSTEMCTL_LIMIT_SECONDS)
        except CentralinoError as error:
            log.error("%s could not be told to %s: %s", UNIT, verb, error)


def _letter(status: int) -> str:
    """From an open /proc/PID/stat; "" for one that ended, or is no keepalived."""
    try:
        text = os.pread(status, STATUS_BYTES, 0).decode(errors="replace")
    except OSError:
        return ""
    name, _, rest = text.partition("(")[2].rpartition(")")
    letter = rest.lstrip()[:1]
    return "" if not name.startswith("keepalived") or letter in ("Z", "X") else letter


def _remembered(directory: Path) -> Vrrp:
    try:
        return Vrrp((directory / "said").read_text().strip())
    except (OSError, ValueError):
        return Vrrp.BACKUP
