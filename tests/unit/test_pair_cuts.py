"""Which network changes would cut an active pair, from documents alone."""

from __future__ import annotations

from daemon.pair import cuts
from daemon.settings import Settings, parse_document

STANDING: dict[str, object] = {"own": "10.78.0.11", "own_service": "10.77.0.11"}
WHERE = {"10.78.0.11": "eth1", "10.77.0.11": "eth0", "10.77.0.200": "eth0"}


def settings(eth0: str = "", eth1: str = "", **pair: object) -> Settings:
    named = {"eth0": eth0, "eth1": eth1}
    return parse_document(
        {
            "network": {
                "interfaces": {
                    name: {"ipv4": "static", "ipv6": "off", "addresses": addresses.split()}
                    for name, addresses in named.items()
                    if addresses
                }
            },
            "fault_tolerance": {
                "enabled": True,
                "peer_address": "10.78.0.12",
                "peer_service_address": "10.77.0.12",
                "shared_addresses": [{"address": "10.77.0.200/24", "interface": "eth0", "primary": True}],
                **pair,
            },
        }
    )


def paths(found: Settings) -> list[str]:
    return [problem.path for problem in cuts(found, STANDING, WHERE)]


def test_addresses_that_stay_or_are_not_named_are_no_cut() -> None:
    assert paths(settings()) == []
    assert paths(settings("10.77.0.11/24", "10.78.0.11/24")) == []
    assert paths(settings("10.77.0.50/24 10.77.0.11/24")) == []


def test_each_end_that_goes_away_is_named() -> None:
    assert paths(settings("10.77.0.50/24", "10.78.0.50/24")) == [
        "network.interfaces.eth1.addresses",
        "network.interfaces.eth0.addresses",
    ]


def test_the_plan_may_say_where_the_link_goes_but_not_where_vrrp_does() -> None:
    assert paths(settings(eth1="10.78.0.50/24", management_address="10.78.0.50")) == []
    assert paths(settings("10.77.0.50/24", management_address="10.78.0.11")) == [
        "network.interfaces.eth0.addresses"
    ]


def test_a_pair_that_is_dissolved_in_the_same_change_holds_nothing_up() -> None:
    assert paths(settings("10.77.0.50/24", enabled=False)) == []
    assert cuts(settings("10.77.0.50/24"), {}, WHERE) == []
