"""A pair on bad days: each story is named after what fails; after each one the pair is audited."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair_of_nodes import (
    SHARED,
    EchoProber,
    PairOfNodes,
    boot_two,
    centralino,
    make_pair,
    role,
    start_echo,
    status,
)

from appliance.lab import LOGS, Lab
from appliance.lab_host import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def pair(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[PairOfNodes]:
    with Lab(lab_root, tmp_path_factory.mktemp("pair") / "lab") as lab:
        made = boot_two(lab)
        make_pair(made)
        made.start_echo()
        yield made
        if request.session.testsfailed:
            lab.save_logs(LOGS / "failover")


@pytest.fixture(autouse=True)
def audited(pair: PairOfNodes) -> Iterator[None]:
    """Healthy before, healthy after: one master, one holder in both kernels and on the wire."""
    pair.wait_healthy()
    yield
    pair.lab.heal()
    for node in pair.nodes:
        node.link_up("lan") if node.powered else None
        node.link_up("mgmt") if node.powered else None
    master = pair.wait_healthy()
    hardware = pair.lab.network.segments["lan"].hardware(master.specification.number)
    wait_for(lambda: pair.answers_on_the_wire() == {hardware}, 20, "one answer for the shared address")


def test_the_node_that_asked_is_master_and_the_other_one_follows(pair: PairOfNodes) -> None:
    assert role(pair.first) == "master"
    assert pair.holders() == [pair.first]
    assert json.loads(centralino(pair.first, "status", "--json").output)["role"] == "master"
    assert "may take over" in centralino(pair.second, "fault-tolerance", "why").output


def test_power_off_of_the_master(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    with EchoProber(pair.probe) as prober:
        wait_for(lambda: len(prober.answers) > 20, 10, "answers at the shared address")
        moment = master.power_off()
        seconds = prober.first_after(moment, 20)
    print(f"the shared address answered {seconds:.3f} s after the power was cut")
    wait_for(lambda: role(slave) == "master", 20, "the slave's promotion")
    master.power_on()
    start_echo(master)
    # No fail-back (S-FT-09).
    wait_for(lambda: role(master) == "slave", 90, "the return as slave")
    assert role(slave) == "master"


def test_planned_switch(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    with EchoProber(pair.probe) as prober:
        wait_for(lambda: len(prober.answers) > 20, 10, "answers at the shared address")
        moment = prober.answers[-1][1]
        done = centralino(master, "fault-tolerance", "switch", "--yes", "--json")
        assert done.ok, done.errors
        wait_for(lambda: role(pair.other(master)) == "master", 20, "the move")
        gap = prober.longest_gap(moment)
    print(f"the longest time without an answer was {gap:.3f} s; {done.output}")
    assert role(master) == "slave"


def test_killed_keepalived_on_the_master(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    master.signal_unit("centralino-vrrp.service", signal.SIGKILL)
    wait_for(
        lambda: pair.holders() == [master] and role(master) == "master", 30, "the address back at the master"
    )


def test_frozen_keepalived_on_the_master(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    master.signal_unit("centralino-vrrp.service", signal.SIGSTOP)
    wait_for(
        lambda: status(master).get("vrrp") == "master" and pair.holders() == [master],
        30,
        "a thawed keepalived",
    )


def test_management_link_down_changes_nothing(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    slave.link_down("mgmt")
    wait_for(lambda: "lost" in str(status(slave).get("link")), 10, "the lost link")
    assert (role(master), role(slave)) == ("master", "slave")
    assert pair.holders() == [master]
    slave.link_up("mgmt")


def test_service_link_of_the_master_down_moves_the_role(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    master.link_down("lan")
    wait_for(lambda: role(slave) == "master" and pair.holders() == [slave], 30, "the move of the role")
    master.link_up("lan")


def test_master_cut_off_from_everything_steps_down_and_follows_after_the_heal(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    pair.lab.partition([master.name], [slave.name, "gateway", "probe"])
    wait_for(lambda: role(slave) == "master", 30, "the promotion of the other side")
    wait_for(lambda: role(master) == "joining" and master not in pair.holders(), 30, "the step down")
    pair.lab.heal()
    wait_for(lambda: role(master) == "slave", 60, "the return as slave")
    assert role(slave) == "master"


def test_vrrp_dead_while_the_peer_link_lives(pair: PairOfNodes) -> None:
    """The slave hears no adverts, but the link says that the master lives: it must not take over."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    pair.lab.partition([master.name], [slave.name], segments=["lan"], one_way=True)
    wait_for(lambda: status(slave).get("vrrp") in ("master", "fault"), 15, "the silence of VRRP")
    wait_for(lambda: pair.holders() == [master], 10, "the slave's restraint")
    assert (role(master), role(slave)) == ("master", "slave")


def test_shared_address_deleted_by_hand(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    master.run(["ip", "address", "del", f"{SHARED}/32", "dev", "eth0"])
    wait_for(lambda: pair.holders() == [master], 15, "the address to be put back")


def test_killed_runtime_on_the_master_changes_nothing(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    master.signal_unit("centralino-peer.service", signal.SIGKILL)
    wait_for(lambda: role(master) == "master", 20, "the runtime's return as master")
    assert role(pair.other(master)) == "slave"
    assert pair.holders() == [master]


def test_both_power_off_and_return_together(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    # The slave first: the other way round it would be master for its last moment.
    pair.other(master).power_off()
    # Equal data would leave the choice to the nodes' order.
    master.run(["mariadb", "-e", "CREATE DATABASE written_alone"], limit_seconds=60)
    master.power_off()
    pair.lab.power_on_all()
    pair.start_echo()
    # Whoever has the newest data comes first.
    assert pair.wait_healthy() is master


def test_master_off_then_slave_off_and_the_slave_returns_first(pair: PairOfNodes) -> None:
    """The slave took over before its own power failed, so it has the newer data, and waits for its peer."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    master.power_off()
    wait_for(lambda: role(slave) == "master", 30, "the promotion")
    slave.power_off()
    slave.power_on()
    wait_for(lambda: role(slave) == "joining", 60, "the wait for the peer")
    assert "not been met" in str(status(slave)["obstacles"])
    master.power_on()
    pair.start_echo()
    assert pair.wait_healthy() is slave
