"""A node that cannot do what its role asks: it fails closed, steps back, or reboots."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from pair_faults import (
    alarms,
    forget_moves,
    nft_that,
    runtime_process,
    runtime_role,
    systemctl_that_kills_nothing,
    wish,
)
from pair_of_nodes import PairOfNodes, make_pair, role, status

from appliance.lab_host import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PEER = "centralino-peer.service"
# systemd gives the runtime ten seconds, and what is stopped is also killed.
WATCHDOG_SECONDS = 60
# Longer than the watchdog waits.
FROZEN_SECONDS = 11.0
WRITES_SECONDS, CLOSED_WITHIN_SECONDS = 10.0, 0.5


@pytest.fixture(scope="module")
def pair(two_nodes: PairOfNodes) -> PairOfNodes:
    make_pair(two_nodes)
    return two_nodes


@pytest.fixture(autouse=True)
def healthy(pair: PairOfNodes) -> Iterator[None]:
    pair.wait_healthy()
    forget_moves(pair)
    yield
    pair.wait_healthy()


def test_a_frozen_database_is_killed_when_the_master_steps_down(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    master.signal_unit("mariadb.service", signal.SIGSTOP)
    wish(master, "slave")
    wait_for(lambda: role(pair.other(master)) == "master", 30, "the move")
    assert "it is killed" in master.journal("-u", PEER, "-n", "50")
    assert pair.wait_healthy() is not master


def test_a_database_that_can_be_neither_closed_nor_killed_reboots_the_node(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    before = master.boots()
    with systemctl_that_kills_nothing(master):
        # Its own supervision would help as well; here nobody does.
        master.signal_unit("centralinod.service", signal.SIGSTOP)
        master.signal_unit("mariadb.service", signal.SIGSTOP)
        wish(master, "slave")
        wait_for(lambda: master.boots() > before, 60, "the reboot")
    wait_for(lambda: role(slave) == "master", 30, "the move")
    assert pair.wait_healthy() is slave


def test_sip_that_cannot_be_closed_reboots_the_node(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    before = master.boots()
    with nft_that(master, '[ -z "$closes" ] || { echo "refused" >&2; exit 1; }'):
        wish(master, "slave")
        wait_for(lambda: master.boots() > before, 60, "the reboot")
    wait_for(lambda: role(slave) == "master", 30, "the move")
    assert pair.wait_healthy() is slave


def test_a_hung_runtime_is_killed_and_the_next_one_goes_on(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    before = runtime_process(master)
    master.signal_unit(PEER, signal.SIGSTOP)
    wait_for(lambda: runtime_process(master) not in (before, "0"), WATCHDOG_SECONDS, "the watchdog")
    wait_for(lambda: role(master) == "master", 20, "the same role")
    assert role(pair.other(master)) == "slave"
    assert pair.holders() == [master]


def test_a_hung_runtime_whose_master_was_replaced_steps_back(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    before = runtime_process(master)
    master.signal_unit(PEER, signal.SIGSTOP)
    master.link_down("lan")
    wait_for(lambda: role(slave) == "master", 30, "the slave's promotion")
    master.link_up("lan")
    wait_for(lambda: runtime_process(master) not in (before, "0"), WATCHDOG_SECONDS, "the watchdog")
    wait_for(lambda: role(master) == "slave", 60, "the step back")
    assert "nobody watched this master" in master.journal("-u", PEER, "-n", "80")
    assert pair.holders() == [slave]


def test_a_node_that_thaws_into_its_watchdog_takes_no_writes(pair: PairOfNodes) -> None:
    """systemd ends its runtime as soon as it thaws, and the next one finds the role of before on the disk."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    boots = master.boots()
    # Else it is chance whether systemd or the runtime is awake first.
    master.signal_unit(PEER, signal.SIGSTOP)
    master.freeze()
    frozen = time.monotonic()
    wait_for(lambda: role(slave) == "master", 30, "the slave's promotion")
    # A span, not a wait: a frozen watchdog runs out by time alone.
    time.sleep(max(0.0, frozen + FROZEN_SECONDS - time.monotonic()))
    thawed = master.thaw()
    last, answers = thawed, set[str]()
    while time.monotonic() < thawed + WRITES_SECONDS:
        moment = time.monotonic()
        answer = master.run(["mariadb", "-Ne", "SELECT @@read_only"], check=False).output.strip()
        answers.add(answer)
        if answer == "0":
            last = moment
    print(f"the database of the thawed node took writes for {last - thawed:.2f} s")
    assert last - thawed < CLOSED_WITHIN_SECONDS and "1" in answers
    wait_for(lambda: role(master) == "slave", 60, "the step back")
    assert master.boots() == boots
    assert "Watchdog timeout" in master.journal("-u", PEER, "-n", "80")
    assert pair.holders() == [slave]


def test_the_runtime_dies_in_the_middle_of_a_promotion(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    with nft_that(slave, '[ -n "$closes" ] || sleep 3'):
        master.power_off()
        wait_for(lambda: runtime_role(slave) == "promoting", 20, "the promotion")
        slave.signal_unit(PEER, signal.SIGKILL)
        slave.run(["rm", "-f", "/run/lab-nft"])
        wait_for(lambda: role(slave) == "master" and pair.holders() == [slave], 30, "its end all the same")
    master.power_on()
    assert pair.wait_healthy() is slave


def test_the_power_fails_in_the_middle_of_a_promotion(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    with nft_that(slave, '[ -n "$closes" ] || sleep 3'):
        master.power_off()
        wait_for(lambda: runtime_role(slave) == "promoting", 20, "the promotion")
        slave.power_off()
        slave.disk.mount()
    pair.lab.power_on_all()
    pair.wait_healthy()


def test_the_runtime_dies_in_the_middle_of_a_demotion(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    with nft_that(master, '[ -z "$closes" ] || sleep 2'):
        wish(master, "slave")
        wait_for(lambda: runtime_role(master) == "demoting", 10, "the demotion")
        master.signal_unit(PEER, signal.SIGKILL)
        wait_for(lambda: role(slave) == "master" and pair.holders() == [slave], 40, "the move")
    assert pair.wait_healthy() is slave


def test_the_disk_of_the_slave_is_full(pair: PairOfNodes) -> None:
    """It says so before it is needed, and no promotion begins that could not be recorded."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    slave.fill_disk()
    wait_for(lambda: "disk of this node is full" in str(status(slave).get("obstacles")), 20, "the obstacle")
    wait_for(lambda: "pair.not-ready" in alarms(master), 20, "the alarm at the master")
    assert (role(master), role(slave)) == ("master", "slave")
    slave.free_disk()


def test_the_disk_of_the_master_is_full(pair: PairOfNodes) -> None:
    """Its database cannot go on; the slave's can."""
    master = pair.wait_healthy()
    slave = pair.other(master)
    master.fill_disk()
    wait_for(lambda: role(slave) == "master" and pair.holders() == [slave], 60, "the move")
    master.free_disk()
    assert pair.wait_healthy() is slave
