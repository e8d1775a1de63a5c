"""A ping of MariaDB over its Unix socket: log in as this program's own system user, COM_PING, good-bye.

A client library would cost more memory than the rest of the probes together (10 MB of 40), so this module
speaks the few packets itself: client/server protocol, "Connection phase" and COM_PING in the MariaDB
Knowledge Base. It logs in by the socket's credentials (plugin unix_socket) and never handles a password.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from daemon.services.model import Finding, Outcome
from daemon.services.probes.asking import Deadline, ProbeError, asked

USER = "root"

_PROTOCOL_41 = 0x0000_0200
_SECURE_CONNECTION = 0x0000_8000
_PLUGIN_AUTH = 0x0008_0000
_UTF8 = 33
_LARGEST_PACKET = 0x00FF_FFFF
_OK, _SWITCH, _ERROR = 0x00, 0xFE, 0xFF
_COM_QUIT, _COM_PING = b"\x01", b"\x0e"
# Errors that a client may cause: wrong user, password or rights. All others are the server's own trouble.
_ACCESS_ERRORS = frozenset({1044, 1045, 1130, 1698})


def ask_mariadb(socket_file: Path, limit_seconds: float, user: str = USER) -> Outcome:
    """Log in over `socket_file` and ping."""
    return asked("SQL ping", limit_seconds, lambda deadline: _ping(socket_file, user, deadline))


def _ping(socket_file: Path, user: str, deadline: Deadline) -> Outcome:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(deadline.left())
        stream.connect(str(socket_file))
        _, greeting = _receive(stream, deadline)
        if greeting[:1] != b"\x0a":
            raise ProbeError(Finding.FAULTY, "something that does not speak its protocol answers")
        capabilities = _PROTOCOL_41 | _SECURE_CONNECTION | _PLUGIN_AUTH
        login = struct.pack("<IIB23x", capabilities, _LARGEST_PACKET, _UTF8)
        _send(stream, 1, login + user.encode() + b"\0" + b"\0" + b"mysql_native_password\0", deadline)
        number, answer = _receive(stream, deadline)
        while answer[0] == _SWITCH:
            # The server asks for another plugin. To a password we have no answer but the empty one.
            _send(stream, number + 1, b"", deadline)
            number, answer = _receive(stream, deadline)
        _send(stream, 0, _COM_PING, deadline)
        _, answer = _receive(stream, deadline)
        if answer[0] != _OK:
            raise ProbeError(Finding.FAULTY, "the ping was not answered as it should be")
        used = deadline.used()
        _send(stream, 0, _COM_QUIT, deadline)
        return Outcome(Finding.ALIVE, "SQL ping: answered", used)


def _send(stream: socket.socket, number: int, payload: bytes, deadline: Deadline) -> None:
    stream.settimeout(deadline.left())
    stream.sendall(struct.pack("<I", len(payload) | (number & 0xFF) << 24) + payload)


def _receive(stream: socket.socket, deadline: Deadline) -> tuple[int, bytes]:
    """The next packet's number and payload; raises ProbeError for the server's error packets."""
    (head,) = struct.unpack("<I", _exactly(stream, 4, deadline))
    payload = _exactly(stream, head & _LARGEST_PACKET, deadline)
    if not payload:
        raise ProbeError(Finding.FAULTY, "it sent an empty packet")
    if payload[0] == _ERROR:
        code = int.from_bytes(payload[1:3], "little")
        text = payload[3:].decode("utf-8", "replace")
        text = text[6:] if text.startswith("#") else text
        finding = Finding.DENIED if code in _ACCESS_ERRORS else Finding.FAULTY
        raise ProbeError(finding, f"error {code}: {text[:200]}")
    return head >> 24, payload


def _exactly(stream: socket.socket, size: int, deadline: Deadline) -> bytes:
    data = b""
    while len(data) < size:
        stream.settimeout(deadline.left())
        piece = stream.recv(min(size - len(data), 65_536))
        if not piece:
            raise EOFError
        data += piece
    return data
