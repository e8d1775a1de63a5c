"""A pair on bad days: each story is named after what fails; after each one the pair is audited."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from pair_of_nodes import (
    EchoProber,
    PairOfNodes,
    centralino,
    make_pair,
    role,
    status,
)

from appliance.lab_host import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def pair(two_nodes: PairOfNodes) -> PairOfNodes:
    make_pair(two_nodes)
    two_nodes.start_echo()
    return two_nodes


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


def test_planned_switch(pair: PairOfNodes) -> None:
    """S-FT-10: the roles change by a command."""
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


def test_killed_runtime_on_the_master_changes_nothing(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    master.signal_unit("centralino-peer.service", signal.SIGKILL)
    wait_for(lambda: role(master) == "master", 20, "the runtime's return as master")
    assert role(pair.other(master)) == "slave"
    assert pair.holders() == [master]


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
