"""The command line in bad surroundings: users, terminals, closed pipes, completion, no daemon, no bus."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.command_line import (
    CONTROLLING_TERMINAL,
    LIMIT_SECONDS,
    Box,
    hostname,
    read_until,
    running_box,
    start_daemon,
)
from tests.support.users import as_other_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root and two groups may call the daemon")


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with running_box() as made:
        yield made


# --- bad surroundings ---------------------------------------------------------------------------------------


def test_a_user_in_neither_group_is_refused_with_the_way_out(box: Box) -> None:
    done = box.run("status", before=as_other_user(65534))
    assert done.returncode == 4 and "centralino-operator" in done.stderr and "Traceback" not in done.stderr


def test_narrow_and_dumb_terminals(box: Box) -> None:
    for words in (["status"], ["config", "schema", "network"], ["config", "history"], ["audit"]):
        code, shown = box.talk(words, [], columns=40)
        assert code == 0
        assert max(len(line) for line in shown.splitlines()) <= 40, shown
        assert "\x1b" not in shown


def test_colour_only_where_it_is_wanted(box: Box) -> None:
    _, coloured = box.talk(["status"], [], environment={"TERM": "xterm"})
    assert "\x1b[" in coloured
    _, plain = box.talk(["status"], [], environment={"TERM": "xterm", "NO_COLOR": "1"})
    assert "\x1b" not in plain
    _, document = box.talk(["status", "--json"], [], environment={"TERM": "xterm"})
    assert "\x1b" not in document and json.loads(document)


def test_a_locale_without_the_characters_ends_no_command(box: Box) -> None:
    done = box.run(
        "config", "schema", environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error(box: Box) -> None:
    command = " ".join(
        ["exec", *("'" + word.replace("'", "'\\''") + "'" for word in box.command("config", "show"))]
    )
    done = subprocess.run(
        ["bash", "-c", f"({command}) 2>&1 >/dev/full | cat; ({command}) 2>&1 | head -c 1"],
        env=box.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "the output could not be written: No space left on device" in done.stdout


def test_completion_knows_the_live_settings(box: Box) -> None:
    def complete(*words: str) -> str:
        return box.run(
            environment={
                "_CENTRALINO_COMPLETE": "bash_complete",
                "COMP_WORDS": " ".join(["centralino", *words]),
                "COMP_CWORD": str(len(words)),
            }
        ).stdout

    assert "plain,node.hostname" in complete("config", "set", "node.h")
    assert "plain,network.interfaces.eth0.mtu" in complete("config", "set", "network.interfaces.eth0.m")
    assert "plain,--dry-run" in complete("config", "set", "--d")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(box: Box, shell: str) -> None:
    done = box.run("completion", shell)
    assert done.returncode == 0 and "_CENTRALINO_COMPLETE" in done.stdout
    if program := shutil.which(shell):
        check = subprocess.run(
            [program, "-n"], input=done.stdout, capture_output=True, text=True, check=False
        )
        assert check.returncode == 0, check.stderr


# --- the console menu ---------------------------------------------------------------------------------------


def test_console_shows_without_login_and_changes_only_with_one(box: Box) -> None:
    """Nobody can log in here: this host has no group centralino-admin. Garbage and Ctrl-C do no harm."""
    before = hostname(box)
    process, leader = _console(box)
    shown = read_until(leader, "", 0, "Choose: ")
    assert "standalone" in shown and "4  Reboot" in shown and "Log out" not in shown
    for typed, expected in (
        (b"1\n", "Press Enter"),
        (b"\n", "Choose: "),
        (b"\x00\xff garbage \x1b[2J" + b"x" * 500 + b"\n", "Choose: "),
        (b"\x04", "Choose: "),
        (b"\x03", "Choose: "),
        (b"2\n", "Administrator [admin]: "),
        (b"\x03", "Choose: "),
        (b"4\n", "Administrator [admin]: "),
        (b"no-such-user\n", "Password: "),
        (b"hunter2\n", "Login incorrect"),
        (b"\n", "Choose: "),
    ):
        os.write(leader, typed)
        part = read_until(leader, "", 0, expected)
        shown += part
    assert "hunter2" not in shown and "Traceback" not in shown and "\x1b[2J" not in shown
    assert process.poll() is None
    os.close(leader)
    assert process.wait(LIMIT_SECONDS) in (0, -signal.SIGHUP)
    assert hostname(box) == before


def _console(box: Box) -> tuple[subprocess.Popen[bytes], int]:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLLING_TERMINAL, *box.command("console")],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**box.environment, "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(follower)
    return process, leader


def test_console_ends_when_nobody_can_type(box: Box) -> None:
    done = box.run("console", text="1\n\n4\n", environment={})
    assert done.returncode == 0 and "Traceback" not in done.stderr


# --- the daemon goes; last in this file, on a daemon of its own ---------------------------------------------


def test_a_daemon_that_does_not_run_is_named(box: Box) -> None:
    box.daemon.send_signal(signal.SIGTERM)
    box.daemon.wait(LIMIT_SECONDS)
    try:
        done = box.run("status", "--json")
        assert done.returncode == 9 and "systemctl start centralinod" in json.loads(done.stderr)["remedy"]
        assert box.run("status", "--wait", "0.1").returncode == 9
    finally:
        box.daemon = start_daemon(box.directory)


def test_a_missing_bus_is_named(box: Box) -> None:
    done = box.run("status", environment={"CENTRALINO_BUS": "unix:path=/nonexistent/bus"})
    assert done.returncode == 9 and "bus cannot be reached" in done.stderr
