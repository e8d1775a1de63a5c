"""The admin's sessions: established TCP connections to our SSH port."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from daemon.errors import CommandFailedError
from daemon.network import netlink
from daemon.network.netlink import ConnectionRow

Address = IPv4Address | IPv6Address

SSH_PORT = 22
LIMIT_SECONDS = 1.0
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ESTABLISHED = "01"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """One connection, by its two ends."""

    local: Address
    peer: Address
    peer_port: int


@dataclass(frozen=True)
class Traffic:
    """Bytes that the peer has not acknowledged, and how often the oldest of them was sent again."""

    unacknowledged: int
    repeats: int


def sessions() -> dict[Session, Traffic]:
    """Every established connection to our SSH port that does not come from the box itself."""
    try:
        rows = netlink.connections(SSH_PORT, LIMIT_SECONDS)
    except CommandFailedError as error:
        # A kernel without the module that answers (inet_diag) still has its tables.
        log.info("%s; its tables are read instead", error.message)
        rows = listed(SSH_PORT)
    return {
        Session(row.local, row.peer, row.peer_port): Traffic(row.unacknowledged, row.repeats)
        for row in rows
        if not row.peer.is_loopback and row.peer != row.local
    }


def listed(local_port: int, tables: tuple[Path, ...] = TABLES) -> list[ConnectionRow]:
    """As netlink.connections, from the tables that proc(5) describes."""
    found: list[ConnectionRow] = []
    for table in tables:
        try:
            text = table.read_text()
        except OSError:
            continue
        for line in text.splitlines()[1:]:
            words = line.split()
            if len(words) < 7 or words[3] != ESTABLISHED:
                continue
            local, port = _end(words[1])
            peer, peer_port = _end(words[2])
            if port == local_port:
                queued = int(words[4].partition(":")[0], 16)
                found.append(ConnectionRow(local, peer, peer_port, queued, int(words[6], 16)))
    return found


def _end(text: str) -> tuple[Address, int]:
    """`0B004D0A:0016`: 32-bit words in the machine's byte order, the port in plain hexadecimal."""
    address, _, port = text.partition(":")
    packed = b"".join(_words(address))
    if len(packed) == 4:
        return IPv4Address(packed), int(port, 16)
    long = IPv6Address(packed)
    return long.ipv4_mapped or long, int(port, 16)


def _words(text: str) -> Iterator[bytes]:
    for start in range(0, len(text), 8):
        word = bytes.fromhex(text[start : start + 8])
        yield word[::-1] if sys.byteorder == "little" else word
