"""NetworkManager keyfiles from settings: a pure function, one profile an interface.

Format: nm-settings-keyfile(5) of NetworkManager 1.40. The profile's UUID derives from the interface's name,
so that a profile keeps its identity through every change and NetworkManager can re-apply it in place.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address

from daemon.settings.network import AddressMethod, Interface, NetworkSection, Route

PREFIX = "centralino-"
SUFFIX = ".nmconnection"
PROFILES = uuid.UUID("0d3f0f5e-6f0b-5d0e-9c83-6a7e3c0f4b11")
GLOBAL_DNS_FILE = "90-centralino-dns.conf"
ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
MARK = "# Written by Centralino from the settings section network; changes here are overwritten.\n"

_IPV4_METHODS = {
    AddressMethod.DHCP: "auto",
    AddressMethod.STATIC: "manual",
    AddressMethod.AUTOMATIC: "auto",
    AddressMethod.OFF: "disabled",
}
_IPV6_METHODS = {
    AddressMethod.DHCP: "dhcp",
    AddressMethod.STATIC: "manual",
    AddressMethod.AUTOMATIC: "auto",
    AddressMethod.OFF: "disabled",
}


def profile_uuid(interface: str) -> str:
    """The UUID of the profile of an interface."""
    return str(uuid.uuid5(PROFILES, interface))


def file_name(interface: str) -> str:
    """The name of the profile's file; settings allow only harmless characters in interface names."""
    return f"{PREFIX}{interface}{SUFFIX}"


def render(network: NetworkSection) -> dict[str, str]:
    """Interface name to the whole text of its keyfile; the links of bonds have one as well."""
    masters = {
        link: name
        for name, interface in network.interfaces.items()
        if interface.bond
        for link in interface.bond.links
    }
    files = {
        name: _text(_sections(name, interface, network))
        for name, interface in network.interfaces.items()
        if name not in masters
    }
    for link, master in masters.items():
        interface = network.interfaces.get(link)
        files[link] = _text(_port_sections(link, master, interface))
    return dict(sorted(files.items()))


def render_global_dns(network: NetworkSection) -> str | None:
    """The conf.d file that replaces every other source of name servers; None when DHCP decides."""
    if not network.dns.servers:
        return None
    searches = f"searches={','.join(network.dns.search)}\n" if network.dns.search else ""
    servers = ",".join(str(server) for server in network.dns.servers)
    return f"{MARK}[global-dns]\n{searches}\n[global-dns-domain-*]\nservers={servers}\n"


Sections = Sequence[tuple[str, Sequence[str]]]


def _text(sections: Sections) -> str:
    blocks = ["\n".join([f"[{name}]", *lines]) + "\n" for name, lines in sections]
    return MARK + "\n" + "\n".join(blocks)


def _sections(name: str, interface: Interface, network: NetworkSection) -> Sections:
    sections: list[tuple[str, Sequence[str]]] = [("connection", _connection(name, interface))]
    # MTU is a property of the link layer: VLANs and bonds take it in the same section as a card does.
    if interface.mtu is not None:
        sections.append(("ethernet", [f"mtu={interface.mtu}"]))
    if interface.vlan:
        sections.append(("vlan", ["flags=1", f"id={interface.vlan.tag}", f"parent={interface.vlan.parent}"]))
    if interface.bond:
        sections.append(("bond", [f"mode={interface.bond.mode.value}", "miimon=100"]))
    sections.append(("ipv4", list(_family(name, interface, network, 4))))
    sections.append(("ipv6", list(_family(name, interface, network, 6))))
    return sections


def _connection(name: str, interface: Interface) -> list[str]:
    kind = "vlan" if interface.vlan else "bond" if interface.bond else "ethernet"
    return [
        f"id={PREFIX}{name}",
        f"uuid={profile_uuid(name)}",
        f"type={kind}",
        f"interface-name={name}",
        f"autoconnect={'true' if interface.enabled else 'false'}",
        # Above the image's own profile (0), and tried for ever: a cable may be plugged in at any time.
        "autoconnect-priority=100",
        "autoconnect-retries=0",
    ] + (["autoconnect-slaves=1"] if interface.bond else [])


def _port_sections(link: str, master: str, interface: Interface | None) -> Sections:
    enabled = interface is None or interface.enabled
    return [
        (
            "connection",
            [
                f"id={PREFIX}{link}",
                f"uuid={profile_uuid(link)}",
                "type=ethernet",
                f"interface-name={link}",
                f"autoconnect={'true' if enabled else 'false'}",
                "autoconnect-priority=100",
                "autoconnect-retries=0",
                f"master={profile_uuid(master)}",
                "slave-type=bond",
            ],
        )
    ]


def _family(name: str, interface: Interface, network: NetworkSection, version: int) -> Iterator[str]:
    method = interface.ipv4 if version == 4 else interface.ipv6
    gateway = interface.gateway if version == 4 else interface.gateway6
    addresses = [address for address in interface.addresses if address.version == version]
    yield f"method={(_IPV4_METHODS if version == 4 else _IPV6_METHODS)[method]}"
    if method is AddressMethod.OFF:
        return
    for number, address in enumerate(addresses, start=1):
        yield f"address{number}={address.with_prefixlen}"
    # NetworkManager takes `gateway` only beside an address of its own; elsewhere a default route says it.
    if gateway is not None and addresses:
        yield f"gateway={gateway}"
    yield from _routes(name, network, version, gateway if not addresses else None)
    if gateway is None and _another_gateway(name, network, version):
        yield "never-default=true"
    if network.dns.search and not network.dns.servers:
        yield f"dns-search={';'.join(network.dns.search)};"
    if version == 6:
        # The address of a server must not change by itself: no privacy addresses (RFC 8981).
        yield "addr-gen-mode=eui64"
        yield "ip6-privacy=0"


def _routes(
    name: str, network: NetworkSection, version: int, gateway: IPv4Address | IPv6Address | None
) -> Iterator[str]:
    routes: list[str] = [
        _route(route)
        for route in network.routes
        if route.interface == name and route.destination.version == version
    ]
    if gateway is not None:
        routes.insert(0, f"{ANYWHERE[version]},{gateway}")
    for number, route in enumerate(routes, start=1):
        yield f"route{number}={route}"


def _route(route: Route) -> str:
    metric = "" if route.metric is None else f",{route.metric}"
    return f"{route.destination},{route.gateway}{metric}"


def _another_gateway(name: str, network: NetworkSection, version: int) -> bool:
    """Whether the admin named the way out through another interface; DHCP here must not compete with it."""
    return any(
        (other.gateway if version == 4 else other.gateway6) is not None
        for other_name, other in network.interfaces.items()
        if other_name != name
    )
