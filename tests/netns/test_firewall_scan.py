"""Every port of the box, TCP and UDP, IPv4 and IPv6, against the tables: exactly those and nothing else.

Behind the policy's chain a second one, of a table of its own, notes every port that a packet reached. So what
passes the policy is known for all ports, whether or not anything listens there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest

from firewall.policy import Policy, ShieldLimits
from firewall.ports import Mode, Service, Zone, services
from firewall.render import render

pytestmark = pytest.mark.netns

BLAST = Path(__file__).resolve().parents[1] / "support" / "port_blast.py"
WITNESS = """
add table inet witness
delete table inet witness
table inet witness {
    set seen_tcp { type inet_service; size 65535; flags dynamic; }
    set seen_udp { type inet_service; size 65535; flags dynamic; }
    chain input {
        type filter hook input priority filter + 10; policy accept;
        meta l4proto tcp update @seen_tcp { tcp dport } drop
        meta l4proto udp update @seen_udp { udp dport } drop
    }
}
"""
# Documentation networks (RFC 5737, RFC 3849) are strangers; the others are the LAN.
BOX = {4: {"public": "198.51.100.1", "lan": "10.9.0.1"}, 6: {"public": "2001:db8::1", "lan": "fd09::1"}}
SCANNER = {4: {"public": "198.51.100.2", "lan": "10.9.0.2"}, 6: {"public": "2001:db8::2", "lan": "fd09::2"}}
WIDTH = {4: {"public": 24, "lan": 24}, 6: {"public": 64, "lan": 64}}
SSH = ("tcp", 22)


@dataclass(frozen=True)
class Pair:
    """The box and whoever scans it, each a network namespace."""

    box: str
    scanner: str

    def run(self, where: str, *words: str, script: str | None = None) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", where, *words],
            input=script,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def open_ports(self, policy: Policy, version: int, origin: str) -> set[tuple[str, int]]:
        """What a scan of all ports reaches behind the policy."""
        # Meters of the scan before would drop packets of this one.
        self.run(self.box, "nft", "-f", "-", script="flush ruleset\n" + render(policy) + WITNESS)
        for word in ("tcp", "udp"):
            self.run(
                self.scanner,
                sys.executable,
                str(BLAST),
                BOX[version][origin],
                SCANNER[version][origin],
                word,
            )
        found = set()
        for word in ("tcp", "udp"):
            text = self.run(self.box, "nft", "-j", "list", "set", "inet", "witness", f"seen_{word}")
            elements = json.loads(text)["nftables"][1]["set"].get("elem", [])
            found |= {(word, int(port)) for port in elements}
        return found


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    made = Pair(f"fw-box-{os.getpid()}", f"fw-scan-{os.getpid()}")
    subprocess.run(["ip", "netns", "add", made.box], check=True)
    subprocess.run(["ip", "netns", "add", made.scanner], check=True)
    try:
        words = ["ip", "-n", made.box, "link", "add", "lan0", "type", "veth", "peer", "name", "lan0"]
        subprocess.run([*words, "netns", made.scanner], check=True)
        for where, table in ((made.box, BOX), (made.scanner, SCANNER)):
            made.run(where, "sysctl", "-qw", "net.ipv6.conf.lan0.accept_dad=0")
            for version, addresses in table.items():
                for origin, address in addresses.items():
                    width = WIDTH[version][origin]
                    extra = ["nodad"] if version == 6 else []
                    made.run(where, "ip", "address", "add", f"{address}/{width}", "dev", "lan0", *extra)
            made.run(where, "ip", "link", "set", "lan0", "up")
        yield made
    finally:
        for name in (made.box, made.scanner):
            subprocess.run(["ip", "netns", "del", name], check=True)


def ports_of(chosen: tuple[Service, ...]) -> set[tuple[str, int]]:
    return {
        (service.protocol.value, port)
        for service in chosen
        for port in range(service.first, service.last + 1)
    }


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("mode", "origin", "zones"),
    [
        (Mode.CLOUD, "public", (Zone.PUBLIC,)),
        (Mode.CLOUD, "lan", (Zone.PUBLIC,)),
        (Mode.STANDARD, "public", (Zone.PUBLIC,)),
        (Mode.STANDARD, "lan", (Zone.LOCAL,)),
    ],
)
def test_a_stranger_and_the_lan_reach_exactly_the_tables(
    pair: Pair, mode: Mode, origin: str, zones: tuple[Zone, ...], version: int
) -> None:
    management = (ip_network("192.0.2.0/24"),)
    expected = set().union(*(ports_of(services(mode, zone)) for zone in zones))
    assert pair.open_ports(Policy(mode, management=management), version, origin) == expected


@pytest.mark.parametrize("version", [4, 6])
def test_management_reaches_ssh_besides(pair: Pair, version: int) -> None:
    network = ip_network(f"{SCANNER[version]['public']}/{24 if version == 4 else 64}", strict=False)
    found = pair.open_ports(Policy(Mode.CLOUD, management=(network,)), version, "public")
    assert found == ports_of(services(Mode.CLOUD, Zone.PUBLIC)) | {SSH}


def test_a_silent_slave_shows_no_sip(pair: Pair) -> None:
    found = pair.open_ports(Policy(Mode.STANDARD, open_sip=False), 4, "lan")
    assert not any(port in range(5060, 5072) for _, port in found)
    assert ("tcp", 443) in found


def test_a_blocked_scanner_reaches_nothing(pair: Pair) -> None:
    from firewall.policy import TimedNetwork

    blocked = (TimedNetwork(ip_network("198.51.100.0/25"), None),)
    assert pair.open_ports(Policy(Mode.CLOUD, blocked=blocked), 4, "public") == set()
    soon = (TimedNetwork(ip_network("198.51.100.0/25"), 4e9),)
    assert pair.open_ports(Policy(Mode.CLOUD, blocked=soon), 4, "public") == set()


COUNTER = """
add table inet witness
delete table inet witness
table inet witness {
    counter passed { }
    chain input {
        type filter hook input priority filter + 10; policy accept;
        udp dport 5060 counter name passed drop
    }
}
"""
SENDER = """
import socket, sys
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[2])):
    link.sendto(bytes.fromhex(sys.argv[3]), (sys.argv[1], 5060))
"""
REQUEST = b"REGISTER sip:box SIP/2.0\r\n\r\n"


def passed(pair: Pair, policy: Policy, payload: bytes, count: int, *, extra: str = "") -> int:
    """How many of so many datagrams at once pass the policy."""
    pair.run(pair.box, "nft", "-f", "-", script="flush ruleset\n" + render(policy) + extra + COUNTER)
    words = [sys.executable, "-c", SENDER, BOX[4]["public"], str(count), payload.hex()]
    pair.run(pair.scanner, *words)
    text = pair.run(pair.box, "nft", "-j", "list", "counter", "inet", "witness", "passed")
    return int(json.loads(text)["nftables"][1]["counter"]["packets"])


def test_an_unknown_source_gets_its_burst_and_a_phone_ten_times_that(pair: Pair) -> None:
    limits = ShieldLimits(request_rate=1, request_burst=10, phone_rate=1, phone_burst=100)
    policy = Policy(Mode.CLOUD, limits=limits)
    assert 10 <= passed(pair, policy, REQUEST, 400) <= 13
    known = f"add element inet centralino phones4 {{ {SCANNER[4]['public']} timeout 60s }}\n"
    assert 100 <= passed(pair, policy, REQUEST, 400, extra=known) <= 103


@pytest.mark.parametrize(
    ("payload", "arrives"),
    [
        (REQUEST, True),
        (b"\r\n\r\n", True),  # a keep-alive
        (b"OPTIONS sip:100@198.51.100.1 SIP/2.0\r\n\r\n", False),  # the first words of a scanner
        (b"options sip:box SIP/2.0\r\n\r\n", False),
        (b"\x00\x01\x00\x08 a STUN request", False),
        (REQUEST + b"x" * 9000, False),
    ],
    ids=["request", "keep-alive", "scanner", "lower case", "stun", "oversized"],
)
def test_what_is_not_sip_never_reaches_asterisk(pair: Pair, payload: bytes, arrives: bool) -> None:
    assert passed(pair, Policy(Mode.CLOUD), payload, 1) == int(arrives)


def test_a_banned_phone_stays_a_phone(pair: Pair) -> None:
    """The kernel itself spares whoever has authenticated, whatever is in the other set."""
    address = SCANNER[4]["public"]
    banned = f"add element inet centralino banned4 {{ {address} timeout 60s }}\n"
    known = f"add element inet centralino phones4 {{ {address} timeout 60s }}\n"
    assert passed(pair, Policy(Mode.CLOUD), REQUEST, 5, extra=banned) == 0
    assert passed(pair, Policy(Mode.CLOUD), REQUEST, 5, extra=banned + known) == 5
