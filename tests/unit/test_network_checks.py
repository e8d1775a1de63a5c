"""What only the box knows about network settings: every refusal with its path and its remedy."""

from __future__ import annotations

import json
from ipaddress import ip_interface

import pytest

from daemon.network.checks import check
from daemon.network.truth import Link
from daemon.settings import Settings

LINKS = {
    "eth0": Link("eth0", mtu=1500, up=True, addresses=(ip_interface("192.0.2.10/24"),)),
    "eth1": Link("eth1", mtu=1500, up=True, addresses=(ip_interface("198.51.100.1/24"),)),
    "tun0": Link("tun0", up=True, addresses=(ip_interface("203.0.113.9/32"), ip_interface("fe80::9/64"))),
}
STATIC = {"ipv4": "static", "ipv6": "off", "addresses": ["192.0.2.10/24"]}

CASES = [
    ("fine", {"interfaces": {"eth0": STATIC}}, []),
    (
        "no such interface",
        {"interfaces": {"eth9": {}}},
        ["network.interfaces.eth9: there is no such interface; this box has: eth0, eth1, tun0"],
    ),
    (
        "parent of a VLAN",
        {"interfaces": {"v": {"vlan": {"parent": "eth9", "tag": 5}}}},
        ["network.interfaces.v.vlan.parent: there is no interface eth9; this box has: eth0, eth1, tun0"],
    ),
    (
        "a VLAN on a bond of these settings",
        {
            "interfaces": {
                "bond0": {"bond": {"links": ["eth0", "eth1"]}},
                "bond0.5": {"vlan": {"parent": "bond0", "tag": 5}},
            }
        },
        [],
    ),
    (
        "a link in two bonds",
        {"interfaces": {"b1": {"bond": {"links": ["eth0"]}}, "b2": {"bond": {"links": ["eth0"]}}}},
        ["network.interfaces.b2.bond.links.0: eth0 is in b1 already; name it once"],
    ),
    (
        "a link with an address",
        {"interfaces": {"b1": {"bond": {"links": ["eth0"]}}, "eth0": STATIC}},
        [
            "network.interfaces.b1.bond.links.0: eth0 has settings of its own; "
            "move them to b1 and remove interfaces.eth0"
        ],
    ),
    (
        "next hop out of reach",
        {
            "interfaces": {"eth0": STATIC},
            "routes": [{"destination": "10.0.0.0/8", "gateway": "172.16.0.1", "interface": "eth0"}],
        },
        [
            "network.routes.0.gateway: 172.16.0.1 is outside every subnet of eth0; "
            "correct it, or give the interface an address in that subnet"
        ],
    ),
    (
        "next hop through an interface of the image",
        {"routes": [{"destination": "10.0.0.0/8", "gateway": "198.51.100.254", "interface": "eth1"}]},
        [],
    ),
    (
        "next hop on a link that DHCP configures",
        {
            "interfaces": {"eth0": {}},
            "routes": [{"destination": "10.0.0.0/8", "gateway": "172.16.0.1", "interface": "eth0"}],
        },
        [],
    ),
    (
        "subnet of an interface that the settings do not name",
        {"interfaces": {"eth0": {**STATIC, "addresses": ["198.51.100.130/25"]}}},
        [
            "network.interfaces.eth0.addresses.0: overlaps 198.51.100.0/24, which eth1 has now; "
            "choose another subnet, or name eth1 in the settings too"
        ],
    ),
    (
        "too small for IPv6",
        {"interfaces": {"eth0": {"mtu": 1000}}},
        [
            "network.interfaces.eth0.mtu: 1000 is too small for IPv6; "
            "raise it to 1280, or set interfaces.eth0.ipv6 to off"
        ],
    ),
    (
        "VLAN wider than what carries it",
        {"interfaces": {"eth0.5": {"mtu": 1600, "vlan": {"parent": "eth0", "tag": 5}}}},
        ["network.interfaces.eth0.5.mtu: 1600 is more than the 1500 of eth0; raise that one first"],
    ),
]


@pytest.mark.parametrize(
    ("network", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_problems(network: dict[str, object], expected: list[str]) -> None:
    settings = Settings.model_validate_json(json.dumps({"network": network}))
    assert [problem.sentence() for problem in check(settings.network, LINKS)] == expected
