"""The firewall policy: everything that the ruleset depends on, and nothing that a packet decides."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from firewall.ports import MEDIA, TURN_RELAY, Mode, Service, Zone

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

    `media` and `relay` are the first and last UDP port of audio and of the TURN relay. `local`, `trusted` and
    `management` are zones (see `firewall.ports.Zone`), `peer` the other node's addresses, `extra` services
    that the administrator opened, each with the networks that may use it (none: everybody). `blocklist` is
    the long list of blocked networks, as text. `interfaces` names the zone of those that are not `local`.
    `session` are the addresses of whoever applies this policy now: they keep SSH for `session_seconds`.
    """

    mode: Mode
    media: tuple[int, int] = (MEDIA.first, MEDIA.last)
    relay: tuple[int, int] = (TURN_RELAY.first, TURN_RELAY.last)
    local: tuple[Network, ...] = PRIVATE_NETWORKS
    trusted: tuple[Network, ...] = ()
    management: tuple[Network, ...] = ()
    peer: tuple[Network, ...] = ()
    allowed: tuple[TimedNetwork, ...] = ()
    blocked: tuple[TimedNetwork, ...] = ()
    blocklist: tuple[str, ...] = ()
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


def apart(entries: Iterable[TimedNetwork]) -> list[TimedNetwork]:
    """The same entries without overlaps, for sets of intervals; where two overlap, the later end holds.

    All entries must be of one IP version. Sorted by network.
    """
    kept: dict[Network, TimedNetwork] = {}
    starts: list[int] = []
    lengths: set[int] = set()
    # The longest-lasting first: whatever comes later may only fill the gaps.
    for entry in sorted(entries, key=lambda entry: (_end(entry), -entry.network.prefixlen), reverse=True):
        for piece in _uncovered(entry.network, kept, starts, lengths):
            kept[piece] = replace(entry, network=piece)
            insort(starts, int(piece.network_address))
            lengths.add(piece.prefixlen)
    return sorted(kept.values(), key=lambda entry: int(entry.network.network_address))


def _end(entry: TimedNetwork) -> float:
    return float("inf") if entry.until is None else entry.until


def _uncovered(
    network: Network, kept: Mapping[Network, TimedNetwork], starts: list[int], lengths: set[int]
) -> Iterator[Network]:
    """The parts of a network that no kept one covers."""
    for length in lengths:
        if length <= network.prefixlen and network.supernet(new_prefix=length) in kept:
            return
    first, last = int(network.network_address), int(network.broadcast_address)
    place = bisect_left(starts, first)
    if place == len(starts) or starts[place] > last:
        yield network
        return
    for half in network.subnets(prefixlen_diff=1):
        yield from _uncovered(half, kept, starts, lengths)
