"""keepalived's configuration: complete, and free of what 2.1.5 does not know."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from fault_tolerance.keepalived import SERVING_WEIGHT, Adverts, Election, Held, render

ELECTION = Election(
    own=ip_address("10.0.0.1"),
    peer=ip_address("10.0.0.2"),
    interface="lo",
    shared=(
        Held(ip_interface("10.0.0.10/24"), "lo"),
        Held(ip_interface("2001:db8::10/64"), "lo"),
        Held(ip_interface("192.0.2.10/24"), "lo"),
    ),
    router=51,
    adverts=Adverts.STANDARD,
    second=False,
    directory=Path("/run/centralino/fault-tolerance"),
)

# In today's manual and not in that of 2.1.5.
TOO_NEW = (
    "down_timer_adverts",
    "interface_up_down_delays",
    "vrrp_delay_after_boot",
    "timer_expired_backup",
    "garp_extra_if",
    "max_auto_priority",
    "unicast_fault_no_peer",
    "fifo_write_vrrp_states_on_reload",
)


def test_priorities_of_the_two_nodes_differ() -> None:
    found = {
        re.findall(r"priority (\d+)", render(replace(ELECTION, second=second)))[-1]
        for second in (True, False)
    }
    assert len(found) == 2
    # A master stays above any slave, and below the priority that is an owner's (RFC 9568 section 5.2.4).
    assert max(map(int, found)) < min(map(int, found)) + SERVING_WEIGHT
    assert max(map(int, found)) + SERVING_WEIGHT <= 254


def test_both_nodes_start_as_backup_and_never_preempt() -> None:
    for second in (True, False):
        text = render(replace(ELECTION, second=second))
        assert "state BACKUP" in text
        assert "nopreempt" in text


@pytest.mark.parametrize(("adverts", "seconds"), [(Adverts.STANDARD, "0.3"), (Adverts.FAST, "0.1")])
def test_adverts_are_below_a_second(adverts: Adverts, seconds: str) -> None:
    assert f"advert_int {seconds}\n" in render(replace(ELECTION, adverts=adverts))


def test_nothing_newer_than_2_1_5() -> None:
    text = render(ELECTION)
    assert not [word for word in TOO_NEW if word in text]


def test_every_shared_address_is_named_once_without_prefix_route() -> None:
    text = render(ELECTION)
    for held in ELECTION.shared:
        assert text.count(f"{held.address.ip}/") == 1
    assert text.count("noprefixroute") == len(ELECTION.shared)
    assert "2001:db8::10/128 dev lo noprefixroute -nodad" in text


def test_the_advertised_address_is_of_the_links_family() -> None:
    six_first = replace(ELECTION, shared=(ELECTION.shared[1], ELECTION.shared[0]))
    block = render(six_first).split("virtual_ipaddress {")[1].split("}")[0]
    assert "10.0.0.10" in block
    with pytest.raises(ValueError, match="family"):
        render(replace(ELECTION, shared=(ELECTION.shared[1],)))


def test_other_interfaces_are_tracked() -> None:
    more = replace(ELECTION, shared=(*ELECTION.shared, Held(ip_interface("198.51.100.9/24"), "eth1")))
    assert re.search(r"track_interface \{\s+eth1\s+\}", render(more))
