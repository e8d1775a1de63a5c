"""Questions to the wire: two machines as namespaces on one cable, in both address families."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.netns, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

REPOSITORY = Path(__file__).resolve().parents[2]
ASK = """
import json, sys
from ipaddress import ip_address
from daemon.network.truth import look
from daemon.network.wire import Question, ask
link = look().links["cable"]
targets, source = json.loads(sys.argv[1])
questions = {
    text: Question("cable", link.hardware_address, ip_address(text), source and ip_address(source))
    for text in targets
}
answers = ask(list(questions.values()))
print(json.dumps({text: answers.get(question) for text, question in questions.items()}))
"""
OTHER_MAC = "02:00:00:00:00:02"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


@pytest.fixture(scope="module")
def cable() -> Iterator[str]:
    """The namespace of the asker; the other end has 192.0.2.2 and 2001:db8::2."""
    one, two = f"wire1-{os.getpid()}", f"wire2-{os.getpid()}"
    for name in (one, two):
        ip("netns", "add", name)
    try:
        peer = ["peer", "name", "cable", "address", OTHER_MAC, "netns", two]
        ip("-n", one, "link", "add", "cable", "type", "veth", *peer)
        for name in (one, two):
            ip("-n", name, "link", "set", "cable", "up")
        ip("-n", two, "addr", "add", "192.0.2.2/24", "dev", "cable")
        ip("-n", two, "addr", "add", "2001:db8::2/64", "dev", "cable", "nodad")
        yield one
    finally:
        for name in (one, two):
            ip("netns", "del", name)


def ask(cable: str, targets: list[str], source: str | None = None) -> dict[str, str | None]:
    done = subprocess.run(
        ["ip", "netns", "exec", cable, sys.executable, "-c", ASK, json.dumps([targets, source])],
        check=True,
        timeout=30,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def test_an_address_in_use_is_found_by_one_who_has_none_yet(cable: str) -> None:
    found = ask(cable, ["192.0.2.2", "192.0.2.3", "2001:db8::2", "2001:db8::3"])
    assert found == {
        "192.0.2.2": OTHER_MAC,
        "192.0.2.3": None,
        "2001:db8::2": OTHER_MAC,
        "2001:db8::3": None,
    }


def test_a_gateway_answers_whoever_has_an_address(cable: str) -> None:
    ip("-n", cable, "addr", "add", "192.0.2.1/24", "dev", "cable")
    ip("-n", cable, "addr", "add", "2001:db8::1/64", "dev", "cable", "nodad")
    assert ask(cable, ["192.0.2.2"], "192.0.2.1") == {"192.0.2.2": OTHER_MAC}
    assert ask(cable, ["2001:db8::2"], "2001:db8::1") == {"2001:db8::2": OTHER_MAC}


def test_our_own_address_is_no_answer(cable: str) -> None:
    assert ask(cable, ["192.0.2.1"]) == {"192.0.2.1": None}
