"""The two Unix sockets of the runtime: `control` for centralinod (root alone), `link` for the peer's key.

`control` speaks lines of JSON: requests `{"id", "method", ...}` are answered `{"id", "result"}` or
`{"id", "error", "remedy"}`; whoever asked `subscribe` gets `{"event", ...}` lines besides.
"""

from __future__ import annotations

import contextlib
import grp
import json
import logging
import os
import selectors
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from daemon.errors import CentralinoError
from fault_tolerance.contracts import Channel
from fault_tolerance.pair import USER

LONGEST_REQUEST = 4 * 1024 * 1024
LONGEST_WISH = 8192
READ_BYTES = 65536
DOOR_SECONDS = 5.0

log = logging.getLogger(__name__)

Table = dict[str, object]
Request = Callable[[str, Table], object]


class ControlServer:
    """Answers on the loop; `on_request(method, arguments)` must not wait and raises CentralinoError."""

    def __init__(self, path: Path, selector: selectors.BaseSelector, on_request: Request) -> None:
        self._selector = selector
        self._on_request = on_request
        self._listener = _listen(path, 0o600, None)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._clients: dict[socket.socket, bytearray] = {}
        self._subscribers: set[socket.socket] = set()

    def tell(self, event: Table) -> None:
        """Send an event to every subscriber; one that does not read is hung up on."""
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        for client in tuple(self._subscribers):
            self._send(client, line)

    @property
    def subscribed(self) -> bool:
        """Whether anybody listens to events."""
        return bool(self._subscribers)

    def close(self) -> None:
        """Hang up on everybody."""
        for client in tuple(self._clients):
            self._drop(client)
        self._selector.unregister(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            self._clients[client] = bytearray()
            self._selector.register(client, selectors.EVENT_READ, lambda: self._readable(client))

    def _readable(self, client: socket.socket) -> None:
        try:
            data = client.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or len(self._clients[client]) > LONGEST_REQUEST:
            self._drop(client)
            return
        self._clients[client] += data
        *lines, rest = self._clients[client].split(b"\n")
        self._clients[client] = bytearray(rest)
        for line in lines:
            self._answer(client, bytes(line))

    def _answer(self, client: socket.socket, line: bytes) -> None:
        try:
            request = json.loads(line)
            method, number = str(request["method"]), request.get("id")
        except (ValueError, KeyError, TypeError, AttributeError):
            self._drop(client)
            return
        answer: Table = {"id": number}
        if method == "subscribe":
            self._subscribers.add(client)
        try:
            answer["result"] = self._on_request(method, request)
        except CentralinoError as error:
            answer |= {"error": type(error).__name__, "message": error.message, "remedy": error.remedy}
        except Exception as error:
            log.exception("%s failed", method)
            answer |= {"error": "CentralinoError", "message": f"internal error: {error}", "remedy": ""}
        self._send(client, json.dumps(answer, separators=(",", ":")).encode() + b"\n")

    def _send(self, client: socket.socket, line: bytes) -> None:
        try:
            if client.send(line) != len(line):
                raise BlockingIOError
        except OSError:
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        self._subscribers.discard(client)
        if self._clients.pop(client, None) is not None:
            self._selector.unregister(client)
            client.close()


class Doors:
    """Takes what `accept.py` hands over: the heartbeat goes to the link, other channels to a program."""

    def __init__(
        self,
        path: Path,
        selector: selectors.BaseSelector,
        on_heartbeat: Callable[[int, int, socket.socket], None],
        serve: Callable[[Channel, Sequence[str], bool], list[str]],
    ) -> None:
        """`serve(channel, words, guest)` is the argument list for a connection; raises CentralinoError."""
        self._selector = selector
        self._on_heartbeat = on_heartbeat
        self._serve = serve
        self._listener = _listen(path, 0o660, USER)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Let nobody in any more; what runs goes on."""
        self._selector.unregister(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        try:
            door, _ = self._listener.accept()
        except OSError:
            return
        door.settimeout(DOOR_SECONDS)
        # It has sent everything before it waits, so this does not wait; a hostile one costs a thread.
        threading.Thread(target=self._enter, args=(door,), name="door", daemon=True).start()

    def _enter(self, door: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            data, descriptors, _, _ = socket.recv_fds(door, LONGEST_WISH, 3)
            who, *words = data.decode(errors="replace").split()
            if len(descriptors) != 3 or who not in ("peer", "guest") or not words:
                raise ValueError("this is not the forced command")
            channel = Channel(words[0])
            if channel is Channel.HEARTBEAT and who == "peer":
                os.close(descriptors[2])
                read, write = descriptors[:2]
                descriptors = []
                self._on_heartbeat(read, write, door)
                return
            if channel is Channel.HEARTBEAT or (who == "guest") != (channel is Channel.PAIR):
                raise ValueError(f"{who} may not use the channel {channel.value}")
            self._run(channel, words[1:], who == "guest", descriptors, door)
        except (OSError, ValueError, CentralinoError) as error:
            log.warning("a connection of the peer was refused: %s", error)
            with contextlib.suppress(OSError, IndexError):
                os.write(descriptors[2], f"{error}\n".encode())
            with contextlib.suppress(OSError):
                door.send(b"\1")
            door.close()
        finally:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)

    def _run(
        self, channel: Channel, words: Sequence[str], guest: bool, streams: list[int], door: socket.socket
    ) -> None:
        """Run the program on the peer's own streams and report its end; the peer's going away ends it."""
        arguments = self._serve(channel, words, guest)
        process = subprocess.Popen(arguments, stdin=streams[0], stdout=streams[1], stderr=streams[2])
        # Closed once: the number may be another thread's file a moment later.
        while streams:
            os.close(streams.pop())
        door.settimeout(None)
        threading.Thread(target=_end_with, args=(door, process), daemon=True).start()
        status = process.wait()
        with contextlib.suppress(OSError):
            door.send(bytes([status & 0xFF if status >= 0 else 1]))
        with contextlib.suppress(OSError):
            door.shutdown(socket.SHUT_RDWR)
        door.close()


def _end_with(door: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """sshd kills the forced command when the connection breaks; then nobody reads what the program writes."""
    with contextlib.suppress(OSError):
        door.recv(1)
    if process.poll() is None:
        process.terminate()


def _listen(path: Path, mode: int, group: str | None) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o777)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    if group is not None:
        with contextlib.suppress(KeyError):
            os.chown(path, 0, grp.getgrnam(group).gr_gid)
    path.chmod(mode)
    listener.listen(32)
    listener.setblocking(False)
    return listener
