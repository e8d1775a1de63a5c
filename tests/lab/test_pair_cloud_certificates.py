"""Automatic certificates of a pair in a cloud: ordered by the master, served and renewed by the next one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certificate_authority import AUTHORITY_ADDRESS, BOX_ADDRESS, DIRECTORY, Pebble, programs_missing
from certificate_lab import certificate, served_serial
from pair_of_nodes import PairOfNodes, boot_two, centralino, role

from appliance.lab import LOGS, Lab, Node
from appliance.lab_host import wait_for

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.skipif(bool(programs_missing()), reason=programs_missing()),
]

NAME = "pbx.example.com"
PORTS = (443, 5061, 3478)
STATE = "/var/lib/centralino/certificates/state.json"
ACCOUNTS = "cat /var/lib/centralino/certificates/accounts/*"
TURN_SECRET = "cat /etc/centralino/secrets/turn; grep ^static-auth-secret /etc/turnserver.conf"
CLOUD: dict[str, object] = {
    "mode": {"mode": "cloud"},
    "domain": {
        "fqdn": NAME,
        "public_address": BOX_ADDRESS,
        "public_resolvers": [AUTHORITY_ADDRESS],
    },
    "network": {"dns": {"servers": [AUTHORITY_ADDRESS]}},
    "firewall": {"management_networks": ["10.0.0.0/8"]},
}


@dataclass
class World:
    """A pair in a cloud whose public address this test moves, and a certificate service."""

    pair: PairOfNodes
    pebble: Pebble

    def move_address(self, node: Node) -> None:
        """What the provider's console does."""
        address = f"{BOX_ADDRESS}/24"
        self.pair.other(node).run(["ip", "address", "del", address, "dev", "eth0"], check=False)
        node.run(["ip", "address", "replace", address, "dev", "eth0"])


@pytest.fixture(scope="module")
def world(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[World]:
    with Lab(lab_root, tmp_path_factory.mktemp("cloud") / "lab") as lab:
        pair = boot_two(lab, CLOUD)
        pebble = Pebble(pair.probe, tmp_path_factory.mktemp("pebble"))
        pebble.start()
        pebble.resolve(NAME, BOX_ADDRESS)
        made = World(pair, pebble)
        made.move_address(pair.first)
        invitation = centralino(pair.second, "fault-tolerance", "invite", "--yes", "--json")
        pair.first.run(
            ["centralino", "fault-tolerance", "pair", "10.78.0.12", "--code-from", "-", "--yes"],
            input_text=f"{json.loads(invitation.output)['code']}\n",
            limit_seconds=120,
        )
        wait_for(lambda: (role(pair.first), role(pair.second)) == ("master", "slave"), 180, "the pair")
        yield made
        if request.session.testsfailed:
            lab.save_logs(LOGS / "pair-cloud-certificates")


def serials(node: Node, ports: tuple[int, ...] = PORTS) -> set[str]:
    return {served_serial(node, port) for port in ports}


def shell(node: Node, script: str) -> str:
    return node.run(["sh", "-c", script], check=False).output


def test_what_the_master_orders_is_on_the_slave_as_well(world: World) -> None:
    master, slave = world.pair.first, world.pair.second
    master.run(["tee", "/root/roots.pem"], input_text=world.pebble.roots.read_text())
    words = ("--directory", DIRECTORY, "--roots", "/root/roots.pem", "--accept-terms", "--yes")
    certificate(master, "acme", "enable", *words)
    (serial,) = serials(master)
    wait_for(lambda: serials(slave, (443, 5061)) == {serial}, 60, "the certificate on the slave")
    wait_for(lambda: shell(slave, ACCOUNTS) == shell(master, ACCOUNTS) != "", 30, "the account")
    wait_for(lambda: shell(slave, TURN_SECRET) == shell(master, TURN_SECRET) != "", 30, "the TURN secret")
    refused = certificate(slave, "renew", "--yes", check=False)
    assert "takes its certificates from the master" in refused.errors


def test_the_new_master_serves_it_and_renews_it_by_itself(world: World) -> None:
    old, new = world.pair.first, world.pair.second
    (serial,) = serials(old)
    account = shell(old, ACCOUNTS)
    assert centralino(old, "fault-tolerance", "role", "off", "--yes").ok
    world.move_address(new)
    done = centralino(new, "fault-tolerance", "role", "master", "--yes")
    assert done.ok, done.errors
    assert centralino(old, "fault-tolerance", "role", "slave", "--yes").ok
    wait_for(lambda: serials(new) == {serial}, 60, "web, SIP and TURN with the same certificate")
    # The time for the renewal comes.
    new.run(["systemctl", "stop", "centralinod.service"])
    state = json.loads(new.run(["cat", STATE]).output)
    state["renewal"]["due"] = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    new.run(["tee", STATE], input_text=json.dumps(state))
    new.run(["systemctl", "start", "centralinod.service"])

    def renewed() -> bool:
        found = serials(new)
        return len(found) == 1 and serial not in found and "" not in found

    wait_for(renewed, 120, "the renewal")
    assert shell(new, ACCOUNTS) == account, "with the account that the old master had made"
    (later,) = serials(new)
    wait_for(lambda: serials(old, (443, 5061)) == {later}, 90, "the renewed one on the old master")
