"""Third parties: does the gateway answer, does the witness answer? One question each 300 ms, lost after 3.

A neighbour on the wire is asked by ARP, which no host filters; what lies behind a router, and IPv6, by ICMP
echo. Sockets are kept and read by the runtime's loop; a filter in the kernel lets only answers wake it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

from daemon.errors import CommandFailedError
from daemon.network import netlink
from fault_tolerance.announce import hardware_addresses
from fault_tolerance.keepalived import Adverts
from fault_tolerance.view import Sight

INTERVAL_SECONDS = 0.3
# While the peer falls silent: thrice before it counts as lost.
HURRY_SECONDS = {Adverts.STANDARD: 0.1, Adverts.FAST: 0.05}
MISSES = 3
RETRY_SECONDS = 5.0
# An address of documentation (RFC 5737): the way to it is the way to everywhere.
ELSEWHERE = ip_address("192.0.2.1")
ARP = 0x0806
SO_ATTACH_FILTER = 26

log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address


class ThirdParty:
    """`address` None: the default gateway, if there is one, else unset for good."""

    def __init__(
        self,
        name: str,
        address: Address | None,
        selector: selectors.BaseSelector,
        *,
        default_gateway: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._address = address
        self._default_gateway = default_gateway
        self._selector = selector
        self._clock = clock
        self._target: Address | None = None
        self._socket: socket.socket | None = None
        self._interface = ""
        self._asked = 0
        self._misses = 0
        self._next_try = 0.0
        self._sight = Sight.UNSET
        self._own = bytes(6)
        self._source: Address | None = None

    @property
    def sight(self) -> Sight:
        """Seen until three questions in a row went unanswered."""
        return self._sight

    @property
    def target(self) -> Address | None:
        """Who is asked."""
        return self._target

    def ask(self) -> None:
        """Called each 300 ms: count the last question as missed unless it was answered, and ask again."""
        if self._socket is None:
            self._prepare()
        if self._target is None:
            return
        if self._asked:
            self._misses += 1
        if self._misses >= MISSES:
            self._set(Sight.LOST)
            if self._misses % 20 == MISSES:
                # The card may have come back with another index or hardware address.
                self.close()
                self._prepare()
        if self._socket is None:
            self._asked += 1
            return
        self._asked += 1
        try:
            self._send(self._socket, self._target)
        except OSError:
            # No carrier or no route: a question that nobody heard.
            return

    def close(self) -> None:
        """Stop to ask."""
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def _prepare(self) -> None:
        now = self._clock()
        if now < self._next_try:
            return
        self._next_try = now + RETRY_SECONDS if self._target is None else now
        target = self._address
        try:
            if target is None and self._default_gateway:
                route = netlink.route_to(ELSEWHERE)
                target = None if route is None else route.gateway
            if target is None:
                return
            self._target = target
            route = netlink.route_to(target)
            index = 0 if route is None else route.index
            names = {row.index: row.name for row in netlink.links(0.5)}
            on_wire = route is not None and route.gateway is None and isinstance(target, IPv4Address)
            self._interface = names.get(index, "") if on_wire else ""
            self._source = None if route is None else route.source
            self._own = hardware_addresses().get(self._interface, bytes(6))
            made = self._open_arp(target) if self._interface else open_echo(target)
        except (OSError, CommandFailedError) as error:
            log.debug("%s cannot be asked yet: %s", self.name, error)
            if self._target is not None and self._sight is Sight.UNSET:
                self._set(Sight.LOST)
            return
        made.setblocking(False)
        self._socket = made
        self._selector.register(made, selectors.EVENT_READ, self._readable)

    def _open_arp(self, target: Address) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        # Replies whose sender is the target: half-word at 20 is the operation, word at 28 the sender.
        _attach(
            made,
            [
                (0x28, 0, 0, 20),
                (0x15, 0, 3, 2),
                (0x20, 0, 0, 28),
                (0x15, 0, 1, int(target)),
                (0x06, 0, 0, 128),
                (0x06, 0, 0, 0),
            ],
        )
        made.bind((self._interface, ARP))
        return made

    def _send(self, out: socket.socket, target: Address) -> None:
        if self._interface:
            own = self._own
            source = self._source.packed if isinstance(self._source, IPv4Address) else bytes(4)
            body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, own, source, bytes(6), target.packed)
            out.send(b"\xff" * 6 + own + ARP.to_bytes(2, "big") + body)
            return
        out.send(echo_request(target.version, self._asked))

    def _readable(self) -> None:
        """Any answer will do: the filter, or the connected socket, lets only the target's through."""
        while self._socket is not None:
            try:
                data = self._socket.recv(2048)
            except BlockingIOError:
                return
            except OSError:
                # The interface went down (ENETDOWN); the questions that follow are missed.
                return
            if self._interface or (self._target is not None and is_echo_reply(data, self._target.version)):
                self._misses = 0
                self._asked = 0
                self._set(Sight.SEEN)

    def _set(self, sight: Sight) -> None:
        if sight is not self._sight:
            log.warning("the %s %s is %s", self.name, self._target, sight.value)
            self._sight = sight


def open_echo(target: Address, source: Address | None = None) -> socket.socket:
    """A raw socket that hears only what `target` sends here, to `source` if it is given. Raises OSError."""
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if target.version == 4 else socket.IPPROTO_ICMPV6
    made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        made.setblocking(False)
        if source is not None:
            made.bind((str(source), 0))
        made.connect((str(target), 0))
    except OSError:
        made.close()
        raise
    return made


def echo_request(version: int, number: int) -> bytes:
    """An ICMP echo request of this process for a raw socket; for IPv6 the kernel adds the checksum."""
    kind = 8 if version == 4 else 128
    header = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, number & 0xFFFF)
    if version == 4:
        total = sum(struct.unpack("!4H", header))
        total = (total & 0xFFFF) + (total >> 16)
        header = header[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[4:]
    return header


def is_echo_reply(data: bytes, version: int, number: int | None = None) -> bool:
    """Whether a raw socket's packet is an echo reply, and one to our question of this number if one is given.

    IPv4 brings its own header along.
    """
    body = data if version == 6 else data[(data[0] & 15) * 4 :] if data else b""
    if len(body) < 8 or body[0] != (129 if version == 6 else 0):
        return False
    return number is None or struct.unpack("!HH", body[4:8]) == (os.getpid() & 0xFFFF, number & 0xFFFF)


def _attach(target: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    """A classic BPF program (linux/filter.h) on a socket."""
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    kept = ctypes.create_string_buffer(code)
    target.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(kept))
    )
