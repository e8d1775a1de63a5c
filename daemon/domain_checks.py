"""Whether the world finds the appliance under its name: what DNS says inside and outside, in sentences.

Split DNS (S-NW-08): inside, the name must lead to the appliance's own address, so that phones on the LAN
speak to it directly; outside, it leads to the public address or, behind an edge, to the edge. One name, two
answers, and each place must get the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network

from daemon import dns
from daemon.errors import Problem, UnavailableError
from daemon.settings import Settings
from daemon.settings.network import AddressMethod
from daemon.settings.reach import WorkMode

Address = IPv4Address | IPv6Address
Ask = Callable[[str, dns.RecordType, Address], dns.Answer]

UNREACHABLE = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.168.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "::/127", "fc00::/7", "fe80::/10", "ff00::/8",
    )
)  # fmt: skip
"""Nobody on the Internet can reach these (RFC 6890)."""
EXAMPLES = tuple(
    ip_network(text)
    for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15", "2001:db8::/32")
)
"""For documentation and trials (RFC 5737, 2544, 3849)."""


@dataclass(frozen=True)
class View:
    """What one side's name servers say of the name: `answered` is False when none of them answered."""

    servers: tuple[Address, ...] = ()
    answered: bool = False
    code: int = 0
    addresses: tuple[Address, ...] = ()
    aliases: tuple[str, ...] = ()
    reason: str = ""

    def as_json(self) -> dict[str, object]:
        """Keys `servers`, `answered`, `addresses`, `aliases`."""
        return {
            "servers": [str(server) for server in self.servers],
            "answered": self.answered,
            "addresses": [str(address) for address in self.addresses],
            "aliases": list(self.aliases),
        }


@dataclass(frozen=True)
class Facts:
    """Own addresses of the box (shared ones too) and both views of DNS."""

    own: frozenset[Address] = frozenset()
    inside: View = field(default_factory=View)
    outside: View = field(default_factory=View)


def see(name: str, servers: Sequence[Address], ask: Ask) -> View:
    """The name's addresses of both families by the first server that answers."""
    reason = ""
    for server in servers:
        try:
            four = ask(name, dns.RecordType.A, server)
            six = ask(name, dns.RecordType.AAAA, server)
        except UnavailableError as error:
            reason = error.message
            continue
        aliases = four.aliases or six.aliases
        code = four.code if four.code else six.code
        return View(tuple(servers), True, code, (*four.addresses, *six.addresses), aliases)
    return View(tuple(servers), reason=reason)


def unreachable(address: Address) -> bool:
    """Whether nobody on the Internet can reach it."""
    return any(address in network for network in UNREACHABLE if network.version == address.version)


def check_address(settings: Settings) -> Iterator[Problem]:
    """A public address must be one; in cloud mode it must also be static (S-NW-02)."""
    address, cloud = settings.domain.public_address, settings.mode.mode is WorkMode.CLOUD
    if address is None:
        return
    path = "domain.public_address"
    if unreachable(address):
        yield Problem(
            path,
            f"{address} is no public address, nobody on the Internet can reach it",
            "give the address that your provider or your router has on its outer side",
            fatal=cloud,
        )
    elif any(address in network for network in EXAMPLES if network.version == address.version):
        yield Problem(path, f"{address} is an address for examples and trials", "use your own", fatal=False)
    if not cloud:
        return
    for name, interface in settings.network.interfaces.items():
        mine = address in [known.ip for known in interface.addresses]
        if mine and address.version == 4 and interface.ipv4 is AddressMethod.DHCP:
            yield Problem(
                path,
                f"{address} is on {name}, whose addresses come by DHCP",
                f"make it static: centralino network set {name} --address {address}/LENGTH --gateway ADDRESS",
            )


def check_names(settings: Settings, facts: Facts) -> Iterator[Problem]:
    """What DNS says must fit the work mode and the switch `reach_through_domain`."""
    name = settings.domain.fqdn
    if name is None:
        return
    needed = settings.mode.mode is WorkMode.CLOUD or settings.domain.reach_through_domain
    yield from _inside(settings, name, facts, needed=needed)
    if needed:
        yield from _outside(settings, name, facts)


def _inside(settings: Settings, name: str, facts: Facts, *, needed: bool) -> Iterator[Problem]:
    view, public = facts.inside, settings.domain.public_address
    path = "domain.fqdn"
    if not view.servers:
        yield Problem(
            path, "cannot be looked up, this box has no name server", "set one: network dns", needed
        )
    elif not view.answered:
        servers = ", ".join(str(server) for server in view.servers)
        yield Problem(
            path,
            f"{name} cannot be looked up, no name server of this box answers ({servers})",
            "check them with: centralino network dns",
            needed,
        )
    elif not view.addresses:
        why = "does not exist" if view.code == dns.AnswerCode.NO_SUCH_NAME else "has no address"
        yield Problem(
            path,
            f"{name} {why} for the name servers of this box",
            "make an A record for it, or correct the name; a fresh record may take a while to appear",
            needed,
        )
    elif facts.own & set(view.addresses):
        return  # phones inside come straight here
    elif public is not None and public in view.addresses:
        if settings.mode.mode is WorkMode.STANDARD:
            yield Problem(
                path,
                f"{name} leads to the public address {public} inside too, so phones here go out and in again "
                "through the router",
                "better have the inner name server answer with an address of this box (split DNS)",
                fatal=False,
            )
    else:
        found = ", ".join(str(address) for address in view.addresses)
        wanted = f"nor the public address {public}" if public else "and no public address is set"
        yield Problem(
            path,
            f"{name} leads to {found} inside, which is no address of this box {wanted}",
            "phones would register somewhere else: correct the record, or the address",
            needed,
        )


def _outside(settings: Settings, name: str, facts: Facts) -> Iterator[Problem]:
    view, public = facts.outside, settings.domain.public_address
    cloud = settings.mode.mode is WorkMode.CLOUD
    path = "domain.fqdn"
    if not view.servers:
        yield Problem(
            path,
            f"what the Internet sees of {name} is not checked, domain.public_resolvers names nobody to ask",
            "name one or two public resolvers that this box reaches",
            fatal=False,
        )
    elif not view.answered:
        yield Problem(
            path,
            f"what the Internet sees of {name} could not be checked: {view.reason}",
            "look from outside, for example with a phone that is not in this network",
            fatal=False,
        )
    elif not view.addresses:
        yield Problem(path, f"{name} has no address on the Internet", "make a public record for it", cloud)
    elif public is not None and public not in view.addresses:
        found = ", ".join(str(address) for address in view.addresses)
        by = f" (by the alias {view.aliases[-1]})" if view.aliases else ""
        note = "phones outside reach whoever is there"
        if not cloud and view.aliases:
            note = "right if that is your edge, which then brings phones outside here"
        yield Problem(
            path,
            f"on the Internet {name} leads to {found}{by}, not to {public}; {note}",
            "correct the public record or domain.public_address",
            cloud,
        )
