"""What only this box can know about network settings: pure, on settings and the truth of the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from daemon.errors import Problem
from daemon.network.truth import Link
from daemon.settings import Settings
from daemon.settings.network import AddressMethod, NetworkSection

SMALLEST_IPV6_MTU = 1280
"""RFC 8200 section 5."""


def check(network: NetworkSection, links: Mapping[str, Link]) -> list[Problem]:
    """Every problem, paths from the top of the document."""
    return [
        Problem(f"network.{problem.path}", problem.message, problem.remedy, problem.fatal)
        for source in (_missing, _ports, _routes, _overlaps, _sizes)
        for problem in source(network, links)
    ]


def check_pair(settings: Settings) -> list[Problem]:
    """What would cut an active pair in two, or leave a shared address without a home (S-FT-04)."""
    pair, network = settings.fault_tolerance, settings.network
    if not pair.enabled:
        return []
    problems: list[Problem] = []
    for number, shared in enumerate(pair.shared_addresses):
        interface = network.interfaces.get(shared.interface)
        if interface is None:
            continue
        path = f"network.interfaces.{shared.interface}"
        used = f"{shared.address.ip} (fault_tolerance.shared_addresses.{number})"
        family = [address for address in interface.addresses if address.version == shared.address.version]
        if not interface.enabled:
            problems.append(
                Problem(f"{path}.enabled", f"carries the shared address {used}", "move that address first")
            )
        elif family and not any(shared.address.ip in address.network for address in family):
            problems.append(
                Problem(
                    f"{path}.addresses",
                    f"the shared address {used} is outside every subnet of {shared.interface}",
                    "keep an address in its subnet, or change the shared address in the same change",
                )
            )
    own = {
        address.ip
        for interface in network.interfaces.values()
        if interface.enabled
        for address in interface.addresses
    }
    static = network.interfaces and all(
        interface.ipv4 is not AddressMethod.DHCP for interface in network.interfaces.values()
    )
    if pair.management_address is not None and static and pair.management_address not in own:
        problems.append(
            Problem(
                "fault_tolerance.management_address",
                f"{pair.management_address} is no address of this node any more, which cuts the pair",
                "change it in the same change, on both nodes, or disable fault_tolerance first",
            )
        )
    if pair.peer_address is not None and pair.peer_address in own:
        problems.append(
            Problem(
                "fault_tolerance.peer_address",
                f"{pair.peer_address} would be this node's own address",
                "give this node another address than its peer",
            )
        )
    return problems


def _virtual(network: NetworkSection) -> set[str]:
    return {name for name, interface in network.interfaces.items() if interface.vlan or interface.bond}


def _known(links: Mapping[str, Link]) -> str:
    return f"this box has: {', '.join(sorted(links)) or 'none'}"


def _missing(network: NetworkSection, links: Mapping[str, Link]) -> Iterator[Problem]:
    """Interfaces that are neither on the box nor made by these settings."""
    exists = set(links) | _virtual(network)
    for name, interface in network.interfaces.items():
        if name not in exists:
            yield Problem(f"interfaces.{name}", "there is no such interface", _known(links))
        if interface.vlan and interface.vlan.parent not in exists:
            yield Problem(
                f"interfaces.{name}.vlan.parent",
                f"there is no interface {interface.vlan.parent}",
                _known(links),
            )
        for number, link in enumerate(interface.bond.links if interface.bond else ()):
            if link not in exists:
                yield Problem(
                    f"interfaces.{name}.bond.links.{number}", f"there is no interface {link}", _known(links)
                )
    for number, route in enumerate(network.routes):
        if route.interface not in exists:
            yield Problem(
                f"routes.{number}.interface", f"there is no interface {route.interface}", _known(links)
            )


def _ports(network: NetworkSection, _links: Mapping[str, Link]) -> Iterator[Problem]:
    """A link belongs to one bond, and has no addresses of its own."""
    owners: dict[str, str] = {}
    for name, interface in network.interfaces.items():
        for number, link in enumerate(interface.bond.links if interface.bond else ()):
            path = f"interfaces.{name}.bond.links.{number}"
            if link in owners:
                yield Problem(path, f"{link} is in {owners[link]} already", "name it once")
            owners[link] = name
            own = network.interfaces.get(link)
            if own and (own.addresses or own.gateway or own.gateway6 or own.mtu or own.vlan or own.bond):
                yield Problem(
                    path,
                    f"{link} has settings of its own",
                    f"move them to {name} and remove interfaces.{link}",
                )


def _routes(network: NetworkSection, links: Mapping[str, Link]) -> Iterator[Problem]:
    """A next hop must be reachable without another route."""
    for number, route in enumerate(network.routes):
        interface = network.interfaces.get(route.interface)
        method = None
        if interface:
            method = interface.ipv4 if route.gateway.version == 4 else interface.ipv6
        if route.gateway.is_link_local or method not in (AddressMethod.STATIC, AddressMethod.OFF, None):
            continue
        if interface:
            subnets = [address.network for address in interface.addresses]
        else:
            subnets = (
                [address.network for address in links[route.interface].addresses]
                if route.interface in links
                else []
            )
        if not any(route.gateway in subnet for subnet in subnets if subnet.version == route.gateway.version):
            yield Problem(
                f"routes.{number}.gateway",
                f"{route.gateway} is outside every subnet of {route.interface}",
                "correct it, or give the interface an address in that subnet",
            )


def _overlaps(network: NetworkSection, links: Mapping[str, Link]) -> Iterator[Problem]:
    """Subnets of interfaces that the settings do not name; those they do name are compared by the schema."""
    bonded = {
        link for interface in network.interfaces.values() if interface.bond for link in interface.bond.links
    }
    foreign = [
        (address.network, link.name)
        for link in links.values()
        if link.name not in network.interfaces and link.name not in bonded
        for address in link.addresses
        if not address.ip.is_link_local and address.network.prefixlen < address.network.max_prefixlen
    ]
    for name, interface in network.interfaces.items():
        for number, address in enumerate(interface.addresses):
            for subnet, other in foreign:
                if subnet.version == address.version and subnet.overlaps(address.network):
                    yield Problem(
                        f"interfaces.{name}.addresses.{number}",
                        f"overlaps {subnet}, which {other} has now",
                        f"choose another subnet, or name {other} in the settings too",
                    )


def _sizes(network: NetworkSection, links: Mapping[str, Link]) -> Iterator[Problem]:
    """IPv6 needs packets of 1280 bytes; a VLAN cannot carry more than the interface below it."""
    for name, interface in network.interfaces.items():
        if interface.mtu is None:
            continue
        if interface.mtu < SMALLEST_IPV6_MTU and interface.ipv6 is not AddressMethod.OFF:
            yield Problem(
                f"interfaces.{name}.mtu",
                f"{interface.mtu} is too small for IPv6",
                f"raise it to {SMALLEST_IPV6_MTU}, or set interfaces.{name}.ipv6 to off",
            )
        if interface.vlan:
            parent = network.interfaces.get(interface.vlan.parent)
            there = links.get(interface.vlan.parent)
            below = (parent.mtu if parent else None) or (there.mtu if there else None)
            if below is not None and interface.mtu > below:
                yield Problem(
                    f"interfaces.{name}.mtu",
                    f"{interface.mtu} is more than the {below} of {interface.vlan.parent}",
                    "raise that one first",
                )
