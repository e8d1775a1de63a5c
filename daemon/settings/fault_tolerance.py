"""The pair: who the peer is, which addresses move, how the nodes watch each other."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, ClassVar

from daemon.errors import Problem
from daemon.settings.base import (
    Address,
    InterfaceAddress,
    InterfaceName,
    Part,
    Port,
    Scope,
    Seconds,
    Section,
    in_scope,
)
from daemon.settings.words import Field


class DetectionProfile(StrEnum):
    """How fast a dead master is noticed: adverts each 300 ms, or 100 ms on steady hardware."""

    STANDARD = "standard"
    FAST = "fast"


class SharedAddress(Part):
    """An address that moves to whichever node is master."""

    address: InterfaceAddress = Field(description="Address with prefix length, for example 192.0.2.20/24.")
    interface: InterfaceName = Field(description="Interface that carries it.")
    primary: bool = Field(
        default=False, description="The address that phones and trunks use; exactly one is primary."
    )


class FaultTolerance(Section):
    """The pair of nodes (S-FT-04, S-FT-11)."""

    scope: ClassVar[Scope] = Scope.NODE

    enabled: bool = Field(
        default=False,
        description="Whether this node is one of a pair.",
        json_schema_extra=in_scope(Scope.CLUSTER),
    )
    peer_address: Address | None = Field(default=None, description="Address of the other node.")
    peer_service_address: Address | None = Field(
        default=None,
        description="The other node's own address beside the primary shared one, for VRRP; pairing sets it.",
    )
    management_address: Address | None = Field(
        default=None, description="Own address for the peer link; unset: the address that routes to the peer."
    )
    replication_kilobytes_per_second: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        default=10_000,
        description="Bandwidth that file replication may use, in KB/s; 0 is unlimited.",
        json_schema_extra=in_scope(Scope.CLUSTER),
    )
    shared_addresses: tuple[SharedAddress, ...] = Field(
        default=(),
        max_length=32,
        description="Addresses that move with the master role.",
        json_schema_extra=in_scope(Scope.CLUSTER),
    )
    gateway: Address | None = Field(
        default=None, description="Router whose loss makes a node step back; unset: the default gateway."
    )
    witness: Address | None = Field(
        default=None,
        description="A third host that is asked before a node takes over.",
        json_schema_extra=in_scope(Scope.CLUSTER),
    )
    profile: DetectionProfile = Field(
        default=DetectionProfile.STANDARD,
        description="How fast a dead master is noticed: standard or fast.",
        json_schema_extra=in_scope(Scope.CLUSTER),
    )
    virtual_router_id: Annotated[int, Field(ge=1, le=255)] = Field(
        default=51,
        description="VRRP router number, unique on the subnet (RFC 9568).",
        json_schema_extra=in_scope(Scope.CLUSTER),
    )
    peer_port: Port = Field(default=22, description="SSH port of the peer.")
    drain_seconds: Seconds = Field(
        default=0,
        description="How long a planned switch waits for calls to end.",
        json_schema_extra=in_scope(Scope.CLUSTER),
    )

    def problems(self) -> Iterator[Problem]:
        """Distinct addresses, one primary, a peer when enabled."""
        if self.enabled and self.peer_address is None:
            yield Problem(
                "peer_address", "is needed when fault tolerance is enabled", "set the other node's address"
            )
        if self.peer_address is not None and self.peer_address == self.management_address:
            yield Problem("management_address", "equals the peer's address", "set this node's own address")
        seen: set[Address] = set()
        for number, shared in enumerate(self.shared_addresses):
            path = f"shared_addresses.{number}.address"
            if shared.address.ip in seen:
                yield Problem(path, f"{shared.address.ip} is named twice", "remove one")
            seen.add(shared.address.ip)
            if shared.address.ip in (self.peer_address, self.management_address):
                yield Problem(
                    path, f"{shared.address.ip} is the address of a node", "use an address of its own"
                )
        primaries = [shared for shared in self.shared_addresses if shared.primary]
        if self.shared_addresses and len(primaries) != 1:
            yield Problem(
                "shared_addresses", f"{len(primaries)} addresses are primary", "mark exactly one as primary"
            )
