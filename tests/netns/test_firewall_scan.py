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
from firewall.render import fresh_meters, render

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
host = sys.argv[1]
link = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[2])):
    link.sendto(bytes.fromhex(sys.argv[3]), (host, 5060))
"""
REQUEST = b"REGISTER sip:box SIP/2.0\r\n\r\n"


def passed(
    pair: Pair, policy: Policy, payload: bytes, count: int, *, extra: str = "", version: int = 4
) -> int:
    """How many of so many datagrams at once pass the policy."""
    pair.run(pair.box, "nft", "-f", "-", script="flush ruleset\n" + render(policy) + extra + COUNTER)
    words = [sys.executable, "-c", SENDER, BOX[version]["public"], str(count), payload.hex()]
    pair.run(pair.scanner, *words)
    text = pair.run(pair.box, "nft", "-j", "list", "counter", "inet", "witness", "passed")
    return int(json.loads(text)["nftables"][1]["counter"]["packets"])


def member(name: str, version: int) -> str:
    """A line that puts the scanner into one of our sets."""
    address = SCANNER[version]["public"]
    return f"add element inet centralino {name}{version} {{ {address} timeout 60s }}\n"


@pytest.mark.parametrize("version", [4, 6])
def test_an_unknown_source_gets_its_burst_and_a_phone_ten_times_that(pair: Pair, version: int) -> None:
    limits = ShieldLimits(request_rate=1, request_burst=10, phone_rate=1, phone_burst=100)
    policy = Policy(Mode.CLOUD, limits=limits)
    assert 10 <= passed(pair, policy, REQUEST, 400, version=version) <= 13
    known = member("phones", version)
    assert 100 <= passed(pair, policy, REQUEST, 400, extra=known, version=version) <= 103


@pytest.mark.parametrize("version", [4, 6])
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
def test_what_is_not_sip_never_reaches_asterisk(
    pair: Pair, payload: bytes, arrives: bool, version: int
) -> None:
    assert passed(pair, Policy(Mode.CLOUD), payload, 1, version=version) == int(arrives)


@pytest.mark.parametrize("version", [4, 6])
def test_a_banned_phone_stays_a_phone(pair: Pair, version: int) -> None:
    """The kernel itself spares whoever has authenticated, whatever is in the other set."""
    banned, known = member("banned", version), member("phones", version)
    assert passed(pair, Policy(Mode.CLOUD), REQUEST, 5, extra=banned, version=version) == 0
    assert passed(pair, Policy(Mode.CLOUD), REQUEST, 5, extra=banned + known, version=version) == 5


# Keeps every connection open until its other end closes it.
LISTENER = """
import socket, threading
link = socket.create_server(("::", 5061), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
print("listening", flush=True)
def keep(made):
    with made:
        made.recv(1)
while True:
    threading.Thread(target=keep, args=(link.accept()[0],), daemon=True).start()
"""
# Holds `most` connections if it can, says how each further try ended, lets go of all and tries once more.
CALLER = """
import json, socket, sys, time
host, most, source = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def call(limit=2.0):
    try:
        return socket.create_connection((host, 5061), limit, (source, 0))
    except ConnectionError:
        return "refused"
    except TimeoutError:
        return "silence"
held, ends = [], []
for _ in range(most + 5):
    made = call()
    held.append(made) if isinstance(made, socket.socket) else ends.append(made)
count = len(held)
for made in held:
    made.shutdown(socket.SHUT_WR)
for made in held:
    made.recv(1)
    made.close()
# The kernel counts anew once a tick at most.
until = time.monotonic() + 1.0
while not isinstance(again := call(), socket.socket) and time.monotonic() < until:
    pass
print(json.dumps({"held": count, "ends": ends, "afterwards": isinstance(again, socket.socket)}))
"""


@pytest.fixture
def listener(pair: Pair) -> Iterator[None]:
    """Somebody who accepts SIP over TLS' port on the box."""
    words = ["ip", "netns", "exec", pair.box, sys.executable, "-c", LISTENER]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "listening"
            yield
        finally:
            process.kill()


def call(pair: Pair, version: int, origin: str, most: int) -> dict[str, object]:
    program = [sys.executable, "-c", CALLER, BOX[version][origin], str(most)]
    return dict(json.loads(pair.run(pair.scanner, *program, SCANNER[version][origin])))


def load_limits(pair: Pair, *, streams: int, per_minute: int, before: str = "", after: str = "") -> None:
    limits = ShieldLimits(streams=streams, stream_rate_per_minute=per_minute)
    script = before + render(Policy(Mode.CLOUD, limits=limits)) + after
    pair.run(pair.box, "nft", "-f", "-", script=script)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("per_minute", "end"), [(6000, "refused"), (1, "silence")])
def test_one_source_holds_so_many_connections_and_another_one_is_not_held_up(
    pair: Pair, listener: None, version: int, per_minute: int, end: str
) -> None:
    """Beyond the limit of standing connections the kernel refuses, beyond that of new ones it is silent."""
    load_limits(pair, streams=10, per_minute=per_minute, before="flush ruleset\n")
    flood = call(pair, version, "public", 10)
    assert flood["held"] == 10
    assert set(flood["ends"]) == {end}  # type: ignore[call-overload]
    # Who was only too many at once may come back, who came too often waits.
    assert flood["afterwards"] is (end == "refused")
    assert call(pair, version, "lan", 4)["held"] == 9


def test_new_limits_hold_for_sources_that_were_met_before(pair: Pair, listener: None) -> None:
    load_limits(pair, streams=10, per_minute=6000, before="flush ruleset\n")
    assert call(pair, 4, "public", 10)["held"] == 10
    load_limits(pair, streams=4, per_minute=6000, after=fresh_meters())
    assert call(pair, 4, "public", 4)["held"] == 4
