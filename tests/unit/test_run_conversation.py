"""A helper program that is kept for a while: answers, ends, and what it does wrong."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from daemon.errors import CommandFailedError
from daemon.run import Conversation

PROGRAM = """
import os, sys, time
for line in sys.stdin:
    word = line.strip()
    if word == "die":
        sys.exit(3)
    if word == "sleep":
        time.sleep(60)
    print(os.getpid() if word == "who" else word, flush=True)
"""


@pytest.fixture
def helper() -> Iterator[Conversation]:
    made = Conversation([sys.executable, "-c", PROGRAM], idle_seconds=60.0)
    yield made
    made.close()


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_program_answers_everybody(helper: Conversation) -> None:
    found: set[str] = set()
    threads = [threading.Thread(target=lambda: found.add(helper.ask("who"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 1


def test_a_line_may_be_longer_than_any_pipe(helper: Conversation) -> None:
    line = "x" * 3_000_000
    assert helper.ask(line).strip() == line


@pytest.mark.parametrize(
    ("word", "complaint"), [("die", "ended without an answer"), ("sleep", "within 0.2 s")]
)
def test_after_a_failure_the_next_question_has_a_fresh_program(
    helper: Conversation, word: str, complaint: str
) -> None:
    first = int(helper.ask("who"))
    with pytest.raises(CommandFailedError, match=complaint):
        helper.ask(word, 20.0 if word == "die" else 0.2)
    assert not lives(first)
    assert int(helper.ask("who")) != first


def test_it_ends_when_nobody_asks_and_comes_back() -> None:
    helper = Conversation([sys.executable, "-c", PROGRAM], idle_seconds=0.2)
    first = int(helper.ask("who"))
    ends = time.monotonic() + 20
    while lives(first):
        assert time.monotonic() < ends, "the helper stays"
        time.sleep(0.02)
    second = int(helper.ask("who"))
    assert second != first
    helper.close()
    assert not lives(second)


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(CommandFailedError, match="could not be started"):
        Conversation(["/nowhere/helper"], idle_seconds=1.0).ask("who")
