"""Asterisk's manager interface (AMI) on loopback: one kept connection that pings, and short ones that act."""

from __future__ import annotations

import itertools
import re
import socket
from pathlib import Path

from daemon.services.model import Finding, Outcome
from daemon.services.probes.asking import Deadline, ProbeError, asked

PORT = 5038
USER = "centralino"
LARGEST_MESSAGE = 1024 * 1024
_ACTIVE_CALLS = re.compile(r"^(\d+) active calls?", re.MULTILINE)

Message = dict[str, str]


class Manager:
    """One logged-in connection; every method takes a Deadline and raises OSError, EOFError or ProbeError."""

    def __init__(self, host: str, port: int, secret_file: Path) -> None:
        self._address = (host, port)
        self._secret_file = secret_file
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._numbers = itertools.count(1)

    @property
    def connected(self) -> bool:
        """Whether a login stands, as far as is known."""
        return self._socket is not None

    def connect(self, deadline: Deadline) -> None:
        """Connect and log in, if that is not done already."""
        if self._socket is not None:
            return
        secret = self._secret()
        self._buffer = b""
        self._socket = socket.create_connection(self._address, timeout=deadline.left())
        try:
            self._read_until(b"\r\n", deadline)
            answer = self.action(deadline, "Login", Username=USER, Secret=secret, Events="off")
            if answer.get("Response") != "Success":
                raise ProbeError(
                    Finding.DENIED, f"login refused ({answer.get('Message', 'no reason given')})"
                )
        except BaseException:
            self.close()
            raise

    def action(self, deadline: Deadline, action: str, **fields: str) -> Message:
        """Send one action and return its response; several `Output` lines are joined by line feeds."""
        number = self.send(deadline, action, **fields)
        while True:
            message = parse(self._read_until(b"\r\n\r\n", deadline))
            if message.get("ActionID") == number and "Response" in message:
                return message

    def send(self, deadline: Deadline, action: str, **fields: str) -> str:
        """Send one action without waiting for its response; returns its ActionID."""
        if self._socket is None:
            raise ConnectionResetError
        number = str(next(self._numbers))
        lines = [f"Action: {action}", f"ActionID: {number}", *(f"{key}: {fields[key]}" for key in fields)]
        self._socket.settimeout(deadline.left())
        self._socket.sendall("\r\n".join((*lines, "", "")).encode())
        return number

    def message(self, deadline: Deadline) -> Message:
        """The next message, whatever it is; what arrived in part is kept when the time is over."""
        return parse(self._read_until(b"\r\n\r\n", deadline))

    def command(self, deadline: Deadline, command: str) -> str:
        """The output of one command of the Asterisk console."""
        answer = self.action(deadline, "Command", Command=command)
        if answer.get("Response") == "Error":
            raise ProbeError(
                Finding.DENIED, f"`{command}` refused ({answer.get('Message', 'no reason given')})"
            )
        return answer.get("Output", "")

    def live_calls(self, deadline: Deadline) -> int:
        """Calls that are up now."""
        output = self.command(deadline, "core show calls")
        found = _ACTIVE_CALLS.search(output)
        if found is None:
            raise ProbeError(Finding.FAULTY, "its count of calls cannot be read")
        return int(found.group(1))

    def close(self) -> None:
        """Hang up; the next `connect` logs in anew."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _secret(self) -> str:
        try:
            return self._secret_file.read_text().strip()
        except OSError as error:
            reason = f"its secret {self._secret_file} cannot be read ({error.strerror})"
            raise ProbeError(Finding.DENIED, reason) from error

    def _read_until(self, end: bytes, deadline: Deadline) -> str:
        while end not in self._buffer:
            if self._socket is None or len(self._buffer) > LARGEST_MESSAGE:
                raise ProbeError(Finding.FAULTY, "something that does not speak AMI answers")
            self._socket.settimeout(deadline.left())
            piece = self._socket.recv(65_536)
            if not piece:
                raise EOFError
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(end)
        return message.decode("utf-8", "replace")


def parse(text: str) -> Message:
    """One message of `Key: value` lines; a key that comes again is joined by line feeds."""
    message: Message = {}
    for line in text.split("\r\n"):
        key, colon, value = line.partition(":")
        if colon:
            value = value.strip()
            message[key] = f"{message[key]}\n{value}" if key in message else value
    return message


class ManagerProbe:
    """Pings over the kept connection and counts live calls; used by one thread only."""

    def __init__(self, host: str, port: int, secret_file: Path) -> None:
        self._manager = Manager(host, port, secret_file)

    def ask(self, limit_seconds: float) -> Outcome:
        """Ping; a connection that failed is closed, so that the next probe starts afresh."""
        outcome = asked("AMI ping", limit_seconds, self._ping)
        if outcome.finding is not Finding.ALIVE:
            self._manager.close()
        return outcome

    def _ping(self, deadline: Deadline) -> Outcome:
        kept = self._manager.connected
        try:
            self._manager.connect(deadline)
            answer = self._manager.action(deadline, "Ping")
        except (ConnectionError, EOFError):
            if not kept:
                raise
            # The kept connection ended with the process behind it; that says nothing of the new one.
            self._manager.close()
            self._manager.connect(deadline)
            answer = self._manager.action(deadline, "Ping")
        if answer.get("Response") != "Success":
            raise ProbeError(Finding.DENIED, f"refused ({answer.get('Message', 'no reason given')})")
        used = deadline.used()
        try:
            calls: int | None = self._manager.live_calls(deadline)
        except ProbeError:
            calls = None
        return Outcome(Finding.ALIVE, "AMI ping: answered", used, live_calls=calls)
