"""Interfaces, routes, names and time sources of this node.

Only what a document alone can prove is refused here; what needs the box (duplicate addresses on the wire,
links that do not exist) is refused by the network subsystem's `verify`.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, ClassVar

from daemon.errors import Problem
from daemon.settings.base import (
    MAXIMUM_ITEMS,
    Address,
    DomainName,
    InterfaceAddress,
    InterfaceName,
    Network,
    Part,
    Scope,
    Section,
)
from daemon.settings.words import Field


class AddressMethod(StrEnum):
    """Where an interface's addresses of one family come from."""

    DHCP = "dhcp"
    STATIC = "static"
    AUTOMATIC = "automatic"
    OFF = "off"


class BondMode(StrEnum):
    """How the links of a bond share the traffic."""

    ACTIVE_BACKUP = "active-backup"
    LACP = "802.3ad"
    BALANCE_XOR = "balance-xor"


class Vlan(Part):
    """Makes an interface a VLAN on top of another one (IEEE 802.1Q)."""

    parent: InterfaceName = Field(description="Interface that carries the tagged frames.")
    tag: Annotated[int, Field(ge=1, le=4094)] = Field(description="VLAN number, 1 to 4094.")


class Bond(Part):
    """Makes an interface a bond of several links."""

    links: tuple[InterfaceName, ...] = Field(
        min_length=1, max_length=8, description="Interfaces in the bond."
    )
    mode: BondMode = Field(default=BondMode.ACTIVE_BACKUP, description="How the links share the traffic.")


class Interface(Part):
    """One network interface."""

    enabled: bool = Field(default=True, description="Whether the interface is brought up.")
    ipv4: AddressMethod = Field(
        default=AddressMethod.DHCP, description="Source of the IPv4 addresses: dhcp, static or off."
    )
    ipv6: AddressMethod = Field(
        default=AddressMethod.AUTOMATIC,
        description="Source of the IPv6 addresses: automatic, dhcp, static or off.",
    )
    addresses: tuple[InterfaceAddress, ...] = Field(
        default=(),
        max_length=64,
        description="Static addresses with prefix length, for example 192.0.2.10/24.",
    )
    gateway: IPv4Address | None = Field(
        default=None, description="Default IPv4 gateway through this interface."
    )
    gateway6: IPv6Address | None = Field(
        default=None, description="Default IPv6 gateway through this interface."
    )
    mtu: Annotated[int, Field(ge=576, le=9216)] | None = Field(
        default=None, description="Largest packet in bytes; unset leaves the driver's value."
    )
    vlan: Vlan | None = Field(default=None, description="Set to make this a VLAN interface.")
    bond: Bond | None = Field(default=None, description="Set to make this a bond.")

    def problems(self) -> Iterator[Problem]:
        """Methods must fit the addresses, gateways must lie in a subnet."""
        by_version = {version: [a for a in self.addresses if a.version == version] for version in (4, 6)}
        for version, method, field in ((4, self.ipv4, "ipv4"), (6, self.ipv6, "ipv6")):
            if method is AddressMethod.STATIC and not by_version[version]:
                yield Problem(
                    field, "is static but there is no address of that family", "add one to addresses"
                )
            if method is AddressMethod.OFF and by_version[version]:
                yield Problem(field, "is off but there are addresses of that family", "set it to static")
        if self.ipv4 is AddressMethod.AUTOMATIC:
            yield Problem("ipv4", "cannot be automatic", "use dhcp, static or off")
        if self.vlan and self.bond:
            yield Problem(
                "vlan", "an interface is either a VLAN or a bond", "make the VLAN on top of the bond"
            )
        for number, address in enumerate(self.addresses):
            broadcast = address.version == 4 and address.network.prefixlen < 31
            if broadcast and address.ip in (
                address.network.network_address,
                address.network.broadcast_address,
            ):
                yield Problem(
                    f"addresses.{number}",
                    f"{address} is the network or broadcast address of its subnet",
                    "use a host address",
                )
        gateways: tuple[tuple[str, Address | None, AddressMethod], ...] = (
            ("gateway", self.gateway, self.ipv4),
            ("gateway6", self.gateway6, self.ipv6),
        )
        for field, gateway, method in gateways:
            if gateway is None or method is not AddressMethod.STATIC or gateway.is_link_local:
                continue
            if not any(gateway in address.network for address in by_version[gateway.version]):
                yield Problem(
                    field, f"{gateway} is outside every subnet of this interface", "correct one of them"
                )


class Route(Part):
    """One static route."""

    destination: Network = Field(description="Destination network, for example 198.51.100.0/24.")
    gateway: Address = Field(description="Next hop.")
    interface: InterfaceName = Field(description="Interface that the next hop is reached through.")
    metric: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = Field(
        default=None, description="Lower wins; unset leaves the system's choice."
    )

    def problems(self) -> Iterator[Problem]:
        """Both ends must be of one family."""
        if self.destination.version != self.gateway.version:
            yield Problem("gateway", "is of another address family than the destination", "use one family")


class HostEntry(Part):
    """Names that this node resolves without DNS."""

    address: Address = Field(description="Address that the names stand for.")
    names: tuple[DomainName, ...] = Field(
        min_length=1, max_length=16, description="Names, the canonical one first."
    )


class Dns(Part):
    """How names are resolved."""

    servers: tuple[Address, ...] = Field(
        default=(), max_length=6, description="Name servers; empty: those from DHCP."
    )
    search: tuple[DomainName, ...] = Field(default=(), max_length=6, description="Search domains.")


class Ntp(Part):
    """Where the time comes from (NTP, UDP port 123)."""

    servers: tuple[DomainName | Address, ...] = Field(
        default=(), max_length=8, description="Time servers; empty: those of the image."
    )
    pools: tuple[DomainName, ...] = Field(
        default=(), max_length=4, description="Names that stand for pools of servers."
    )


class NetworkSection(Section):
    """Interfaces, routes, DNS, time servers and host entries of this node."""

    scope: ClassVar[Scope] = Scope.NODE

    interfaces: dict[InterfaceName, Interface] = Field(
        default_factory=dict,
        max_length=64,
        description="Interfaces by name; one that is not named stays as the image left it.",
    )
    routes: tuple[Route, ...] = Field(default=(), max_length=MAXIMUM_ITEMS, description="Static routes.")
    dns: Dns = Field(default=Dns(), description="How names are resolved.")
    ntp: Ntp = Field(default=Ntp(), description="Where the time comes from.")
    hosts: tuple[HostEntry, ...] = Field(
        default=(), max_length=MAXIMUM_ITEMS, description="Entries for /etc/hosts."
    )

    def problems(self) -> Iterator[Problem]:
        """Addresses are used once, subnets of two interfaces do not overlap, parents exist."""
        owners: dict[Address, str] = {}
        subnets: list[tuple[Network, str]] = []
        gateways: dict[str, str] = {}
        for name, interface in self.interfaces.items():
            for number, address in enumerate(interface.addresses):
                path = f"interfaces.{name}.addresses.{number}"
                if address.ip in owners:
                    yield Problem(path, f"{address.ip} is also on {owners[address.ip]}", "use it once")
                owners[address.ip] = name
                for subnet, other in subnets:
                    if (
                        other != name
                        and subnet.version == address.version
                        and subnet.overlaps(address.network)
                    ):
                        yield Problem(
                            path, f"overlaps {subnet} on {other}", "give each interface its own subnet"
                        )
                subnets.append((address.network, name))
            for field in ("gateway", "gateway6"):
                if getattr(interface, field) is None:
                    continue
                if field in gateways:
                    yield Problem(
                        f"interfaces.{name}.{field}",
                        f"{gateways[field]} already has the default gateway",
                        "keep one and use routes for the rest",
                    )
                gateways[field] = name
            parents = (
                (interface.vlan.parent,) if interface.vlan else interface.bond.links if interface.bond else ()
            )
            if name in parents:
                yield Problem(f"interfaces.{name}", "stands on itself", "name another interface")
