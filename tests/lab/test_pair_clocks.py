"""Nodes whose clocks or networks differ: refused when they pair; clocks that go astray later are an alarm
(S-FT-14, S-HV-02).

The difference is injected where our programs ask for the time, see `shifted_clock`. Everything else is real:
two nodes, SSH, the pairing and the role runtime.
"""

from __future__ import annotations

import json

import pytest
from pair_faults import alarms
from pair_of_nodes import SHARED, PairOfNodes, centralino, make_pair, status
from shifted_clock import shift_clock

from appliance.lab_host import Result, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PEER = "10.78.0.12"


@pytest.fixture(scope="module")
def pair(two_nodes: PairOfNodes) -> PairOfNodes:
    done = centralino(
        two_nodes.first, "fault-tolerance", "configure", "--shared", f"{SHARED}/24@eth0", "--yes"
    )
    assert done.ok, done.errors
    return two_nodes


def ask(pair: PairOfNodes) -> Result:
    invitation = centralino(pair.second, "fault-tolerance", "invite", "--yes", "--json")
    assert invitation.ok, invitation.errors
    code = json.loads(invitation.output)["code"]
    return pair.first.run(
        ["centralino", "fault-tolerance", "pair", PEER, "--code-from", "-", "--yes"],
        input_text=f"{code}\n",
        limit_seconds=120,
        check=False,
    )


@pytest.mark.parametrize("seconds", [1.6, -1.6])
def test_clocks_that_differ_are_refused(pair: PairOfNodes, seconds: float) -> None:
    shift_clock(pair.second, "greet", seconds)
    try:
        done = ask(pair)
    finally:
        shift_clock(pair.second, "greet", 0)
    assert not done.ok
    assert "the clocks of the two nodes are 1.6 s apart" in done.errors, done.errors


def test_networks_that_differ_are_refused(pair: PairOfNodes) -> None:
    """The way between them carries less at one end: heartbeats would pass, and copies would hang."""
    route = pair.second.run(["ip", "-o", "route", "get", "10.78.0.11"]).output.split()
    device = route[route.index("dev") + 1]
    pair.second.run(["ip", "link", "set", device, "mtu", "1400"])
    try:
        done = ask(pair)
    finally:
        pair.second.run(["ip", "link", "set", device, "mtu", "1500"])
    assert not done.ok
    assert "1400 bytes" in done.errors, done.errors


def clock_alarms(pair: PairOfNodes) -> list[bool]:
    return ["pair.clocks" in alarms(node) for node in pair.nodes]


def test_clocks_that_go_astray_are_an_alarm_and_keep_nobody_from_serving(pair: PairOfNodes) -> None:
    shift_clock(pair.second, "greet", 0.6)
    make_pair(pair)
    assert pair.wait_healthy() is pair.first
    shift_clock(pair.second, "run", 0)
    pair.second.run(["systemctl", "restart", "centralino-peer"])
    assert pair.wait_healthy() is pair.first
    epoch = status(pair.first)["epoch"]
    for step in (2.5, -3600.0, 3600.0):
        shift_clock(pair.second, "run", step)
        wait_for(lambda: clock_alarms(pair) == [True, True], 60, "the alarms")
        assert pair.wait_healthy() is pair.first
        assert status(pair.first)["epoch"] == epoch, "a step of the clock moved the role"

    def why() -> str:
        return centralino(pair.second, "fault-tolerance", "why").output

    # Words from before the step may be under way: a clock that seems to go back is believed by and by.
    wait_for(lambda: "the peer's clock is 3600.0 s behind this node's" in why(), 60, "the difference")
    assert "It may take over." in why()

    pair.first.power_off()
    wait_for(lambda: status(pair.second)["role"] == "master", 30, "the slave to take over")
    pair.first.power_on()
    assert pair.wait_healthy() is pair.second

    for node in pair.nodes:
        node.power_off()
    for node in pair.nodes:
        node.power_on()
    assert pair.wait_healthy() in pair.nodes

    shift_clock(pair.second, "run", 0)
    wait_for(lambda: clock_alarms(pair) == [False, False], 60, "the end of the alarms")
