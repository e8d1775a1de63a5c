"""Elements of our nftables sets, straight over netlink: what the shield does thousands of times.

Starting `nft` for one address costs some ten milliseconds of processor time and grows with the table; a
batch here costs one message. Sources: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h,
netlink(7); everything used is in Linux 4.18.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from daemon.errors import CommandFailedError

Address = IPv4Address | IPv6Address

TABLE_NAME = "centralino"
LIMIT_SECONDS = 5.0
# An attribute's length has 16 bits: so many elements fit into one message with room to spare.
ELEMENTS_PER_MESSAGE = 500
# Changes of one transaction; a kernel memory of a few megabytes holds them until they are committed.
CHANGES_PER_BATCH = 5000

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10
_INET = 1
_BATCH_BEGIN, _BATCH_END, _ERROR, _DONE = 0x10, 0x11, 2, 3
_GET_TABLE, _NEW_ELEMENT, _GET_ELEMENT, _DELETE_ELEMENT, _GET_GENERATION = (
    _SUBSYSTEM << 8 | number for number in (1, 12, 13, 14, 16)
)
_TABLE_ATTRIBUTE_NAME, _TABLE_ATTRIBUTE_HANDLE = 1, 4
_REQUEST, _ACKNOWLEDGE, _DUMP, _CREATE = 0x1, 0x4, 0x300, 0x400
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEMENT = 1, 2, 3, 1
_KEY, _TIMEOUT, _EXPIRATION, _VALUE = 1, 4, 5, 1
_BUFFER_BYTES = 8 * 1024 * 1024
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33


class RefusedError(CommandFailedError):
    """The kernel refuses a change or a question; `number` is the errno."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the kernel's firewall refused: {os.strerror(number)}")
        self.number = number


@dataclass(frozen=True, slots=True)
class Element:
    """An address in one of our sets, and the seconds that it has left."""

    address: Address
    seconds: float


class KernelSets:
    """One short netlink conversation a call; safe to use from every thread.

    Names are those of `firewall.render` without the version: `banned`, `phones`, `session`.
    """

    def put(self, name: str, elements: Iterable[Element]) -> None:
        """Add addresses; one that is there gets its new time. Raises CommandFailedError, with those before
        the refused batch in place."""
        # Adding what is there keeps the old time, deleting what is not there fails: so add, delete, add.
        self._change(name, list(elements), (_NEW_ELEMENT, _DELETE_ELEMENT, _NEW_ELEMENT))

    def remove(self, name: str, addresses: Iterable[Address]) -> None:
        """Remove addresses; one that is not there is fine. Raises CommandFailedError."""
        elements = [Element(address, 1.0) for address in addresses]
        self._change(name, elements, (_NEW_ELEMENT, _DELETE_ELEMENT))

    def elements(self, name: str) -> list[Element]:
        """The addresses of both versions with the time that they have left. Raises CommandFailedError."""
        return [
            element
            for version in (4, 6)
            for body in _dump(f"{name}{version}")
            for element in _timed_elements(body)
        ]

    def digest(self, names: Iterable[str]) -> str:
        """A digest of the elements of sets (full names). Raises CommandFailedError.

        The kernel keeps intervals in order, so their elements need not be taken apart.
        """
        sum_of_all = hashlib.sha256()
        for name in names:
            sum_of_all.update(f"{name} ".encode())
            for body in _dump(name):
                for kind, value in _attributes(body[4:]):
                    if kind == _LIST_ELEMENTS:
                        sum_of_all.update(value)
        return sum_of_all.hexdigest()

    def table(self) -> int | None:
        """The kernel's number of our table, another one when it was made anew; None if there is none.

        Raises CommandFailedError.
        """
        question = _message(_GET_TABLE, _REQUEST, 1, _text(_TABLE_ATTRIBUTE_NAME, TABLE_NAME))
        try:
            with _open() as link:
                link.send(question)
                for _kind, body in _answers(link, until_done=False):
                    for kind, value in _attributes(body[4:]):
                        if kind == _TABLE_ATTRIBUTE_HANDLE:
                            return int(struct.unpack(">Q", value)[0])
        except RefusedError as error:
            if error.number == errno.ENOENT:
                return None
            raise
        return 0

    def generation(self) -> int:
        """A number that the kernel raises with every change of any table; elements that packets add do not
        count. Raises CommandFailedError."""
        with _open() as link:
            link.send(_message(_GET_GENERATION, _REQUEST, 1, b""))
            for _kind, body in _answers(link, until_done=False):
                for kind, value in _attributes(body[4:]):
                    if kind == 1:
                        return int(struct.unpack(">I", value)[0])
        raise CommandFailedError("the kernel does not tell the generation of its rules")

    def _change(self, name: str, elements: list[Element], steps: tuple[int, ...]) -> None:
        for start in range(0, len(elements), CHANGES_PER_BATCH):
            part = elements[start : start + CHANGES_PER_BATCH]
            messages = []
            for step in steps:
                for version in (4, 6):
                    chosen = [element for element in part if element.address.version == version]
                    for first in range(0, len(chosen), ELEMENTS_PER_MESSAGE):
                        some = chosen[first : first + ELEMENTS_PER_MESSAGE]
                        messages.append((step, f"{name}{version}", some))
            _commit(messages)


def _commit(messages: list[tuple[int, str, list[Element]]]) -> None:
    if not messages:
        return
    batch = [_batch(_BATCH_BEGIN, 1)]
    for number, (kind, name, elements) in enumerate(messages, start=2):
        timed = kind == _NEW_ELEMENT
        listed = b"".join(_nested(_LIST_ELEMENT, _element(element, timed)) for element in elements)
        attributes = _text(_LIST_TABLE, TABLE_NAME) + _text(_LIST_SET, name) + _nested(_LIST_ELEMENTS, listed)
        flags = _REQUEST | _ACKNOWLEDGE | (_CREATE if timed else 0)
        batch.append(_message(kind, flags, number, attributes))
    batch.append(_batch(_BATCH_END, len(messages) + 2))
    with _open() as link:
        link.send(b"".join(batch))
        expected = len(messages)
        for _kind, _body in _answers(link, until_done=False, acknowledgements=expected):
            pass


def _element(element: Element, timed: bool) -> bytes:
    key = _nested(_KEY, _attribute(_VALUE, element.address.packed))
    if not timed:
        return key
    milliseconds = max(1000, int(element.seconds * 1000))
    return key + _attribute(_TIMEOUT, struct.pack(">Q", milliseconds))


def _open() -> socket.socket:
    try:
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        link.bind((0, 0))
        link.settimeout(LIMIT_SECONDS)
        for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
            link.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    except OSError as error:
        raise CommandFailedError(f"the kernel's firewall cannot be reached: {error.strerror}") from error
    return link


def _answers(
    link: socket.socket, *, until_done: bool, acknowledgements: int = 0
) -> Iterator[tuple[int, bytes]]:
    """Messages of one conversation; raises CommandFailedError for the first one that is an error."""
    left = acknowledgements
    while True:
        try:
            data = link.recv(1 << 20)
        except TimeoutError as error:
            raise CommandFailedError("the kernel's firewall did not answer in time") from error
        except OSError as error:
            raise CommandFailedError(f"the kernel's firewall refused: {error.strerror}") from error
        while len(data) >= 16:
            length, kind, _flags, _sequence, _port = struct.unpack_from("=IHHII", data)
            body, data = data[16:length], data[(length + 3) & ~3 :]
            if kind == _DONE:
                return
            if kind == _ERROR:
                number = struct.unpack_from("=i", body)[0]
                if number:
                    raise RefusedError(-number)
                left -= 1
                if left <= 0 and not until_done:
                    return
                continue
            yield kind, body
        if not until_done and not acknowledgements:
            return


def _dump(name: str) -> Iterator[bytes]:
    attributes = _text(_LIST_TABLE, TABLE_NAME) + _text(_LIST_SET, name)
    with _open() as link:
        link.send(_message(_GET_ELEMENT, _REQUEST | _DUMP, 1, attributes))
        for _kind, body in _answers(link, until_done=True):
            yield body


def _raw_elements(body: bytes) -> Iterator[bytes]:
    for kind, value in _attributes(body[4:]):
        if kind == _LIST_ELEMENTS:
            for _, element in _attributes(value):
                yield element


def _timed_elements(body: bytes) -> Iterator[Element]:
    for element in _raw_elements(body):
        fields = dict(_attributes(element))
        key = dict(_attributes(fields.get(_KEY, b""))).get(_VALUE, b"")
        left = fields.get(_EXPIRATION) or fields.get(_TIMEOUT)
        if len(key) not in (4, 16) or left is None:
            continue
        address: Address = IPv4Address(key) if len(key) == 4 else IPv6Address(key)
        yield Element(address, struct.unpack(">Q", left)[0] / 1000)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & _TYPE_MASK, data[4:length]
        data = data[(length + 3) & ~3 :]


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def _nested(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _message(kind: int, flags: int, sequence: int, attributes: bytes) -> bytes:
    body = struct.pack("=BBH", _INET, 0, 0) + attributes
    return struct.pack("=IHHII", len(body) + 16, kind, flags, sequence, 0) + body


def _batch(kind: int, sequence: int) -> bytes:
    body = struct.pack("=BBH", 0, 0, socket.htons(_SUBSYSTEM))
    return struct.pack("=IHHII", len(body) + 16, kind, _REQUEST, sequence, 0) + body
