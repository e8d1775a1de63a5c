"""`centralino fault-tolerance`: form a pair, watch it, move the master role, dissolve it."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_interface
from typing import TextIO

import click

from daemon.cli.json_types import JsonObject, JsonValue, as_object, objects_of, text_of, texts_of
from daemon.cli.plans import agreed, change_settings, current, plan_of, show_verb_plan
from daemon.cli.progress import follow
from daemon.cli.render import emit_json, fields, line
from daemon.cli.session import Session, Write, reads, writes
from daemon.errors import CentralinoError

FAULT_TOLERANCE = "FaultTolerance1"
WATCH_SECONDS = 1.0
LONG_SECONDS = 60.0


class AddressType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """One address."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The address in its usual writing."""
        try:
            return str(ip_address(str(value)))
        except ValueError:
            self.fail(f"{value!r} is no address, write it like 192.0.2.12")


class SharedType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A shared address: ADDRESS/PREFIX@INTERFACE."""

    name = "shared"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> JsonValue:
        """The entry of the settings."""
        if isinstance(value, dict):
            return value
        address, at, interface = str(value).rpartition("@")
        try:
            found = ip_interface(address)
        except ValueError:
            found = None
        if not at or not interface or found is None or "/" not in address:
            self.fail(f"{value!r} is no shared address, write it like 192.0.2.20/24@eth0")
        return {"address": str(found), "interface": interface, "primary": False}


@click.group(name="fault-tolerance")
def fault_tolerance() -> None:
    """Form a pair of nodes, watch it, rehearse and make a switch, dissolve it."""


@fault_tolerance.command("status")
@click.option("--watch", is_flag=True, help="Show it anew each second until Ctrl-C.")
@reads
def status(session: Session, as_json: bool, watch: bool) -> None:
    """Show roles, readiness, addresses, link and replication of the pair."""
    while True:
        found = session.client.read_object(FAULT_TOLERANCE, "Status")
        if as_json:
            emit_json(found)
        else:
            if watch:
                click.clear()
            _show(found)
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


def _show(found: JsonObject) -> None:
    if found.get("paired") is not True:
        line("This node has no peer. Form a pair with: centralino fault-tolerance pair PEER")
        return
    link, peer = as_object(found.get("link")), as_object(found.get("peer"))
    pairs = [
        (
            "this node",
            f"{text_of(found, 'role')} (epoch {text_of(found, 'epoch')}): {text_of(found, 'reason')}",
        ),
        ("may take over", _readiness(found)),
    ]
    if peer:
        what, heard = f"{text_of(peer, 'role')} (epoch {text_of(peer, 'epoch')})", link.get("state") == "up"
        ago = f"{text_of(link, 'silent_seconds').partition('.')[0]} s ago"
        pairs.append(("peer", what if heard else f"was {what} when it was heard last, {ago}"))
        pairs.append(("peer ready", _readiness(peer) if heard else "not known"))
    trouble = text_of(link, "trouble")
    pairs.append(("peer link", f"{text_of(link, 'state')}{f' ({trouble})' if trouble else ''}"))
    if found.get("vrrp"):
        pairs.append(("VRRP", text_of(found, "vrrp")))
    for entry in objects_of(found, "addresses"):
        place = "here" if entry.get("here") is True else "not here"
        pairs.append((text_of(entry, "address"), f"{place}, on {text_of(entry, 'interface')}"))
    for name in ("gateway", "witness"):
        third = as_object(found.get(name))
        if text_of(third, "state") != "unset":
            pairs.append((name, f"{text_of(third, 'address')} {text_of(third, 'state')}"))
    for name in ("database", "files"):
        part = as_object(found.get(name))
        lag = part.get("lag_milliseconds")
        shown = text_of(part, "detail") + ("" if lag is None else f", {lag} ms behind")
        pairs.append((name, shown.lstrip(", ")))
    skew = found.get("clock_skew_seconds")
    if skew is not None:
        pairs.append(("clocks", f"{skew} s apart"))
    fields(pairs)


def _readiness(found: JsonObject) -> str:
    if found.get("ready") is True:
        return "yes"
    return "no: " + "; ".join(texts_of(found, "obstacles"))


@fault_tolerance.command("why")
@reads
def why(session: Session, as_json: bool) -> None:
    """Say why this node is what it is, and why it may or may not take over."""
    found = session.client.read_object(FAULT_TOLERANCE, "Why")
    if as_json:
        emit_json(found)
        return
    for sentence in texts_of(found, "sentences"):
        line(sentence)


@fault_tolerance.command("configure")
@click.option("--peer", type=AddressType(), help="Address of the other node.")
@click.option("--management", type=AddressType(), help="Own address for the peer link.")
@click.option(
    "--bandwidth",
    type=click.IntRange(0, 10_000_000),
    metavar="KB/S",
    help="For file replication; 0: unlimited.",
)
@click.option(
    "--shared",
    type=SharedType(),
    multiple=True,
    metavar="ADDRESS/PREFIX@INTERFACE",
    help="An address that moves; give all of them, the primary one first.",
)
@click.option("--gateway", type=AddressType(), help="Router whose loss makes a node step back.")
@click.option("--witness", type=AddressType(), help="A third host to look at.")
@click.option("--profile", type=click.Choice(("standard", "fast")), help="How fast a dead master is noticed.")
@click.option("--router-id", type=click.IntRange(1, 255), help="VRRP number, unique on the subnet.")
@writes
def configure(
    session: Session, write: Write, /, shared: tuple[JsonValue, ...], **options: str | int | None
) -> None:
    """Set peer, addresses, bandwidth, gateway and witness of the pair. What is not given stays."""
    document, base = current(session.client)
    names = {
        "peer": "peer_address",
        "management": "management_address",
        "bandwidth": "replication_kilobytes_per_second",
        "gateway": "gateway",
        "witness": "witness",
        "profile": "profile",
        "router_id": "virtual_router_id",
    }
    section = dict(as_object(document.get("fault_tolerance")))
    for option, value in options.items():
        if value is not None:
            section[names[option]] = value
    if shared:
        section["shared_addresses"] = [
            {**as_object(entry), "primary": number == 0} for number, entry in enumerate(shared)
        ]
    change_settings(session, write, {**document, "fault_tolerance": section}, base)


@fault_tolerance.command("invite")
@writes
def invite(session: Session, write: Write) -> None:
    """Make a one-time code with which the other node may pair with this one."""
    answer = session.client.call(
        FAULT_TOLERANCE, "Invite", write.options(dry=write.dry_run), limit_seconds=LONG_SECONDS
    )
    found = plan_of(answer)
    if write.json:
        emit_json(found)
    elif write.dry_run:
        show_verb_plan(found, "")
    else:
        line(f"Code: {text_of(found, 'code')}", style="bold")
        line(
            f"It is good for {text_of(found, 'minutes')} minutes, once. On the other node run: "
            "centralino fault-tolerance pair ADDRESS-OF-THIS-NODE"
        )


@fault_tolerance.command("pair")
@click.argument("peer", type=AddressType())
@click.option(
    "--port", type=click.IntRange(1, 65535), default=22, show_default=True, help="SSH port of the peer."
)
@click.option(
    "--code-from",
    type=click.File("r"),
    metavar="FILE",
    help="Read the code from a file, - for standard input; else it is asked for.",
)
@writes
def pair(session: Session, write: Write, peer: str, port: int, code_from: TextIO | None) -> None:
    """Become a pair with the node at PEER, which has made a code by `invite`."""
    plan = plan_of(
        session.client.call(FAULT_TOLERANCE, "Pair", write.options(dry=True, peer=peer, port=port))
    )
    if write.dry_run:
        emit_json(plan) if write.json else show_verb_plan(plan, "")
        return
    if not write.json:
        show_verb_plan(plan, "")
    if code_from is None:
        code = click.prompt("Code", hide_input=False, err=True)
    else:
        code = code_from.readline().strip()
    write.ask("Pair?")
    job = session.client.call(FAULT_TOLERANCE, "Pair", write.options(peer=peer, port=port, code=code))
    _report(session, write, job, "This node has a peer now. See: centralino fault-tolerance status")


@fault_tolerance.command("unpair")
@writes
def unpair(session: Session, write: Write) -> None:
    """Dissolve the pair on this node. Run it on both, the slave first."""
    plan = plan_of(session.client.call(FAULT_TOLERANCE, "Unpair", write.options(dry=True)))
    if not agreed(write, plan, "Dissolve the pair?"):
        return
    job = session.client.call(FAULT_TOLERANCE, "Unpair", write.options())
    _report(session, write, job, "This node has no peer any more.")


@fault_tolerance.command("switch")
@click.option(
    "--drain",
    type=click.IntRange(0, 86400),
    default=0,
    metavar="SECONDS",
    help="Refuse new calls and wait for those that are up.",
)
@writes
def switch(session: Session, write: Write, drain: int) -> None:
    """Hand the master role to the peer, measured. Refused when the peer is not ready."""
    plan = plan_of(
        session.client.call(FAULT_TOLERANCE, "Switch", write.options(dry=True, drain_seconds=drain))
    )
    if not agreed(write, plan, "Switch?"):
        return
    job = session.client.call(FAULT_TOLERANCE, "Switch", write.options(drain_seconds=drain))
    result = follow(session.client, job, quiet=write.json)
    if write.json:
        emit_json(result)
    else:
        line(f"The peer is master; it took {text_of(result, 'seconds')} s.", style="green")
        if drain:
            line(
                f"Waited {text_of(result, 'waited_for_calls_seconds')} s for calls to end, refused "
                f"{text_of(result, 'calls_refused')} new ones, ended {text_of(result, 'calls_ended')}."
            )


@fault_tolerance.command("rehearse")
@writes
def rehearse(session: Session, write: Write) -> None:
    """Switch to the peer and back, and report both. Live calls end."""
    plan = plan_of(session.client.call(FAULT_TOLERANCE, "Rehearse", write.options(dry=True)))
    if not agreed(write, plan, "Rehearse?"):
        return
    job = session.client.call(FAULT_TOLERANCE, "Rehearse", write.options())
    result = follow(session.client, job, quiet=write.json)
    if write.json:
        emit_json(result)
        return
    for name, what in (("there", "to the peer"), ("back", "back to this node")):
        line(f"The switch {what} took {text_of(as_object(result.get(name)), 'seconds')} s.", style="green")


@fault_tolerance.command("role")
@click.argument("role", type=click.Choice(("master", "slave", "off")))
@click.option("--force", is_flag=True, help="Step over what may be stepped over; `why` names it.")
@click.option(
    "--wait", type=click.IntRange(0, 600), default=60, show_default=True, metavar="SECONDS", help="For it."
)
@writes
def role(session: Session, write: Write, role: str, force: bool, wait: int) -> None:
    """Ask this node to be master, slave, or off (services stopped)."""
    dry = session.client.call(FAULT_TOLERANCE, "Role", role, write.options(dry=True, forced=force))
    if not agreed(write, plan_of(dry), f"Become {role}?"):
        return
    session.client.call(FAULT_TOLERANCE, "Role", role, write.options(forced=force))
    deadline = time.monotonic() + wait
    found: JsonObject = {}
    while True:
        found = session.client.read_object(FAULT_TOLERANCE, "Status")
        if text_of(found, "role") == role and text_of(found, "wish") == "none":
            break
        if time.monotonic() > deadline:
            reasons = "; ".join(texts_of(found, "obstacles")) or text_of(found, "reason")
            raise CentralinoError(
                f"this node is {text_of(found, 'role')} and has not become {role}: {reasons}",
                "the wish stays; see: centralino fault-tolerance why",
            )
        time.sleep(0.2)
    if write.json:
        emit_json({"role": role})
    else:
        line(f"This node is {role}.", style="green")


def _report(session: Session, write: Write, job: str, sentence: str) -> None:
    result = follow(session.client, job, quiet=write.json)
    emit_json(result) if write.json else line(sentence, style="green")
