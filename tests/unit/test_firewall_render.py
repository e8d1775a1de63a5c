"""The firewall's ruleset: complete, stable, and the port tables of S-NW-03 and S-NW-06."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from ipaddress import ip_network

import pytest

from daemon.settings import Settings
from firewall.build import build
from firewall.policy import Policy, TimedNetwork
from firewall.ports import MEDIA, TABLE, Guard, Mode, Protocol, Zone, services
from firewall.render import LONGEST_TIMEOUT_SECONDS, METER_SETS, TIMED_SETS, failsafe, render

CLOUD_INBOUND = {
    ("udp", "5060"),
    ("tcp", "5060"),
    ("tcp", "5061"),
    ("udp", "5070"),
    ("tcp", "5070"),
    ("tcp", "5071"),
    ("udp", "10000-20000"),
    ("udp", "3478"),
    ("tcp", "3478"),
    ("udp", "20001-30000"),
    ("tcp", "443"),
    ("tcp", "80"),
}


def accepted(script: str, chain: str) -> set[tuple[str, str]]:
    """Protocol and ports that a chain accepts without looking at the source."""
    pattern = rf"^add rule inet centralino {chain} (udp|tcp) dport (\S+) accept$"
    return set(re.findall(pattern, script, re.MULTILINE))


def test_cloud_mode_opens_exactly_the_table_to_everybody() -> None:
    assert accepted(render(Policy(Mode.CLOUD)), "open") == CLOUD_INBOUND


def test_standard_mode_opens_nothing_to_strangers() -> None:
    script = render(Policy(Mode.STANDARD))
    assert accepted(script, "open") == set()
    assert ("udp", "5060") in accepted(script, "open_local")


def test_moved_ranges_of_audio_and_relay_are_what_is_open() -> None:
    document = {"media": {"rtp_first_port": 40000, "rtp_last_port": 41000, "relay_last_port": 25000}}
    built = build(Settings.model_validate_json(json.dumps(document)))
    for mode, chain in ((Mode.CLOUD, "open"), (Mode.STANDARD, "open_local")):
        script = render(replace(built, mode=mode))
        assert ("udp", "40000-41000") in accepted(script, chain)
        assert "10000-20000" not in script
        assert "20001-30000" not in script
    assert ("udp", "20001-25000") in accepted(render(replace(built, mode=Mode.CLOUD)), "open")


def test_every_table_entry_cites_its_requirement_and_is_a_valid_range() -> None:
    for mode, zones in TABLE.items():
        for zone in zones:
            for service in services(mode, zone):
                assert service.source.startswith("S-"), service
                assert 1 <= service.first <= service.last <= 65535


def test_sip_services_are_always_guarded() -> None:
    for service in services(Mode.CLOUD, Zone.TRUSTED):
        expected = Guard.NONE
        if 5060 <= service.first <= 5071:
            expected = Guard.SIP_UDP if service.protocol is Protocol.UDP else Guard.SIP_STREAM
        assert service.guard is expected, service
    assert MEDIA.guard is Guard.NONE


def test_sets_that_packets_fill_are_never_flushed() -> None:
    script = render(Policy(Mode.CLOUD))
    for name in (*METER_SETS, "banned", "phones", "session"):
        assert f"flush set inet centralino {name}" not in script
    assert set(TIMED_SETS) >= {"banned", "phones", "session"}
    assert "flush ruleset" not in script
    assert "delete table" not in script


def test_every_line_touches_our_table_only() -> None:
    for line in render(Policy(Mode.STANDARD)).splitlines():
        assert re.match(
            r"(add|flush) (table|set|element|chain|rule) inet centralino|delete chain inet centralino local$",
            line,
        ), line


def test_equal_policies_render_equally_whatever_the_order() -> None:
    one = Policy(Mode.CLOUD, management=(ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32")))
    other = Policy(Mode.CLOUD, management=(ip_network("192.0.2.1/32"), ip_network("10.0.0.0/8")))
    assert render(one, 0) == render(other, 0)


@pytest.mark.parametrize(
    ("left_seconds", "expected"),
    [(-5.0, None), (0.5, None), (90.0, 90), (10.0 * 365 * 86400, LONGEST_TIMEOUT_SECONDS)],
)
def test_time_limited_entries_carry_what_is_left_of_them(left_seconds: float, expected: int | None) -> None:
    entry = TimedNetwork(ip_network("198.51.100.0/24"), until=1000 + left_seconds)
    script = render(Policy(Mode.CLOUD, support=(entry,)), now=1000)
    if expected is None:
        assert "198.51.100.0/24" not in script
    else:
        assert f"support4 {{ 198.51.100.0/24 timeout {expected}s }}" in script


def test_failsafe_admits_ssh_from_management_and_nothing_else() -> None:
    script = failsafe((ip_network("192.0.2.0/24"),))
    accepting = [line for line in script.splitlines() if line.endswith("accept")]
    needed = ("established", "iif lo", "icmp", "udp dport 68", "udp dport 546")
    assert all("tcp dport 22" in line or any(word in line for word in needed) for line in accepting)
    assert "policy drop" in script
