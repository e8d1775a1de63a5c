"""The one connection between the nodes: OpenSSH to a forced command, lines of JSON both ways.

One node dials (the lower address), the other one accepts from `accept.py`. The kept transport is the OpenSSH
client and not paramiko: beside a process that must answer within milliseconds and stay small, paramiko
brings a thread, the cryptography library's 20 MB and pure-Python framing for each heartbeat; OpenSSH costs
4 MB of its own and no time of ours. paramiko makes the pairing (`pairing.py`), once, in a process that ends.

Everything here runs on the runtime's one loop; nothing waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fault_tolerance.contracts import Channel
from fault_tolerance.heartbeat import LONGEST_LINE, SILENCE_SECONDS
from fault_tolerance.pair import KEY_FILE, KNOWN_HOSTS, USER, Pair
from fault_tolerance.view import Link

# A connection that has been silent for so long is given up and made anew.
GIVE_UP_SECONDS = 2.0
REDIAL_SECONDS = 0.5
# So long a client that is to end has to send what waits in it.
HANG_UP_SECONDS = 0.5
CONNECT_SECONDS = 2
# A connection whose other end does not read loses what is more than this.
LONGEST_BACKLOG = 8 * 1024 * 1024
READ_BYTES = 65536
HOST_ALIAS = "centralino-peer"

log = logging.getLogger(__name__)

Table = dict[str, object]


def ssh_arguments(pair: Pair, words: Sequence[str]) -> list[str]:
    """The argument list of an OpenSSH client to the peer's forced command; known to OpenSSH 8.0."""
    options = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(KNOWN_HOSTS),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": HOST_ALIAS,
        "ConnectTimeout": str(CONNECT_SECONDS),
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "BindAddress": str(pair.own),
        "LogLevel": "ERROR",
        "ControlPath": "none",
        "Compression": "no",
    }
    listed = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    target = ["-F", "/dev/null", "-T", "-i", str(KEY_FILE), "-p", str(pair.port), "-l", USER, str(pair.peer)]
    return ["ssh", *listed, *target, *words]


class SshChannel:
    """`contracts.PeerChannel`."""

    def __init__(self, pair: Pair, helper: Sequence[str]) -> None:
        """`helper` is the argument list of this program; `remote_shell` adds `dial CHANNEL` to it."""
        self._pair = pair
        self._helper = tuple(helper)

    def command(self, channel: Channel, words: Sequence[str] = ()) -> list[str]:
        """See PeerChannel."""
        return ssh_arguments(self._pair, [channel.value, *words])

    def remote_shell(self, channel: Channel) -> list[str]:
        """See PeerChannel."""
        return [*self._helper, "dial", channel.value]


@dataclass
class _Connection:
    """Two file descriptors and what waits between them. `process` is the client of a dialled one, `door` the
    socket to the forced command of an accepted one."""

    read: int
    write: int
    process: subprocess.Popen[bytes] | None
    door: socket.socket | None
    heard: float
    received: bytearray
    waiting: bytearray
    proven: bool = False


class PeerLink:
    """Up while something was heard lately (`heartbeat.SILENCE_SECONDS`); `on_message` gets each object."""

    def __init__(
        self,
        pair: Pair,
        selector: selectors.BaseSelector,
        on_message: Callable[[Table], None],
        met_marker: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pair = pair
        self._silence = SILENCE_SECONDS[pair.adverts]
        self._selector = selector
        self._on_message = on_message
        self._met_marker = met_marker
        self._clock = clock
        self._connection: _Connection | None = None
        self._dialled = -REDIAL_SECONDS
        self._heard: float | None = None
        self._met = met_marker.exists()
        self.trouble = "the peer has not answered yet"

    @property
    def state(self) -> Link:
        """As of now."""
        if self._heard is not None and self._clock() - self._heard < self._silence:
            return Link.UP
        return Link.LOST if self._met else Link.NEVER

    @property
    def silent_at(self) -> float | None:
        """When it will count as lost if nothing more is heard; None if that is past."""
        return None if self.state is not Link.UP or self._heard is None else self._heard + self._silence

    def silent_for(self) -> float | None:
        """Seconds since the peer was heard, None if it never was."""
        return None if self._heard is None else self._clock() - self._heard

    def look(self) -> None:
        """Called each tenth of a second or so: give up what is silent, dial again."""
        now = self._clock()
        connection = self._connection
        if connection is not None and now - connection.heard > GIVE_UP_SECONDS + (
            0.0 if connection.proven else CONNECT_SECONDS
        ):
            self._drop("it has been silent for too long")
        if self._connection is None and self._pair.dials and now - self._dialled >= REDIAL_SECONDS:
            self._dial(now)

    def accept(self, read: int, write: int, door: socket.socket) -> None:
        """Take over a connection that the peer has dialled; it replaces the one before."""
        self._drop("the peer connected anew")
        self._begin(_Connection(read, write, None, door, self._clock(), bytearray(), bytearray()))

    def send(self, line: bytes, *, needed: bool = False) -> None:
        """Send one line; a heartbeat that cannot be sent at once is not sent at all, unless `needed`."""
        connection = self._connection
        if connection is None or (connection.waiting and not needed):
            return
        if len(connection.waiting) + len(line) > LONGEST_BACKLOG:
            self._drop("the peer does not read")
            return
        connection.waiting += line
        self._flush(connection)

    def send_table(self, table: Mapping[str, object]) -> None:
        """Send one object that must arrive if the connection stands."""
        self.send(json.dumps(table, separators=(",", ":")).encode() + b"\n", needed=True)

    def close(self) -> None:
        """Hang up; what was said last still arrives."""
        connection = self._connection
        if connection is not None and connection.process is not None:
            self._flush(connection)
            # The end of its input has the client send the rest, and the other end hang up.
            os.close(connection.write)
            connection.write = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            with contextlib.suppress(subprocess.TimeoutExpired):
                connection.process.wait(HANG_UP_SECONDS)
        self._drop("this node hangs up")

    def _dial(self, now: float) -> None:
        self._dialled = now
        try:
            process = subprocess.Popen(
                ssh_arguments(self._pair, [Channel.HEARTBEAT.value]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            self.trouble = f"ssh could not be started: {error.strerror}"
            return
        if process.stdin is None or process.stdout is None:
            return
        read, write = os.dup(process.stdout.fileno()), os.dup(process.stdin.fileno())
        process.stdout.close()
        process.stdin.close()
        self._begin(_Connection(read, write, process, None, now, bytearray(), bytearray()))

    def _begin(self, connection: _Connection) -> None:
        os.set_blocking(connection.read, False)
        os.set_blocking(connection.write, False)
        self._connection = connection
        self._selector.register(connection.read, selectors.EVENT_READ, lambda: self._readable(connection))

    def _readable(self, connection: _Connection) -> None:
        if connection is not self._connection:
            return
        try:
            data = os.read(connection.read, READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(str(error.strerror))
            return
        if not data:
            self._drop("the connection ended")
            return
        connection.received += data
        if len(connection.received) > LONGEST_LINE:
            self._drop("the peer sends too much at once")
            return
        *lines, rest = connection.received.split(b"\n")
        connection.received = bytearray(rest)
        for line in lines:
            self._take(connection, bytes(line))
        if connection is self._connection and connection.waiting:
            self._flush(connection)

    def _take(self, connection: _Connection, line: bytes) -> None:
        try:
            table = json.loads(line)
        except ValueError:
            log.warning("the peer sent a line that is no JSON")
            return
        if not isinstance(table, dict):
            return
        now = self._clock()
        connection.heard = self._heard = now
        if not connection.proven:
            connection.proven = True
            self.trouble = ""
            log.info("the peer link is up")
        if not self._met:
            self._met = True
            with contextlib.suppress(OSError):
                self._met_marker.touch()
        self._on_message(table)

    def _flush(self, connection: _Connection) -> None:
        try:
            sent = os.write(connection.write, connection.waiting)
            del connection.waiting[:sent]
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(str(error.strerror))

    def _drop(self, why: str) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._selector.unregister(connection.read)
        for descriptor in (connection.read, connection.write):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        said = ""
        if connection.process is not None:
            said = _end(connection.process)
        if connection.door is not None:
            with contextlib.suppress(OSError):
                connection.door.send(b"\0")
            connection.door.close()
        if connection.proven:
            log.warning("the peer link was lost: %s", why)
        reason = said or why
        if reason != self.trouble and not connection.proven:
            log.info("the peer cannot be reached: %s", reason)
        self.trouble = reason


def _end(process: subprocess.Popen[bytes]) -> str:
    """Kill the client and reap it; what it said last."""
    process.kill()
    said = b""
    if process.stderr is not None:
        os.set_blocking(process.stderr.fileno(), False)
        with contextlib.suppress(OSError):
            said = process.stderr.read() or b""
        process.stderr.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
