"""`centralino firewall`: who gets in, who does not, and why."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import click

from daemon.cli.client import FIREWALL
from daemon.cli.json_types import JsonObject, JsonValue, as_list, as_object, objects_of, text_of, texts_of
from daemon.cli.moments import local_time
from daemon.cli.plans import change_settings, current
from daemon.cli.render import emit_json, fields, line, table
from daemon.cli.session import Session, Write, reads, writes
from daemon.errors import NotFoundError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,6})([smhdw])")


class NetworkType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """An address or network; an address becomes a network of one."""

    name = "network"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The network in its usual writing."""
        try:
            return str(ip_network(str(value), strict=False))
        except ValueError:
            self.fail(f"{value!r} is no address or network, write it like 198.51.100.7 or 198.51.100.0/24")


class AddressType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """One address."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The address in its usual writing."""
        try:
            return str(ip_address(str(value)))
        except ValueError:
            self.fail(f"{value!r} is no address, write it like 198.51.100.7")


class DurationType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A length of time such as 30m, 12h, 7d."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        if isinstance(value, int):
            return value
        found = _DURATION.fullmatch(str(value))
        if found is None or int(found[1]) == 0:
            self.fail(f"{value!r} is no length of time, write it like 30m, 12h, 7d")
        return int(found[1]) * _UNITS[found[2]]


networks_argument: Decorator = click.argument(
    "networks", metavar="NETWORK...", type=NetworkType(), nargs=-1, required=True
)
for_option: Decorator = click.option(
    "--for",
    "seconds",
    type=DurationType(),
    metavar="DURATION",
    help="End by itself after 30m, 12h, 7d; default: no end.",
)


@click.group()
def firewall() -> None:
    """See who gets in and why, block and allow addresses, let a support team in for some hours."""


@firewall.command("status")
@reads
def status(session: Session, as_json: bool) -> None:
    """Show the policy in force and what the SIP shield is doing."""
    found = session.client.read_object(FIREWALL, "Status")
    if as_json:
        emit_json(found)
        return
    shield, support = as_object(found.get("shield")), as_object(found.get("support"))
    if found.get("failsafe"):
        state = "failsafe: SSH from the management networks, nothing else"
    elif found.get("enabled") is not True:
        state = "off: everything that listens can be reached"
    else:
        state = f"policy of {text_of(found, 'mode')} mode"
        state += "" if found.get("serving") is True else ", SIP closed by this node's role"
    pairs = [("firewall", state), ("SSH from", _networks(texts_of(found, "management")))]
    if trusted := texts_of(found, "trusted"):
        pairs.append(("trusted", ", ".join(trusted)))
    if support.get("open") is True:
        until = local_time(text_of(support, "until"))
        pairs.append(("support", f"{', '.join(texts_of(support, 'networks'))} until {until}"))
    pairs.append(
        ("lists", f"{text_of(found, 'allowed')} allowed, {text_of(found, 'blocked')} blocked by the settings")
    )
    if shield:
        pairs.append(("SIP shield", _shield_state(shield)))
        pairs.append(("blocked by it", text_of(shield, "blocked")))
        pairs.append(("phones known", text_of(shield, "phones")))
    fields(pairs)
    for reason in (*texts_of(found, "reasons"), *texts_of(found, "drift")):
        line(f"! {reason}", style="bold red")


def _shield_state(shield: JsonObject) -> str:
    if shield.get("enabled") is not True:
        return "off"
    if shield.get("listening") is True:
        return "on, hears Asterisk"
    return f"on in the kernel alone: Asterisk is not heard ({text_of(shield, 'trouble')})"


def _networks(found: list[str]) -> str:
    return "everybody" if "0.0.0.0/0" in found else ", ".join(found)


@firewall.command("why")
@click.argument("address", type=AddressType())
@reads
def why(session: Session, as_json: bool, address: str) -> None:
    """Say whether ADDRESS is blocked, since when, until when, and on what evidence."""
    found = session.client.read_object(FIREWALL, "Why", address)
    if as_json:
        emit_json(found)
        return
    line(text_of(found, "sentence"))
    if zones := texts_of(found, "zones"):
        line(f"It is in these networks: {', '.join(zones)}.")
    evidence = objects_of(as_object(found.get("shield")), "evidence")
    if evidence:
        table(
            ("WHEN", "WHAT IT DID", "ACCOUNT", "OVER", "SOURCE"),
            [
                (
                    _moment(item.get("when")),
                    text_of(item, "offence"),
                    text_of(item, "account"),
                    text_of(item, "transport"),
                    "proven" if item.get("proven") is True else "could be forged",
                )
                for item in evidence
            ],
        )
    if found.get("by") == "shield":
        line(f"Let it in again with: centralino firewall unblock {address}")


@firewall.command("top")
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@reads
def top(session: Session, as_json: bool, limit: int) -> None:
    """List the sources with the most offences, worst first."""
    found = session.client.read_list(FIREWALL, "Top", limit)
    if as_json:
        emit_json(found)
        return
    if not found:
        line("Nothing is held against anybody.")
        return
    rows = [
        (text_of(row, "address"), text_of(row, "offences"), text_of(row, "times_blocked")) for row in found
    ]
    table(("ADDRESS", "OFFENCES", "TIMES BLOCKED"), rows)


@firewall.command("allow")
@networks_argument
@for_option
@writes
def allow(session: Session, write: Write, networks: tuple[str, ...], seconds: int | None) -> None:
    """Let networks through to every service of this mode, and never block them."""
    _list_change(session, write, "allow", networks, seconds)


@firewall.command("block")
@networks_argument
@for_option
@writes
def block(session: Session, write: Write, networks: tuple[str, ...], seconds: int | None) -> None:
    """Drop everything that networks send. SSH from the management networks stays open."""
    _list_change(session, write, "block", networks, seconds)


@firewall.command("blocklist")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=True))
@writes
def blocklist(session: Session, write: Write, file: Path) -> None:
    """Replace the long list of blocked networks by those in FILE.

    One network a line; # begins a comment, - is stdin.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise click.FileError(str(file), str(error)) from error
    words = [line.partition("#")[0].strip() for line in text.splitlines()]
    listed: list[JsonValue] = []
    for number, word in enumerate(words, start=1):
        if word:
            try:
                network = ip_network(word, strict=False)
            except ValueError:
                raise click.UsageError(f"line {number} of {file}: {word[:64]!r} is no network") from None
            single = network.num_addresses == 1
            listed.append(str(network.network_address) if single else str(network))
    document, base = current(session.client)
    change_settings(session, write, _with(document, "blocklist", list(dict.fromkeys(listed))), base)


@firewall.command("disallow")
@networks_argument
@writes
def disallow(session: Session, write: Write, networks: tuple[str, ...]) -> None:
    """Take networks from the list of allowed ones."""
    document, base = current(session.client)
    left, removed = _without(document, "allow", networks)
    if not removed:
        raise NotFoundError(
            f"{', '.join(networks)} is not on the list", "see: centralino config show firewall.allow"
        )
    change_settings(session, write, _with(document, "allow", left), base)


@firewall.command("unblock")
@networks_argument
@writes
def unblock(session: Session, write: Write, networks: tuple[str, ...]) -> None:
    """Let networks in again: off the list of blocked ones, and forgiven by the SIP shield."""
    document, base = current(session.client)
    left, removed = _without(document, "block", networks)
    long_list = as_list(as_object(document.get("firewall")).get("blocklist"))
    kept = [text for text in long_list if str(ip_network(str(text), strict=False)) not in networks]
    removed += [str(text) for text in long_list if text not in kept] if len(kept) < len(long_list) else []
    single = [
        str(ip_network(network).network_address)
        for network in networks
        if ip_network(network).num_addresses == 1
    ]
    verdicts = [session.client.read_object(FIREWALL, "Why", address) for address in single]
    by_shield = [
        text_of(found, "address")
        for found in verdicts
        if as_object(found.get("shield")).get("blocked") is True
    ]
    if not removed and not by_shield:
        sentence = text_of(verdicts[0], "sentence") if verdicts else f"{', '.join(networks)} is on no list."
        raise NotFoundError(sentence.rstrip("."), "see: centralino firewall why ADDRESS")
    if write.dry_run:
        if write.json:
            emit_json({"dry_run": True, "shield": by_shield, "settings": list(removed)})
            return
        for address in by_shield:
            line(f"The SIP shield would forgive {address}.")
    else:
        for address in by_shield:
            session.client.call(FIREWALL, "Unblock", address)
            if not write.json:
                line(f"The SIP shield has forgiven {address}.", style="green")
    if removed:
        change_settings(session, write, _with(_with(document, "block", left), "blocklist", kept), base)
    elif write.json:
        emit_json({"changed": True, "unblocked": [*by_shield]})


@firewall.command("support")
@click.argument("networks", metavar="NETWORK...", type=NetworkType(), nargs=-1)
@click.option("--hours", type=click.IntRange(1, 7 * 24), metavar="N", help="How long, at most a week.")
@click.option("--end", is_flag=True, help="End the access now.")
@writes
def support(session: Session, write: Write, networks: tuple[str, ...], hours: int | None, end: bool) -> None:
    """Let a support team reach SSH and the web pages for some hours."""
    if end == bool(networks) or (networks and hours is None):
        raise click.UsageError("give networks and --hours, or --end alone")
    document, base = current(session.client)
    granted: JsonObject = {"networks": [], "until": None}
    if networks:
        granted = {"networks": list(networks), "until": _until((hours or 0) * 3600)}
    change_settings(session, write, _with(document, "support", granted), base)


@firewall.command("reload")
@writes
def reload(session: Session, write: Write) -> None:
    """Load the policy of the settings again, over whatever else changed the table. Drops no connection."""
    if write.dry_run:
        sentence = "Would load the policy of the settings in force again."
        emit_json({"dry_run": True, "sentence": sentence}) if write.json else line(sentence)
        return
    found = as_object(session.client.read(FIREWALL, "Reload", limit_seconds=90))
    if write.json:
        emit_json(found)
        return
    for reason in texts_of(found, "reasons"):
        line(f"! {reason}", style="bold red")
    if found.get("healthy") is True:
        line("The policy of the settings is loaded.", style="green")


def _list_change(
    session: Session, write: Write, name: str, networks: tuple[str, ...], seconds: int | None
) -> None:
    document, base = current(session.client)
    left, _ = _without(document, name, networks)
    until = None if seconds is None else _until(seconds)
    added: list[JsonValue] = [
        {"network": network, "until": until, "comment": write.comment[:200]} for network in networks
    ]
    change_settings(session, write, _with(document, name, [*left, *added]), base)


def _without(document: JsonObject, name: str, networks: tuple[str, ...]) -> tuple[list[JsonValue], list[str]]:
    """The list without these networks and without entries that are over; and the networks that were on it."""
    left: list[JsonValue] = []
    removed: list[str] = []
    for entry in as_list(as_object(document.get("firewall")).get(name)):
        network = text_of(as_object(entry), "network")
        if network in networks:
            removed.append(network)
        elif not _over(text_of(as_object(entry), "until")):
            left.append(entry)
    return left, removed


def _with(document: JsonObject, name: str, value: JsonValue) -> JsonObject:
    return {**document, "firewall": {**as_object(document.get("firewall")), name: value}}


def _until(seconds: int) -> str:
    return (
        (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")
    )


def _over(until: str) -> bool:
    try:
        return bool(until) and datetime.fromisoformat(until) <= datetime.now(UTC)
    except (ValueError, TypeError):
        return False


def _moment(value: JsonValue) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return local_time(datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds"))
