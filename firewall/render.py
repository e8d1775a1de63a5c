"""From a policy to one nftables script: a pure function.

The script is one transaction for `nft -f` and touches only the table `inet centralino`. It adds what is
missing, empties the chains and the configured sets and fills them again; sets that packets and the shield
fill (`banned`, `phones`, `session`, the rate meters) are only declared, so their elements survive a reload.
Syntax: nftables 1.0.4 (no `destroy`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from firewall.policy import Network, Policy, TimedNetwork, apart, family
from firewall.ports import MEDIA, TURN_RELAY, Guard, Protocol, Service, Zone, services

Address = IPv4Address | IPv6Address

TABLE = "inet centralino"
SIP_PORTS_UDP = "{ 5060-5063, 5070 }"
VERSIONS = ((4, "ipv4_addr", "ip"), (6, "ipv6_addr", "ip6"))

CHAINS = ("input", "sip_udp", "sip_stream", "open", "open_local", "open_trusted")
INTERFACE_SETS = ("trusted_interfaces", "public_interfaces")
CONFIGURED_SETS = ("management", "trusted", "local", "peer", "blocked")
TIMED_SETS = ("banned", "phones", "session", "allowed", "support", "blocked_until")
# Of these, the ones that hold networks and are filled from the settings.
LISTED_SETS = ("allowed", "support", "blocked_until")
# Sets of intervals that only a policy fills, and nothing empties in time: by their full names.
SETTLED_SETS = tuple(f"{name}{version}" for name in CONFIGURED_SETS for version in (4, 6))
METER_SETS = ("request_meter", "phone_meter", "stream_meter", "stream_rate")
SET_SIZE = 131072
# nft refuses longer ones; every reload sets the remaining time anew.
LONGEST_TIMEOUT_SECONDS = 30 * 86400
# Chains of the image's own rules (roles/firewall), which the policy replaces.
OLD_CHAINS = ("local",)
# Where the kernel shows the daemon samples of what unknown sources send (see firewall.scanners).
SAMPLE_GROUP = 5061
SAMPLE_BYTES = 800
SAMPLES_PER_SECOND = 100


def render(policy: Policy, now: float | None = None) -> str:
    """The whole script; `now` (seconds since the epoch, default: now) turns end times into timeouts."""
    return _script(policy, time.time() if now is None else now)


def render_lasting(policy: Policy) -> str:
    """The script as it is kept on disk for the next boot: without everything that ends by itself.

    A timeout in a file would start anew with every boot. The daemon adds what still holds when it starts.
    """
    lasting = replace(
        policy,
        allowed=tuple(entry for entry in policy.allowed if entry.until is None),
        blocked=tuple(entry for entry in policy.blocked if entry.until is None),
        support=(),
        session=(),
    )
    return _script(lasting, 0.0)


def _script(policy: Policy, moment: float) -> str:
    lines = [f"add table {TABLE}"]
    lines += _declare_sets()
    lines += _fill_sets(policy, moment)
    lines += _chains()
    lines += [f"add rule {TABLE} {rule}" for rule in _rules(policy)]
    return "\n".join(lines) + "\n"


def session_elements(addresses: Iterable[Address], seconds: int = 3600) -> str:
    """Lines to append to a script: these addresses keep SSH for so long from now on, whatever the policy."""
    lines = []
    for version, _, _ in VERSIONS:
        listed = sorted(str(address) for address in addresses if address.version == version)
        if listed:
            # Adding what is there would keep its old time.
            plain = f"element {TABLE} session{version} {{ {', '.join(listed)} }}"
            timed = ", ".join(f"{address} timeout {seconds}s" for address in listed)
            lines += [
                f"add {plain}",
                f"delete {plain}",
                f"add element {TABLE} session{version} {{ {timed} }}",
            ]
    return "".join(f"{line}\n" for line in lines)


def fresh_meters() -> str:
    """Lines to append to a script whose limits are new: a meter keeps the limit that it began with."""
    names = (f"{name}{version}" for name in METER_SETS for version, _, _ in VERSIONS)
    return "".join(f"flush set {TABLE} {name}\n" for name in names)


def failsafe(management: tuple[Network, ...]) -> str:
    """The policy for when the real one is broken: SSH from management (S-FW-02) and what IP itself needs."""
    lines = [f"add table {TABLE}", *_declare_sets()]
    for version, _, _ in VERSIONS:
        lines.append(f"flush set {TABLE} management{version}")
        lines += _elements(f"management{version}", (str(network) for network in family(management, version)))
    lines += _chains()
    rules = [*_preamble(), *_neighbours(), "input ct state established,related accept"]
    rules += [f"input {ip} saddr @management{version} tcp dport 22 accept" for version, _, ip in VERSIONS]
    rules += [f"input {ip} saddr @session{version} tcp dport 22 accept" for version, _, ip in VERSIONS]
    lines += [f"add rule {TABLE} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"


def _declare_sets() -> Iterator[str]:
    for name in INTERFACE_SETS:
        yield f"add set {TABLE} {name} {{ type ifname; }}"
    for version, kind, _ in VERSIONS:
        for name in CONFIGURED_SETS:
            yield f"add set {TABLE} {name}{version} {{ type {kind}; flags interval; auto-merge; }}"
        for name in TIMED_SETS:
            flags = "interval,timeout" if name in LISTED_SETS else "timeout"
            size = "" if "interval" in flags else f" size {SET_SIZE};"
            yield f"add set {TABLE} {name}{version} {{ type {kind}; flags {flags};{size} }}"
        for name in METER_SETS:
            # Connection counts end with their connections; a timeout would forget live ones.
            ageing = "flags dynamic;" if name == "stream_meter" else "flags dynamic,timeout; timeout 1m;"
            yield f"add set {TABLE} {name}{version} {{ type {kind}; {ageing} size {SET_SIZE}; }}"


def _fill_sets(policy: Policy, now: float) -> Iterator[str]:
    blocked = tuple(entry.network for entry in policy.blocked if entry.until is None)
    configured: dict[str, tuple[Network, ...]] = {
        "management": policy.management,
        "trusted": policy.trusted,
        "local": policy.local,
        "peer": policy.peer,
        "blocked": blocked,
    }
    for name, zone in zip(INTERFACE_SETS, (Zone.TRUSTED, Zone.PUBLIC), strict=True):
        yield f"flush set {TABLE} {name}"
        members = sorted(interface for interface, its in policy.interfaces.items() if its is zone)
        yield from _elements(name, (f'"{interface}"' for interface in members))
    for version, _, _ in VERSIONS:
        for name, networks in configured.items():
            yield f"flush set {TABLE} {name}{version}"
            yield from _elements(f"{name}{version}", (str(network) for network in family(networks, version)))
        # As it is: the kernel's set merges what overlaps.
        long_list = (text for text in policy.blocklist if (":" in text) is (version == 6))
        yield from _elements(f"blocked{version}", long_list)
        ending = tuple(entry for entry in policy.blocked if entry.until is not None)
        for name, entries in zip(LISTED_SETS, (policy.allowed, policy.support, ending), strict=True):
            yield f"flush set {TABLE} {name}{version}"
            yield from _elements(f"{name}{version}", _timed(entries, version, now))
        session = [
            f"{network.network_address} timeout {policy.session_seconds}s"
            for network in policy.session
            if network.version == version
        ]
        yield from _elements(f"session{version}", session)


def _timed(entries: Iterable[TimedNetwork], version: int, now: float) -> Iterator[str]:
    for entry in apart(entry for entry in entries if entry.network.version == version):
        if entry.until is None:
            yield str(entry.network)
        elif entry.until - now >= 1:
            yield f"{entry.network} timeout {min(int(entry.until - now), LONGEST_TIMEOUT_SECONDS)}s"


def _elements(name: str, elements: Iterable[str]) -> Iterator[str]:
    listed = list(elements)
    # A line per thousand keeps the parser's memory flat with 20,000 blocked addresses.
    for start in range(0, len(listed), 1000):
        yield f"add element {TABLE} {name} {{ {', '.join(listed[start : start + 1000])} }}"


def _chains() -> Iterator[str]:
    yield f"add chain {TABLE} input {{ type filter hook input priority filter; policy drop; }}"
    for name in CHAINS:
        if name != "input":
            yield f"add chain {TABLE} {name}"
        yield f"flush chain {TABLE} {name}"
    for name in OLD_CHAINS:
        yield f"add chain {TABLE} {name}"
        yield f"flush chain {TABLE} {name}"
        yield f"delete chain {TABLE} {name}"


def _preamble() -> Iterator[str]:
    yield "input iif lo accept"
    yield "input ct state invalid drop"


def _rules(policy: Policy) -> Iterator[str]:
    yield from _preamble()
    yield from _neighbours()
    # Whoever must never be shut out comes before anything that can drop.
    for name in ("management", "session"):
        for version, _, ip in VERSIONS:
            yield f"input {ip} saddr @{name}{version} tcp dport 22 accept"
    for version, _, ip in VERSIONS:
        yield f"input {ip} saddr @support{version} tcp dport {{ 22, 80, 443 }} accept"
        yield f"input {ip} saddr @peer{version} tcp dport 22 accept"
        yield f"input {ip} saddr @peer{version} meta l4proto vrrp accept"
    for version, _, ip in VERSIONS:
        never = f"{ip} saddr != @trusted{version} {ip} saddr != @allowed{version}"
        yield f"input {ip} saddr @blocked{version} {never} counter drop"
        yield f"input {ip} saddr @blocked_until{version} {never} counter drop"
        # A forged datagram can have a source banned; a phone that has authenticated from there stays.
        yield f"input {ip} saddr @banned{version} {never} {ip} saddr != @phones{version} counter drop"
    # Before `established`: a scanner's flow is established after the first answer.
    yield f"input udp dport {SIP_PORTS_UDP} jump sip_udp"
    yield "input ct state established,related accept"
    yield "input ct state new jump open"
    yield from _guard_udp(policy)
    yield from _guard_stream(policy)
    yield from _open(policy)


def _neighbours() -> Iterator[str]:
    # RFC 4890: what IPv6 cannot live without; the same for IPv4 (path MTU, echo), rate-limited.
    yield (
        "input icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, "
        "packet-too-big, time-exceeded, parameter-problem, destination-unreachable } accept"
    )
    yield "input icmp type { destination-unreachable, time-exceeded, parameter-problem } accept"
    yield "input meta l4proto { icmp, ipv6-icmp } limit rate 100/second burst 50 packets accept"
    yield "input udp sport 67 udp dport 68 accept"
    yield "input ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept"


def _guard_udp(policy: Policy) -> Iterator[str]:
    limits = policy.limits
    yield "sip_udp iifname @trusted_interfaces return"
    for version, _, ip in VERSIONS:
        yield f"sip_udp {ip} saddr @trusted{version} return"
    yield f"sip_udp udp length > {limits.largest_datagram} counter drop"
    # 8 bytes of header and at most 4 of payload: keep-alive (RFC 5626 section 4.4).
    yield "sip_udp udp length <= 12 return"
    # A request or a response starts with a capital letter (RFC 3261 section 7); STUN and noise do not.
    yield "sip_udp @th,64,8 < 0x41 counter drop"
    yield "sip_udp @th,64,8 > 0x5a counter drop"
    for version, _, ip in VERSIONS:
        yield (
            f"sip_udp {ip} saddr @phones{version} update @phone_meter{version} {{ {ip} saddr "
            f"limit rate over {limits.phone_rate}/second burst {limits.phone_burst} packets }} counter drop"
        )
        yield f"sip_udp {ip} saddr @phones{version} return"
    # The first request of a well-known scanner: OPTIONS or REGISTER for the user 100.
    yield "sip_udp @th,64,128 0x4f5054494f4e53207369703a31303040 counter drop"
    for version, _, ip in VERSIONS:
        yield (
            f"sip_udp update @request_meter{version} {{ {ip} saddr limit rate over "
            f"{limits.request_rate}/second burst {limits.request_burst} packets }} counter drop"
        )
    # What passes is judged by its User-Agent in the daemon, a bounded number of packets a second.
    yield (
        f"sip_udp limit rate {SAMPLES_PER_SECOND}/second "
        f"log group {SAMPLE_GROUP} snaplen {SAMPLE_BYTES} queue-threshold 1"
    )


def _guard_stream(policy: Policy) -> Iterator[str]:
    limits = policy.limits
    yield "sip_stream iifname @trusted_interfaces return"
    for version, _, ip in VERSIONS:
        yield f"sip_stream {ip} saddr @trusted{version} return"
    for version, _, ip in VERSIONS:
        yield (
            f"sip_stream update @stream_rate{version} {{ {ip} saddr limit rate over "
            f"{limits.stream_rate_per_minute}/minute burst {limits.streams} packets }} counter drop"
        )
        yield (
            f"sip_stream add @stream_meter{version} {{ {ip} saddr ct count over {limits.streams} }} "
            "counter reject with tcp reset"
        )


def _open(policy: Policy) -> Iterator[str]:
    yield "open iifname @trusted_interfaces goto open_trusted"
    for version, _, ip in VERSIONS:
        yield f"open {ip} saddr @trusted{version} goto open_trusted"
        yield f"open {ip} saddr @allowed{version} goto open_trusted"
        yield f"open iifname != @public_interfaces {ip} saddr @local{version} jump open_local"
    for service in _services(policy, Zone.PUBLIC):
        yield from _admit(service, "open")
    for service, networks in policy.extra:
        if not networks:
            yield from _admit(service, "open")
        for version, _, ip in VERSIONS:
            members = ", ".join(str(network) for network in family(networks, version))
            if members:
                yield from _admit(service, f"open {ip} saddr {{ {members} }}")
    for service in _services(policy, Zone.LOCAL):
        yield from _admit(service, "open_local")
    for service in _services(policy, Zone.TRUSTED):
        yield from _admit(service, "open_trusted")


def _services(policy: Policy, zone: Zone) -> Iterator[Service]:
    """Those of the tables, with the ranges that the settings moved."""
    moved = {MEDIA: policy.media, TURN_RELAY: policy.relay}
    for service in services(policy.mode, zone):
        first, last = moved.get(service, (service.first, service.last))
        yield replace(service, first=first, last=last)


def _admit(service: Service, where: str) -> Iterator[str]:
    if service.guard is Guard.SIP_STREAM:
        yield f"{where} tcp dport {service.ports} jump sip_stream"
    word = "tcp" if service.protocol is Protocol.TCP else "udp"
    yield f"{where} {word} dport {service.ports} accept"
