"""Whether an address gets in, and why: one answer from settings and shield, for `firewall why`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from ipaddress import ip_network

from daemon.settings import Settings
from daemon.settings.protection import ListedNetwork
from firewall.build import build
from firewall.evidence import Address
from firewall.policy import Network


def verdict(
    settings: Settings, address: Address, held: Mapping[str, object], now: float
) -> dict[str, object]:
    """What happens to packets of an address. `held` is what the shield holds against it (Scoreboard.why).

    Keys `address`, `blocked`, `by` (settings, shield or null), `since`, `until` (ISO 8601 or null),
    `sentence`, `zones`, `shield`. A block in the settings begins when its revision was applied: its `since`
    is null here, and the history has the rest.
    """
    section = settings.firewall
    policy = build(settings)
    zones = [
        name
        for name, networks in (
            ("management", policy.management),
            ("trusted", section.trusted_networks),
            ("allowed", tuple(_holding(section.allow, now))),
            ("local", policy.local),
        )
        if _inside(address, networks)
    ]
    entry = next((entry for entry in section.block if _applies(entry, address, now)), None)
    listed = None if entry else next((text for text in section.blocklist if _covers(text, address)), None)
    answer: dict[str, object] = {
        "address": str(address),
        "blocked": False,
        "by": None,
        "since": None,
        "until": None,
        "zones": zones,
        "shield": dict(held),
    }
    exempt = next((zone for zone in ("trusted", "allowed") if zone in zones), None)
    if exempt is not None:
        answer["sentence"] = f"{address} is never blocked: it is in the {exempt} networks."
    elif entry is not None:
        until = entry.until.astimezone(UTC).isoformat(timespec="seconds") if entry.until else None
        reason = f" ({entry.comment})" if entry.comment else ""
        answer |= {"blocked": True, "by": "settings", "until": until}
        answer["sentence"] = (
            f"{address} is blocked by the entry {entry.network} of firewall.block{reason}, "
            f"{f'until {until}' if until else 'without end'}."
        )
    elif listed is not None:
        answer |= {"blocked": True, "by": "settings"}
        answer["sentence"] = f"{address} is blocked by {listed} of firewall.blocklist, without end."
    elif held.get("blocked") is True:
        since, until = _iso(held.get("since")), _iso(held.get("until"))
        answer |= {"blocked": True, "by": "shield", "since": since, "until": until}
        answer["sentence"] = (
            f"{address} is blocked by the SIP shield since {since}, until {until}, "
            f"for the {_ordinal(held.get('times_blocked'))} time."
        )
    elif held.get("spared_because"):
        answer["sentence"] = f"{address} is not blocked, and will not be: {held['spared_because']}."
    elif held.get("points"):
        answer["sentence"] = (
            f"{address} is not blocked; it has {held['points']:g} of the {held['points_for_block']:g} points "
            "that would block it."
        )
    else:
        answer["sentence"] = f"{address} is not blocked, and nothing is held against it."
    return answer


def _holding(entries: Iterable[ListedNetwork], now: float) -> Iterable[Network]:
    return (entry.network for entry in entries if entry.until is None or entry.until.timestamp() > now)


def _covers(text: str, address: Address) -> bool:
    if "/" not in text and (":" in text) is (address.version == 4):
        return False
    network = ip_network(text, strict=False)
    return network.version == address.version and address in network


def _applies(entry: ListedNetwork, address: Address, now: float) -> bool:
    return _inside(address, _holding((entry,), now))


def _inside(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _iso(moment: object) -> str | None:
    if not isinstance(moment, int | float):
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def _ordinal(count: object) -> str:
    number = count if isinstance(count, int) else 1
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
