"""A planned switch under calls, one that the peer does not answer, and what the box around the pair heeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from pair_faults import forget_moves, nft_that
from pair_of_nodes import SHARED, PairOfNodes, centralino, make_pair, role

from appliance.lab import Client, Node
from appliance.lab_host import LabError, wait_for
from appliance.lab_sip import Phone, add_phone, call_echo, register

pytestmark = [pytest.mark.lab, pytest.mark.slow]

# Answers after a moment, as a telephone does.
SLOW_NUMBER = "601"
DIALPLAN = f"""
[internal](+)
exten => {SLOW_NUMBER},1,Wait(0.5)
 same => n,Answer()
 same => n,Echo()
"""


@pytest.fixture(scope="module")
def pair(two_nodes: PairOfNodes) -> PairOfNodes:
    make_pair(two_nodes)
    return two_nodes


@pytest.fixture(scope="module")
def phones(pair: PairOfNodes) -> list[tuple[Client, Phone]]:
    """Two phones with accounts in the replicated database; the slow number on both nodes."""
    master = pair.wait_healthy()
    for node in pair.nodes:
        node.run(["mkdir", "-p", "/etc/asterisk/extensions.d"])
        node.run(["tee", "/etc/asterisk/extensions.d/slow.conf"], input_text=DIALPLAN)
        node.run(["asterisk", "-rx", "dialplan reload"])
    found = [(pair.lab.add_client(f"phone{n}"), add_phone(master, f"100{n}")) for n in (1, 2)]
    for client, account in found:
        register(client, account, SHARED)
    return found


@pytest.fixture(autouse=True)
def healthy(pair: PairOfNodes) -> Iterator[None]:
    pair.wait_healthy()
    forget_moves(pair)
    yield
    pair.wait_healthy()


def live_calls(node: Node) -> int:
    shown = node.run(["asterisk", "-rx", "core show calls"]).output
    return int(shown.split()[0])


def test_a_drain_refuses_the_second_call_while_the_first_one_goes_on(
    pair: PairOfNodes, phones: list[tuple[Client, Phone]]
) -> None:
    master = pair.wait_healthy()
    (first, first_account), (second, second_account) = phones
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(call_echo, first, first_account, SHARED, hold_seconds=20)
        wait_for(lambda: live_calls(master) == 1, 15, "the first call")
        words = ("fault-tolerance", "switch", "--drain", "60", "--yes")
        switch = pool.submit(centralino, master, *words)
        wait_for(
            lambda: "new ones were refused" in centralino(master, "jobs", "list", "--json").output,
            15,
            "the wait for the call",
        )
        with pytest.raises(LabError) as refusal:
            call_echo(second, second_account, SHARED, number=SLOW_NUMBER, media_port=18010)
        assert "503" in str(refusal.value), refusal.value
        assert live_calls(master) == 1 and role(master) == "master"
        # To register is no call.
        assert register(second, second_account, SHARED) > 0
        assert call.result(60).media.echoed >= 50
        done = switch.result(90)
    assert done.ok, done.errors
    assert "refused 1 new ones, ended 0" in done.output, done.output
    other = pair.wait_healthy()
    assert other is not master
    # The new master takes calls.
    assert call_echo(second, second_account, SHARED, number=SLOW_NUMBER).media.echoed >= 50


def test_calls_are_accepted_again_after_a_drain_that_was_given_up(
    pair: PairOfNodes, phones: list[tuple[Client, Phone]]
) -> None:
    master = pair.wait_healthy()
    (first, first_account), (second, second_account) = phones
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(call_echo, first, first_account, SHARED, hold_seconds=15)
        wait_for(lambda: live_calls(master) == 1, 15, "the first call")
        switch = pool.submit(
            centralino, master, "fault-tolerance", "switch", "--drain", "600", "--yes", "--json"
        )
        wait_for(
            lambda: "new ones were refused" in centralino(master, "jobs", "list", "--json").output,
            15,
            "the wait for the call",
        )
        # The daemon dies: nothing is left in Asterisk that goes on refusing.
        master.signal_unit("centralinod.service")
        assert not switch.result(60).ok
        assert call_echo(second, second_account, SHARED, number=SLOW_NUMBER).media.echoed >= 50
        assert call.result(60).media.echoed >= 50
    assert pair.wait_healthy() is master


def test_a_slave_that_does_not_come_up_gives_the_role_back(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    with nft_that(slave, '[ -n "$closes" ] || { echo "refused" >&2; exit 1; }'):
        done = centralino(master, "fault-tolerance", "switch", "--yes", "--json")
    assert not done.ok, done.output
    assert "master again" in done.errors, done.errors
    assert role(master) == "master"
    wait_for(lambda: pair.holders() == [master], 5, "the address back at the master")


def test_the_firewall_shows_a_slave_as_silent(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    shown = {
        node: json.loads(centralino(node, "firewall", "status", "--json").output)["serving"]
        for node in pair.nodes
    }
    assert shown == {master: True, pair.other(master): False}


def test_a_network_change_that_takes_the_pairs_own_address_is_refused(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    number = 100 + master.specification.number
    for interface, network in (("eth0", "10.77.0"), ("eth1", "10.78.0")):
        words = ("network", "set", interface, "--address", f"{network}.{number}/24", "--ipv6", "off")
        done = centralino(master, *words, "--yes")
        assert not done.ok
        assert "by which the peer knows this node" in done.output + done.errors
    assert pair.wait_healthy() is master


def test_a_network_change_that_loses_the_peer_returns_early(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    peer = pair.other(master).address("mgmt")
    own = ("--address", f"{master.address('mgmt')}/24", "--ipv6", "off")
    # What is so already may be said in the settings, and costs the pair nothing.
    centralino(master, "network", "set", "eth1", *own, "--yes").check()
    centralino(master, "config", "confirm")
    assert pair.wait_healthy(60) is master
    words = ("network", "route", "add", f"{peer}/32", "--via", "10.78.0.250", "--interface", "eth1")
    done = centralino(master, *words, "--yes", "--confirm", "600", limit_seconds=180)
    assert not done.ok, done.output
    assert "put back" in done.errors and "of this pair is not heard" in done.errors
    assert pair.wait_healthy(60) is master
