"""The command line on a booted appliance: groups, completion of real shells, a change that cuts off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lab import LOGS, Lab, Node
from appliance.lab_host import Result, wait_for

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def node(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Node]:
    with Lab(lab_root, tmp_path_factory.mktemp("cli") / "lab") as lab:
        lab.add_node()
        lab.power_on_all()
        made = lab.node("node1")
        made.wait_active("centralinod.service")
        for name, group in (
            ("otto", "centralino-operator"),
            ("anna", "centralino-admin"),
            ("nemo", "nogroup"),
        ):
            made.run(["useradd", "-m", "-G", group, name])
        yield made
        if request.session.testsfailed:
            lab.save_logs(LOGS / "cli")


def centralino(node: Node, *words: str, user: str | None = None) -> Result:
    return node.run(["centralino", *words], user=user, check=False, limit_seconds=60)


def addresses(node: Node) -> list[str]:
    links = json.loads(node.run(["ip", "-json", "-4", "address", "show", "dev", "eth0"]).output)
    return [entry["local"] for link in links for entry in link.get("addr_info", [])]


def test_box_becomes_healthy(node: Node) -> None:
    done = centralino(node, "status", "--wait", "60")
    assert done.ok, done.output
    services = {
        service["name"]: service
        for service in json.loads(centralino(node, "services", "list", "--json").output)
    }
    assert services["asterisk"]["healthy"] is True
    assert centralino(node, "services", "logs", "asterisk", "-n", "5").ok


def test_groups_decide_and_refusals_are_recorded(node: Node) -> None:
    assert centralino(node, "status", user="otto").ok
    assert centralino(node, "config", "show", user="anna").ok
    assert centralino(node, "status", user="nemo").status == 4
    refused = centralino(node, "config", "set", "console.banner", "hello", "--yes", user="otto")
    assert refused.status == 4 and "centralino-admin" in refused.errors
    assert centralino(node, "config", "set", "console.banner", "hello", "--yes", user="anna").ok
    audit = json.loads(centralino(node, "audit", "--json").output)
    found = {(entry["who"], entry["method"], entry["outcome"].partition(":")[0]) for entry in audit}
    assert ("nemo", "System1.Status", "refused") in found
    assert ("otto", "Settings1.Apply", "refused") in found
    assert ("anna", "Settings1.Apply", "applied") in found


def test_a_service_is_restarted_by_its_command(node: Node) -> None:
    dry = centralino(node, "services", "restart", "nginx", "--dry-run")
    assert dry.ok, dry.errors
    before = node.processes_of("nginx.service")
    done = centralino(node, "services", "restart", "nginx", "--yes")
    assert done.ok, done.errors
    assert not set(before) & set(node.processes_of("nginx.service"))
    assert centralino(node, "services", "restart", "no-such", "--yes").status == 5


def test_installed_completion_of_three_shells(node: Node) -> None:
    script = (
        "source /usr/share/bash-completion/completions/centralino; "
        "COMP_WORDS=(centralino config set node.h); COMP_CWORD=3; "
        "_centralino_completion centralino; echo ${COMPREPLY[@]}"
    )
    assert "node.hostname" in node.run(["bash", "-c", script]).output
    fish = node.run(["fish", "-c", "complete -C 'centralino config set node.h'"], check=False)
    assert "node.hostname" in fish.output, fish.errors
    zsh = node.run(
        ["zsh", "-fc", "autoload -Uz compinit; compinit -D; echo $_comps[centralino]"], check=False
    )
    assert "_centralino" in zsh.output, zsh.errors


def test_a_change_that_cuts_off_returns_by_itself_though_the_daemon_is_killed(node: Node) -> None:
    assert addresses(node) == ["10.77.0.11"]
    # The gateway answers, so the box itself sees nothing wrong; the admin's address is gone all the same.
    wrong = '{"ipv4": "static", "ipv6": "off", "addresses": ["10.77.0.99/24"], "gateway": "10.77.0.1"}'
    done = centralino(
        node, "config", "set", f"network.interfaces.eth0={wrong}", "--yes", "--confirm-seconds", "8"
    )
    assert done.ok, done.errors
    assert "centralino config confirm" in done.output
    assert addresses(node) == ["10.77.0.99"]
    node.signal_unit("centralinod.service")
    wait_for(lambda: addresses(node) == ["10.77.0.11"], 40, "the return of the old address")
    wait_for(lambda: centralino(node, "status", "--json").ok, 20, "the daemon's return")
    wait_for(
        lambda: json.loads(centralino(node, "status", "--json").output)["pending"] is None,
        20,
        "the settled state",
    )
    newest = json.loads(centralino(node, "config", "history", "--json").output)[0]
    assert newest["state"] == "rolled_back"
    assert node.run(["ping", "-c1", "-W2", "10.77.0.1"], check=False).ok


def test_a_confirmed_change_stays(node: Node) -> None:
    right = '{"ipv4": "static", "ipv6": "off", "addresses": ["10.77.0.41/24"], "gateway": "10.77.0.1"}'
    done = centralino(
        node, "config", "set", f"network.interfaces.eth0={right}", "--yes", "--confirm-seconds", "20"
    )
    assert done.ok, done.errors
    assert centralino(node, "config", "confirm").ok
    assert addresses(node) == ["10.77.0.41"]
    assert json.loads(centralino(node, "status", "--json").output)["pending"] is None
    facts = json.loads(centralino(node, "status", "--json").output)["subsystems"]["network"]["facts"]
    assert facts["gateways"] == ["10.77.0.1 via eth0"]


def test_a_drop_of_the_interface_from_the_settings_gives_it_back_to_the_image(node: Node) -> None:
    done = centralino(node, "config", "unset", "network.interfaces.eth0", "--yes")
    assert done.ok, done.errors
    centralino(node, "config", "confirm")
    wait_for(lambda: addresses(node) == ["10.77.0.11"], 20, "the image's own profile taking over")
