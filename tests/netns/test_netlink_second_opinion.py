"""Our own reader of the kernel's messages against pyroute2's, on a namespace with a bit of everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from pyroute2 import NetNS

pytestmark = pytest.mark.netns

SETUP = """
link set lo up
link add outer type veth peer name inner
link set outer mtu 1400 up
link set inner up
address add 192.0.2.11/24 dev outer
address add 192.0.2.200/24 dev outer
address add 2001:db8::11/64 dev outer nodad
route add default via 192.0.2.1 dev outer
route add 198.51.100.0/24 via 192.0.2.2 dev outer src 192.0.2.11
route add 2001:db8:1::/48 via 2001:db8::1 dev outer
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    name = f"opinion-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        batch = ["ip", "-netns", name, "-batch", "-"]
        subprocess.run(batch, input=SETUP, text=True, check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def ours(name: str) -> dict[str, set[tuple[object, ...]]]:
    """What our reader sees, by a process that has entered the namespace."""
    script = """
import json
from daemon.network import netlink
print(json.dumps({
    "links": [[row.index, row.name, row.mtu, row.hardware_address] for row in netlink.links(5)],
    "addresses": [[row.index, str(row.address), row.prefix_length] for row in netlink.addresses(5)],
    "way": str(netlink.route_to(__import__("ipaddress").ip_address("198.51.100.9")).source),
}))
"""
    done = subprocess.run(
        ["ip", "netns", "exec", name, sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    table = json.loads(done.stdout)
    return {
        "links": {tuple(row) for row in table["links"]},
        "addresses": {tuple(row) for row in table["addresses"]},
        "way": {(table["way"],)},
    }


def test_both_readers_see_the_same(namespace: str) -> None:
    with NetNS(namespace) as kernel:
        links = {
            (
                row["index"],
                row.get_attr("IFLA_IFNAME"),
                row.get_attr("IFLA_MTU"),
                row.get_attr("IFLA_ADDRESS"),
            )
            for row in kernel.get_links()
        }
        addresses = {
            (
                row["index"],
                str(ip_address(row.get_attr("IFA_LOCAL") or row.get_attr("IFA_ADDRESS"))),
                row["prefixlen"],
            )
            for row in kernel.get_addr()
        }
        (way, *_) = kernel.route("get", dst="198.51.100.9")
        source = way.get_attr("RTA_PREFSRC")
    seen = ours(namespace)
    assert len(seen["links"]) == 3
    assert seen["links"] == links
    assert len(seen["addresses"]) >= 5
    assert seen["addresses"] == addresses
    assert seen["way"] == {(source,)} == {("192.0.2.11",)}
