"""The command line against the real daemon on a private bus: what a person and a script see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import (
    LIMIT_SECONDS,
    Box,
    hostname,
    running_box,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root and two groups may call the daemon")

HOSTILE = "\x1b[31m$(reboot);`id`\n[bold]\u202e"


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with running_box() as made:
        yield made


# --- reading ------------------------------------------------------------------------------------------------


def test_status_for_scripts_and_people(box: Box) -> None:
    status = box.json("status")
    assert isinstance(status, dict)
    assert {"healthy", "reasons", "version", "revision", "pending", "role", "services", "alarms"} <= set(
        status
    )
    shown = box.run("status").stdout
    assert "State" in shown and "standalone" in shown and "\x1b" not in shown


def test_status_check_says_by_exit_code_that_the_box_is_not_healthy(box: Box) -> None:
    """The box of this test has no platform file, which is a reason."""
    assert box.run("status", "--check").returncode == 11
    assert box.run("status", "--wait", "0.1").returncode == 11
    assert box.run("status").returncode == 0


def test_watch_prints_one_document_a_line_and_ends_on_interrupt(box: Box) -> None:
    process = subprocess.Popen(
        box.command("status", "--watch", "--json"),
        env=box.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert first["role"] == "standalone"
    assert process.returncode == 130 and "Traceback" not in errors


def test_config_show_of_a_part_is_yaml_that_reads_back(box: Box) -> None:
    from daemon.cli.yaml_text import read

    assert read(box.run("config", "show", "history").stdout).value == box.json("config", "show", "history")
    commented = box.run("config", "show", "--comments").stdout
    assert "# Name of this node" in commented
    assert read(commented).value == box.json("config", "show")


def test_schema_lists_every_leaf(box: Box) -> None:
    shown = box.run("config", "schema").stdout
    assert "network.interfaces.NAME.vlan.tag" in shown and "whole number 1-4094" in shown
    schema = box.json("config", "schema", "node")
    assert isinstance(schema, dict) and "hostname" in schema["properties"]


# --- changing -----------------------------------------------------------------------------------------------


def test_a_change_is_planned_asked_for_applied_and_recorded(box: Box) -> None:
    dry = box.run("config", "set", "node.hostname", "dry", "--dry-run")
    assert dry.returncode == 0 and '+  hostname: "dry"' in dry.stdout
    assert hostname(box) != "dry"
    code, shown = box.talk(["config", "set", "node.hostname", "asked"], [("Apply this? [y/N]: ", "n\n")])
    assert code == 13 and "nothing was changed" in shown and hostname(box) != "asked"
    code, shown = box.talk(
        ["config", "set", "node.hostname", "asked", "--comment", HOSTILE], [("Apply this? [y/N]: ", "y\n")]
    )
    assert code == 0 and "Applied as revision" in shown
    assert hostname(box) == "asked"
    newest = box.json("config", "history")
    assert isinstance(newest, list) and newest[0]["comment"].startswith("[31m$(reboot)")
    shown = box.run("config", "history").stdout + box.run("audit").stdout
    assert "\x1b" not in shown and "\u202e" not in shown


def test_without_a_terminal_nobody_can_be_asked(box: Box) -> None:
    done = box.run("config", "set", "node.hostname", "silent")
    assert done.returncode == 2 and "--yes" in done.stderr
    assert hostname(box) != "silent"


def test_json_of_a_write(box: Box) -> None:
    assert box.run("config", "set", "node.hostname", "x", "--json").returncode == 2
    done = box.run("config", "set", "node.hostname", "machine", "--yes", "--json")
    answer = json.loads(done.stdout)
    assert answer["changed"] is True and answer["revision"] > 1 and answer["confirm_by"] is None
    again = box.run("config", "set", "node.hostname", "machine", "--yes", "--json")
    assert json.loads(again.stdout)["changed"] is False


def test_every_problem_is_named_and_nothing_is_applied(box: Box) -> None:
    before = box.json("config", "show")
    done = box.run("config", "set", "node.hostname=a b", "mail.port=99999", "web.session_seconds=x", "--yes")
    assert done.returncode == 3
    for path in ("node.hostname", "mail.port", "web.session_seconds"):
        assert f"  {path}: " in done.stderr
    as_json = box.run("config", "set", "mail.port", "99999", "--yes", "--json")
    refusal = json.loads(as_json.stderr)
    assert (
        refusal["exit_code"] == 3 and refusal["problems"][0]["path"] == "mail.port" and as_json.stdout == ""
    )
    assert box.json("config", "show") == before


def test_lists_grow_shrink_and_fall_back(box: Box) -> None:
    path = "network.dns.search"
    for words, expected in (
        (("config", "set", path, "a.example", "b.example"), ["a.example", "b.example"]),
        (("config", "append", path, "c.example", "a.example"), ["a.example", "b.example", "c.example"]),
        (("config", "remove", path, "b.example"), ["a.example", "c.example"]),
        (("config", "unset", f"{path}.0"), ["c.example"]),
        (("config", "unset", path), []),
    ):
        done = box.run(*words, "--yes")
        assert done.returncode == 0, done.stderr
        assert box.json("config", "show", path) == expected
    assert box.run("config", "remove", path, "z.example", "--yes").returncode == 5


def test_unknown_paths_are_met_with_a_suggestion(box: Box) -> None:
    done = box.run("config", "set", "node.hostnam", "x", "--yes")
    assert done.returncode == 5 and "did you mean hostname?" in done.stderr


def test_a_risky_change_waits_for_confirm_and_says_how(box: Box) -> None:
    interface = '{"ipv4": "static", "addresses": ["192.0.2.10/24"], "gateway": "192.0.2.1"}'
    done = box.run("config", "set", f"network.interfaces.eth0={interface}", "--yes")
    assert done.returncode == 0, done.stderr
    assert "unless you run: centralino config confirm" in done.stdout
    assert "Unconfirmed" in box.run("status").stdout
    pending = box.json("config", "confirm", "--dry-run")
    assert isinstance(pending, dict) and pending["pending"]["revision"] > 1
    busy = box.run("config", "set", "node.hostname", "later", "--yes")
    assert busy.returncode == 6 and "confirm" in busy.stderr
    assert box.run("config", "confirm").returncode == 0
    assert box.run("config", "confirm").returncode == 5
    code, shown = box.talk(
        ["config", "set", "network.interfaces.eth0.mtu", "1400"],
        [("Apply this? [y/N]: ", "y\n"), ("keep this? [y/N]: ", "y\n")],
    )
    assert code == 0 and "Confirmed." in shown
    assert box.json("status")["pending"] is None  # type: ignore[index, call-overload]


def test_rollback_brings_old_settings_as_a_new_revision(box: Box) -> None:
    history = box.json("config", "history")
    assert isinstance(history, list)
    box.run("config", "set", "node.hostname", "newer", "--yes")
    done = box.run("config", "rollback", str(history[0]["revision"]), "--yes")
    assert done.returncode == 0, done.stderr
    newest = box.json("config", "history")
    assert isinstance(newest, list)
    assert newest[0]["revision"] == history[0]["revision"] + 2
    assert newest[0]["comment"] == f"Back to revision {history[0]['revision']}"
    difference = box.json("config", "diff", str(history[0]["revision"]))
    assert isinstance(difference, dict) and difference["diff"] == ""
    assert box.run("config", "rollback", "4000000", "--yes").returncode == 5


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_export_and_import_are_inverse(box: Box, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"settings.{suffix}"
    assert box.run("config", "export", str(file)).returncode == 0
    before = box.json("config", "show")
    box.run("config", "set", "node.hostname", "between", "--yes")
    assert box.run("config", "import", str(file), "--yes").returncode == 0
    assert box.json("config", "show") == before
    from_pipe = box.run("config", "import", "-", "--yes", text=file.read_text())
    assert from_pipe.returncode == 0 and "Nothing changes" in from_pipe.stdout


# --- editing ------------------------------------------------------------------------------------------------


def editor(directory: Path, *steps: tuple[str, str]) -> dict[str, str]:
    """An editor that replaces one text by another, another pair each time it is opened."""
    script = directory / "editor.py"
    script.write_text(
        "import pathlib, sys\n"
        f"steps = {list(steps)!r}\n"
        f"count = pathlib.Path({str(directory / 'count')!r})\n"
        "number = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(number + 1))\n"
        "file = pathlib.Path(sys.argv[1])\n"
        f"(pathlib.Path({str(directory)!r}) / f'seen{{number}}').write_text(file.read_text())\n"
        "old, new = steps[number]\n"
        "assert old in file.read_text(), file.read_text()\n"
        "file.write_text(file.read_text().replace(old, new))\n"
    )
    return {"EDITOR": f"{sys.executable} {script}"}


def test_edit_shows_mistakes_in_place_and_lets_the_person_go_on(box: Box, tmp_path: Path) -> None:
    box.run("config", "set", "node.hostname", "start", "--yes")
    environment = editor(
        tmp_path,
        ("hostname: start", "hostname: a b"),
        ("hostname: a b", "hostname: 'unclosed"),
        ("hostname: 'unclosed", "hostname: edited"),
    )
    code, shown = box.talk(
        ["config", "edit", "node"],
        [("Edit again? [Y/n]: ", "\n"), ("Edit again? [Y/n]: ", "y\n"), ("Apply this? [y/N]: ", "y\n")],
        environment=environment,
    )
    assert code == 0, shown
    assert hostname(box) == "edited"
    second = (tmp_path / "seen1").read_text().splitlines()
    marked = next(number for number, line in enumerate(second) if line.startswith("#! "))
    assert "not allowed" in second[marked] and second[marked + 1].startswith("hostname: a b")
    third = (tmp_path / "seen2").read_text()
    assert third.count("#! ") == 1 and "is no YAML" in third
    assert list((box.directory / "state" / "centralino").glob("*")) == []


def test_edit_keeps_the_draft_of_whoever_gives_up(box: Box, tmp_path: Path) -> None:
    current = hostname(box)
    done = box.run(
        "config",
        "edit",
        "node",
        "--yes",
        environment=editor(tmp_path, (f"hostname: {current}", "hostname: a b")),
    )
    assert done.returncode == 3 and "Your text is kept" in done.stderr
    (draft,) = (box.directory / "state" / "centralino").glob("*")
    assert "hostname: a b" in draft.read_text() and draft.stat().st_mode & 0o777 == 0o600
    (tmp_path / "count").unlink()
    assert box.run("config", "set", "console.banner", "meanwhile", "--yes").returncode == 0
    again = box.run(
        *("config", "edit", "node", "--yes", "--draft", str(draft)),
        environment=editor(tmp_path, ("hostname: a b", "hostname: resumed")),
    )
    assert again.returncode == 0, again.stderr
    assert "This text was made from revision" in again.stderr
    assert hostname(box) == "resumed" and not draft.exists()


def test_edit_without_a_change_changes_nothing(box: Box) -> None:
    done = box.run("config", "edit", environment={"EDITOR": "true"})
    assert done.returncode == 0 and "Nothing was changed." in done.stdout
    failed = box.run("config", "edit", environment={"EDITOR": "false"})
    assert failed.returncode == 10 and "your text is in" in failed.stderr
    for left in (box.directory / "state" / "centralino").glob("*"):
        left.unlink()


# --- secrets, passwords, maintenance ------------------------------------------------------------------------


def test_secrets_are_read_from_stdin_and_never_shown(box: Box) -> None:
    done = box.run("config", "secret", "mail", "--stdin", text="very secret\n")
    assert done.returncode == 0, done.stderr
    stored = box.directory / "root" / "etc" / "centralino" / "secrets" / "mail"
    assert stored.read_text().strip() == "very secret" and stored.stat().st_mode & 0o777 == 0o600
    everything = (
        box.run("audit", "--json").stdout + box.run("config", "show").stdout + box.run("status").stdout
    )
    assert "very secret" not in everything


def test_hidden_prompts_ask_twice_and_show_nothing(box: Box) -> None:
    code, shown = box.talk(
        ["config", "secret", "backup"],
        [("Secret backup: ", "one secret\n"), ("again: ", "other\n"), ("Secret backup: ", "\x03")],
    )
    assert code == 130 and "one secret" not in shown and "Traceback" not in shown


def test_weak_passwords_are_refused_with_every_reason(box: Box) -> None:
    done = box.run("password", "nobody-here", "--stdin", text="x\n")
    assert done.returncode == 5
    assert box.run("password", "--stdin", text="\n").returncode == 2
    assert box.run("password", "--dry-run").returncode == 0


def test_maintenance_shows_what_ends_and_refuses_off_the_box(box: Box) -> None:
    dry = box.run("maintenance", "reboot", "--drain", "30", "--dry-run")
    assert dry.returncode == 0 and "Live calls end." in dry.stdout and "30 s" in dry.stdout
    done = box.run("maintenance", "poweroff", "--yes")
    assert done.returncode == 9 and "not a whole box" in done.stderr


def test_jobs_can_be_listed_shown_and_watched(box: Box) -> None:
    jobs = box.json("jobs", "list")
    assert isinstance(jobs, list) and jobs
    identifier = next(job["id"] for job in jobs if job["state"] == "done")
    assert box.run("jobs", "watch", identifier).returncode == 0
    failed = [job["id"] for job in jobs if job["state"] == "failed"]
    assert failed and box.run("jobs", "watch", failed[0]).returncode == 9
    assert box.run("jobs", "show", HOSTILE).returncode == 5
    assert "ended already" in box.run("jobs", "cancel", identifier, "--yes").stdout
