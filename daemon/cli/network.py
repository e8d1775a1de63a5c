"""`centralino network`: interfaces, routes, names and time of this node, in an installer's words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from daemon.cli.client import SYSTEM
from daemon.cli.json_types import JsonObject, JsonValue, as_list, as_object, objects_of, text_of, texts_of
from daemon.cli.plans import change_settings, current
from daemon.cli.render import emit_json, line, table
from daemon.cli.session import Session, Write, reads, writes
from daemon.errors import NotFoundError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
METHODS_IPV4 = ("dhcp", "static", "off")
METHODS_IPV6 = ("automatic", "dhcp", "static", "off")

confirm_option: Decorator = click.option(
    "--confirm",
    "confirm_seconds",
    type=click.IntRange(0, 3600),
    metavar="SECONDS",
    help="Time to confirm a change that could cut you off, before the box returns by itself; 0: keep it"
    " without asking and without checks (for a box that is prepared for another network).",
)


@click.group()
def network() -> None:
    """Addresses, routes, name servers, time servers and the name of this node.

    A change that could cut you off is tried: the box checks at once whether its gateway, its name servers
    and your SSH session still answer, and returns by itself unless you run `centralino config confirm`.
    """


# --- seeing -------------------------------------------------------------------------------------------------


@network.command("show")
@reads
def show(session: Session, as_json: bool) -> None:
    """Show what the box has, beside what the settings ask for."""
    document, revision = current(session.client)
    status = session.client.read_object(SYSTEM, "Status")
    section = as_object(document.get("network"))
    subsystems = as_object(status.get("subsystems"))
    state = as_object(subsystems.get("network"))
    facts = as_object(state.get("facts"))
    if as_json:
        emit_json(
            {
                "revision": revision,
                "hostname": as_object(document.get("node")).get("hostname"),
                "settings": section,
                "now": facts,
                "drift": state.get("drift", []),
                "pending": status.get("pending"),
            }
        )
        return
    interfaces = as_object(section.get("interfaces"))
    links = {text_of(link, "name"): link for link in objects_of(facts, "interfaces")}
    names = [*links, *(name for name in interfaces if name not in links)]
    rows = [
        (
            name,
            _state(links.get(name)),
            _source(as_object(interfaces.get(name))) if name in interfaces else "the image's profile",
            ", ".join(texts_of(links.get(name, {}), "addresses")) or "none",
            text_of(links.get(name, {}), "mtu"),
        )
        for name in names
    ]
    table(("INTERFACE", "STATE", "SETTINGS", "ADDRESSES NOW", "MTU"), rows)
    line()
    dns, ntp = as_object(section.get("dns")), as_object(section.get("ntp"))
    asked = texts_of(dns, "servers")
    line(f"Name          {text_of(as_object(document.get('node')), 'hostname')}")
    line(f"Gateways      {', '.join(texts_of(facts, 'gateways')) or 'none'}")
    line(
        f"Name servers  {', '.join(texts_of(facts, 'name_servers')) or 'none'}"
        f" ({'from the settings' if asked else 'from DHCP'})"
    )
    sources = texts_of(ntp, "servers") + texts_of(ntp, "pools")
    line(f"Time servers  {', '.join(sources) or 'those of the image'}")
    for route in objects_of(section, "routes"):
        line(f"Route         {_route_text(route)}")
    for host in objects_of(section, "hosts"):
        line(f"Host          {text_of(host, 'address')} is {' '.join(texts_of(host, 'names'))}")
    for sentence in texts_of(state, "reasons") + texts_of(state, "drift"):
        line(f"Attention     {sentence}", style="yellow")


def _state(link: JsonObject | None) -> str:
    if link is None:
        return "missing"
    if link.get("carrier") is not True:
        return "no cable"
    return "up" if link.get("up") is True else "down"


def _source(interface: JsonObject) -> str:
    if interface.get("enabled") is False:
        return "kept down"
    words = [f"IPv4 {text_of(interface, 'ipv4', 'dhcp')}", f"IPv6 {text_of(interface, 'ipv6', 'automatic')}"]
    if vlan := as_object(interface.get("vlan")):
        words.append(f"VLAN {text_of(vlan, 'tag')} on {text_of(vlan, 'parent')}")
    if bond := as_object(interface.get("bond")):
        words.append(f"bond of {', '.join(texts_of(bond, 'links'))}")
    return ", ".join(words)


def _route_text(route: JsonObject) -> str:
    metric = f", metric {text_of(route, 'metric')}" if route.get("metric") is not None else ""
    way = f"via {text_of(route, 'gateway')} on {text_of(route, 'interface')}"
    return f"{text_of(route, 'destination')} {way}{metric}"


# --- interfaces ---------------------------------------------------------------------------------------------


@network.command("set")
@click.argument("interface")
@click.option("--dhcp", is_flag=True, help="IPv4 by DHCP.")
@click.option(
    "--address",
    "-a",
    "addresses",
    multiple=True,
    metavar="ADDRESS/LENGTH",
    help="Static address, IPv4 or IPv6; give it again for more. Replaces those of its family.",
)
@click.option("--gateway", "-g", metavar="ADDRESS", help="Default gateway (IPv4); `none` removes it.")
@click.option("--gateway6", metavar="ADDRESS", help="Default gateway (IPv6); `none` removes it.")
@click.option("--ipv4", type=click.Choice(METHODS_IPV4), help="Where IPv4 addresses come from.")
@click.option("--ipv6", type=click.Choice(METHODS_IPV6), help="Where IPv6 addresses come from.")
@click.option("--mtu", metavar="BYTES", help="Largest packet; `none` leaves it to the driver.")
@click.option("--vlan", metavar="PARENT:TAG", help="Make it a VLAN, for example eth0:100.")
@click.option("--bond", metavar="LINK,LINK", help="Make it a bond of these links.")
@click.option("--bond-mode", type=click.Choice(["active-backup", "802.3ad", "balance-xor"]))
@click.option("--up/--down", "enabled", default=None, help="Bring it up, or keep it down.")
@confirm_option
@writes
def set_interface(
    session: Session,
    write: Write,
    interface: str,
    dhcp: bool,
    addresses: tuple[str, ...],
    gateway: str | None,
    gateway6: str | None,
    ipv4: str | None,
    ipv6: str | None,
    mtu: str | None,
    vlan: str | None,
    bond: str | None,
    bond_mode: str | None,
    enabled: bool | None,
    confirm_seconds: int | None,
) -> None:
    """Set an interface; what is not named stays.

    \b
    centralino network set eth0 --dhcp
    centralino network set eth0 --address 192.0.2.10/24 --gateway 192.0.2.1
    centralino network set eth0.100 --vlan eth0:100 --address 198.51.100.2/24
    centralino network set bond0 --bond eth1,eth2 --bond-mode 802.3ad --dhcp
    """
    document, base = current(session.client)
    section = as_object(document["network"])
    interfaces = dict(as_object(section.get("interfaces")))
    here: JsonObject = dict(as_object(interfaces.get(interface)))
    _set_addresses(here, addresses, dhcp=dhcp, ipv4=ipv4, ipv6=ipv6)
    for key, value in (("gateway", gateway), ("gateway6", gateway6)):
        if value is not None:
            here[key] = None if value == "none" else value
    if mtu is not None:
        here["mtu"] = None if mtu == "none" else _whole("--mtu", mtu)
    if vlan is not None:
        parent, _, tag = vlan.rpartition(":")
        if not parent:
            raise click.UsageError("--vlan takes PARENT:TAG, for example eth0:100")
        here["vlan"] = {"parent": parent, "tag": _whole("--vlan", tag)}
    if bond is not None:
        here["bond"] = {"links": [*filter(None, bond.split(","))], "mode": bond_mode or "active-backup"}
    elif bond_mode is not None:
        here["bond"] = {**as_object(here.get("bond")), "mode": bond_mode}
    if enabled is not None:
        here["enabled"] = enabled
    interfaces[interface] = here
    document["network"] = {**section, "interfaces": interfaces}
    change_settings(session, write, document, base, confirm_seconds=confirm_seconds)


def _set_addresses(
    here: JsonObject, addresses: Sequence[str], *, dhcp: bool, ipv4: str | None, ipv6: str | None
) -> None:
    """New addresses replace those of their family and make it static; another method removes them."""
    if dhcp and ipv4 not in (None, "dhcp"):
        raise click.UsageError("--dhcp and --ipv4 contradict each other")
    known = texts_of(here, "addresses")
    new4 = [address for address in addresses if ":" not in address]
    new6 = [address for address in addresses if ":" in address]
    if dhcp and new4:
        raise click.UsageError("--dhcp and a static IPv4 address contradict each other")
    method4 = ipv4 or ("dhcp" if dhcp else "static" if new4 else None)
    method6 = ipv6 or ("static" if new6 else None)
    kept4 = new4 or [address for address in known if ":" not in address]
    kept6 = new6 or [address for address in known if ":" in address]
    if method4 is not None:
        here["ipv4"] = method4
        if method4 != "static":
            kept4, here["gateway"] = [], None
    if method6 is not None:
        here["ipv6"] = method6
        if method6 != "static":
            kept6, here["gateway6"] = [], None
    listed: list[JsonValue] = [*kept4, *kept6]
    here["addresses"] = listed


def _whole(option: str, text: str) -> int:
    if not text.isdecimal():
        raise click.UsageError(f"{option}: {text!r} is no whole number")
    return int(text[:9])


@network.command("unset")
@click.argument("interface")
@confirm_option
@writes
def unset_interface(session: Session, write: Write, interface: str, confirm_seconds: int | None) -> None:
    """Leave an interface to the profile that the image brought; a VLAN or bond is removed."""
    document, base = current(session.client)
    section = as_object(document["network"])
    interfaces = dict(as_object(section.get("interfaces")))
    if interface not in interfaces:
        raise NotFoundError(f"the settings do not name {interface}", "see: centralino network show")
    del interfaces[interface]
    document["network"] = {**section, "interfaces": interfaces}
    change_settings(session, write, document, base, confirm_seconds=confirm_seconds)


# --- routes and host entries --------------------------------------------------------------------------------


@network.group("route")
def route_group() -> None:
    """Static routes, besides the default gateway."""


@route_group.command("add")
@click.argument("destination", metavar="NETWORK/LENGTH")
@click.option("--via", "gateway", required=True, metavar="ADDRESS", help="Next hop.")
@click.option("--interface", "-i", required=True, help="Interface that the next hop is reached through.")
@click.option("--metric", type=click.IntRange(0, 2**32 - 1), help="Lower wins.")
@confirm_option
@writes
def add_route(
    session: Session,
    write: Write,
    destination: str,
    gateway: str,
    interface: str,
    metric: int | None,
    confirm_seconds: int | None,
) -> None:
    """Reach a network through another router than the default gateway."""
    entry: JsonObject = {
        "destination": destination,
        "gateway": gateway,
        "interface": interface,
        "metric": metric,
    }

    def grown(routes: list[JsonValue]) -> list[JsonValue]:
        return [route for route in routes if as_object(route).get("destination") != destination] + [entry]

    _change_list(session, write, "routes", grown, confirm_seconds)


@route_group.command("remove")
@click.argument("destination", metavar="NETWORK/LENGTH")
@confirm_option
@writes
def remove_route(session: Session, write: Write, destination: str, confirm_seconds: int | None) -> None:
    """Remove the route to a network."""
    _change_list(session, write, "routes", _without("destination", destination, "route to"), confirm_seconds)


@network.group("host")
def host_group() -> None:
    """Names that this node knows without DNS (/etc/hosts)."""


@host_group.command("add")
@click.argument("address")
@click.argument("names", nargs=-1, required=True)
@writes
def add_host(session: Session, write: Write, address: str, names: tuple[str, ...]) -> None:
    """Know the names of an address; replaces what was known of it."""
    entry: JsonObject = {"address": address, "names": list(names)}

    def grown(hosts: list[JsonValue]) -> list[JsonValue]:
        return [host for host in hosts if as_object(host).get("address") != address] + [entry]

    _change_list(session, write, "hosts", grown, None)


@host_group.command("remove")
@click.argument("address")
@writes
def remove_host(session: Session, write: Write, address: str) -> None:
    """Forget the names of an address."""
    _change_list(session, write, "hosts", _without("address", address, "entry for"), None)


def _without(key: str, value: str, what: str) -> Callable[[list[JsonValue]], list[JsonValue]]:
    def shrunk(entries: list[JsonValue]) -> list[JsonValue]:
        left = [entry for entry in entries if as_object(entry).get(key) != value]
        if len(left) == len(entries):
            raise NotFoundError(f"there is no {what} {value}", "see: centralino network show")
        return left

    return shrunk


def _change_list(
    session: Session,
    write: Write,
    key: str,
    change: Callable[[list[JsonValue]], list[JsonValue]],
    confirm_seconds: int | None,
) -> None:
    document, base = current(session.client)
    section = as_object(document["network"])
    document["network"] = {**section, key: change(list(as_list(section.get(key))))}
    change_settings(session, write, document, base, confirm_seconds=confirm_seconds)


# --- names and time -----------------------------------------------------------------------------------------


@network.command("dns")
@click.argument("servers", nargs=-1, metavar="[SERVER]...")
@click.option("--search", "searches", multiple=True, metavar="DOMAIN", help="Search domain; again for more.")
@click.option("--dhcp", is_flag=True, help="Ask those that DHCP names.")
@confirm_option
@writes
def dns(
    session: Session,
    write: Write,
    servers: tuple[str, ...],
    searches: tuple[str, ...],
    dhcp: bool,
    confirm_seconds: int | None,
) -> None:
    """Set the name servers, or show them when none is named."""
    if dhcp and servers:
        raise click.UsageError("--dhcp and SERVER contradict each other")
    document, base = current(session.client)
    section = as_object(document["network"])
    known = as_object(section.get("dns"))
    if not (servers or searches or dhcp):
        _show_pair(write, known, "servers", "search", "those that DHCP names")
        return
    changed: JsonObject = dict(known)
    if servers or dhcp:
        changed["servers"] = list(servers)
    if searches:
        changed["search"] = list(searches)
    document["network"] = {**section, "dns": changed}
    change_settings(session, write, document, base, confirm_seconds=confirm_seconds)


@network.command("ntp")
@click.argument("servers", nargs=-1, metavar="[SERVER]...")
@click.option(
    "--pool", "pools", multiple=True, metavar="NAME", help="A name that stands for several servers."
)
@click.option("--default", "default", is_flag=True, help="Use those of the image.")
@writes
def ntp(
    session: Session, write: Write, servers: tuple[str, ...], pools: tuple[str, ...], default: bool
) -> None:
    """Set the time servers, or show them when none is named. They replace those of the image."""
    if default and (servers or pools):
        raise click.UsageError("--default and servers contradict each other")
    document, base = current(session.client)
    section = as_object(document["network"])
    if not (servers or pools or default):
        _show_pair(write, as_object(section.get("ntp")), "servers", "pools", "those of the image")
        return
    document["network"] = {**section, "ntp": {"servers": list(servers), "pools": list(pools)}}
    change_settings(session, write, document, base)


def _show_pair(write: Write, known: JsonObject, first: str, second: str, otherwise: str) -> None:
    if write.json:
        emit_json(known)
        return
    line(", ".join(texts_of(known, first)) or otherwise)
    if texts_of(known, second):
        line(f"{second}: {', '.join(texts_of(known, second))}")


@network.command("hostname")
@click.argument("name", required=False)
@writes
def hostname(session: Session, write: Write, name: str | None) -> None:
    """Name this node, or show its name."""
    document, base = current(session.client)
    node = as_object(document["node"])
    if name is None:
        if write.json:
            emit_json({"hostname": node.get("hostname")})
        else:
            line(text_of(node, "hostname"))
        return
    document["node"] = {**node, "hostname": name}
    change_settings(session, write, document, base)
