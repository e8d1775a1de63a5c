"""What the kernel has: links and addresses over netlink, default routes from /proc/net."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon.network import netlink

LIMIT_SECONDS = 5.0
OBSERVE_LIMIT_SECONDS = 0.9
ROUTES4_FILE = Path("/proc/net/route")
ROUTES6_FILE = Path("/proc/net/ipv6_route")
ROUTE_HAS_GATEWAY = 0x2
"""RTF_GATEWAY of linux/route.h."""
RESOLVER_FILE = Path("/etc/resolv.conf")

InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True)
class Link:
    """One link. `addresses` in the kernel's order; `up` means that it carries (operational state)."""

    name: str
    hardware_address: str = ""
    mtu: int = 0
    up: bool = False
    carrier: bool = False
    kind: str = ""
    addresses: tuple[InterfaceAddress, ...] = ()
    index: int = 0

    def as_json(self) -> dict[str, object]:
        """Keys `name`, `hardware_address`, `mtu`, `up`, `carrier`, `kind`, `addresses`."""
        return {
            "name": self.name,
            "hardware_address": self.hardware_address,
            "mtu": self.mtu,
            "up": self.up,
            "carrier": self.carrier,
            "kind": self.kind,
            "addresses": [address.with_prefixlen for address in self.addresses],
        }


@dataclass(frozen=True)
class Truth:
    """The links by name (loopback left out), the default gateways, the name servers in use."""

    links: Mapping[str, Link] = field(default_factory=dict)
    gateways: tuple[str, ...] = ()
    name_servers: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Keys `interfaces`, `gateways`, `name_servers`."""
        return {
            "interfaces": [link.as_json() for link in self.links.values()],
            "gateways": list(self.gateways),
            "name_servers": list(self.name_servers),
        }


def look(limit_seconds: float = LIMIT_SECONDS) -> Truth:
    """The state now. Raises CommandFailedError when the kernel does not answer within `limit_seconds`."""
    rows = netlink.links(limit_seconds)
    gateways = (*parse_routes4(_text(ROUTES4_FILE)), *parse_routes6(_text(ROUTES6_FILE)))
    return Truth(links_from(rows, netlink.addresses(limit_seconds)), gateways, read_name_servers())


def _text(file: Path) -> str:
    """A file of /proc; empty where the kernel has no such family."""
    try:
        return file.read_text()
    except OSError:
        return ""


def links_from(rows: Sequence[netlink.LinkRow], addresses: Sequence[netlink.AddressRow]) -> dict[str, Link]:
    """Links by name with their addresses; loopback left out.

    Of an address that another machine has (RFC 4862 section 5.4.5) the kernel makes no use, nor do we.
    """
    found: dict[str, Link] = {}
    for row in rows:
        if row.hardware_type == netlink.LOOPBACK or not row.name:
            continue
        flagged_up = bool(row.flags & netlink.IFF_UP)
        found[row.name] = Link(
            name=row.name,
            hardware_address=row.hardware_address,
            mtu=row.mtu,
            up=row.operational == netlink.OPERATIONAL_UP
            or (row.operational == netlink.OPERATIONAL_UNKNOWN and flagged_up),
            carrier=bool(row.flags & netlink.IFF_LOWER_UP),
            kind=row.kind,
            addresses=tuple(
                ipaddress.ip_interface((address.address, address.prefix_length))
                for address in addresses
                if address.index == row.index and not address.duplicate
            ),
            index=row.index,
        )
    return found


def parse_routes4(text: str) -> list[str]:
    """`GATEWAY via INTERFACE` of every default route in /proc/net/route (hexadecimal, host byte order)."""
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 8 or words[1] != "00000000" or words[7] != "00000000":
            continue
        if int(words[3], 16) & ROUTE_HAS_GATEWAY:
            gateway = ipaddress.IPv4Address(int(words[2], 16).to_bytes(4, sys.byteorder))
            found.append(f"{gateway} via {words[0]}")
    return found


def parse_routes6(text: str) -> list[str]:
    """`GATEWAY via INTERFACE` of every default route in /proc/net/ipv6_route (hexadecimal, network order)."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 10 or words[0].strip("0") or words[1] != "00":
            continue
        if int(words[8], 16) & ROUTE_HAS_GATEWAY:
            found.append(f"{ipaddress.IPv6Address(int(words[4], 16))} via {words[9]}")
    return found


def read_name_servers(file: Path = RESOLVER_FILE) -> tuple[str, ...]:
    """The `nameserver` lines of resolv.conf(5)."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    words = [line.split() for line in lines]
    return tuple(word[1] for word in words if len(word) > 1 and word[0] == "nameserver")
