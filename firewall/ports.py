"""Which ports are open, to whom, in which mode: the tables of S-NW-03 to S-NW-06 as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """Work mode of the box (S-AR-01)."""

    STANDARD = "standard"
    CLOUD = "cloud"


class Zone(StrEnum):
    """Who asks: `management` administers, `trusted` is unlimited, `local` is the LAN, `public` the rest."""

    MANAGEMENT = "management"
    TRUSTED = "trusted"
    LOCAL = "local"
    PUBLIC = "public"


class Guard(StrEnum):
    """What protects an open port beyond its zone."""

    NONE = "none"
    SIP_UDP = "sip_udp"
    SIP_STREAM = "sip_stream"


class Protocol(StrEnum):
    """Transport protocol, in nftables' words."""

    UDP = "udp"
    TCP = "tcp"


@dataclass(frozen=True)
class Service:
    """One open port range. `first` and `last` are inclusive; `source` is the requirement that asks for it."""

    name: str
    protocol: Protocol
    first: int
    last: int
    source: str
    guard: Guard = Guard.NONE

    @property
    def ports(self) -> str:
        """The range in nftables' words."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


_UDP, _TCP = Protocol.UDP, Protocol.TCP

SIP_UDP = Service("sip", _UDP, 5060, 5060, "S-NW-03", Guard.SIP_UDP)
SIP_TCP = Service("sip", _TCP, 5060, 5060, "S-NW-03", Guard.SIP_STREAM)
SIP_TLS = Service("sip-tls", _TCP, 5061, 5061, "S-NW-03", Guard.SIP_STREAM)
MONITORING_UDP = Service("sip-monitoring", _UDP, 5070, 5070, "S-NW-03", Guard.SIP_UDP)
MONITORING_TCP = Service("sip-monitoring", _TCP, 5070, 5070, "S-NW-03", Guard.SIP_STREAM)
MONITORING_TLS = Service("sip-monitoring-tls", _TCP, 5071, 5071, "S-NW-03", Guard.SIP_STREAM)
MEDIA = Service("media", _UDP, 10000, 20000, "S-NW-03")
TURN_UDP = Service("turn", _UDP, 3478, 3478, "S-NW-03")
TURN_TCP = Service("turn", _TCP, 3478, 3478, "S-NW-03")
TURN_RELAY = Service("turn-relay", _UDP, 20001, 30000, "S-NW-03")
HTTPS = Service("https", _TCP, 443, 443, "S-NW-03")
HTTP = Service("http", _TCP, 80, 80, "S-NW-03")
SIP_CLIENTS = Service("sip-clients", _UDP, 5061, 5063, "S-NW-06", Guard.SIP_UDP)
SSH = Service("ssh", _TCP, 22, 22, "S-FW-02")

TABLE: dict[Mode, dict[Zone, tuple[Service, ...]]] = {
    # A private LAN: phones and clients of the LAN get everything of S-NW-06, strangers nothing.
    Mode.STANDARD: {
        Zone.MANAGEMENT: (SSH,),
        Zone.LOCAL: (SIP_UDP, SIP_TCP, SIP_TLS, SIP_CLIENTS, MEDIA, HTTPS, HTTP),
        Zone.PUBLIC: (),
    },
    # NAT 1:1: exactly S-NW-03 for everybody, and SSH for management alone.
    Mode.CLOUD: {
        Zone.MANAGEMENT: (SSH,),
        Zone.LOCAL: (),
        Zone.PUBLIC: (
            SIP_UDP,
            SIP_TCP,
            SIP_TLS,
            MONITORING_UDP,
            MONITORING_TCP,
            MONITORING_TLS,
            MEDIA,
            TURN_UDP,
            TURN_TCP,
            TURN_RELAY,
            HTTPS,
            HTTP,
        ),
    },
}


def services(mode: Mode, zone: Zone) -> tuple[Service, ...]:
    """The services open to a zone in a mode, in order; `trusted` sees what `local` and `public` see."""
    table = TABLE[mode]
    if zone is Zone.TRUSTED:
        return tuple(dict.fromkeys(table[Zone.LOCAL] + table[Zone.PUBLIC]))
    return table[zone]
