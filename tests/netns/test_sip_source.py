"""A socket that listens everywhere speaks from the address that it was spoken to, in a real kernel."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from appliance.lab_sip import socket_in
from fault_tolerance.keepalived import Held
from fault_tolerance.silence import CLOSED, OPEN, UNREGISTERED
from fault_tolerance.sip_source import GONE, render
from tests.support import pair_values

pytestmark = pytest.mark.netns

OWN, SHARED, MORE, PHONE = "192.0.2.11", "192.0.2.200", "192.0.2.201", "192.0.2.101"
PAIR = replace(
    pair_values.PAIR,
    own_service=ip_address(OWN),
    peer_service=ip_address("192.0.2.12"),
    shared=tuple(Held(ip_interface(f"{each}/24"), "lan") for each in (SHARED, MORE)),
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A node's socket on 5060 of all addresses, which answers, and a phone's."""
    node, phone = (f"centralino-source-{os.getpid()}-{end}" for end in ("node", "phone"))
    for name in (node, phone):
        ip("netns", "add", name)
    try:
        ip("link", "add", "lan", "netns", node, "type", "veth", "peer", "name", "lan", "netns", phone)
        for name, addresses in (
            (node, (f"{OWN}/24", f"{SHARED}/32", f"{MORE}/32")),
            (phone, (f"{PHONE}/24",)),
        ):
            for address in addresses:
                ip("-n", name, "address", "add", address, "dev", "lan")
            ip("-n", name, "link", "set", "lan", "up")
        inside = ["ip", "netns", "exec", node, "nft", "-f", "-"]
        subprocess.run(inside, input=render(PAIR), text=True, check=True)
        asterisk, desk = (
            socket_in(Path("/run/netns") / name, socket.AF_INET, socket.SOCK_DGRAM) for name in (node, phone)
        )
        for one, port in ((asterisk, 5060), (desk, 5062)):
            one.bind(("0.0.0.0", port))  # noqa: S104 - as Asterisk does
            one.settimeout(3)
        yield asterisk, desk
        asterisk.close()
        desk.close()
    finally:
        for name in (node, phone):
            ip("netns", "del", name)


@pytest.mark.parametrize("address", [SHARED, MORE, OWN])
def test_the_answer_comes_from_where_the_request_went(
    ends: tuple[socket.socket, socket.socket], address: str
) -> None:
    asterisk, desk = ends
    desk.sendto(b"REGISTER", (address, 5060))
    request, sender = asterisk.recvfrom(100)
    assert (request, sender) == (b"REGISTER", (PHONE, 5062))
    asterisk.sendto(b"200", sender)
    assert desk.recvfrom(100) == (b"200", (address, 5060))


@pytest.mark.parametrize(
    ("rules", "heard"),
    [(CLOSED, []), (UNREGISTERED, [b"OPTIONS sip:a"]), (OPEN, [b"REGISTER sip:a", b"OPTIONS sip:a"])],
)
def test_what_a_node_hears_while_it_is_silent_opens_and_is_open(
    ends: tuple[socket.socket, socket.socket], rules: str, heard: list[bytes]
) -> None:
    asterisk, desk = ends
    node = f"centralino-source-{os.getpid()}-node"
    subprocess.run(["ip", "netns", "exec", node, "nft", "-f", "-"], input=rules, text=True, check=True)
    for request in (b"REGISTER sip:a", b"OPTIONS sip:a"):
        desk.sendto(request, (SHARED, 5060))
    subprocess.run(["ip", "netns", "exec", node, "nft", "-f", "-"], input=OPEN, text=True, check=True)
    desk.sendto(b"end", (SHARED, 5060))
    said = []
    while (request := asterisk.recv(100)) != b"end":
        said.append(request)
    assert said == heard


def test_what_the_node_begins_comes_from_the_shared_address(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """Right after a failover, when the kernel knows of nothing that the phone has sent."""
    asterisk, desk = ends
    asterisk.sendto(b"INVITE", (PHONE, 5062))
    request, sender = desk.recvfrom(100)
    assert (request, sender) == (b"INVITE", (SHARED, 5060))
    desk.sendto(b"180", sender)
    assert asterisk.recvfrom(100) == (b"180", (PHONE, 5062))


def test_requests_of_both_sides_at_once_keep_their_ports(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    asterisk, desk = ends
    threading.Thread(target=lambda: desk.sendto(b"REGISTER", (SHARED, 5060))).start()
    assert asterisk.recvfrom(100)[0] == b"REGISTER"
    asterisk.sendto(b"INVITE", (PHONE, 5062))
    assert desk.recvfrom(100) == (b"INVITE", (SHARED, 5060))


def test_without_a_shared_address_there_is_no_table() -> None:
    from dataclasses import replace

    assert render(replace(PAIR, cloud=True)) == GONE
    assert render(replace(PAIR, own_service=ip_address("2001:db8::11"))) == GONE
    elsewhere = Held(ip_interface("203.0.113.200/24"), "wan")
    assert "203.0.113.200" not in render(replace(PAIR, shared=(*PAIR.shared, elsewhere)))
