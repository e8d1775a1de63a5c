"""What the two work modes mean: every default and every side effect, as one table (S-WM-02 to S-WM-05).

docs/modes.md is generated from it, `centralino mode` shows it, and the mode subsystem writes it to where
provisioning reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from daemon.settings.reach import WorkMode


class Reader(StrEnum):
    """Who makes a default true."""

    BOX = "this box, at once"
    PROVISIONING = "provisioning, for what is made from then on"


@dataclass(frozen=True)
class Default:
    """One default: `key` in the defaults file, the values in both modes, who acts on it, its requirement."""

    key: str
    title: str
    standard: str
    cloud: str
    reader: Reader
    requirement: str

    def value(self, mode: WorkMode) -> str:
        """The value in a mode."""
        return self.cloud if mode is WorkMode.CLOUD else self.standard


DEFAULTS: tuple[Default, ...] = (
    Default(
        "user_password", "Password of a new user", "not secure", "secure", Reader.PROVISIONING, "S-WM-02, 03"
    ),
    Default(
        "sip_password",
        "SIP password of a new device",
        "not secure",
        "secure",
        Reader.PROVISIONING,
        "S-WM-02, 03",
    ),
    Default(
        "provisioning",
        "Provisioning of phones",
        "base",
        "secure, with redirection service",
        Reader.PROVISIONING,
        "S-WM-02, 03",
    ),
    Default("sip_transport", "SIP transport of phones", "UDP", "TLS", Reader.PROVISIONING, "S-WM-02, 03"),
    Default(
        "ice", "ICE on phones that have it (Yealink)", "no", "yes", Reader.PROVISIONING, "S-WM-02, 03, 05"
    ),
    Default(
        "peer_to_peer_media",
        "Audio directly from phone to phone",
        "yes",
        "no",
        Reader.PROVISIONING,
        "S-WM-02, 03",
    ),
    Default("turn", "STUN and TURN on this box", "off", "on", Reader.BOX, "S-WM-02 to 05"),
    Default(
        "smart_working",
        "Smart working",
        "for each user, with a licence and an edge",
        "on for browsers and the app",
        Reader.PROVISIONING,
        "S-WM-02, 03, 05",
    ),
    Default(
        "inbound",
        "What may come in",
        "the local networks' services",
        "the list of S-NW-03 and nothing else",
        Reader.BOX,
        "S-NW-03, 06",
    ),
    Default(
        "shared_address",
        "Shared address of a pair",
        "moves with the master",
        "none: the name is moved",
        Reader.BOX,
        "S-AR-01",
    ),
)


@dataclass(frozen=True)
class Effect:
    """What a switch does besides the defaults; `deletes`: something goes that none can make again."""

    to: WorkMode
    sentence: str
    requirement: str
    deletes: bool = False


EFFECTS: tuple[Effect, ...] = (
    Effect(
        WorkMode.CLOUD,
        "The configuration of the edge client is deleted. A copy stays on this box and comes back when the "
        "switch is taken back or the mode is set to standard again.",
        "S-WM-04",
        deletes=True,
    ),
    Effect(WorkMode.CLOUD, "STUN and TURN start on port 3478.", "S-WM-04"),
    Effect(WorkMode.CLOUD, "Smart working is on for browsers and the app.", "S-WM-04"),
    Effect(
        WorkMode.CLOUD, "Every phone must be provisioned again: transport and passwords change.", "S-WM-04"
    ),
    Effect(WorkMode.STANDARD, "STUN and TURN stop.", "S-WM-05"),
    Effect(WorkMode.STANDARD, "ICE is switched off on Yealink phones at their next provisioning.", "S-WM-05"),
    Effect(WorkMode.STANDARD, "Smart working is off for every user.", "S-WM-05"),
)


def defaults(mode: WorkMode) -> dict[str, str]:
    """Key to value, in table order."""
    return {default.key: default.value(mode) for default in DEFAULTS}


def effects(to: WorkMode) -> tuple[Effect, ...]:
    """What a switch to a mode does."""
    return tuple(effect for effect in EFFECTS if effect.to is to)
