"""Asterisk's security events (AMI class `security`) as evidence (security_events_defs.h of Asterisk)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from firewall.evidence import Address, Evidence, Offence

OFFENCES: dict[str, Offence] = {
    "InvalidPassword": Offence.WRONG_PASSWORD,
    "ChallengeResponseFailed": Offence.WRONG_PASSWORD,
    "InvalidAccountID": Offence.UNKNOWN_ACCOUNT,
    "FailedACL": Offence.NOT_ALLOWED,
    "RequestNotAllowed": Offence.NOT_ALLOWED,
    "AuthMethodNotAllowed": Offence.NOT_ALLOWED,
    "RequestBadFormat": Offence.MALFORMED,
    "RequestNotSupported": Offence.MALFORMED,
    "InvalidTransport": Offence.NOT_ALLOWED,
}
# These answer a challenge that we sent to that very address.
_PROVEN_BY_ANSWER = {"InvalidPassword", "ChallengeResponseFailed"}


@dataclass(frozen=True)
class Authenticated:
    """A source has proven to know an account's password."""

    when: float
    source: Address
    account: str


def read_event(message: Mapping[str, str], when: float) -> Evidence | Authenticated | None:
    """What one AMI message means for the shield; None for everything that says nothing about a SIP source.

    `RemoteAddress` is `family/protocol/address/port`, for example `IPV4/UDP/192.0.2.1/5060`.
    """
    if message.get("Service", "").upper() != "PJSIP":
        return None
    parts = message.get("RemoteAddress", "").split("/")
    if len(parts) != 4:
        return None
    try:
        source = ip_address(parts[2].strip("[]").partition("%")[0])
    except ValueError:
        return None
    account, event = message.get("AccountID", ""), message.get("Event", "")
    if event == "SuccessfulAuth":
        # Without UsingPassword it only says that an endpoint needs no password.
        return Authenticated(when, source, account) if message.get("UsingPassword") == "1" else None
    offence = OFFENCES.get(event)
    if offence is None:
        return None
    transport = parts[1].upper()
    proven = transport != "UDP" or event in _PROVEN_BY_ANSWER
    return Evidence(when, source, offence, proven, account[:80], transport)
