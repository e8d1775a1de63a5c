"""Automatic certificates on a booted appliance, with Pebble as the service (S-CE-03)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certificate_authority import AUTHORITY_ADDRESS, BOX_ADDRESS, DIRECTORY, Pebble, programs_missing
from certificate_calls import calls
from certificate_lab import certificate, served_serial, this_tree

from appliance.demo_steps import wait_healthy
from appliance.lab import LOGS, Client, Lab, Node
from appliance.lab_host import Result, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.skipif(bool(programs_missing()), reason=programs_missing())]

NAME = "pbx.example.com"
ENABLE = ("acme", "enable", "--directory", DIRECTORY, "--roots", "/root/roots.pem", "--accept-terms")
PORTS = {"web": 443, "SIP": 5061, "TURN": 3478}


class World:
    """The appliance, a service, and a phone."""

    def __init__(self, lab: Lab, node: Node, pebble: Pebble, service: Client) -> None:
        self.lab = lab
        self.node = node
        self.pebble = pebble
        self.service = service

    def enable(self, *, check: bool = False) -> Result:
        return certificate(self.node, *ENABLE, "--yes", check=check)

    def conditions(self) -> dict[str, str]:
        done = certificate(self.node, *ENABLE, "--dry-run", "--json")
        return {problem["path"]: problem["message"] for problem in json.loads(done.output)["problems"]}

    def show(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(certificate(self.node, "show", "--json").output)
        return found

    def serial(self) -> str:
        """The one that all services serve."""
        (found,) = {served_serial(self.node, port) for port in PORTS.values()}
        return found

    def renewed(self, before: str) -> bool:
        """Whether all serve another one; while it is replaced they differ for a moment."""
        found = {served_serial(self.node, port) for port in PORTS.values()}
        return len(found) == 1 and before not in found

    def alarms(self) -> dict[str, str]:
        status = self.node.json(["centralino", "status", "--json"])
        return {alarm["id"]: alarm["sentence"] for alarm in status["alarms"]}  # type: ignore[attr-defined]

    def settings(self, *words: str) -> None:
        self.node.run(
            ["centralino", "config", "set", "--yes", "--confirm-seconds", "300", *words], limit_seconds=120
        )
        self.node.run(["centralino", "config", "confirm"], check=False)


@pytest.fixture(scope="module")
def world(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[World]:
    with Lab(lab_root, tmp_path_factory.mktemp("acme") / "lab") as lab:
        node = lab.add_node(binds=this_tree(lab_root, tmp_path_factory.mktemp("tree")))
        service = lab.add_client("service")
        lab.add_client("phone")
        lab.power_on_all()
        node.run(["ip", "address", "add", f"{BOX_ADDRESS}/24", "dev", "eth0"])
        pebble = Pebble(service, tmp_path_factory.mktemp("pebble"))
        pebble.start()
        pebble.resolve(NAME, BOX_ADDRESS)
        node.run(["tee", "/root/roots.pem"], input_text=pebble.roots.read_text())
        wait_healthy(node)
        yield World(lab, node, pebble, service)
        if request.session.testsfailed:
            lab.save_logs(LOGS / "acme")


def test_in_standard_mode_it_is_refused_with_every_reason(world: World) -> None:
    done = certificate(world.node, "acme", "enable", "--yes", check=False)
    assert done.status == 3
    for reason in ("work mode cloud only", "no domain is set", "no public address is set", "terms"):
        assert reason in done.errors


def test_an_installer_takes_a_fresh_box_to_cloud_mode_with_a_trusted_certificate(world: World) -> None:
    servers = json.dumps([AUTHORITY_ADDRESS])
    world.settings(
        f"network.dns.servers={servers}",
        f"domain.public_resolvers={servers}",
        f"domain.fqdn={NAME}",
        f"domain.public_address={BOX_ADDRESS}",
        "mode.mode=cloud",
    )
    wait_healthy(world.node)
    assert world.conditions() == {}
    world.enable(check=True)
    world.node.run(["tee", "/root/issuer.pem"], input_text=world.pebble.issuer_root())
    for port in PORTS.values():
        words = f"-connect {BOX_ADDRESS}:{port} -CAfile /root/issuer.pem -verify_hostname {NAME}"
        command = f"openssl s_client {words} -verify_return_error </dev/null 2>&1"
        assert "Verify return code: 0 (ok)" in world.node.run(["sh", "-c", command]).output
    served = world.show()["served"]
    assert isinstance(served, dict)
    assert (served["source"], served["names"]) == ("acme", [NAME])
    assert {one["consumer"] for one in served["consumers"]} == {"nginx", "asterisk-tls", "coturn"}
    assert world.serial() == served["serial"]
    assert world.node.run(["find", "/var/www/centralino/acme", "-type", "f"]).output == ""
    wait_healthy(world.node)


def test_renewals_drop_no_call_and_keep_the_account(world: World, tmp_path: Path) -> None:
    accounts = "cat /var/lib/centralino/certificates/accounts/*"
    before = world.node.run(["sh", "-c", accounts]).output
    first = world.serial()
    with calls(world.node, world.lab.clients["phone"], tmp_path, each=2, seconds=15) as standing:
        certificate(world.node, "renew", "--yes")
        assert world.serial() != first
        assert [call.over for call in standing if not call.ended_well(60)] == []
    assert world.node.run(["sh", "-c", accounts]).output == before


def test_it_is_patient_with_a_service_that_rejects_most_nonces(world: World) -> None:
    first = world.serial()
    world.pebble.start(reject_nonces=60)
    # The service has forgotten everything, the account too, which is made anew.
    certificate(world.node, "renew", "--yes")
    assert world.serial() != first
    world.pebble.start()


@pytest.mark.parametrize(
    ("address", "address6", "path", "message"),
    [
        (None, None, "acme.name-unknown", "does not resolve"),
        ("203.0.113.99", None, "acme.name-elsewhere", "is 203.0.113.99, not 203.0.113.11"),
        (BOX_ADDRESS, "2001:db8::99", "acme.name-elsewhere", "is 2001:db8::99"),
    ],
)
def test_wrong_names_are_seen_before_anything_is_ordered(
    world: World, address: str | None, address6: str | None, path: str, message: str
) -> None:
    world.pebble.resolve(NAME, address)
    world.pebble.resolve6(NAME, address6)
    try:
        found = world.conditions()
        assert set(found) == {path}
        assert message in found[path]
        assert world.enable().status == 3
    finally:
        world.pebble.resolve(NAME, BOX_ADDRESS)
        world.pebble.resolve6(NAME, None)


def test_a_validation_that_fails_is_said_plainly_and_changes_nothing(world: World) -> None:
    """The box sees itself on port 80, the service does not: a firewall at the provider."""
    before = world.serial()
    world.service.run(["nft", "add", "table", "ip", "wall"])
    world.service.run(["nft", "add chain ip wall out { type filter hook output priority 0; }"])
    world.service.run(["nft", "add rule ip wall out tcp dport 80 reject with tcp reset"])
    try:
        done = world.enable()
    finally:
        world.service.run(["nft", "delete", "table", "ip", "wall"])
    assert done.status == 9
    assert "could not see this box under the domain" in done.errors
    assert "TCP port 80" in done.errors
    assert world.serial() == before
    assert world.node.run(["find", "/var/www/centralino/acme", "-type", "f"]).output == ""


def test_a_service_that_is_away_fails_the_renewal_with_alarm_and_pause(world: World) -> None:
    before = world.serial()
    world.pebble.stop()
    done = certificate(world.node, "renew", "--yes", check=False)
    assert done.status == 9
    assert "cannot be reached (connection refused)" in done.errors
    assert world.serial() == before
    assert "the next try is at" in world.alarms()["certificate.renewal"]
    world.pebble.start()
    certificate(world.node, "renew", "--yes")
    assert "certificate.renewal" not in world.alarms()


def test_what_is_due_is_renewed_by_itself(world: World) -> None:
    before = world.serial()
    node = world.node
    node.run(["systemctl", "stop", "centralinod.service"])
    file = "/var/lib/centralino/certificates/state.json"
    state = json.loads(node.run(["cat", file]).output)
    state["renewal"]["due"] = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    node.run(["tee", file], input_text=json.dumps(state))
    node.run(["systemctl", "start", "centralinod.service"])
    wait_for(lambda: world.renewed(before), 120, "the renewal", interval_seconds=2)
    wait_healthy(node)
    assert world.alarms() == {}


def test_going_back_to_another_source_and_forward_again(world: World) -> None:
    automatic = world.serial()
    world.settings("certificates.source=self-signed")
    assert world.serial() != automatic
    world.settings("certificates.source=acme")
    assert world.serial() == automatic
