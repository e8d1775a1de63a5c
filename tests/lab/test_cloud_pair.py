"""A pair without an address that moves: the four steps by hand, their order, and the provider's hook
(S-FT-11, S-FT-12).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair_of_nodes import PairOfNodes, boot_two, centralino, role, status

from appliance.lab import LOGS, Lab
from appliance.lab_host import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]

HOOKS = "/etc/centralino/hooks"
# Stands in for a provider: remembers every call; `confirm` succeeds when the file `dead` says so.
HOOK = """\
#!/bin/sh
echo "$@" >> /var/lib/centralino/hook-calls
[ "$1" != confirm ] || [ -e /var/lib/centralino/peer-is-dead ]
"""


CLOUD: dict[str, object] = {
    "mode": {"mode": "cloud"},
    "domain": {"fqdn": "pbx.example.com", "public_address": "9.9.9.9"},
    "firewall": {"management_networks": ["10.0.0.0/8"]},
}


@pytest.fixture(scope="module")
def pair(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[PairOfNodes]:
    with Lab(lab_root, tmp_path_factory.mktemp("cloud") / "lab") as lab:
        made = boot_two(lab, CLOUD)
        code = json.loads(centralino(made.second, "fault-tolerance", "invite", "--yes", "--json").output)[
            "code"
        ]
        done = made.first.run(
            ["centralino", "fault-tolerance", "pair", "10.78.0.12", "--code-from", "-", "--yes"],
            input_text=f"{code}\n",
            limit_seconds=120,
            check=False,
        )
        assert done.ok, done.output + done.errors
        wait_for(
            lambda: (role(made.first), role(made.second)) == ("master", "slave"),
            180,
            f"the first master; {made.describe()}",
        )
        yield made
        if request.session.testsfailed:
            lab.save_logs(LOGS / "cloud")


def test_nothing_of_vrrp_runs(pair: PairOfNodes) -> None:
    for node in pair.nodes:
        assert (
            node.run(["systemctl", "is-active", "centralino-vrrp"], check=False).output.strip() == "inactive"
        )
        assert status(node)["addresses"] == []


def test_the_slave_does_not_take_over_by_itself_and_not_while_its_peer_serves(pair: PairOfNodes) -> None:
    assert "by hand" in str(status(pair.second)["obstacles"])
    early = centralino(pair.second, "fault-tolerance", "role", "master", "--yes", "--wait", "3")
    assert not early.ok
    assert role(pair.second) == "slave"
    assert centralino(pair.second, "fault-tolerance", "role", "slave", "--yes", "--wait", "5").ok


def test_the_four_steps_by_hand(pair: PairOfNodes) -> None:
    old, new = pair.first, pair.second
    # What status shows of a slave that has the data of this mastery; one that does not may not serve.
    wait_for(lambda: status(new)["mastered"] == status(old)["mastered"], 30, "a slave with the master's data")
    done = centralino(old, "fault-tolerance", "role", "off", "--yes")
    assert done.ok, done.errors
    # Step 2 is the provider's console.
    assert role(new) in ("slave", "joining")
    done = centralino(new, "fault-tolerance", "role", "master", "--yes")
    assert done.ok, done.errors
    done = centralino(old, "fault-tolerance", "role", "slave", "--yes")
    assert done.ok, done.errors
    assert (role(new), role(old)) == ("master", "slave")


def test_with_a_hook_the_slave_takes_over_once_the_provider_confirms(pair: PairOfNodes) -> None:
    master = pair.master()
    assert master is not None
    slave = pair.other(master)
    slave.run(["mkdir", "-p", HOOKS])
    slave.run(["tee", f"{HOOKS}/public-address"], input_text=HOOK)
    slave.run(["chmod", "755", f"{HOOKS}/public-address"])
    slave.run(["systemctl", "restart", "centralino-peer"])
    wait_for(lambda: status(slave).get("ready") is True, 60, "a ready slave")
    master.power_off()
    calls = slave.path("/var/lib/centralino/hook-calls")
    wait_for(lambda: calls.exists() and "confirm 9.9.9.9" in calls.read_text(), 30, "the question")
    assert role(slave) == "slave"
    slave.run(["touch", "/var/lib/centralino/peer-is-dead"])
    wait_for(lambda: role(slave) == "master", 40, "the takeover")
    assert "promote 9.9.9.9" in calls.read_text()
