"""The shared addresses of a pair, of both families: moved at one stroke, put back, and nobody else's."""

from __future__ import annotations

import json
import sys

import pytest
from pair_faults import alarms, forget_moves
from pair_of_nodes import SHARED, PairOfNodes, make_pair, role

from appliance.lab import Node
from appliance.lab_host import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SHARED6 = "fd77::200"

# Every announcement of a shared address that passes, a line of JSON each: when, of what, by whom.
ANNOUNCEMENTS = f"""
import json, socket, struct, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 3))
four = socket.inet_aton("{SHARED}")
six = socket.inet_pton(socket.AF_INET6, "{SHARED6}")
while True:
    frame = s.recv(2048)
    kind = ""
    if frame[12:14] == b"\\x08\\x06" and frame[28:32] == four == frame[38:42]:
        kind = "arp"
    elif frame[12:14] == b"\\x86\\xdd" and frame[20] == 58 and frame[54] == 136 and frame[62:78] == six:
        kind = "advertisement" if frame[58] & 0x20 and not frame[58] & 0x40 else "answer"
    if kind:
        print(json.dumps([time.monotonic(), kind, frame[6:12].hex(":")]), flush=True)
"""

# One ICMPv6 echo request (RFC 4443 section 4.1); ends with 0 when it is answered.
ECHO6 = f"""
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.connect(("{SHARED6}", 0))
s.settimeout(2)
s.send(bytes((128, 0, 0, 0, 0, 7, 0, 1)))
while s.recv(2048)[0] != 129:
    pass
"""


@pytest.fixture(scope="module")
def pair(two_nodes: PairOfNodes) -> PairOfNodes:
    make_pair(two_nodes, more_shared=(f"{SHARED6}/64@eth0",))
    return two_nodes


@pytest.fixture(autouse=True)
def healthy(pair: PairOfNodes) -> None:
    pair.wait_healthy()
    forget_moves(pair)


def held(node: Node) -> set[str]:
    """Which of both a node has."""
    shown = node.run(["ip", "-o", "address", "show", "dev", "eth0"]).output.split()
    return {address for address in (SHARED, SHARED6) if any(w.startswith(f"{address}/") for w in shown)}


def answers6(pair: PairOfNodes) -> bool:
    return pair.probe.run([sys.executable, "-c", ECHO6], check=False).ok


def hardware(pair: PairOfNodes, node: Node) -> str:
    return pair.lab.network.segments["lan"].hardware(node.specification.number)


def test_both_families_move_in_the_same_instant_and_are_announced(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    assert (held(master), held(slave)) == ({SHARED, SHARED6}, set())
    assert answers6(pair)
    watcher = pair.probe.start([sys.executable, "-c", ANNOUNCEMENTS], "announcements.log")
    log = pair.probe.directory / "announcements.log"
    try:
        moment = master.power_off()
        wait_for(lambda: held(slave) == {SHARED, SHARED6}, 20, "both addresses at the slave")
        wait_for(lambda: answers6(pair), 5, "an answer over IPv6, once the client has heard of the move")
        wait_for(lambda: role(slave) == "master", 20, "the promotion")

        def said(kind: str) -> list[float]:
            rows = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("[")]
            own = hardware(pair, slave)
            return [when for when, what, who in rows if what == kind and who == own and when > moment]

        wait_for(lambda: len(said("arp")) > 1 and len(said("advertisement")) > 1, 10, "announcements")
        first4, first6 = min(said("arp")), min(said("advertisement"))
        print(f"announced after {first4 - moment:.3f} s (IPv4) and {first6 - moment:.3f} s (IPv6)")
        assert abs(first4 - first6) < 0.1
    finally:
        watcher.kill()
        if not master.powered:
            master.power_on()
    assert pair.wait_healthy() is slave


@pytest.mark.parametrize("address", [f"{SHARED}/32", f"{SHARED6}/128"])
def test_a_shared_address_is_deleted_by_hand(pair: PairOfNodes, address: str) -> None:
    master = pair.wait_healthy()
    master.run(["ip", "address", "del", address, "dev", "eth0"])
    wait_for(lambda: held(master) == {SHARED, SHARED6}, 10, "the address to be put back")
    assert role(master) == "master" and held(pair.other(master)) == set()


def test_network_manager_removes_the_shared_addresses(pair: PairOfNodes) -> None:
    """`reapply` wipes what its profile does not name (keepalived 2564)."""
    master = pair.wait_healthy()
    master.run(["nmcli", "device", "reapply", "eth0"], limit_seconds=60)
    wait_for(lambda: held(master) == {SHARED, SHARED6}, 15, "the addresses to be put back")
    assert pair.wait_healthy() is master


def test_a_third_machine_answers_for_the_shared_address(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    assert "pair.duplicate" not in alarms(master)
    for address, options in ((f"{SHARED}/24", ()), (f"{SHARED6}/64", ("nodad",))):
        pair.probe.run(["ip", "address", "add", address, "dev", "eth0", *options])
        wait_for(lambda: "pair.duplicate" in alarms(master), 30, f"the alarm for {address}")
        pair.probe.run(["ip", "address", "del", address, "dev", "eth0"])
        wait_for(lambda: "pair.duplicate" not in alarms(master), 30, "its end")
    assert role(master) == "master" and held(master) == {SHARED, SHARED6}


def test_an_address_that_was_left_on_the_slave_is_removed(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    slave.run(["ip", "address", "add", f"{SHARED}/32", "dev", "eth0"])
    wait_for(lambda: held(slave) == set(), 15, "its removal")
    own = {hardware(pair, master)}
    wait_for(lambda: pair.answers_on_the_wire() == own, 20, "one answer for the shared address")
