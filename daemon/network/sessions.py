"""The admin's sessions: established TCP connections to our SSH port, from /proc/net/tcp (proc(5))."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

Address = IPv4Address | IPv6Address

SSH_PORT = 22
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ESTABLISHED = "01"


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


def sessions(tables: tuple[Path, ...] = TABLES) -> dict[Session, Traffic]:
    """Every established connection to our SSH port that does not come from the box itself."""
    found: dict[Session, Traffic] = {}
    for table in tables:
        try:
            text = table.read_text()
        except OSError:
            continue
        for line in text.splitlines()[1:]:
            words = line.split()
            if len(words) < 7 or words[3] != ESTABLISHED:
                continue
            local, local_port = _end(words[1])
            peer, peer_port = _end(words[2])
            if local_port == SSH_PORT and not peer.is_loopback and peer != local:
                queued = int(words[4].partition(":")[0], 16)
                found[Session(local, peer, peer_port)] = Traffic(queued, int(words[6], 16))
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
