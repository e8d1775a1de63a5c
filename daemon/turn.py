"""The STUN and TURN server: coturn's configuration, and passwords for it that end by themselves.

Passwords follow "TURN REST API" (draft-uberti-behave-turn-rest): the name is `EXPIRY:NAME`, the password is
its HMAC-SHA1 by a secret that only this box and coturn know, so nothing need be stored for a user.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from daemon.settings import Settings

Address = IPv4Address | IPv6Address

PORT = 3478
SECRET_OPTION = "static-auth-secret="  # noqa: S105 - the name of an option
LONGEST_LIFE_SECONDS = 86400
USER_QUOTA = 12
TOTAL_QUOTA = 3000
FORBIDDEN_PEERS = (
    "0.0.0.0-0.255.255.255", "10.0.0.0-10.255.255.255", "100.64.0.0-100.127.255.255",
    "127.0.0.0-127.255.255.255", "169.254.0.0-169.254.255.255", "172.16.0.0-172.31.255.255",
    "192.0.0.0-192.0.0.255", "192.168.0.0-192.168.255.255", "198.18.0.0-198.19.255.255",
    "224.0.0.0-255.255.255.255", "::1", "::ffff:0:0-::ffff:ffff:ffff", "64:ff9b::-64:ff9b::ffff:ffff",
    "fc00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fe80::-febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
)  # fmt: skip
"""A relay must not be a door into the networks behind it (RFC 8656 section 21)."""
IDLE = (
    "# {mark}\n# The work mode is standard: coturn does not run. Should it be started, nobody can use it.\n"
)


@dataclass(frozen=True)
class Credentials:
    """What a client shows; `expires` is a Unix time."""

    username: str
    password: str
    expires: int


def credentials(secret: str, name: str, life_seconds: int, now: float) -> Credentials:
    """Credentials for `name` that coturn takes until `now` + `life_seconds`."""
    expires = int(now) + life_seconds
    username = f"{expires}:{name}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return Credentials(username, base64.b64encode(digest).decode(), expires)


def coturn_text(settings: Settings, own: Sequence[Address], certificate: Path, key: Path, mark: str) -> str:
    """coturn's configuration without its secret; `own` are the box's addresses, the first is relayed by.

    Asterisk on this box is a peer like any other, so the own addresses are allowed among the forbidden.
    """
    domain, media = settings.domain, settings.media
    public = domain.public_address
    lines = [
        f"# {mark}",
        f"listening-port={PORT}",
        f"min-port={media.relay_first_port}",
        f"max-port={media.relay_last_port}",
        f"realm={domain.fqdn or 'centralino'}",
        "fingerprint",
        "use-auth-secret",
        "stale-nonce=600",
        f"user-quota={USER_QUOTA}",
        f"total-quota={TOTAL_QUOTA}",
        # One port for all: TLS is told apart from the rest by its first octet.
        f"tls-listening-port={PORT}",
        f"cert={certificate}",
        f"pkey={key}",
        "no-tlsv1",
        "no-tlsv1_1",
        "no-dtls",
        "no-cli",
        "no-rfc5780",
        "no-stun-backward-compatibility",
        "no-multicast-peers",
        "no-software-attribute",
        "syslog",
        "no-stdout-log",
        "simple-log",
    ]
    if public is not None:
        local = next((address for address in own if address.version == public.version), None)
        if local is not None and public not in own:
            lines.append(f"external-ip={public}/{local}")
    lines += [f"denied-peer-ip={peer}" for peer in FORBIDDEN_PEERS]
    lines += [f"allowed-peer-ip={address}" for address in own]
    return "\n".join(lines) + "\n"


def idle_text(mark: str) -> str:
    """The configuration outside cloud mode: should coturn be started by hand, it serves nobody."""
    return IDLE.format(mark=mark) + "listening-ip=127.0.0.1\nlt-cred-mech\nno-cli\n"


def without_secret(text: str) -> str:
    """A configuration as it may be shown."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(SECRET_OPTION))


def with_secret(text: str, secret: str) -> str:
    """A configuration as coturn reads it."""
    return f"{text}{SECRET_OPTION}{secret}\n"
