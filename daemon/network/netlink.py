"""The kernel's links, addresses, routes and TCP connections over netlink sockets, and word of every change of
the network (netlink(7), sock_diag(7)).

pyroute2 does this and much more; imported into the resident daemon its netlink part costs about 16 MB of
its 40, and `ip -json` costs a process for each look. Reading four kinds of message takes this module.
Layouts: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/inet_diag.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from daemon.errors import CommandFailedError

Address = IPv4Address | IPv6Address

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # family, hardware type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, lengths, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")  # length, type
# The question: family, protocol, states; then the local port, the rest of the two ends being anybody's.
_CONNECTION_ASKED = struct.Struct("=BBxxIH46x")
# The answer: family, state, timer, repeats; both ports and addresses; the queue of what is not acknowledged.
_CONNECTION = struct.Struct("=BxxBHH16s16s20xI")

ERROR, DONE = 2, 3
NEW_LINK, GET_LINK = 16, 18
NEW_ADDRESS, GET_ADDRESS = 20, 22
NEW_ROUTE, GET_ROUTE = 24, 26
CONNECTIONS = 20
"""SOCK_DIAG_BY_FAMILY, the question and its answers."""
NETLINK_SOCK_DIAG = 4
TCP_ESTABLISHED = 1
REQUEST, DUMP = 0x1, 0x300
ATTRIBUTE_TYPE = 0x3FFF

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_OPERSTATE, IFLA_LINKINFO = 1, 3, 4, 16, 18
IFLA_INFO_KIND = 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC = 1, 4, 5, 7
LOOPBACK = 772
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
OPERATIONAL_UNKNOWN, OPERATIONAL_UP = 0, 6
DUPLICATE = 0x08
"""IFA_F_DADFAILED: another machine has this address (RFC 4862 section 5.4.5)."""

GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, IPv4 and IPv6 addresses and routes."""
RECEIVE_BYTES = 65536
ROOM_FOR_EVENTS = 1 << 20


@dataclass(frozen=True)
class LinkRow:
    """One link as the kernel reports it; `kind` is empty for real hardware."""

    index: int
    name: str
    hardware_type: int
    flags: int
    hardware_address: str
    mtu: int
    operational: int
    kind: str


@dataclass(frozen=True)
class AddressRow:
    """One address of the link `index`; `duplicate` when another machine has it."""

    index: int
    address: Address
    prefix_length: int
    duplicate: bool


@dataclass(frozen=True)
class RouteRow:
    """The way to a destination: the link's index, the next hop (None: on the link), the source address."""

    index: int
    gateway: Address | None
    source: Address | None


@dataclass(frozen=True)
class ConnectionRow:
    """An established TCP connection: its ends, what the peer has not acknowledged (bytes), and how often that
    was sent again."""

    local: Address
    peer: Address
    peer_port: int
    unacknowledged: int
    repeats: int


def links(limit_seconds: float) -> list[LinkRow]:
    """Every link of this network namespace. Raises CommandFailedError."""
    return [_link(body) for body in _ask(GET_LINK, DUMP, _LINK.pack(0, 0, 0, 0, 0), NEW_LINK, limit_seconds)]


def addresses(limit_seconds: float) -> list[AddressRow]:
    """Every address, in the kernel's order. Raises CommandFailedError."""
    bodies = _ask(GET_ADDRESS, DUMP, _ADDRESS.pack(0, 0, 0, 0, 0), NEW_ADDRESS, limit_seconds)
    return [row for body in bodies if (row := _address(body)) is not None]


def route_to(destination: Address, limit_seconds: float = 1.0) -> RouteRow | None:
    """The way that a packet to `destination` would take now, None if there is none."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    message = _ROUTE.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    message += _ATTRIBUTE.pack(4 + len(destination.packed), RTA_DST) + destination.packed
    try:
        bodies = _ask(GET_ROUTE, 0, message, NEW_ROUTE, limit_seconds)
    except CommandFailedError:
        return None
    for body in bodies:
        found = dict(_attributes(body[_ROUTE.size :]))
        (index,) = struct.unpack("=I", found.get(RTA_OIF, bytes(4)))
        return RouteRow(index, _ip(found.get(RTA_GATEWAY)), _ip(found.get(RTA_PREFSRC)))
    return None


def connections(local_port: int, limit_seconds: float) -> list[ConnectionRow]:
    """Every established TCP connection to a local port. Raises CommandFailedError.

    The kernel picks them itself. Its table in /proc/net/tcp is written slot by slot, free ones too, which
    takes it milliseconds each time.
    """
    bodies: list[bytes] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        asked = _CONNECTION_ASKED.pack(
            family, socket.IPPROTO_TCP, 1 << TCP_ESTABLISHED, socket.htons(local_port)
        )
        bodies += _ask(CONNECTIONS, DUMP, asked, CONNECTIONS, limit_seconds, NETLINK_SOCK_DIAG)
    return [_connection(body) for body in bodies]


def event_socket() -> socket.socket:
    """A socket that becomes readable when links, addresses or routes change; see `drain`."""
    listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM_FOR_EVENTS)
    listening.setblocking(False)
    listening.bind((0, GROUPS))
    return listening


def drain(listening: socket.socket) -> None:
    """Take what has come; its contents do not matter, the truth is asked for afterwards.

    An overrun (ENOBUFS) only means that there was too much of it: the next look sees all the same.
    """
    while True:
        try:
            listening.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            continue


def _ask(
    kind: int,
    flags: int,
    body: bytes,
    wanted: int,
    limit_seconds: float,
    protocol: int = socket.NETLINK_ROUTE,
) -> list[bytes]:
    """Send one request; the bodies of the answers of type `wanted`."""
    found: list[bytes] = []
    sequence = int.from_bytes(os.urandom(4), "little") | 1
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as asking:
            asking.settimeout(limit_seconds)
            length = _HEADER.size + len(body)
            asking.sendto(_HEADER.pack(length, kind, REQUEST | flags, sequence, 0) + body, (0, 0))
            while True:
                data, sender = asking.recvfrom(RECEIVE_BYTES)
                # Only the kernel (port 0) may answer.
                if sender[0] != 0:
                    continue
                for answered, number, content in _messages(data):
                    if number != sequence:
                        continue
                    if answered in (ERROR, DONE):
                        (code,) = struct.unpack_from("=i", content)
                        if code < 0:
                            raise CommandFailedError(
                                f"the kernel refuses to show its network: {os.strerror(-code)}"
                            )
                        return found
                    if answered == wanted:
                        found.append(content)
                        if not flags & DUMP:
                            return found
    except TimeoutError:
        raise CommandFailedError(f"the kernel did not show its network within {limit_seconds:g} s") from None
    except OSError as error:
        raise CommandFailedError(f"the kernel does not show its network: {error.strerror}") from error


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and body of each message of a datagram."""
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(data, start)
        if length < _HEADER.size or start + length > len(data):
            return
        yield kind, sequence, data[start + _HEADER.size : start + length]
        start += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size or start + length > len(data):
            return
        yield kind & ATTRIBUTE_TYPE, data[start + _ATTRIBUTE.size : start + length]
        start += (length + 3) & ~3


def _link(body: bytes) -> LinkRow:
    _family, hardware_type, index, flags, _change = _LINK.unpack_from(body)
    found = dict(_attributes(body[_LINK.size :]))
    information = dict(_attributes(found.get(IFLA_LINKINFO, b"")))
    return LinkRow(
        index=index,
        name=_text(found.get(IFLA_IFNAME, b"")),
        hardware_type=hardware_type,
        flags=flags,
        hardware_address=":".join(f"{octet:02x}" for octet in found.get(IFLA_ADDRESS, b"")),
        mtu=int.from_bytes(found.get(IFLA_MTU, b""), "little" if struct.pack("=H", 1)[0] else "big"),
        operational=found.get(IFLA_OPERSTATE, b"\0")[0],
        kind=_text(information.get(IFLA_INFO_KIND, b"")),
    )


def _address(body: bytes) -> AddressRow | None:
    _family, length, flags, _scope, index = _ADDRESS.unpack_from(body)
    found = dict(_attributes(body[_ADDRESS.size :]))
    if IFA_FLAGS in found:
        (flags,) = struct.unpack("=I", found[IFA_FLAGS])
    # On a point-to-point link IFA_ADDRESS is the other end.
    address = _ip(found.get(IFA_LOCAL) or found.get(IFA_ADDRESS))
    return None if address is None else AddressRow(index, address, length, bool(flags & DUPLICATE))


def _connection(body: bytes) -> ConnectionRow:
    family, repeats, _port, peer_port, local, peer, queue = _CONNECTION.unpack_from(body)
    size = 4 if family == socket.AF_INET else 16
    own, other = _unmapped(local[:size]), _unmapped(peer[:size])
    return ConnectionRow(own, other, socket.ntohs(peer_port), queue, repeats)


def _unmapped(data: bytes) -> Address:
    """An IPv4 peer of a socket that listens on both families has an IPv6 address around its own."""
    address = ip_address(data)
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _ip(data: bytes | None) -> Address | None:
    return ip_address(data) if data and len(data) in (4, 16) else None


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
