"""Firewall policy and SIP shield, as an admin sets them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from ipaddress import ip_network
from typing import Annotated, ClassVar

from daemon.errors import Problem
from daemon.settings.base import (
    MAXIMUM_ITEMS,
    InterfaceName,
    Line,
    Network,
    Part,
    Port,
    Scope,
    Section,
)
from daemon.settings.words import Field, StringConstraints


class Protocol(StrEnum):
    """Transport protocols that rules can name."""

    TCP = "tcp"
    UDP = "udp"


class Zone(StrEnum):
    """How far a network is trusted."""

    TRUSTED = "trusted"
    LOCAL = "local"
    PUBLIC = "public"


# A list of tens of thousands is kept as text: an object for each would cost the daemon tens of megabytes.
NetworkText = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$", max_length=49)]


class ListedNetwork(Part):
    """An address or network on an allow or block list."""

    network: Network = Field(description="Address or network, for example 198.51.100.7/32.")
    until: datetime | None = Field(
        default=None, description="End of the entry (ISO 8601 with zone); unset: no end."
    )
    comment: Line = Field(default="", description="Why it is listed.")

    def problems(self) -> Iterator[Problem]:
        """Times carry their zone."""
        if self.until is not None and self.until.tzinfo is None:
            yield Problem("until", "has no time zone", "add one, for example 2030-01-31T12:00:00Z")


class ExtraRule(Part):
    """A port that is opened besides those of the work mode."""

    name: Line = Field(min_length=1, description="What the port is for.")
    protocol: Protocol = Field(description="tcp or udp.")
    first_port: Port = Field(description="First port.")
    last_port: Port | None = Field(default=None, description="Last port; unset: only the first.")
    sources: tuple[Network, ...] = Field(
        default=(), max_length=100, description="Who may reach it; empty: everybody."
    )

    def problems(self) -> Iterator[Problem]:
        """Ranges are ordered."""
        if self.last_port is not None and self.last_port < self.first_port:
            yield Problem("last_port", "is below the first port", "exchange the two")


class SupportAccess(Part):
    """Time-limited access for a support team (S-FW-02)."""

    networks: tuple[Network, ...] = Field(
        default=(), max_length=32, description="Where the support team comes from."
    )
    until: datetime | None = Field(default=None, description="End of the access (ISO 8601 with zone).")

    def problems(self) -> Iterator[Problem]:
        """Access has an end."""
        if self.networks and self.until is None:
            yield Problem("until", "support access needs an end", "set a time, at most a few days ahead")
        if self.until is not None and self.until.tzinfo is None:
            yield Problem("until", "has no time zone", "add one, for example 2030-01-31T12:00:00Z")


class Shield(Part):
    """Limits against scanners and floods on the SIP ports."""

    enabled: bool = Field(default=True, description="Whether the shield filters.")
    requests_per_second: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=20, description="New SIP requests a second from one unknown source."
    )
    failures_before_block: Annotated[int, Field(ge=1, le=100)] = Field(
        default=5, description="Failed authentications before a source is blocked."
    )
    block_seconds: Annotated[int, Field(ge=10, le=86400)] = Field(
        default=600, description="First block of a source; doubles on return."
    )
    longest_block_seconds: Annotated[int, Field(ge=10, le=30 * 86400)] = Field(
        default=86400, description="Longest block of a source."
    )
    tls_connections: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=50, description="Open TLS connections from one source."
    )

    def problems(self) -> Iterator[Problem]:
        """The longest block is the longest."""
        if self.longest_block_seconds < self.block_seconds:
            yield Problem("longest_block_seconds", "is shorter than the first block", "raise it")


class Firewall(Section):
    """What may reach the appliance (S-NW-03..06, S-FW-01)."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    enabled: bool = Field(default=True, description="Whether the policy is loaded.")
    zones: dict[InterfaceName, Zone] = Field(
        default_factory=dict, max_length=64, description="Zone of each interface; unnamed ones are local."
    )
    trusted_networks: tuple[Network, ...] = Field(
        default=(), max_length=MAXIMUM_ITEMS, description="Never blocked."
    )
    management_networks: tuple[Network, ...] = Field(
        default=(),
        max_length=100,
        description="Who may reach SSH; empty: local networks, and all in standard mode.",
    )
    allow: tuple[ListedNetwork, ...] = Field(default=(), max_length=50_000, description="Always let through.")
    block: tuple[ListedNetwork, ...] = Field(default=(), max_length=50_000, description="Always dropped.")
    blocklist: tuple[NetworkText, ...] = Field(
        default=(),
        max_length=100_000,
        description="A long list of addresses and networks to drop, without end and comment.",
    )
    rules: tuple[ExtraRule, ...] = Field(
        default=(), max_length=200, description="Ports opened besides the mode's own."
    )
    support: SupportAccess = Field(
        default=SupportAccess(), description="Time-limited access for a support team."
    )
    shield: Shield = Field(default=Shield(), description="Limits against SIP scanners and floods.")

    def problems(self) -> Iterator[Problem]:
        """What the pattern of the long list lets through and is no network all the same."""
        for number, text in enumerate(self.blocklist):
            try:
                ip_network(text, strict=False)
            except ValueError:
                yield Problem(f"blocklist.{number}", f"{text} is no network", "correct or remove it")
