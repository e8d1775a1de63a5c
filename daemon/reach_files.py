"""Domain and public address as configuration of nginx and Asterisk: pure functions from settings to text."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from daemon.settings import Settings
from daemon.settings.reach import WorkMode

Network = IPv4Network | IPv6Network

MARK = "Written by Centralino from the settings; changes here are overwritten."
TRANSPORTS = ("udp", "tcp", "tls")
"""Sections of pjsip.conf (role `pbx`) that speak IPv4."""


def nginx_text(settings: Settings) -> str | None:
    """Goes into the HTTPS server: its name, and the way there for whoever came by another one."""
    name = settings.domain.fqdn
    if name is None:
        return None
    lines = [f"# {MARK}", f"server_name {name};"]
    if settings.domain.reach_through_domain:
        # /health is asked by address, by the daemon and by load balancers, and must not be sent elsewhere.
        lines += [
            'set $centralino_elsewhere "";',
            f'if ($host != "{name}") {{ set $centralino_elsewhere yes; }}',
            'if ($uri = /health) { set $centralino_elsewhere ""; }',
            f"if ($centralino_elsewhere) {{ return 302 https://{name}$request_uri; }}",
        ]
    return "\n".join(lines) + "\n"


def pjsip_text(settings: Settings, local: Sequence[Network]) -> str | None:
    """What phones outside are told instead of our own address, added to each transport.

    Asterisk takes this when it starts, since its transports are not reloaded (that would cut TLS phones).
    """
    address = settings.domain.public_address
    if not isinstance(address, IPv4Address):
        return None
    lines = [f"; {MARK}"]
    for transport in TRANSPORTS:
        lines += [
            f"[{transport}](+)",
            f"external_signaling_address = {address}",
            f"external_media_address = {address}",
            *(f"local_net = {network}" for network in local if network.version == 4),
            "",
        ]
    return "\n".join(lines)


def rtp_text(settings: Settings, own: Sequence[IPv4Address]) -> str:
    """rtp.conf: ports, and in cloud mode the public address as an ICE candidate beside the own one."""
    media, public = settings.media, settings.domain.public_address
    lines = [
        f"; {MARK}",
        "[general]",
        f"rtpstart = {media.rtp_first_port}",
        f"rtpend = {media.rtp_last_port}",
        "strictrtp = yes",
        "icesupport = yes",
    ]
    if settings.mode.mode is WorkMode.CLOUD and isinstance(public, IPv4Address):
        mapped = [address for address in own if address != public]
        if mapped:
            lines.append("")
            lines.append("[ice_host_candidates]")
            lines += [f"{address} => {public},include_local_address" for address in mapped]
    return "\n".join(lines) + "\n"
