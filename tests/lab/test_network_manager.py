"""The network subsystem on a booted node, with its real NetworkManager and the real kernel.

The code under test is this tree's, shown read-only in the node; the program below stands for the engine:
it verifies, plans and applies one document after another and prints what was seen.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lab import LOGS, Lab, Node
from appliance.lab_host import wait_for
from daemon.network.keyfile import profile_uuid

pytestmark = pytest.mark.lab

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "unit" / "golden_network"
ENGINE = """
import json, sys
from daemon.errors import CentralinoError
from daemon.network import Network
from daemon.settings import Settings

old, new = json.load(sys.stdin)
network = Network()
old, new = (
    document and Settings.model_validate_json(json.dumps({"network": document})) for document in (old, new)
)
problems = [problem.sentence() for problem in network.verify(new, {})]
sentences, error = [], None
if not problems:
    try:
        for change in network.plan(old, new):
            sentences.append(change.sentence)
            network.apply(change)
    except CentralinoError as failure:
        error = str(failure)
state = network.observe()
print(json.dumps({"problems": problems, "sentences": sentences, "error": error, "healthy": state.healthy,
    "reasons": state.reasons, "drift": state.drift, "facts": dict(state.facts)}))
"""
NODE_PROFILE = {
    "interfaces": {
        "eth0": {"ipv4": "static", "ipv6": "off", "addresses": ["10.77.0.11/24"], "gateway": "10.77.0.1"},
        "eth1": {"ipv4": "static", "ipv6": "off", "addresses": ["10.78.0.11/24"]},
    }
}


@pytest.fixture(scope="module")
def node(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Node]:
    """A node that sees this tree and this interpreter's packages at their own paths."""
    seen = {str(path): str(path) for path in (REPOSITORY, Path(sys.prefix))}
    with Lab(lab_root, tmp_path_factory.mktemp("network") / "lab") as lab:
        lab.add_node(binds=seen)
        lab.power_on_all()
        made = lab.node("node1")
        made.wait_active("NetworkManager.service")
        yield made
        if request.session.testsfailed:
            lab.save_logs(LOGS / "network")


def change(node: Node, old: object, new: object) -> dict[str, object]:
    """Verify, plan and apply in the node; what was found and what is true afterwards."""
    answer = node.run(
        ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-c", ENGINE],
        input_text=json.dumps([old, new]),
        limit_seconds=120,
    )
    found = json.loads(answer.output)
    assert isinstance(found, dict)
    return found


def addresses(node: Node, interface: str) -> list[str]:
    """What the kernel has, by its own tool."""
    links = json.loads(node.run(["ip", "-json", "address", "show", "dev", interface]).output)
    return [
        f"{entry['local']}/{entry['prefixlen']}"
        for link in links
        for entry in link.get("addr_info", [])
        if entry["scope"] == "global"
    ]


def require_kind(node: Node, *words: str) -> None:
    """Skip where this host's kernel cannot make such a link at all."""
    made = node.run(["ip", "link", "add", "name", "trial0", *words], check=False)
    if "not supported" in made.errors or "Unknown device type" in made.errors:
        pytest.skip(f"this kernel makes no {' '.join(words)}: {made.errors.strip()}")
    assert made.ok, made.errors
    node.run(["ip", "link", "delete", "trial0"])


def with_interface(**changes: object) -> dict[str, object]:
    """The node's profile with eth0 changed."""
    interfaces = dict(NODE_PROFILE["interfaces"])
    interfaces["eth0"] = {**interfaces["eth0"], **changes}
    return {"interfaces": interfaces}


def test_first_profile_takes_over_from_the_image(node: Node) -> None:
    found = change(node, None, NODE_PROFILE)
    assert found["error"] is None and found["problems"] == []
    assert len([sentence for sentence in found["sentences"] if sentence.startswith("Set eth")]) == 2
    assert found["healthy"] is True, found
    assert addresses(node, "eth0") == ["10.77.0.11/24"]
    active = node.run(["nmcli", "-g", "NAME", "connection", "show", "--active"]).output.split()
    assert {"centralino-eth0", "centralino-eth1"} <= set(active)
    mode = node.run(
        ["stat", "-c", "%a %U", "/etc/NetworkManager/system-connections/centralino-eth0.nmconnection"]
    )
    assert mode.output.split() == ["600", "root"]
    assert node.run(["ping", "-c1", "-W2", "10.77.0.1"], check=False).ok


def test_change_in_place_keeps_a_shared_address(node: Node) -> None:
    """What keepalived added must survive a change of everything else (a plain re-activation removes it)."""
    change(node, None, NODE_PROFILE)
    node.run(["ip", "address", "add", "10.77.0.200/32", "dev", "eth0", "noprefixroute"])
    index = node.run(["cat", "/sys/class/net/eth0/ifindex"]).output
    new = with_interface(
        ipv6="static",
        addresses=["10.77.0.21/24", "10.77.0.22/24", "fd77::21/64"],
        gateway6="fd77::1",
        mtu=1400,
    )
    new["routes"] = [
        {"destination": "198.51.100.0/24", "gateway": "10.77.0.1", "interface": "eth0", "metric": 50}
    ]
    new["dns"] = {"servers": ["10.77.0.1", "fd77::1"], "search": ["example.com"]}
    found = change(node, NODE_PROFILE, new)
    assert found["error"] is None and found["healthy"] is True, found
    assert set(addresses(node, "eth0")) == {
        "10.77.0.21/24",
        "10.77.0.22/24",
        "10.77.0.200/32",
        "fd77::21/64",
    }
    assert node.run(["cat", "/sys/class/net/eth0/mtu"]).output.strip() == "1400"
    assert "198.51.100.0/24 via 10.77.0.1" in node.run(["ip", "route", "show", "198.51.100.0/24"]).output
    assert "metric 50" in node.run(["ip", "route", "show", "198.51.100.0/24"]).output
    assert "via fd77::1" in node.run(["ip", "-6", "route", "show", "default"]).output
    assert node.run(["cat", "/sys/class/net/eth0/ifindex"]).output == index
    resolver = node.run(["cat", "/etc/resolv.conf"]).output
    assert "nameserver 10.77.0.1" in resolver and "search example.com" in resolver
    assert found["facts"]["name_servers"] == ["10.77.0.1", "fd77::1"]
    # And the way back, as the engine goes it when nobody confirms.
    back = change(node, new, NODE_PROFILE)
    assert back["error"] is None and back["healthy"] is True, back
    assert set(addresses(node, "eth0")) == {"10.77.0.11/24", "10.77.0.200/32"}
    node.run(["ip", "address", "delete", "10.77.0.200/32", "dev", "eth0"])


def test_vlan_and_its_removal(node: Node) -> None:
    require_kind(node, "link", "eth0", "type", "vlan", "id", "77")
    change(node, None, NODE_PROFILE)
    new = json.loads(json.dumps(NODE_PROFILE))
    new["interfaces"]["eth0.50"] = {
        "ipv4": "static",
        "ipv6": "off",
        "addresses": ["192.0.2.5/24"],
        "vlan": {"parent": "eth0", "tag": 50},
    }
    found = change(node, NODE_PROFILE, new)
    assert found["error"] is None and found["healthy"] is True, found
    assert addresses(node, "eth0.50") == ["192.0.2.5/24"]
    assert "vlan protocol 802.1Q id 50" in node.run(["ip", "-d", "link", "show", "eth0.50"]).output
    change(node, new, NODE_PROFILE)
    assert not node.run(["ip", "link", "show", "eth0.50"], check=False).ok


def test_bond_of_one_link(node: Node) -> None:
    require_kind(node, "type", "bond")
    change(node, None, NODE_PROFILE)
    new = json.loads(json.dumps(NODE_PROFILE))
    del new["interfaces"]["eth1"]
    new["interfaces"]["bond0"] = {
        "ipv4": "static",
        "ipv6": "off",
        "addresses": ["10.78.0.11/24"],
        "bond": {"links": ["eth1"], "mode": "active-backup"},
    }
    found = change(node, NODE_PROFILE, new)
    assert found["error"] is None and found["healthy"] is True, found
    assert addresses(node, "bond0") == ["10.78.0.11/24"]
    assert addresses(node, "eth1") == []
    assert node.run(["ping", "-c1", "-W2", "10.78.0.1"], check=False).ok
    change(node, new, NODE_PROFILE)
    assert not node.run(["ip", "link", "show", "bond0"], check=False).ok
    assert addresses(node, "eth1") == ["10.78.0.11/24"]


def test_disabled_interface_goes_down_and_comes_back(node: Node) -> None:
    change(node, None, NODE_PROFILE)
    new = json.loads(json.dumps(NODE_PROFILE))
    new["interfaces"]["eth1"]["enabled"] = False
    found = change(node, NODE_PROFILE, new)
    assert found["error"] is None and found["healthy"] is True, found
    assert addresses(node, "eth1") == []
    change(node, new, NODE_PROFILE)
    assert addresses(node, "eth1") == ["10.78.0.11/24"]


def test_drift_is_seen(node: Node) -> None:
    change(node, None, NODE_PROFILE)
    node.run(["ip", "address", "delete", "10.78.0.11/24", "dev", "eth1"])
    found = change(node, NODE_PROFILE, NODE_PROFILE)
    assert found["sentences"] == [] and found["healthy"] is False
    assert found["drift"] == ["eth1 lacks the address 10.78.0.11/24"]
    # An unknown past plans everything again, which repairs it.
    assert change(node, None, NODE_PROFILE)["healthy"] is True


def test_what_only_this_box_knows_is_refused(node: Node) -> None:
    found = change(node, NODE_PROFILE, {"interfaces": {"eth7": {}}})
    assert found["problems"] == [
        "network.interfaces.eth7: there is no such interface; this box has: eth0, eth1"
    ]
    assert found["sentences"] == []


def test_host_entries_and_time_servers(node: Node) -> None:
    if not node.run(["test", "-e", "/etc/centralino/platform.toml"], check=False).ok:
        pytest.skip("this root tree is no appliance, so nobody says where chrony keeps its sources")
    new = {
        **NODE_PROFILE,
        "hosts": [{"address": "10.77.0.99", "names": ["peer.example.com", "peer"]}],
        "ntp": {"servers": ["10.77.0.1"]},
    }
    found = change(node, NODE_PROFILE, new)
    assert found["error"] is None and found["problems"] == [], found
    assert "Take the time from 10.77.0.1" in found["sentences"]
    assert "10.77.0.99" in node.run(["getent", "hosts", "peer"]).output
    assert "10.77.0.1" in node.run(["chronyc", "-n", "sources"]).output
    back = change(node, new, NODE_PROFILE)
    assert back["error"] is None, back
    assert not node.run(["getent", "hosts", "peer"], check=False).ok
    assert "10.77.0.1" not in node.run(["chronyc", "-n", "sources"]).output
    assert node.run(["cat", "/etc/hosts"]).output.count("Centralino") == 0


def test_dhcp_and_back(lab_root: Path, tmp_path: Path) -> None:
    seen = {str(path): str(path) for path in (REPOSITORY, Path(sys.prefix))}
    with Lab(lab_root, tmp_path / "lab", dhcp=True) as lab:
        lab.add_node(binds=seen)
        lab.power_on_all()
        node = lab.node("node1")
        node.wait_active("NetworkManager.service")
        fixed = with_interface(addresses=["10.77.0.66/24"])
        assert change(node, None, fixed)["healthy"] is True
        dynamic = with_interface(ipv4="dhcp", addresses=[], gateway=None)
        found = change(node, fixed, dynamic)
        assert found["error"] is None, found
        wait_for(lambda: addresses(node, "eth0") not in ([], ["10.77.0.66/24"]), 30, "an address from DHCP")
        back = change(node, dynamic, fixed)
        assert back["error"] is None and back["healthy"] is True, back
        assert addresses(node, "eth0") == ["10.77.0.66/24"]


def test_network_manager_reads_every_kind_of_profile(node: Node) -> None:
    """VLAN and bond, also where this kernel cannot make them: NetworkManager must take each line as meant."""
    folder = "/etc/NetworkManager/system-connections"
    names = ["bond0", "bond0.20", "eth2", "eth3", "eth8"]
    for name in names:
        # The profile of eth0 under another name: the real one is in use.
        model = "eth0" if name == "eth8" else name
        text = (GOLDEN / f"centralino-{model}.nmconnection").read_text()
        text = text.replace(profile_uuid(model), profile_uuid(name)).replace(f"={model}\n", f"={name}\n")
        # Nothing shall come up here: the profiles are only read.
        text = text.replace(f"id=centralino-{model}", f"id=centralino-{name}").replace(
            "autoconnect=true", "autoconnect=false"
        )
        file = f"{folder}/centralino-{name}.nmconnection"
        node.run(["install", "-m", "600", "/dev/stdin", file], input_text=text)
    node.run(["nmcli", "connection", "reload"])
    complaints = [
        line
        for line in node.journal("-u", "NetworkManager").splitlines()
        if "keyfile" in line and "warn" in line
    ]
    assert complaints == []

    def field(name: str, *keys: str) -> list[str]:
        shown = node.run(["nmcli", "-g", ",".join(keys), "connection", "show", f"centralino-{name}"]).output
        return shown.strip().splitlines()

    assert field("bond0", "connection.type", "bond.options") == ["bond", "mode=802.3ad,miimon=100"]
    assert field("bond0.20", "vlan.parent", "vlan.id", "802-3-ethernet.mtu") == ["bond0", "20", "1400"]
    assert field("bond0.20", "ipv4.addresses", "ipv4.never-default") == ["198.51.100.5/25", "yes"]
    assert "203.0.113.0/24 198.51.100.1" in field("bond0.20", "ipv4.routes")[0]
    assert field("eth2", "ipv4.method", "ipv6.method") == ["disabled", "disabled"]
    assert field("eth3", "connection.slave-type", "connection.master") == ["bond", profile_uuid("bond0")]
    assert field("eth8", "ipv4.addresses", "ipv4.gateway") == ["192.0.2.10/24, 192.0.2.11/24", "192.0.2.1"]
    assert field("eth8", "ipv6.method", "ipv6.addr-gen-mode", "ipv6.ip6-privacy") == ["manual", "eui64", "0"]
    assert field("eth8", "ipv6.gateway", "802-3-ethernet.mtu") == ["fe80\\:\\:1", "1500"]
    for name in names:
        node.run(["nmcli", "connection", "delete", f"centralino-{name}"])


def test_profiles_survive_a_reboot(node: Node) -> None:
    change(node, None, with_interface(addresses=["10.77.0.23/24"]))
    node.reboot()
    node.wait_active("NetworkManager.service")
    found = change(node, None, with_interface(addresses=["10.77.0.23/24"]))
    assert addresses(node, "eth0") == ["10.77.0.23/24"]
    assert found["healthy"] is True
