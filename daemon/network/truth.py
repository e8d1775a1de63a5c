"""What the kernel has: links, addresses, default routes; read with `ip -json` and from sysfs.

pyroute2 would cost the resident process several megabytes for three reads a minute; it is used where events
must be followed.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon.run import run

LIMIT_SECONDS = 3.0
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


def look() -> Truth:
    """The state now. Raises CommandFailedError when `ip` does not answer."""
    addresses = run(["ip", "-json", "-details", "address", "show"], limit_seconds=LIMIT_SECONDS).output
    routes = [
        run(
            ["ip", "-json", family, "route", "show", "default"], limit_seconds=LIMIT_SECONDS, check=False
        ).output
        for family in ("-4", "-6")
    ]
    return Truth(
        parse_links(addresses),
        tuple(way for text in routes for way in parse_gateways(text)),
        read_name_servers(),
    )


def parse_links(text: str) -> dict[str, Link]:
    """The output of `ip -json -details address show`."""
    links: dict[str, Link] = {}
    for entry in json.loads(text or "[]"):
        if entry.get("link_type") == "loopback" or not entry.get("ifname"):
            continue
        flags = entry.get("flags", [])
        links[entry["ifname"]] = Link(
            name=entry["ifname"],
            hardware_address=entry.get("address", ""),
            mtu=entry.get("mtu", 0),
            up=entry.get("operstate") == "UP" or (entry.get("operstate") == "UNKNOWN" and "UP" in flags),
            carrier="LOWER_UP" in flags,
            kind=entry.get("linkinfo", {}).get("info_kind", ""),
            addresses=tuple(_addresses(entry.get("addr_info", []))),
        )
    return links


def _addresses(entries: Sequence[Mapping[str, object]]) -> list[InterfaceAddress]:
    return [
        ipaddress.ip_interface(f"{entry['local']}/{entry['prefixlen']}")
        for entry in entries
        # Of an address that another machine has (RFC 4862 section 5.4.5) the kernel makes no use.
        if entry.get("family") in ("inet", "inet6") and "local" in entry and not entry.get("dadfailed")
    ]


def parse_gateways(text: str) -> list[str]:
    """`GATEWAY via INTERFACE` of every default route in the output of `ip -json route show default`."""
    found = []
    for entry in json.loads(text or "[]"):
        hops = [entry, *entry.get("nexthops", [])]
        found += [f"{hop['gateway']} via {hop.get('dev', '?')}" for hop in hops if "gateway" in hop]
    return found


def read_name_servers(file: Path = RESOLVER_FILE) -> tuple[str, ...]:
    """The `nameserver` lines of resolv.conf(5)."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    words = [line.split() for line in lines]
    return tuple(word[1] for word in words if len(word) > 1 and word[0] == "nameserver")
