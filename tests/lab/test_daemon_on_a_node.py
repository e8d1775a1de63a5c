"""The daemon on a booted appliance: systemd, journald, polkit, hostnamed, passwords, power cuts, disks."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lab import Lab, Node
from appliance.lab_host import Result, wait_for

pytestmark = pytest.mark.lab

UNIT = "centralinod.service"
BUS = ["busctl", "call", "org.centralino", "/org/centralino"]
POLKIT_RULE = """polkit.addRule(function(action, subject) {
    if (action.id == "org.centralino.read" && subject.user == "nobody") return polkit.Result.YES;
});
"""


@pytest.fixture(scope="module")
def node(lab_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Lab(lab_root, tmp_path_factory.mktemp("daemon") / "lab") as lab:
        lab.add_node()
        lab.power_on_all()
        made = lab.node("node1")
        made.wait_active(UNIT)
        yield made


def centralino(node: Node, *words: str) -> Result:
    return node.run(["centralino", *words], check=False, limit_seconds=60)


def set_value(node: Node, path: str, value: str, *options: str) -> Result:
    return centralino(node, "config", "set", path, value, "--yes", *options)


def status(node: Node) -> dict[str, object]:
    return dict(json.loads(centralino(node, "status", "--json").output))


def main_process(node: Node) -> str:
    return node.run(["systemctl", "show", "-p", "MainPID", "--value", UNIT]).output.strip()


def memory_kilobytes(node: Node) -> int:
    text = node.run(["cat", f"/proc/{main_process(node)}/status"]).output
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found
    return int(found.group(1))


def file(node: Node, path: str) -> str:
    return node.run(["cat", path]).output


def test_the_installation_decided_the_name_and_the_daemon_kept_it(node: Node) -> None:
    assert node.run(["hostname"]).output.strip() == "node1"
    assert json.loads(centralino(node, "config", "show", "--json").output)["node"]["hostname"] == "node1"


def test_it_is_small_and_hardened(node: Node) -> None:
    assert centralino(node, "status", "--wait", "90").ok, status(node)["reasons"]
    assert memory_kilobytes(node) <= 40 * 1024
    exposure = node.run(["systemd-analyze", "security", "--no-pager", UNIT]).output
    found = re.search(r"exposure level for \S+: ([0-9.]+)", exposure)
    assert found
    assert float(found.group(1)) <= 5.0


def test_name_zone_and_journal_reach_the_running_system(node: Node) -> None:
    assert set_value(node, "node.hostname", "pbx7").ok
    assert (node.run(["hostname"]).output, file(node, "/etc/hostname")) == ("pbx7\n", "pbx7\n")
    assert set_value(node, "node.timezone", "Europe/Rome").ok
    assert node.run(["date", "+%Z"]).output.strip() in ("CET", "CEST")
    before = node.run(["systemctl", "show", "-p", "InvocationID", "--value", "systemd-journald"]).output
    assert set_value(node, "logs.journal.days", "7").ok
    assert "MaxRetentionSec=7day" in file(node, "/etc/systemd/journald.conf.d/90-centralino.conf")
    assert (
        node.run(["systemctl", "show", "-p", "InvocationID", "--value", "systemd-journald"]).output != before
    )
    assert status(node)["healthy"] is True


def test_a_hand_made_change_is_drift(node: Node) -> None:
    before = file(node, "/etc/hostname")
    node.run(["tee", "/etc/hostname"], input_text="by-hand\n")
    subsystems = status(node)["subsystems"]
    assert isinstance(subsystems, dict)
    assert "by-hand" in subsystems["node"]["drift"][0]
    node.run(["tee", "/etc/hostname"], input_text=before)


def test_log_records_are_structured(node: Node) -> None:
    node.run(["systemctl", "restart", UNIT])
    lines = node.run(
        ["journalctl", "-u", UNIT, "-o", "json", "-n", "50", "SYSLOG_IDENTIFIER=centralinod"]
    ).output
    records = [json.loads(line) for line in lines.splitlines()]
    ours = [record for record in records if record.get("LOGGER") == "daemon.daemon"]
    assert ours
    assert ours[-1]["CODE_FUNC"] == "run"
    assert ours[-1]["PRIORITY"] == "6"


def test_strangers_are_refused_and_polkit_may_let_them_read(node: Node) -> None:
    read = [*BUS, "org.centralino.Settings1", "Get", "s", "node"]
    write = [*BUS, "org.centralino.Settings1", "SetSecret", "sss", "mail", "x", ""]
    assert "nobody may not read" in node.run(read, user="nobody", check=False).errors
    rule = "/etc/polkit-1/rules.d/50-test.rules"
    node.run(["tee", rule], input_text=POLKIT_RULE)
    try:
        wait_for(lambda: node.run(read, user="nobody", check=False).ok, 20, "polkit's new rule")
        assert "nobody may not write" in node.run(write, user="nobody", check=False).errors
    finally:
        node.run(["rm", rule])
    wait_for(lambda: not node.run(read, user="nobody", check=False).ok, 20, "the end of the rule")
    entries = json.loads(centralino(node, "audit", "--json").output)
    refused = {entry["method"] for entry in entries if entry["who"] == "nobody"}
    assert refused == {"Settings1.Get", "Settings1.SetSecret"}


def test_a_frozen_polkit_refuses_within_its_limit_and_blocks_nobody(node: Node) -> None:
    read = [*BUS, "org.centralino.System1", "Audit", "u", "1"]
    node.run([*read], user="nobody", check=False)
    polkit = node.signal_unit("polkit.service", signal.SIGSTOP)
    assert polkit
    try:
        answers: list[Result] = []
        ask = threading.Thread(
            target=lambda: answers.append(node.run(read, user="nobody", check=False, limit_seconds=20))
        )
        ask.start()
        assert centralino(node, "status", "--json").seconds < 4
        ask.join()
        assert "may not read" in answers[0].errors
    finally:
        node.signal_unit("polkit.service", signal.SIGCONT)


def test_passwords_are_changed_without_showing_them(node: Node) -> None:
    call = [*BUS, "org.centralino.System1", "SetPassword", "sss"]
    before = node.run(["getent", "shadow", "admin"]).output
    assert not node.run([*call, "admin", "short", ""], check=False).ok
    assert not node.run([*call, "root", "Correct-Horse-7", ""], check=False).ok
    assert node.run(["getent", "shadow", "admin"]).output == before
    node.run([*call, "admin", "Correct-Horse-7", "by a test"])
    assert node.run(["getent", "shadow", "admin"]).output != before
    assert not node.run(["test", "-e", "/run/centralino/first-password"], check=False).ok
    everything = node.run(["journalctl", "--no-pager"]).output + file(node, "/var/log/centralino/audit.jsonl")
    assert "Correct-Horse" not in everything


def test_a_frozen_daemon_is_replaced(node: Node) -> None:
    before = main_process(node)
    node.signal_unit(UNIT, signal.SIGSTOP)
    wait_for(lambda: main_process(node) not in ("0", before), 40, "another daemon")
    wait_for(lambda: centralino(node, "status", "--json").ok, 20, "its answer")


def test_a_full_disk_is_a_clear_error_and_the_daemon_lives(node: Node) -> None:
    process, revision = main_process(node), status(node)["revision"]
    node.fill_disk()
    try:
        refused = set_value(node, "console.banner", "does not fit")
        assert refused.status == 8, refused.errors + refused.output
        assert "No space left on device" in refused.errors
        state = status(node)
        assert (state["revision"], main_process(node)) == (revision, process)
        # The last block of the audit file may have room for it, else it goes to the journal.
        recorded = file(node, "/var/log/centralino/audit.jsonl") + node.journal("-u", UNIT)
        assert re.search(r"Settings1\.Apply.*No space left on device", recorded)
    finally:
        node.free_disk()
    assert set_value(node, "console.banner", "fits").ok
    assert status(node)["reasons"] == []


def test_a_power_cut_while_unconfirmed_returns(node: Node) -> None:
    before = node.run(["hostname"]).output
    assert set_value(node, "node.hostname", "risky", "--confirm-seconds", "600").ok
    assert node.run(["hostname"]).output == "risky\n"
    node.power_off()
    node.power_on()
    node.wait_active(UNIT)
    wait_for(lambda: node.run(["hostname"]).output == before, 30, "the old name")
    newest = json.loads(centralino(node, "config", "history", "--json").output)[0]
    assert (newest["state"], newest["reason"]) == ("rolled_back", "was not confirmed before the reboot")


@pytest.mark.parametrize("tenths", [1, 2, 4, 6])
def test_power_cuts_during_changes_leave_the_old_or_the_new(node: Node, tenths: int) -> None:
    """Cut while one change after the other is applied; the fault-point tests enumerate, this one is real."""
    loop = f'n=0; while :; do n=$((n+1)); centralino config set node.hostname "cut{tenths}-$n" --yes; done'
    before = int(str(status(node)["revision"]))
    node.run(["systemd-run", "--collect", "--unit=changes", "sh", "-c", loop])
    wait_for(lambda: int(str(status(node)["revision"])) > before, 60, "the first change")
    threading.Event().wait(tenths / 10)
    reached = int(str(status(node)["revision"]))
    node.power_off()
    node.power_on()
    node.wait_active(UNIT)
    wait_for(lambda: status(node)["jobs_running"] == 0, 30, "the recovery")
    state = status(node)
    assert state["pending"] is None
    name = json.loads(centralino(node, "config", "show", "--json").output)["node"]["hostname"]
    assert (node.run(["hostname"]).output.strip(), file(node, "/etc/hostname").strip()) == (name, name)
    # What was confirmed before the cut is not lost.
    assert int(str(state["revision"])) >= reached
    assert str(name).startswith(f"cut{tenths}-")
    history = json.loads(centralino(node, "config", "history", "--json").output)
    assert "pending" not in {revision["state"] for revision in history}
    assert next(entry for entry in history if entry["revision"] == state["revision"])["state"] == "confirmed"
