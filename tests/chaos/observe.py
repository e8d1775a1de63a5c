"""What a node says of itself, all the time: the host's end of `node_watch.py`."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from appliance.lab import Node
from appliance.lab_host import ControlGroup, LabError, start

PYTHON = "/opt/centralino/venv/bin/python"
HOME = "/var/lib/centralino-chaos"
CONTROL = "/run/centralino-peer/control"
FRESH_SECONDS = 1.5
ROLE_SECONDS, KEPT_SECONDS = 0.2, 900.0
# Two samples further apart than this say nothing of the time between them.
CONTIGUOUS_SECONDS = 0.4


@dataclass(frozen=True)
class Sample:
    """The database said `writable` at some moment between `asked` and `answered`."""

    asked: float
    answered: float
    writable: bool


@dataclass(frozen=True)
class Said:
    """What the role runtime said at a moment."""

    moment: float
    role: str
    epoch: int
    reason: str
    obstacles: tuple[str, ...]
    vrrp: str
    alarms: dict[str, str]
    peer_ready: bool
    synchronous: bool | None
    text: str


Span = tuple[float, float]


class Observer:
    """Keeps a watcher running in a node whenever the node runs; `samples` and `said` only grow."""

    def __init__(self, node: Node, database_socket: str) -> None:
        self.node = node
        self.samples: list[Sample] = []
        self.said: list[Said] = []
        # False while the power of the node is being switched: nothing must be started in it then.
        self.allowed = True
        self._socket = database_socket
        self._log = node.directory / "watch.log"
        self._log.touch()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"observe-{node.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; the watcher ends with the node."""
        self._end.set()
        self._thread.join(10)

    def forget(self) -> None:
        """Let go of samples that no audit will ask for any more; the last word of the runtime stays."""
        del self.samples[:-1]
        # An acknowledged row may be older than this fault: its node's word of that time is kept.
        del self.said[: -int(KEPT_SECONDS / ROLE_SECONDS)]

    def latest(self) -> Said | None:
        """What it says now; None while nobody can tell."""
        found = self.said[-1] if self.said else None
        return found if found is not None and time.monotonic() - found.moment < FRESH_SECONDS else None

    def writable(self) -> bool | None:
        """Whether the database allows writes now; None while it does not answer."""
        found = self.samples[-1] if self.samples else None
        if found is None or time.monotonic() - found.answered > FRESH_SECONDS:
            return None
        return found.writable

    def alarms_since(self, moment: float) -> set[str]:
        """The identifiers of all alarms that were raised at some time since then."""
        return {name for said in self.said if said.moment >= moment for name in said.alarms}

    def declared_degraded(self, moment: float) -> bool:
        """Whether this node had said at that moment that its commits are on it alone.

        It is asked five times a second, so what it said first in the next answer counts as said before.
        """
        for said in reversed(self.said):
            if said.moment <= moment + ROLE_SECONDS:
                return "pair.asynchronous" in said.alarms
        return False

    def writable_spans(self, since: float) -> list[Span]:
        """When writes were certainly allowed."""
        return spans([sample for sample in self.samples if sample.asked >= since])

    def _run(self) -> None:
        process = None
        with self._log.open() as log:
            rest = ""
            while not self._end.wait(0.05):
                rest = self._take(rest + log.read())
                if (process is None or process.poll() is not None) and self.allowed:
                    process = self._start()

    def _start(self) -> subprocess.Popen[bytes] | None:
        if not self.node.powered or self.node.group.frozen:
            return None
        try:
            words = ["nsenter", f"--target={self.node.init}", "--all", "--", PYTHON]
            return start(
                [*words, f"{HOME}/node_watch.py", self._socket, CONTROL],
                self._log,
                groups=ControlGroup(f"{self.node.group.name}/exec").make(),
            )
        except (LabError, OSError):
            return None

    def _take(self, text: str) -> str:
        *lines, rest = text.split("\n")
        for line in lines:
            try:
                table = json.loads(line)
            except ValueError:
                continue  # of a watcher that died in the middle of a line, or of nsenter
            if "writable" in table:
                self.samples.append(Sample(table["asked"], table["answered"], table["writable"]))
            elif "role" in table:
                self.said.append(_said(table))
        return rest


def _said(table: dict[str, object]) -> Said:
    alarms, obstacles = table["alarms"], table["obstacles"]
    assert isinstance(alarms, dict) and isinstance(obstacles, list)
    text = f"{table['role']}, {table['reason']}; vrrp {table['vrrp']}; {'; '.join(obstacles) or 'ready'}"
    if table["failure"]:
        text += f"; failed: {table['failure']}"
    return Said(
        moment=float(str(table["moment"])),
        role=str(table["role"]),
        epoch=int(str(table["epoch"])),
        reason=str(table["reason"]),
        obstacles=tuple(obstacles),
        vrrp=str(table["vrrp"]),
        alarms={str(name): str(sentence) for name, sentence in alarms.items()},
        peer_ready=table["peer_ready"] is True,
        synchronous=table["synchronous"] if isinstance(table["synchronous"], bool) else None,
        text=f"{text}; database: {table['database']}; files: {table['files']}; alarms: {sorted(alarms)}",
    )


def spans(samples: Sequence[Sample]) -> list[Span]:
    """The times in which writes were certainly allowed: from one such answer to the next one."""
    found: list[Span] = []
    for before, sample in pairwise(samples):
        if before.writable and sample.writable and sample.answered - before.answered < CONTIGUOUS_SECONDS:
            if found and found[-1][1] == before.answered:
                found[-1] = (found[-1][0], sample.answered)
            else:
                found.append((before.answered, sample.answered))
    return found


def overlaps(first: Iterable[Span], second: Sequence[Span]) -> list[Span]:
    """The times that lie in a span of both."""
    return [(max(a, c), min(b, d)) for a, b in first for c, d in second if max(a, c) < min(b, d)]


def programs() -> dict[str, str]:
    """Name and text of what runs on the nodes."""
    here = Path(__file__).parent
    return {name: (here / name).read_text() for name in ("node_load.py", "node_watch.py")}
