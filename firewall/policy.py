"""The firewall policy: everything that the ruleset depends on, and nothing that a packet decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from firewall.ports import Mode, Service, Zone

Network = IPv4Network | IPv6Network

# What counts as "the LAN" when the settings name nothing (RFC 1918, RFC 4193, RFC 3927, RFC 4291).
PRIVATE_NETWORKS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")
)


@dataclass(frozen=True)
class TimedNetwork:
    """A network that is in force until `until` (seconds since the epoch), or for ever (None)."""

    network: Network
    until: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class ShieldLimits:
    """Limits of the SIP shield in the kernel, per source address.

    Rates are packets a second; `phone_*` holds for sources that have authenticated.
    """

    request_rate: int = 10
    request_burst: int = 30
    phone_rate: int = 100
    phone_burst: int = 200
    largest_datagram: int = 8192
    streams: int = 16
    stream_rate_per_minute: int = 60


@dataclass(frozen=True)
class Policy:
    """Input of `render`.

    `local`, `trusted` and `management` are zones (see `firewall.ports.Zone`), `peer` the other node's
    addresses, `extra` services that the administrator opened, each with the networks that may use it (none:
    everybody). `interfaces` names the zone of interfaces that are not `local`. `session` are the addresses
    of whoever applies this policy now: they keep SSH for `session_seconds`.
    """

    mode: Mode
    open_sip: bool = True
    local: tuple[Network, ...] = PRIVATE_NETWORKS
    trusted: tuple[Network, ...] = ()
    management: tuple[Network, ...] = ()
    peer: tuple[Network, ...] = ()
    allowed: tuple[TimedNetwork, ...] = ()
    blocked: tuple[TimedNetwork, ...] = ()
    support: tuple[TimedNetwork, ...] = ()
    interfaces: Mapping[str, Zone] = field(default_factory=dict)
    extra: tuple[tuple[Service, tuple[Network, ...]], ...] = ()
    session: tuple[Network, ...] = ()
    session_seconds: int = 3600
    limits: ShieldLimits = field(default_factory=ShieldLimits)


def family(networks: tuple[Network, ...], version: int) -> list[Network]:
    """The networks of one IP version, sorted and merged so that equal policies render equally."""
    if version == 4:
        return list(collapse_addresses(network for network in networks if isinstance(network, IPv4Network)))
    return list(collapse_addresses(network for network in networks if isinstance(network, IPv6Network)))
