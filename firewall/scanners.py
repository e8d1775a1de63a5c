"""Known scanning tools by what they send: samples of unknown sources' SIP packets, from a kernel log group.

nftables cannot search a packet for a string, and iptables' string match would need the iptables programs and
a second set of tables. So the kernel passes on a bounded number of packets a second from sources that have
not authenticated (see `firewall.render`), and this reader judges them. Nobody pays while nothing comes.
Sources: linux/netfilter/nfnetlink_log.h, RFC 3261 sections 7 and 20.41.
"""

from __future__ import annotations

import logging
import re
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from firewall.evidence import Address, Offence
from firewall.render import SAMPLE_BYTES, SAMPLE_GROUP

# Beginnings of User-Agent (or of From's display name) of tools that no phone and no provider uses.
SIGNATURES = (
    "friendly-scanner",
    "friendly-request",
    "sipvicious",
    "sundayddr",
    "sip-scan",
    "sipscan",
    "siparmyknife",
    "sipcli",
    "sipptk",
    "smap",
    "iwar",
    "vaxsipuseragent",
    "pplsip",
    "gulp",
    "conaito",
    "mr.sip",
)
_AGENT = re.compile(rb"^user-agent[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_FROM_NAME = re.compile(rb'^(?:from|f)[ \t]*:[ \t]*"([^"\r\n]*)"', re.IGNORECASE | re.MULTILINE)
_REQUEST_LINE = re.compile(rb"^[A-Z]{2,20} [^ \r\n]+ SIP/2\.0\r?\n")
_STATUS_LINE = re.compile(rb"^SIP/2\.0 [1-6][0-9][0-9][ \r\n]")

_NETLINK_NETFILTER, _LOG_SUBSYSTEM = 12, 4
_PACKET, _CONFIGURE = _LOG_SUBSYSTEM << 8, _LOG_SUBSYSTEM << 8 | 1
_COMMAND, _MODE, _BIND, _COPY_PACKET = 1, 2, 1, 2
_PAYLOAD = 9
_UDP = 17
_BUFFER_BYTES = 256 * 1024

log = logging.getLogger(__name__)


def judge(payload: bytes) -> Offence | None:
    """What is wrong with one datagram to a SIP port, as far as its beginning shows; None: nothing."""
    if _STATUS_LINE.match(payload):
        return None
    if not _REQUEST_LINE.match(payload):
        return Offence.MALFORMED
    for pattern in (_AGENT, _FROM_NAME):
        for found in pattern.findall(payload):
            if found.decode("latin-1").strip().lower().startswith(SIGNATURES):
                return Offence.SCANNER
    return None


class Samples:
    """The log group, as an endless stream of (source, datagram). Raises OSError if it cannot be bound."""

    def __init__(self, group: int = SAMPLE_GROUP) -> None:
        self._link = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        try:
            self._link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._link.bind((0, 0))
            mode = struct.pack(">IBB", SAMPLE_BYTES, _COPY_PACKET, 0)
            for number, (kind, value) in enumerate(((_COMMAND, bytes([_BIND])), (_MODE, mode)), start=1):
                self._configure(number, group, kind, value)
        except BaseException:
            self._link.close()
            raise

    def __iter__(self) -> Iterator[tuple[Address, bytes]]:
        while True:
            try:
                data = self._link.recv(65_536)
            except OSError as error:
                if error.errno == 105:  # ENOBUFS: more came than was read; the rest is still good
                    continue
                return
            if not data:
                return
            yield from _datagrams(data)

    def close(self) -> None:
        """End the stream, also for a reader that waits."""
        try:
            self._link.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("the log group's socket cannot be shut down")
        self._link.close()

    def _configure(self, number: int, group: int, kind: int, value: bytes) -> None:
        attribute = struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)
        body = struct.pack("=BBH", 0, 0, socket.htons(group)) + attribute
        self._link.send(struct.pack("=IHHII", len(body) + 16, _CONFIGURE, 0x5, number, 0) + body)
        answer = self._link.recv(4096)
        status = struct.unpack_from("=i", answer, 16)[0]
        if status:
            raise OSError(-status, f"the log group {group} cannot be read")


def _datagrams(data: bytes) -> Iterator[tuple[Address, bytes]]:
    while len(data) >= 20:
        length, kind = struct.unpack_from("=IH", data)
        if length < 16:
            return
        body, data = data[20:length], data[(length + 3) & ~3 :]
        if kind == _PACKET:
            while len(body) >= 4:
                size, attribute = struct.unpack_from("=HH", body)
                if size < 4:
                    break
                if attribute & 0x3FFF == _PAYLOAD and (found := _datagram(body[4:size])) is not None:
                    yield found
                body = body[(size + 3) & ~3 :]


def _datagram(packet: bytes) -> tuple[Address, bytes] | None:
    """Source and UDP payload of an IP packet without extension headers; None for anything else."""
    if len(packet) >= 28 and packet[0] >> 4 == 4 and packet[9] == _UDP:
        header = (packet[0] & 0xF) * 4
        return IPv4Address(packet[12:16]), packet[header + 8 :]
    if len(packet) >= 48 and packet[0] >> 4 == 6 and packet[6] == _UDP:
        return IPv6Address(packet[8:24]), packet[48:]
    return None
