"""A pair whose network fails in part: one direction, one signal, both cables, the gateway, for moments."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pair_faults import alarms, forget_moves
from pair_of_nodes import PairOfNodes, centralino, make_pair, role, status

from appliance.lab_host import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def pair(two_nodes: PairOfNodes) -> PairOfNodes:
    make_pair(two_nodes)
    return two_nodes


@pytest.fixture(autouse=True)
def audited(pair: PairOfNodes) -> Iterator[None]:
    """Healthy before and after: one master, one ready slave, one answer for the shared address."""
    pair.wait_healthy()
    forget_moves(pair)
    yield
    pair.lab.heal()
    for node in pair.nodes:
        node.link_up("lan")
        node.link_up("mgmt")
    master = pair.wait_healthy()
    hardware = pair.lab.network.segments["lan"].hardware(master.specification.number)
    wait_for(lambda: pair.answers_on_the_wire() == {hardware}, 20, "one answer for the shared address")


def test_the_slave_hears_nothing_but_is_heard(pair: PairOfNodes) -> None:
    """It takes over; the old master hears its adverts, steps down by them, and the wire has one answer."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    pair.lab.partition([master.name], [slave.name], one_way=True)
    wait_for(lambda: role(slave) == "master", 30, "the slave's promotion")
    wait_for(lambda: role(master) == "joining" and pair.holders() == [slave], 30, "the step down")
    assert pair.answers_on_the_wire() == {
        pair.lab.network.segments["lan"].hardware(slave.specification.number)
    }
    pair.lab.heal()
    assert pair.wait_healthy() is slave


def test_the_master_hears_nothing_but_is_heard(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    pair.lab.partition([slave.name], [master.name], one_way=True)
    wait_for(lambda: "pair.peer" in alarms(master), 20, "the alarm of a master without peer")
    assert (role(master), role(slave)) == ("master", "slave")
    assert pair.holders() == [master]


def test_the_network_splits_with_ssh_alive_and_vrrp_dead(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    pair.lab.partition([master.name], [slave.name], segments=["lan"])
    wait_for(lambda: "held back" in slave.journal("-u", "centralino-peer", "-n", "20"), 20, "the restraint")
    wait_for(lambda: pair.holders() == [master], 10, "one holder")
    assert (role(master), role(slave)) == ("master", "slave")


def test_the_network_splits_with_vrrp_alive_and_ssh_dead(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    pair.lab.partition([master.name], [slave.name], segments=["mgmt"])
    wait_for(lambda: "lost" in str(status(slave).get("link")), 15, "the lost link")
    assert status(slave).get("vrrp") == "backup"
    assert (role(master), role(slave)) == ("master", "slave")
    assert pair.holders() == [master]


def test_the_nodes_are_cut_off_from_each_other_alone(pair: PairOfNodes) -> None:
    """The slave takes over, and the gateway, which both see, tells the old master that it was replaced."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    pair.lab.partition([master.name], [slave.name])
    wait_for(lambda: role(slave) == "master", 30, "the slave's promotion")
    wait_for(lambda: role(master) == "joining" and pair.holders() == [slave], 10, "the step down")
    assert "gateway sends" in master.journal("-u", "centralino-peer", "-n", "50")
    pair.lab.heal()
    assert pair.wait_healthy() is slave


def test_both_cables_of_the_slave(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    slave.link_down("lan")
    slave.link_down("mgmt")
    wait_for(lambda: "pair.peer" in alarms(master), 20, "the alarm")
    assert role(master) == "master" and role(slave) != "master"
    assert "no link" in str(status(slave)["obstacles"])
    assert pair.holders() == [master]


def test_both_cables_of_the_master(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    master.link_down("lan")
    master.link_down("mgmt")
    wait_for(lambda: role(slave) == "master" and pair.holders() == [slave], 30, "the move of the role")
    wait_for(lambda: role(master) == "joining", 30, "the step down of the master that sees nobody")
    master.link_up("lan")
    master.link_up("mgmt")
    assert pair.wait_healthy() is slave


def test_a_flapping_cable_of_the_master(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    for _ in range(6):
        master.link_down("lan")
        master.link_up("lan")
    pair.wait_healthy()


def test_the_gateway_is_gone_for_both(pair: PairOfNodes) -> None:
    """Nobody moves: the slave could serve no better, and the master still hears its peer."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    pair.lab.partition(["gateway"], [node.name for node in pair.nodes])
    wait_for(lambda: all("pair.gateway" in alarms(node) for node in pair.nodes), 30, "the alarms")
    assert "does not reach its gateway" in str(status(slave)["obstacles"])
    assert (role(master), role(slave)) == ("master", "slave")
    pair.lab.heal()
    wait_for(lambda: not any("pair.gateway" in alarms(node) for node in pair.nodes), 30, "their end")


def test_a_witness_decides_who_is_cut_off(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    for node in pair.nodes:
        words = ("fault-tolerance", "configure", "--witness", pair.probe.address(), "--yes")
        centralino(node, *words).check()
    pair.wait_healthy()
    master = pair.wait_healthy()
    slave = pair.other(master)
    # The master sees the witness alone, the slave the gateway alone: nobody may think himself the only one.
    pair.lab.partition([slave.name], ["probe"])
    wait_for(lambda: "the witness" in str(status(slave).get("obstacles")), 20, "the lost witness")
    pair.lab.partition([master.name], [slave.name, "gateway"])
    wait_for(lambda: "pair.gateway" in alarms(master), 20, "the lost gateway")
    assert (role(master), role(slave)) == ("master", "slave")
    assert pair.holders() == [master]
    pair.lab.heal()
    assert pair.wait_healthy() is master
    # A witness that is dead for both is missed by an alarm, and keeps nobody from taking over.
    pair.lab.partition(["probe"], [node.name for node in pair.nodes])
    wait_for(lambda: all("pair.witness" in alarms(node) for node in pair.nodes), 30, "the alarms")
    wait_for(lambda: status(slave).get("ready") is True, 10, "a ready slave without witness")
