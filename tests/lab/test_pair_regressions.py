"""What others shipped broken, as stories of their own.

Both slave after a joint boot (TrueNAS NAS-121090), event storms (NAS-124988), only the demotion lost
(NAS-141204), equal priorities (keepalived 2209), the loser's last gratuitous ARP (keepalived 166),
NetworkManager (keepalived 2564), the bus gone at shutdown. Networks that split between SSH and VRRP are in
test_pair_on_a_bad_network.py.
"""

from __future__ import annotations

import signal

import pytest
from pair_of_nodes import SHARED, EchoProber, PairOfNodes, make_pair, role, start_echo

from appliance.lab_host import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def pair(two_nodes: PairOfNodes) -> PairOfNodes:
    make_pair(two_nodes)
    two_nodes.wait_healthy()
    two_nodes.start_echo()
    return two_nodes


def neighbour(pair: PairOfNodes) -> str:
    """The hardware address that the client believes the shared address to have."""
    shown = pair.probe.run(["ip", "neighbour", "show", "to", SHARED], check=False).output.split()
    return shown[shown.index("lladdr") + 1] if "lladdr" in shown else ""


def hardware(pair: PairOfNodes, number: int) -> str:
    return pair.lab.network.segments["lan"].hardware(number)


def test_the_last_gratuitous_arp_came_from_the_loser(pair: PairOfNodes) -> None:
    """After a heal the master announces again: a client that believed the loser comes back."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    right, wrong = (hardware(pair, node.specification.number) for node in (master, slave))
    slave.link_down("mgmt")
    wait_for(
        lambda: "lost" in slave.run(["journalctl", "-u", "centralino-peer", "-n", "5"]).output, 10, "the loss"
    )
    pair.probe.run(["ip", "neighbour", "replace", SHARED, "lladdr", wrong, "dev", "eth0", "nud", "stale"])
    assert neighbour(pair) == wrong
    slave.link_up("mgmt")
    wait_for(lambda: neighbour(pair) == right, 30, "the client's return to the master")


@pytest.mark.parametrize("first_on", [None, 0, 1], ids=["together", "one-earlier", "other-earlier"])
def test_both_stay_slave_after_a_joint_boot(pair: PairOfNodes, first_on: int | None) -> None:
    """Equal data, so that nothing but the order of the nodes decides; neither order nor delay matters."""
    master = pair.wait_healthy()
    pair.other(master).power_off()
    master.power_off()
    if first_on is not None:
        pair.nodes[first_on].power_on()
        wait_for(lambda: role(pair.nodes[first_on]) == "joining", 60, "the wait for the peer")
    pair.lab.power_on_all()
    pair.start_echo()
    pair.wait_healthy()


def test_an_event_storm(pair: PairOfNodes) -> None:
    """Thousands of words at once, the last one true: nobody moves, and the runtime does not fall behind."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    lines = "".join(f'INSTANCE "centralino" {word} 100\n' for word in ("MASTER", "FAULT", "BACKUP") * 1000)
    slave.run(["sh", "-c", "cat > /run/keepalived-centralino/notify"], input_text=lines)
    assert pair.wait_healthy(30) is master
    assert "slave ->" not in slave.journal("-u", "centralino-peer", "-n", "20")


def test_equal_priorities(pair: PairOfNodes) -> None:
    """Two nodes with one priority let a slave that reboots take the addresses."""
    priorities = {
        line.split()[1]
        for node in pair.nodes
        for line in node.path("/var/lib/centralino/fault-tolerance/keepalived.conf").read_text().splitlines()
        if line.split()[:1] == ["priority"]
    }
    assert len(priorities) == 2


def test_network_manager_brings_its_connection_up_again(pair: PairOfNodes) -> None:
    """`nmcli connection up` wipes foreign addresses; the pair ends with one holder all the same."""
    master = pair.wait_healthy()
    names = master.run(["nmcli", "-g", "NAME,DEVICE", "connection", "show", "--active"]).output.splitlines()
    name = next(line.rpartition(":")[0] for line in names if line.endswith(":eth0"))
    master.run(["nmcli", "connection", "up", name], limit_seconds=60)
    pair.wait_healthy()


def test_the_bus_is_gone_when_the_master_shuts_down(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    master.signal_unit("dbus.service", signal.SIGKILL)
    master.run(["systemctl", "poweroff"], check=False)
    wait_for(lambda: role(slave) == "master" and pair.holders() == [slave], 40, "the slave's promotion")
    wait_for(lambda: not master.powered, 90, "the end of the old master")
    master.power_off()
    master.power_on()
    start_echo(master)
    assert pair.wait_healthy() is slave


def test_a_frozen_master_is_replaced_and_follows_when_it_thaws(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    master.freeze()
    wait_for(lambda: role(slave) == "master", 30, "the promotion of the other side")
    master.thaw()
    wait_for(lambda: role(master) == "slave" and pair.holders() == [slave], 60, "the thawed node's step down")
    assert pair.wait_healthy() is slave


def test_reboot_of_the_master_is_a_planned_switch(pair: PairOfNodes) -> None:
    """S-FT-09; the returning node sees a master and stays slave."""
    master = pair.wait_healthy()
    slave, before = pair.other(master), master.boots()
    with EchoProber(pair.probe) as prober:
        wait_for(lambda: len(prober.answers) > 20, 10, "answers at the shared address")
        moment = prober.answers[-1][1]
        master.run(["systemctl", "reboot"], check=False)
        wait_for(lambda: role(slave) == "master", 40, "the move")
        gap = prober.longest_gap(moment)
    print(f"the longest time without an answer was {gap:.3f} s")
    # Nothing is asked of a node that goes down: what was asked would hold it up.
    wait_for(lambda: master.boots() > before, 90, "the reboot")
    wait_for(lambda: role(master) == "slave", 60, "the return as slave")
    start_echo(master)
    assert pair.wait_healthy() is slave


def test_the_peer_link_flaps(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    for _ in range(5):
        slave.link_down("mgmt")
        slave.link_up("mgmt")
    assert pair.wait_healthy() is master


def test_only_the_demotion_is_lost(pair: PairOfNodes) -> None:
    """The runtime is frozen while VRRP loses the addresses: it finds out by looking, not by being told."""
    master = pair.wait_healthy()
    master.signal_unit("centralino-peer.service", signal.SIGSTOP)
    master.run(["systemctl", "restart", "centralino-vrrp"], check=False)
    master.signal_unit("centralino-peer.service", signal.SIGCONT)
    pair.wait_healthy()
