"""A small DNS client (RFC 1035): one question to one server, over UDP, then TCP if the answer is too long.

The library's resolver cannot be told whom to ask and how long to wait, and asks /etc/hosts first; checking
what the world sees needs all three.
"""

from __future__ import annotations

import secrets
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from daemon.errors import UnavailableError

Address = IPv4Address | IPv6Address

PORT = 53
LIMIT_SECONDS = 2.0
LONGEST_DATAGRAM = 1232
"""What passes every path without fragments (DNS flag day 2020); told to the server by EDNS (RFC 6891)."""
LONGEST_CHAIN = 16
INTERNET = 1
TRUNCATED, RESPONSE, RECURSION_DESIRED = 0x0200, 0x8000, 0x0100
_HEADER = struct.Struct("!HHHHHH")


class RecordType(IntEnum):
    """The record types that are asked for or read."""

    A = 1
    CNAME = 5
    AAAA = 28
    OPT = 41


class AnswerCode(IntEnum):
    """RCODE, RFC 1035 section 4.1.1."""

    NO_ERROR = 0
    FORMAT_ERROR = 1
    SERVER_FAILURE = 2
    NO_SUCH_NAME = 3
    NOT_IMPLEMENTED = 4
    REFUSED = 5


@dataclass(frozen=True)
class Answer:
    """What a server answers: its code, the addresses at the end of the aliases, the aliases in order."""

    code: int
    addresses: tuple[Address, ...] = ()
    aliases: tuple[str, ...] = ()


def ask(
    name: str, kind: RecordType, server: Address, *, port: int = PORT, limit_seconds: float = LIMIT_SECONDS
) -> Answer:
    """Ask `server` for the records of `name`. Raises UnavailableError when no answer comes in time."""
    deadline = time.monotonic() + limit_seconds
    question = _question(name, kind)
    try:
        answer = _over_udp(question, server, port, deadline)
        if answer is not None:
            return answer
        return _over_tcp(question, server, port, deadline)
    except (OSError, ValueError, struct.error, IndexError) as error:
        raise UnavailableError(
            f"the name server {server} does not answer: {_why(error)}",
            "is it reachable from here (UDP and TCP port 53)?",
        ) from None


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "its answer is damaged"


def _question(name: str, kind: RecordType) -> bytes:
    labels = b"".join(
        bytes([len(label)]) + label.encode("ascii") for label in name.rstrip(".").split(".") if label
    )
    header = _HEADER.pack(secrets.randbits(16), RECURSION_DESIRED, 1, 0, 0, 1)
    extension = b"\0" + struct.pack("!HHIH", RecordType.OPT, LONGEST_DATAGRAM, 0, 0)
    return header + labels + b"\0" + struct.pack("!HH", kind, INTERNET) + extension


def _over_udp(question: bytes, server: Address, port: int, deadline: float) -> Answer | None:
    """The answer, or None if it is longer than a datagram. Asks again half-way."""
    family = socket.AF_INET if server.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        # A connected socket takes answers from this server and port alone.
        asking.connect((str(server), port))
        waits = max(0.05, (deadline - time.monotonic()) / 2)
        for _attempt in (1, 2):
            asking.send(question)
            ends = min(deadline, time.monotonic() + waits)
            while (left := ends - time.monotonic()) > 0:
                asking.settimeout(left)
                try:
                    data = asking.recv(65535)
                except TimeoutError:
                    break
                if not _answers(question, data):
                    continue
                if _HEADER.unpack_from(data)[1] & TRUNCATED:
                    return None
                return _read(question, data)
    raise TimeoutError


def _over_tcp(question: bytes, server: Address, port: int, deadline: float) -> Answer:
    with socket.create_connection((str(server), port), max(0.05, deadline - time.monotonic())) as asking:
        asking.sendall(struct.pack("!H", len(question)) + question)
        (length,) = struct.unpack("!H", _exactly(asking, 2, deadline))
        data = _exactly(asking, length, deadline)
    if not _answers(question, data):
        raise ValueError("another question's answer")
    return _read(question, data)


def _exactly(asking: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        asking.settimeout(max(0.001, deadline - time.monotonic()))
        part = asking.recv(count - len(data))
        if not part:
            raise ValueError("cut off")
        data += part
    return data


def _answers(question: bytes, data: bytes) -> bool:
    """Whether a message has our number and our question (letter case aside), and is an answer."""
    if len(data) < _HEADER.size or data[:2] != question[:2]:
        return False
    _number, flags, questions, _, _, _ = _HEADER.unpack_from(data)
    asked = question[_HEADER.size : -11].lower()
    return bool(flags & RESPONSE) and (questions == 0 or data[_HEADER.size :].lower().startswith(asked))


def _read(question: bytes, data: bytes) -> Answer:
    _number, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
    place = _HEADER.size
    for _ in range(questions):
        _name, place = _name_at(data, place)
        place += 4
    wanted, _ = _name_at(question, _HEADER.size)
    records: list[tuple[str, int, bytes, int]] = []
    for _ in range(answers):
        owner, place = _name_at(data, place)
        kind, _class, _seconds, length = struct.unpack_from("!HHIH", data, place)
        place += 10
        records.append((owner, kind, data[place : place + length], place))
        place += length
    aliases: list[str] = []
    here = wanted
    while len(aliases) < LONGEST_CHAIN:
        target = next(
            (
                _name_at(data, at)[0]
                for owner, kind, _, at in records
                if owner == here and kind == RecordType.CNAME
            ),
            None,
        )
        if target is None:
            break
        aliases.append(target)
        here = target
    addresses = tuple(
        ip_address(body)
        for owner, kind, body, _ in records
        if owner == here and kind in (RecordType.A, RecordType.AAAA)
    )
    return Answer(flags & 0xF, addresses, tuple(aliases))


def _name_at(data: bytes, place: int) -> tuple[str, int]:
    """The name at a place (compression followed, RFC 1035 section 4.1.4), lower case, and where it ends."""
    labels: list[str] = []
    end = -1
    for _ in range(128):
        length = data[place]
        if length & 0xC0 == 0xC0:
            if end < 0:
                end = place + 2
            place = (length & 0x3F) << 8 | data[place + 1]
            continue
        place += 1
        if length == 0:
            return ".".join(labels), end if end >= 0 else place
        labels.append(data[place : place + length].decode("ascii", "replace").lower())
        place += length
    raise ValueError("a name without end")
