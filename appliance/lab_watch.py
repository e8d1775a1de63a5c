"""Watchers of a pair: clients on the lan that never stop asking, and what they saw when a node failed.

Each of them runs in a thread with a socket of a client's namespace; all moments are this process's monotonic
time. Two need a helper on the nodes (`serve`): an echo, and a program that commits rows. Both listen at the
shared address alone, so only the node that holds it is reached, and MariaDB itself stays on its socket.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise

from appliance.lab import Client, Node
from appliance.lab_host import wait_for
from appliance.lab_sip import socket_in

# Of the ports for audio, which the firewall leaves open.
ECHO_PORT = 19999
ROWS_PORT = 19998
TABLE = "lab_rows"
INSERT = f"INSERT INTO {TABLE} (number) VALUES (%s) ON DUPLICATE KEY UPDATE number = number"  # noqa: S608
PYTHON = "/opt/centralino/venv/bin/python"
# Answers of a node that is about to die come within a few hundredths of a second after its power was cut.
SILENCE_SECONDS = 0.1
# For clients that ask more seldom; still less than the shortest failover that VRRP can make.
LONG_SILENCE_SECONDS = 0.25

_SOCKET = """
import socket
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
wire.bind(({address!r}, {port}))
"""

ECHO = (
    _SOCKET
    + """
while True:
    data, sender = wire.recvfrom(64)
    wire.sendto(data, sender)
"""
)

# The answer leaves after the commit has returned; a number that is asked for again is answered when its row
# is there. As `centralino`, the user of our own programs, whom a slave's database refuses.
ROWS = (
    _SOCKET
    + """
import pymysql
from daemon.platform import platform
user = dict(unix_socket=str(platform().paths["mariadb_socket"]), user="centralino", database="centralino")
link = None
while True:
    data, sender = wire.recvfrom(64)
    try:
        if link is None:
            link = pymysql.connect(**user, autocommit=True)
        with link.cursor() as cursor:
            cursor.execute({statement!r}, (int(data),))
        wire.sendto(data, sender)
    except (OSError, pymysql.err.MySQLError) as error:
        print(error, flush=True)
        link = None
"""
)


def serve_echo(node: Node, address: str) -> None:
    """Answer UDP at a shared address, also before the node holds it."""
    _serve(node, "lab-echo", ECHO.format(address=address, port=ECHO_PORT))


def serve_rows(node: Node, address: str) -> None:
    """Commit a row for each number that comes by UDP to a shared address, then answer; see `make_table`."""
    text = ROWS.format(address=address, port=ROWS_PORT, statement=INSERT)
    _serve(node, "lab-rows", text, "--property=User=centralino")


def make_table(master: Node) -> None:
    """The rows' table in the replicated database; empty."""
    statement = f"CREATE OR REPLACE TABLE {TABLE} (number BIGINT PRIMARY KEY) ENGINE=InnoDB"
    master.run(["mariadb", "centralino", "--execute", statement], limit_seconds=60)


def rows_of(node: Node) -> set[int]:
    """The numbers that are in a node's own database now."""
    statement = f"SELECT number FROM {TABLE}"  # noqa: S608 - our own name
    asked = node.run(["mariadb", "--skip-column-names", "centralino", "--execute", statement])
    return {int(line) for line in asked.output.split()}


def _serve(node: Node, unit: str, program: str, *more: str) -> None:
    node.run(["systemctl", "stop", unit], check=False)
    started = ["systemd-run", f"--unit={unit}", "--property=Restart=always", "--property=RestartSec=100ms"]
    node.run([*started, *more, PYTHON, "-c", program])


def first_after(
    moments: Callable[[], Sequence[float]],
    moment: float,
    limit_seconds: float,
    what: str,
    silence_seconds: float = SILENCE_SECONDS,
) -> float:
    """Seconds from `moment` to the first answer after the silence that follows it; LabTimeoutError.

    Answers of the node that is about to die do not count: there must have been a silence before.
    """

    def found() -> float:
        before = moment
        for received in list(moments()):
            if received < moment:
                continue
            if received - before >= silence_seconds:
                return received - moment
            before = received
        return 0.0

    return wait_for(found, limit_seconds, f"{what} after a silence", interval_seconds=0.005)


class Watcher:
    """A thread that asks until its `with` block ends. `received` are the moments of the answers."""

    interval_seconds = 0.005
    silence_seconds = SILENCE_SECONDS
    what = "an answer"

    def __init__(self, client: Client, address: str, port: int) -> None:
        self.received: list[float] = []
        self._address = (address, port)
        self._wire = socket_in(client.namespace, socket.AF_INET, socket.SOCK_DGRAM)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(5)
        self._wire.close()

    def first_after(self, moment: float, limit_seconds: float) -> float:
        """See the function of that name."""
        what = f"{self.what} from {self._address[0]}"
        return first_after(lambda: self.received, moment, limit_seconds, what, self.silence_seconds)

    def longest_gap(self, since: float) -> float:
        """The longest time without an answer after `since`."""
        times = [each for each in list(self.received) if each >= since]
        return max((later - earlier for earlier, later in pairwise(times)), default=0.0)

    def wait_answers(self, count: int, limit_seconds: float = 30.0) -> None:
        """Wait for so many more answers."""
        wanted = len(self.received) + count
        wait_for(lambda: len(self.received) >= wanted, limit_seconds, f"{self.what} from {self._address[0]}")

    def _run(self) -> None:
        raise NotImplementedError


class EchoProber(Watcher):
    """Asks the echo at the shared address each 5 ms."""

    what = "an echo"

    def __init__(self, client: Client, address: str, port: int = ECHO_PORT) -> None:
        super().__init__(client, address, port)
        self._wire.setblocking(False)
        self.answers: list[tuple[float, float]] = []

    def __enter__(self) -> EchoProber:
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._ended.wait(self.interval_seconds):
            with suppress(OSError):
                self._wire.sendto(struct.pack("d", time.monotonic()), self._address)
            while True:
                try:
                    data = self._wire.recv(64)
                except OSError:
                    break
                now = time.monotonic()
                self.answers.append((struct.unpack("d", data)[0], now))
                self.received.append(now)


class RowWriter(Watcher):
    """Commits numbered rows through the shared address, one at a time, a hundred a second at most.

    A number is asked for again until it is acknowledged, as a careful program does; `acknowledged` are those
    that were, in order.
    """

    interval_seconds = 0.01
    silence_seconds = LONG_SILENCE_SECONDS
    what = "an acknowledged row"
    AGAIN_SECONDS = 0.05

    def __init__(self, client: Client, address: str, port: int = ROWS_PORT) -> None:
        super().__init__(client, address, port)
        self.acknowledged: list[int] = []

    def __enter__(self) -> RowWriter:
        self._thread.start()
        return self

    def _run(self) -> None:
        number = 1
        while not self._ended.wait(self.interval_seconds):
            while not self._ended.is_set() and not self._commit(number):
                pass
            if not self._ended.is_set():
                self.received.append(time.monotonic())
                self.acknowledged.append(number)
                number += 1

    def _commit(self, number: int) -> bool:
        wanted = str(number).encode()
        end = time.monotonic() + self.AGAIN_SECONDS
        with suppress(OSError):  # no route, or a refusal of an earlier request
            self._wire.sendto(wanted, self._address)
        while (left := end - time.monotonic()) > 0:
            self._wire.settimeout(left)
            with suppress(TimeoutError, ConnectionError):
                if self._wire.recv(64) == wanted:
                    return True
        return False
