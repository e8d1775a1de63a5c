"""From the settings document to the firewall policy: pure."""

from __future__ import annotations

from ipaddress import ip_network

from daemon.settings import Settings
from daemon.settings.protection import ListedNetwork
from daemon.settings.protection import Zone as SettingsZone
from firewall.policy import PRIVATE_NETWORKS, Network, Policy, ShieldLimits, TimedNetwork
from firewall.ports import Guard, Mode, Protocol, Service, Zone

EVERYBODY: tuple[Network, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_UNLIMITED = 1_000_000


def build(settings: Settings, *, session: tuple[Network, ...] = ()) -> Policy:
    """The policy of these settings. A silent node of a pair has a table of its own beside it."""
    section = settings.firewall
    local = tuple(
        dict.fromkeys((*PRIVATE_NETWORKS, *settings.domain.local_networks, *_own_subnets(settings)))
    )
    shield = section.shield
    limits = ShieldLimits(
        request_rate=shield.requests_per_second if shield.enabled else _UNLIMITED,
        request_burst=3 * shield.requests_per_second if shield.enabled else _UNLIMITED,
        streams=shield.tls_connections if shield.enabled else _UNLIMITED,
    )
    return Policy(
        mode=Mode(settings.mode.mode.value),
        media=(settings.media.rtp_first_port, settings.media.rtp_last_port),
        relay=(settings.media.relay_first_port, settings.media.relay_last_port),
        local=local,
        trusted=section.trusted_networks,
        management=section.management_networks or default_management(settings, local),
        peer=_peer(settings),
        allowed=_listed(section.allow),
        blocked=_listed(section.block),
        blocklist=section.blocklist,
        support=tuple(
            TimedNetwork(network, section.support.until.timestamp(), "support")
            for network in section.support.networks
            if section.support.until is not None
        ),
        interfaces={
            name: Zone(zone.value) for name, zone in section.zones.items() if zone is not SettingsZone.LOCAL
        },
        extra=tuple(
            (
                Service(
                    rule.name,
                    Protocol(rule.protocol.value),
                    rule.first_port,
                    rule.last_port or rule.first_port,
                    "S-FW-01",
                    Guard.NONE,
                ),
                rule.sources,
            )
            for rule in section.rules
        ),
        session=session,
        limits=limits,
    )


def default_management(settings: Settings, local: tuple[Network, ...]) -> tuple[Network, ...]:
    """Who may reach SSH when the settings name nobody: in standard mode everybody, so that a new box can be
    reached at all; in cloud mode the local networks."""
    return EVERYBODY if Mode(settings.mode.mode.value) is Mode.STANDARD else local


def _own_subnets(settings: Settings) -> list[Network]:
    return [
        address.network
        for interface in settings.network.interfaces.values()
        for address in interface.addresses
    ]


def _peer(settings: Settings) -> tuple[Network, ...]:
    """Both ends of the other node: the peer link's and VRRP's."""
    pair = settings.fault_tolerance
    ends = dict.fromkeys(end for end in (pair.peer_address, pair.peer_service_address) if end is not None)
    return tuple(ip_network(f"{end}/{end.max_prefixlen}") for end in ends)


def _listed(entries: tuple[ListedNetwork, ...]) -> tuple[TimedNetwork, ...]:
    """One entry a network; of several the one that lasts longest."""
    found: dict[Network, TimedNetwork] = {}
    for entry in entries:
        until = entry.until.timestamp() if entry.until is not None else None
        known = found.get(entry.network)
        if known is None or (known.until is not None and (until is None or until > known.until)):
            found[entry.network] = TimedNetwork(entry.network, until, entry.comment)
    return tuple(found.values())
