"""Forming a pair, its settings, a rehearsal, and dissolving it: one story on two fresh nodes, in order.

S-FT-01, S-FT-03 and S-FT-04; what replaces S-FT-05: nothing is rebooted.
"""

from __future__ import annotations

import json

import pytest
from pair_of_nodes import SHARED, PairOfNodes, centralino, make_pair, role

from appliance.lab import Node
from appliance.lab_host import Result, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PEER = "10.78.0.12"


@pytest.fixture(scope="module")
def pair(two_nodes: PairOfNodes) -> PairOfNodes:
    return two_nodes


def runs(node: Node, unit: str) -> bool:
    return node.run(["systemctl", "is-active", unit], check=False).output.strip() == "active"


def ask_to_pair(pair: PairOfNodes, code: str, *more: str) -> Result:
    return pair.first.run(
        ["centralino", "fault-tolerance", "pair", PEER, "--code-from", "-", "--yes", *more],
        input_text=f"{code}\n",
        limit_seconds=120,
        check=False,
    )


def test_a_box_without_a_pair_runs_nothing_of_it(pair: PairOfNodes) -> None:
    for unit in ("centralino-peer", "centralino-vrrp"):
        assert not runs(pair.first, unit)
    assert "no peer" in centralino(pair.first, "fault-tolerance", "status").output


def test_refusals_name_their_reason(pair: PairOfNodes) -> None:
    refused = ask_to_pair(pair, "A" * 20)
    assert "no shared address" in refused.errors
    done = centralino(pair.first, "fault-tolerance", "configure", "--shared", f"{SHARED}/24@eth0", "--yes")
    assert done.ok, done.errors
    pair.probe.run(["ip", "address", "add", f"{SHARED}/24", "dev", "eth0"])
    refused = ask_to_pair(pair, "A" * 20)
    assert "in use by another machine" in refused.errors
    pair.probe.run(["ip", "address", "del", f"{SHARED}/24", "dev", "eth0"])
    code = json.loads(centralino(pair.second, "fault-tolerance", "invite", "--yes", "--json").output)["code"]
    swapped = ("B" if code[0] == "A" else "A") + code[1:]
    refused = ask_to_pair(pair, swapped)
    assert refused.status == 4 and "does not accept this code" in refused.errors
    stranger = code[:-1] + ("B" if code[-1] == "A" else "A")
    refused = ask_to_pair(pair, stranger)
    assert "is not the one that made this code" in refused.errors
    assert role(pair.first) == "standalone"


def test_the_pair_is_formed(pair: PairOfNodes) -> None:
    make_pair(pair)
    assert pair.wait_healthy() is pair.first


def test_settings_of_the_cluster_follow(pair: PairOfNodes) -> None:
    done = centralino(pair.first, "config", "set", "mail.sender_name=Exchange", "--yes")
    if not done.ok:
        done = centralino(pair.first, "config", "set", "firewall.shield.requests_per_second=77", "--yes")
    assert done.ok, done.errors
    centralino(pair.first, "config", "confirm")

    def agree() -> bool:
        shown = [json.loads(centralino(node, "config", "show", "--json").output) for node in pair.nodes]
        return all(shown[0][name] == shown[1][name] for name in ("firewall", "mail"))

    wait_for(agree, 60, "the same settings on both nodes")


def test_a_rehearsal_goes_there_and_back(pair: PairOfNodes) -> None:
    done = centralino(pair.first, "fault-tolerance", "rehearse", "--yes", "--json", limit_seconds=300)
    assert done.ok, done.errors
    report = json.loads(done.output)
    print(report)
    assert report["there"]["moved"] and report["back"]["moved"]
    assert pair.wait_healthy() is pair.first


def test_each_node_serves_alone_after_the_pair_is_dissolved(pair: PairOfNodes) -> None:
    for node in (pair.second, pair.first):
        done = centralino(node, "fault-tolerance", "unpair", "--yes", limit_seconds=180)
        assert done.ok, done.errors
    for node in pair.nodes:
        wait_for(lambda node=node: role(node) == "standalone", 30, "standalone")
        wait_for(lambda node=node: not runs(node, "centralino-vrrp"), 30, "the end of keepalived")
        assert not node.run(["nft", "list", "table", "inet", "centralino_role"], check=False).ok
        writable = node.run(["mariadb", "--batch", "--skip-column-names", "-e", "SELECT @@read_only"])
        assert writable.output.strip() == "0"
        assert node.run(["cat", "/etc/ssh/centralino-peer.keys"]).output == ""
        modules = node.run(["asterisk", "-rx", "module show like outbound_registration"]).output
        assert "res_pjsip_outbound_registration.so" in modules
        assert not node.run(["nft", "list", "table", "ip", "centralino_sip"], check=False).ok
    assert pair.holders() == []
