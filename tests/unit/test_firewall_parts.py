"""What the firewall reads and answers: scanners' datagrams, sessions, long lists, verdicts, plans."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.alarms import Alarms
from daemon.places import Places
from daemon.settings import Settings, parse
from firewall.evidence import Offence
from firewall.policy import Policy, TimedNetwork, apart
from firewall.ports import Mode
from firewall.render import render, render_lasting, session_elements
from firewall.scanners import SIGNATURES, judge
from firewall.sessions import ssh_sources
from firewall.subsystem import FAILSAFE_FILE, POLICY_FILE, Firewall
from firewall.verdict import verdict

REQUEST = b"OPTIONS sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP 1.2.3.4\r\n%s\r\n\r\n"


@pytest.mark.parametrize("name", SIGNATURES)
def test_scanners_are_known_by_their_user_agent(name: str) -> None:
    assert judge(REQUEST % b"User-Agent: %s 1.0" % name.encode()) is Offence.SCANNER
    assert judge(REQUEST % b"USER-AGENT :  %s" % name.upper().encode()) is Offence.SCANNER


def test_a_name_in_from_gives_a_scanner_away_too() -> None:
    assert judge(REQUEST % b'From: "sipvicious"<sip:100@1.1.1.1>;tag=1') is Offence.SCANNER


@pytest.mark.parametrize(
    "payload",
    [
        REQUEST % b"User-Agent: Acme phone 2.1",
        REQUEST % b"Subject: friendly-scanner",
        b"SIP/2.0 200 OK\r\n\r\n",
        b"REGISTER sip:pbx.example.com;transport=udp SIP/2.0\r\n",
    ],
)
def test_phones_and_answers_are_fine(payload: bytes) -> None:
    assert judge(payload) is None


@pytest.mark.parametrize(
    "payload", [b"GET / HTTP/1.1\r\n", b"HELLO", b"SIP/2.0 999 x", b"OPTIONS  SIP/2.0\r\n"]
)
def test_what_is_not_sip_is_malformed(payload: bytes) -> None:
    assert judge(payload) is Offence.MALFORMED


@given(st.binary(max_size=900))
def test_judging_never_raises(payload: bytes) -> None:
    judge(payload)


def test_ssh_sessions_are_read_from_the_kernels_table(tmp_path: Path) -> None:
    four, six = tmp_path / "tcp", tmp_path / "tcp6"
    four.write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 00000000:0016 00000000:0000 0A\n"
        "   1: 016433C6:0016 026433C6:C350 01\n"
        "   2: 016433C6:01BB 036433C6:C350 01\n"
        "   3: 016433C6:0016 046433C6:C350 06\n"
        "   4: 0100007F:0016 0100007F:C350 01\n"
    )
    six.write_text(
        "  sl  local_address                         remote_address                        st\n"
        "   0: B80D0120000000000000000001000000:0016 B80D0120000000000000000002000000:C350 01\n"
        "   1: 0000000000000000FFFF0000016433C6:0016 0000000000000000FFFF0000056433C6:C350 01\n"
    )
    found = ssh_sources(tables=(four, six, tmp_path / "missing"))
    assert found == {ip_address(text) for text in ("198.51.100.2", "2001:db8::2", "198.51.100.5")}


small_networks = st.builds(
    lambda number, length: IPv4Network((0x0A000000 | number, length), strict=False),
    st.integers(0, 255),
    st.integers(24, 32),
)


@given(st.lists(st.tuples(small_networks, st.one_of(st.none(), st.integers(1, 50))), max_size=8))
def test_apart_covers_the_same_with_the_latest_end_and_no_overlap(
    entries: list[tuple[IPv4Network, int | None]],
) -> None:
    found = apart([TimedNetwork(network, until) for network, until in entries])
    ends: dict[int, float] = {}
    for network, until in entries:
        for number in range(int(network.network_address), int(network.broadcast_address) + 1):
            ends[number] = max(ends.get(number, 0.0), float("inf") if until is None else until)
    covered: dict[int, float] = {}
    for entry in found:
        for number in range(int(entry.network.network_address), int(entry.network.broadcast_address) + 1):
            assert number not in covered
            covered[number] = float("inf") if entry.until is None else entry.until
    assert covered == ends


def test_the_file_for_the_next_boot_holds_nothing_that_ends() -> None:
    timed = (TimedNetwork(ip_network("192.0.2.0/24"), 4e9, "soon over"),)
    lasting = (TimedNetwork(ip_network("198.51.100.0/24"), None),)
    policy = Policy(Mode.CLOUD, allowed=timed + lasting, blocked=timed + lasting, support=timed)
    kept = render_lasting(policy)
    assert "192.0.2.0/24" not in kept and "198.51.100.0/24" in kept
    assert render(policy, now=0).count("192.0.2.0/24 timeout") == 3
    assert kept == render_lasting(policy)


def test_sessions_get_their_time_anew() -> None:
    text = session_elements([ip_address("198.51.100.2"), ip_address("2001:db8::2")])
    assert [line.split()[0] for line in text.splitlines()] == ["add", "delete", "add"] * 2
    assert "198.51.100.2 timeout 3600s" in text
    assert session_elements([]) == ""


def settings(**firewall: object) -> Settings:
    mode = firewall.pop("mode", "standard")
    document: dict[str, object] = {"firewall": firewall}
    if mode == "cloud":
        document["mode"] = {"mode": "cloud"}
        document["domain"] = {"fqdn": "pbx.example.com", "public_address": "198.51.100.1"}
    return parse(json.dumps(document))


HELD = {
    "blocked": True,
    "since": 1_000_000_000.0,
    "until": 1_000_000_600.0,
    "times_blocked": 2,
    "points": 5.0,
    "points_for_block": 5.0,
}


def test_a_verdict_names_who_blocks_and_until_when() -> None:
    address = ip_address("203.0.113.7")
    found = verdict(settings(), address, HELD, 1_000_000_001)
    assert (found["blocked"], found["by"], found["until"]) == (True, "shield", "2001-09-09T01:56:40+00:00")
    assert "2nd time" in str(found["sentence"])
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    entry = {"network": "203.0.113.0/24", "until": until, "comment": "noisy"}
    found = verdict(settings(block=[entry]), address, {}, datetime.now(UTC).timestamp())
    assert (found["blocked"], found["by"]) == (True, "settings")
    assert "noisy" in str(found["sentence"])
    over = verdict(settings(block=[entry]), address, {}, datetime.now(UTC).timestamp() + 7200)
    assert over["blocked"] is False
    found = verdict(settings(blocklist=["203.0.113.0/28", "198.51.100.9"]), address, {}, 0)
    assert (found["blocked"], found["by"]) == (True, "settings")
    assert verdict(settings(blocklist=["198.51.100.9"]), address, {}, 0)["blocked"] is False


def test_trusted_networks_win_over_every_block() -> None:
    chosen = settings(trusted_networks=["203.0.113.0/24"], blocklist=["203.0.113.7"])
    found = verdict(chosen, ip_address("203.0.113.7"), HELD, 1_000_000_001)
    assert found["blocked"] is False and "never blocked" in str(found["sentence"])


def firewall_on(tmp_path: Path, now: Settings, *sessions: str) -> Firewall:
    places = Places(tmp_path)
    return Firewall(
        places,
        lambda: now,
        Alarms(tmp_path / "alarms.json"),
        sessions=lambda: [ip_address(text) for text in sessions],
    )


def test_lists_are_no_risk_and_everything_else_is(tmp_path: Path) -> None:
    now = settings()
    subsystem = firewall_on(tmp_path, now)
    (first,) = subsystem.plan(None, now)
    assert first.risky
    subsystem.apply(first)
    assert subsystem.plan(now, now) == []
    (listed,) = subsystem.plan(now, settings(blocklist=["203.0.113.7"]))
    assert not listed.risky and "1 blocked" in listed.sentence
    (risky,) = subsystem.plan(now, settings(management_networks=["203.0.113.0/24"]))
    assert risky.risky
    timed = settings(support={"networks": ["192.0.2.0/28"], "until": "2099-01-01T00:00:00Z"})
    (support,) = subsystem.plan(now, timed)
    assert support.files == () and not support.risky


def test_apply_leaves_the_policy_and_the_failsafe_for_the_next_boot(tmp_path: Path) -> None:
    chosen = settings(management_networks=["203.0.113.0/24"])
    subsystem = firewall_on(tmp_path, chosen)
    for change in subsystem.plan(None, chosen):
        subsystem.apply(change)
    policy, failsafe = (Places(tmp_path).on_box(path) for path in (POLICY_FILE, FAILSAFE_FILE))
    assert "203.0.113.0/24" in policy.read_text() and "203.0.113.0/24" in failsafe.read_text()
    assert "5060" in policy.read_text() and "5060" not in failsafe.read_text()
    assert policy.stat().st_mode & 0o777 == 0o600


def test_cloud_mode_without_management_is_refused_to_a_stranger_only(tmp_path: Path) -> None:
    cloud = settings(mode="cloud")
    stranger = firewall_on(tmp_path, settings(), "198.51.100.2")
    (problem,) = stranger.verify(cloud, {})
    assert problem.fatal and "198.51.100.2" in problem.message
    assert "config append firewall.management_networks 198.51.100.2/32" in problem.remedy
    assert firewall_on(tmp_path, settings(), "10.0.0.7").verify(cloud, {}) == []
    assert firewall_on(tmp_path, settings()).verify(cloud, {}) == []
    # It is in force already: other changes are not held up by it.
    assert firewall_on(tmp_path, cloud, "198.51.100.2").verify(cloud, {}) == []
    elsewhere = settings(mode="cloud", management_networks=["203.0.113.0/24"])
    (warning,) = stranger.verify(elsewhere, {})
    assert not warning.fatal


def test_the_shield_alone_needs_no_new_rules(tmp_path: Path) -> None:
    now = settings()
    subsystem = firewall_on(tmp_path, now)
    for change in subsystem.plan(None, now):
        subsystem.apply(change)
    assert subsystem.plan(now, settings(shield={"failures_before_block": 9})) == []
    (change,) = subsystem.plan(now, settings(shield={"enabled": False}))
    assert change.risky
