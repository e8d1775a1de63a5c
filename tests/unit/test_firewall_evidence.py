"""The shield's bookkeeping: who is blocked, for how long, on what evidence, and who never is."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.settings import Settings
from firewall.build import EVERYBODY, build
from firewall.evidence import (
    DETAILED_SOURCES,
    FORGEABLE_WEIGHT,
    KEPT_EVIDENCE,
    REMEMBERED_SOURCES,
    WINDOW_SECONDS,
    Block,
    Evidence,
    Limits,
    Offence,
    Scoreboard,
)
from firewall.ports import Mode
from firewall.security_events import Authenticated, read_event

ATTACKER = ip_address("203.0.113.66")
LIMITS = Limits(points=5, first_block_seconds=600, longest_block_seconds=7200)


def offence(when: float, *, proven: bool = True, source: str = str(ATTACKER)) -> Evidence:
    return Evidence(when, ip_address(source), Offence.WRONG_PASSWORD, proven, "100", "UDP")


def blocked_after(board: Scoreboard, start: float, count: int, *, proven: bool = True) -> list[Block]:
    made = [board.record(offence(start + number, proven=proven)) for number in range(count)]
    return [block for block in made if block is not None]


def test_the_fifth_proven_failure_blocks() -> None:
    board = Scoreboard(LIMITS)
    assert blocked_after(board, 0, 4) == []
    block = board.record(offence(4))
    assert block == Block(ATTACKER, 4, 604, 1)


def test_forgeable_evidence_counts_less() -> None:
    board = Scoreboard(LIMITS)
    needed = int(LIMITS.points / FORGEABLE_WEIGHT)
    assert blocked_after(board, 0, needed - 1, proven=False) == []
    assert len(blocked_after(board, needed, 1, proven=False)) == 1


def test_old_evidence_expires() -> None:
    board = Scoreboard(LIMITS)
    assert blocked_after(board, 0, 4) == []
    assert board.record(offence(4 + WINDOW_SECONDS + 1)) is None


def test_each_return_doubles_up_to_the_longest() -> None:
    board = Scoreboard(LIMITS)
    now, lengths = 0.0, []
    for _ in range(6):
        (block,) = blocked_after(board, now, 5)
        lengths.append(block.until - block.since)
        now = block.until + 1
    assert lengths == [600, 1200, 2400, 4800, 7200, 7200]


def test_a_long_quiet_time_starts_anew() -> None:
    board = Scoreboard(LIMITS)
    (first,) = blocked_after(board, 0, 5)
    (again,) = blocked_after(board, first.until + 2 * LIMITS.longest_block_seconds + 1, 5)
    assert again.count == 1


def test_a_blocked_source_is_not_blocked_again_meanwhile() -> None:
    board = Scoreboard(LIMITS)
    assert len(blocked_after(board, 0, 50)) == 1


def test_whoever_is_spared_is_never_blocked_and_why_says_so() -> None:
    board = Scoreboard(LIMITS, spared=lambda address: address == ATTACKER)
    assert blocked_after(board, 0, 100) == []
    assert board.why(ATTACKER, 100)["spared"] is True


def test_authentication_forgives() -> None:
    board = Scoreboard(LIMITS)
    assert blocked_after(board, 0, 4) == []
    board.forgive(ATTACKER)
    assert blocked_after(board, 5, 4) == []


def test_why_names_since_until_and_evidence() -> None:
    board = Scoreboard(LIMITS)
    blocked_after(board, 10, 5)
    why = board.why(ATTACKER, 20)
    assert (why["blocked"], why["since"], why["until"], why["times_blocked"]) == (True, 14, 614, 1)
    assert why["evidence"]
    assert board.why(ATTACKER, 700)["blocked"] is False


def test_memory_is_bounded() -> None:
    board = Scoreboard(LIMITS)
    for number in range(DETAILED_SOURCES + 50):
        board.record(offence(0, source=str(ip_address(2**24 + number))))
    assert len(board.top(REMEMBERED_SOURCES * 2)) == DETAILED_SOURCES
    for number in range(1000):
        board.record(offence(number / 10))
    evidence = board.why(ATTACKER, 100)["evidence"]
    assert isinstance(evidence, list)
    assert len(evidence) <= KEPT_EVIDENCE + 1


def test_many_blocks_are_all_remembered_each_with_its_last_evidence() -> None:
    board = Scoreboard(LIMITS)
    sources = [ip_address(2**24 + number) for number in range(DETAILED_SOURCES + 500)]
    for source in sources:
        blocked_after_of(board, source)
    assert board.count(5) == len(sources) == len(list(board.blocks(5)))
    for source in (sources[0], sources[-1]):
        why = board.why(source, 5)
        assert (why["blocked"], why["since"], why["until"], why["offences"]) == (True, 4, 604, 5)
        assert why["evidence"][-1]["offence"] == Offence.WRONG_PASSWORD.value  # type: ignore[index]
        assert why["evidence"][-1]["account"] == "100"  # type: ignore[index]
    again = Scoreboard(LIMITS)
    assert again.restore(board.dump(5)) == len(sources)
    assert {block.source for block in again.blocks(5)} == set(sources)
    # The second time is twice as long, also for one that was packed away.
    for number in range(4):
        assert board.record(offence(700 + number, source=str(sources[0]))) is None
    block = board.record(offence(704, source=str(sources[0])))
    assert block is not None and block.until - block.since == 1200
    board.forgive(sources[1])
    assert board.why(sources[1], 5)["blocked"] is False


def blocked_after_of(board: Scoreboard, source: object) -> None:
    for number in range(5):
        board.record(offence(number, source=str(source)))


def test_blocks_survive_a_restart_and_damage_is_left_out() -> None:
    board = Scoreboard(LIMITS)
    blocked_after(board, 10, 5)
    lines = list(board.dump(20))
    again = Scoreboard(LIMITS)
    damaged = ["", "{}", "[1, 2]", '["nonsense", 1, 2, 3, 4, []]', '["192.0.2.1", 1, 2, "x", 4, []]']
    damaged += ['["192.0.2.1", 1, 2, 3, 4, [[1, "NO_SUCH", true, "", ""]]]']
    assert again.restore([*lines, *damaged]) == 1
    assert [block.source for block in again.blocks(20)] == [ATTACKER]
    assert again.why(ATTACKER, 20) == board.why(ATTACKER, 20)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=60))
def test_any_order_of_offences_blocks_only_with_enough_points(events: list[tuple[float, bool]]) -> None:
    board = Scoreboard(LIMITS)
    for number, (when, proven) in enumerate(sorted(events)):
        block = board.record(offence(when, proven=proven))
        if block is not None:
            assert number + 1 >= LIMITS.points
            assert 0 < block.until - block.since <= LIMITS.longest_block_seconds


def event(name: str, remote: str, **fields: str) -> dict[str, str]:
    return {"Event": name, "Service": "PJSIP", "RemoteAddress": remote, "AccountID": "100", **fields}


@pytest.mark.parametrize(
    ("message", "proven"),
    [
        (event("ChallengeResponseFailed", "IPV4/UDP/203.0.113.66/5060"), True),
        (event("InvalidPassword", "IPV4/UDP/203.0.113.66/5060"), True),
        (event("InvalidAccountID", "IPV4/UDP/203.0.113.66/5060"), False),
        (event("InvalidAccountID", "IPV4/TLS/203.0.113.66/40000"), True),
    ],
)
def test_events_become_evidence(message: dict[str, str], proven: bool) -> None:
    read = read_event(message, 7)
    assert isinstance(read, Evidence)
    assert (read.source, read.proven, read.account) == (ATTACKER, proven, "100")


def test_true_logins_are_told_from_endpoints_without_password() -> None:
    with_password = event("SuccessfulAuth", "IPV6/TCP/[2001:db8::1]/5060", UsingPassword="1")
    assert read_event(with_password, 7) == Authenticated(7, ip_address("2001:db8::1"), "100")
    assert read_event({**with_password, "UsingPassword": "0"}, 7) is None


@pytest.mark.parametrize(
    "message",
    [
        {},
        event("ChallengeSent", "IPV4/UDP/203.0.113.66/5060"),
        {**event("InvalidPassword", "IPV4/TCP/127.0.0.1/5038"), "Service": "AMI"},
        event("InvalidPassword", "IPV4/UDP/not-an-address/5060"),
        event("InvalidPassword", "nonsense"),
    ],
)
def test_other_events_say_nothing(message: dict[str, str]) -> None:
    assert read_event(message, 7) is None


def test_default_settings_keep_ssh_open_in_standard_mode_only() -> None:
    standard = build(Settings())
    assert standard.mode is Mode.STANDARD
    assert standard.management == EVERYBODY
    cloud = build(Settings.model_validate({"mode": {"mode": "cloud"}}, strict=False))
    assert cloud.mode is Mode.CLOUD
    assert not set(EVERYBODY) & set(cloud.management)
