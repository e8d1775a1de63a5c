"""A port on loopback behind which the peer's database answers: MariaDB knows only host and port.

Each connection becomes one SSH connection of the peer link, whose process has the socket as its standard
streams: not a byte passes through Python. At the other end the peer joins it to its database's socket as a
system user that may read the log of changes, so there is no password. Because loopback is open to every user
of the box, the kernel is asked whose connection it is: only the database and root come through.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

from daemon.errors import CentralinoError
from fault_tolerance.process import end, start

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
CONNECTIONS = Path("/proc/net/tcp")
MOST_STREAMS = 8


class Forward:
    """Listens from `open` to `close`; may be opened again."""

    def __init__(self, command: Callable[[], Sequence[str]], users: frozenset[int]) -> None:
        self._command = command
        self._users = users
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._streams: list[Popen[bytes]] = []

    def open(self) -> int:
        """Listen, and return the port; the same one while it stays open."""
        with self._lock:
            if self._listener is None:
                listener = socket.create_server((LOOPBACK, 0))
                self._listener = listener
                threading.Thread(
                    target=self._accept, args=(listener,), name="database-forward", daemon=True
                ).start()
            port: int = self._listener.getsockname()[1]
            return port

    def close(self) -> None:
        """End the port and everything that goes through it; both ends see it at once."""
        with self._lock:
            listener, self._listener = self._listener, None
            streams, self._streams = self._streams, []
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for stream in streams:
            end(stream, 0.5)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, caller = listener.accept()
            except OSError:
                return  # closed
            with connection:
                self._join(connection, caller[1], listener)

    def _join(self, connection: socket.socket, port: int, listener: socket.socket) -> None:
        user = user_of(port, listener.getsockname()[1])
        if user not in self._users:
            log.warning("user %s of this node was refused a connection to the peer's database", user)
            return
        with self._lock:
            self._streams = [stream for stream in self._streams if stream.poll() is None]
            if self._listener is not listener or len(self._streams) >= MOST_STREAMS:
                return
            try:
                self._streams.append(
                    start(self._command(), stdin=connection.fileno(), stdout=connection.fileno())
                )
            except CentralinoError as error:
                log.warning("the peer's database cannot be reached: %s", error)


def user_of(local: int, remote: int, table: Path = CONNECTIONS) -> int | None:
    """The user who owns the loopback connection from port `local` to `remote`; None if there is none.

    Source: proc(5), /proc/net/tcp: local and remote address in hexadecimal, then seven words, then the uid.
    """
    wanted = (f"0100007F:{local:04X}", f"0100007F:{remote:04X}")
    for line in table.read_text().splitlines()[1:]:
        words = line.split()
        if (words[1], words[2]) == wanted:
            return int(words[7])
    return None
