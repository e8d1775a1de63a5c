"""The story of a pair that every run tells: formed, robbed of its master, whole again, both off and on.

S-FT-06, S-FT-08, S-FT-09.
"""

from __future__ import annotations

import pytest
from pair_of_nodes import EchoProber, PairOfNodes, make_pair, role, start_echo

from appliance.lab_host import wait_for

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def pair(two_nodes: PairOfNodes) -> PairOfNodes:
    return two_nodes


def test_the_node_that_asked_is_master_and_the_other_one_follows(pair: PairOfNodes) -> None:
    make_pair(pair)
    assert pair.wait_healthy() is pair.first
    assert pair.answers_on_the_wire() == {pair.lab.network.segments["lan"].hardware(11)}


def test_power_off_of_the_master_and_its_return_as_slave(pair: PairOfNodes) -> None:
    pair.start_echo()
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
    assert pair.wait_healthy() is slave


def test_both_power_off_and_return_together(pair: PairOfNodes) -> None:
    """S-FT-06: neither stays slave (NAS-121090), and whoever has the newest data is master."""
    master = pair.wait_healthy()
    # The slave first: the other way round it would be master for its last moment.
    pair.other(master).power_off()
    # Equal data would leave the choice to the nodes' order.
    master.run(["mariadb", "-e", "CREATE DATABASE written_alone"], limit_seconds=60)
    master.power_off()
    pair.lab.power_on_all()
    assert pair.wait_healthy() is master
