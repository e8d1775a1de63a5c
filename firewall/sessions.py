"""Who is connected to this box over SSH right now, as the kernel sees it (proc(5), /proc/net/tcp)."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from firewall.kernel_sets import Address

SSH_PORT = 22
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"


def ssh_sources(port: int = SSH_PORT, tables: tuple[Path, ...] = TABLES) -> frozenset[Address]:
    """Addresses with an established connection to our SSH port; loopback left out, unreadable tables too.

    The kernel vouches for them: no environment variable of a caller is believed.
    """
    found: set[Address] = set()
    for table in tables:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) < 4 or fields[3] != _ESTABLISHED or int(fields[1].rpartition(":")[2], 16) != port:
                continue
            address = _address(fields[2].rpartition(":")[0])
            if not address.is_loopback:
                found.add(address)
    return frozenset(found)


def _address(text: str) -> Address:
    """Words of 32 bits in the machine's own byte order; IPv4 inside of IPv6 comes out as IPv4."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == 4:
        return IPv4Address(socket.inet_ntop(socket.AF_INET, packed))
    address = IPv6Address(packed)
    return address.ipv4_mapped or address
