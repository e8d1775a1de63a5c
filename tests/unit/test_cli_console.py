"""The console menu's parts: answers to addresses, logins to verdicts."""

from __future__ import annotations

import grp
import json
import os
import pwd
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cli import console_login
from daemon.cli.console_address import (
    Answers,
    address_lines,
    network_facts,
    read_gateway,
    read_interface_address,
    read_name_servers,
    with_address,
)
from daemon.cli.console_login import LONGEST_PAUSE_SECONDS, Login, Verdict
from daemon.run import Completed
from daemon.settings import Settings, parse

DOCUMENT = Settings().model_dump(mode="json", by_alias=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.10/24", "192.0.2.10/24"),
        (" 192.0.2.10  255.255.255.128 ", "192.0.2.10/25"),
        ("192.0.2.0/31", "192.0.2.0/31"),
        ("2001:db8::5/64", "2001:db8::5/64"),
    ],
)
def test_addresses_as_people_write_them(text: str, expected: str) -> None:
    assert read_interface_address(text).with_prefixlen == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("192.0.2.10", "length of the subnet"),
        ("192.0.2.300/24", "no address"),
        ("192.0.2.10/33", "no address"),
        ("192.0.2.0/24", "first or last"),
        ("192.0.2.255/24", "first or last"),
        ("127.0.0.1/8", "cannot be the address"),
        ("224.0.0.1/24", "cannot be the address"),
        ("pbx/24", "no address"),
    ],
)
def test_wrong_addresses_are_explained(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        read_interface_address(text)


@given(st.text(max_size=60))
def test_no_answer_ends_the_dialogue(text: str) -> None:
    address = read_interface_address("192.0.2.10/24")
    for read in (read_interface_address, lambda answer: read_gateway(answer, address), read_name_servers):
        try:
            read(text)
        except ValueError as error:
            assert str(error)


def test_gateways_must_be_reachable() -> None:
    address = read_interface_address("192.0.2.10/24")
    assert str(read_gateway("192.0.2.1", address)) == "192.0.2.1"
    assert read_gateway("", address) is None
    for text in ("198.51.100.1", "192.0.2.10", "2001:db8::1", "gateway"):
        with pytest.raises(ValueError):
            read_gateway(text, address)
    assert str(read_gateway("fe80::1", read_interface_address("2001:db8::5/64"))) == "fe80::1"


def test_answers_become_settings_that_the_schema_accepts() -> None:
    address = read_interface_address("192.0.2.10/24")
    answers = Answers(
        "eth0", address, read_gateway("192.0.2.1", address), read_name_servers("192.0.2.53, 192.0.2.54")
    )
    document = with_address(DOCUMENT, answers)
    settings = parse(json.dumps(document))
    eth0 = settings.network.interfaces["eth0"]
    assert [str(entry) for entry in eth0.addresses] == ["192.0.2.10/24"] and str(eth0.gateway) == "192.0.2.1"
    assert [str(server) for server in settings.network.dns.servers] == ["192.0.2.53", "192.0.2.54"]
    # A second family and a second interface later: what was there stays, the way out moves.
    six = read_interface_address("2001:db8::5/64")
    document = with_address(document, Answers("eth0", six))
    other = read_interface_address("198.51.100.2/24")
    document = with_address(document, Answers("eth1", other, read_gateway("198.51.100.1", other)))
    settings = parse(json.dumps(document))
    eth0 = settings.network.interfaces["eth0"]
    assert {str(entry) for entry in eth0.addresses} == {"192.0.2.10/24", "2001:db8::5/64"}
    assert eth0.gateway is None and str(settings.network.interfaces["eth1"].gateway) == "198.51.100.1"
    back = parse(json.dumps(with_address(document, Answers("eth0"))))
    assert back.network.interfaces["eth0"].ipv4.value == "dhcp"
    assert [str(entry) for entry in back.network.interfaces["eth0"].addresses] == ["2001:db8::5/64"]
    assert Settings().model_dump(mode="json", by_alias=True) == DOCUMENT


def test_facts_are_shown_without_noise() -> None:
    interfaces = [
        {"name": "eth0", "up": True, "carrier": True, "addresses": ["192.0.2.10/24", "fe80::1/64"]},
        {"name": "eth1", "up": False, "carrier": False, "addresses": []},
    ]
    facts = {"interfaces": interfaces, "gateways": ["192.0.2.1 via eth0"], "name_servers": []}
    status = {"subsystems": {"network": {"facts": facts}}}
    assert address_lines(network_facts(status)) == [  # type: ignore[arg-type]
        ("eth0", "192.0.2.10/24 (up)"),
        ("eth1", "no address (no cable)"),
        ("Gateway", "192.0.2.1 via eth0"),
        ("Name servers", "none"),
    ]


# --- logins -------------------------------------------------------------------------------------------------


class Helper:
    """Answers as unix_chkpwd does, and keeps what it was asked."""

    def __init__(self, expiry: int = 0) -> None:
        self.password, self.expiry = "right", expiry
        self.calls: list[tuple[tuple[str, ...], str | None]] = []

    def __call__(self, arguments: Sequence[str], *, input_text: str | None = None, **_: object) -> Completed:
        self.calls.append((tuple(arguments), input_text))
        if arguments[2] == "chkexpiry":
            return Completed(tuple(arguments), self.expiry, "", "")
        return Completed(tuple(arguments), 0 if input_text == self.password + "\0" else 7, "", "")


@pytest.fixture
def me(monkeypatch: pytest.MonkeyPatch) -> str:
    """The user of this test, in a group that stands for centralino-admin."""
    user = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(console_login, "ADMIN_GROUP", grp.getgrgid(user.pw_gid).gr_name)
    return user.pw_name


@pytest.mark.parametrize(
    ("typed", "expiry", "verdict"),
    [
        ("right", 0, Verdict.GRANTED),
        ("right", 12, Verdict.MUST_CHANGE),
        ("right", 27, Verdict.MUST_CHANGE),
        ("right", 13, Verdict.REFUSED),
        ("wrong", 0, Verdict.REFUSED),
        ("", 0, Verdict.REFUSED),
        ("ri\0ght", 0, Verdict.REFUSED),
    ],
)
def test_verdicts(me: str, typed: str, expiry: int, verdict: Verdict) -> None:
    helper = Helper(expiry=expiry)
    if console_login.shutil.which("unix_chkpwd", path=console_login.SEARCH) is None:
        pytest.skip("this host has no unix_chkpwd")
    assert Login(helper).check(me, typed) is verdict
    assert all("right" not in " ".join(arguments) for arguments, _ in helper.calls)


@pytest.mark.parametrize("user", ["no-such-user", "", "../root", "root\0", "daemon"])
def test_who_is_no_administrator_is_not_even_asked_about(user: str) -> None:
    helper = Helper()
    assert Login(helper).check(user, "right") is Verdict.REFUSED
    assert helper.calls == []


def test_guessing_costs_ever_more_time() -> None:
    login = Login(Helper())
    pauses = [login.pause_seconds() for _ in range(8)]
    assert pauses == sorted(pauses) and pauses[0] >= 2 and pauses[-1] == LONGEST_PAUSE_SECONDS
