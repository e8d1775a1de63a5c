"""A policy that nft refuses: the one before stays; without one the failsafe policy holds, with an alarm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

REPOSITORY = Path(__file__).resolve().parents[2]
# The real subsystem, kernel and nft; what is broken is the rendering, by a line that nft does not know.
PROGRAM = """
import json, subprocess, sys
from ipaddress import ip_address, ip_network
from pathlib import Path
import firewall.subsystem as subsystem
from daemon.alarms import Alarms
from daemon.places import Places
from daemon.settings import parse

class Live(Places):
    is_live = True

def rules():
    words = ["nft", "list", "chain", "inet", "centralino", "input"]
    return subprocess.run(words, capture_output=True, text=True).stdout

settings = parse('{"firewall": {"management_networks": ["203.0.113.0/24"]}}')
alarms = Alarms(Path("alarms.json"))
session = ip_address("198.51.100.2")
made = subsystem.Firewall(Live(Path.cwd()), lambda: settings, alarms, sessions=lambda: [session])
good = subsystem.render
subsystem.render = lambda policy: good(policy) + "add rule nonsense\\n"
found = {}
if sys.argv[1] == "first":
    made.refresh()
else:
    subsystem.render = good
    made.refresh()
    found["before"] = rules()
    subsystem.render = lambda policy: good(policy) + "add rule nonsense\\n"
    made.refresh()
state = made.observe()
found |= {"rules": rules(), "healthy": state.healthy, "reasons": state.reasons}
found["alarms"] = [alarm.identifier for alarm in alarms.standing()]
found["session"] = subprocess.run(
    ["nft", "list", "set", "inet", "centralino", "session4"], capture_output=True, text=True).stdout
subsystem.render = good
made.refresh()
found |= {"after": rules(), "healthy after": made.observe().healthy, "alarms after": len(alarms.standing())}
print(json.dumps(found))
"""


def findings(tmp_path: Path, when: str) -> dict[str, object]:
    name = f"centralino-safe-{os.getpid()}-{when}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        done = subprocess.run(
            ["ip", "netns", "exec", name, sys.executable, "-c", PROGRAM, when],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_without_a_policy_before_only_management_gets_in(tmp_path: Path) -> None:
    found = findings(tmp_path, "first")
    rules = str(found["rules"])
    assert "policy drop" in rules and "@management4 tcp dport 22 accept" in rules
    assert "jump open" not in rules and "sip_udp" not in rules
    assert "198.51.100.2" in str(found["session"])
    assert (found["healthy"], found["alarms"]) == (False, ["firewall.failsafe"])
    assert "nonsense" in str(found["reasons"]) or "nft refuses" in str(found["reasons"])
    assert "jump open" in str(found["after"])
    assert (found["healthy after"], found["alarms after"]) == (True, 0)


def test_a_policy_that_stands_is_kept(tmp_path: Path) -> None:
    found = findings(tmp_path, "later")
    assert "jump open" in str(found["rules"])
    assert found["healthy"] is False and "the one before stays in force" in str(found["reasons"])
    assert found["alarms"] == ["firewall.failsafe"]
    assert (found["healthy after"], found["alarms after"]) == (True, 0)
