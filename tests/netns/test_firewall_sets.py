"""Our sets over netlink in a real kernel: times, thousands, a lost table; and the shield's memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

REPOSITORY = Path(__file__).resolve().parents[2]
BEGIN = """
import json, subprocess, sys, time
from ipaddress import ip_address
from pathlib import Path
from daemon.errors import CentralinoError
from daemon.settings import Settings
from firewall.evidence import Evidence, Offence
from firewall.kernel_sets import Element, KernelSets
from firewall.policy import Policy
from firewall.ports import Mode
from firewall.render import SETTLED_SETS, render
from firewall.shield import Shield

def nft(*words, script=None):
    return subprocess.run(["nft", *words], input=script, text=True, check=True, capture_output=True).stdout

kernel = KernelSets()
nft("-f", "-", script=render(Policy(Mode.CLOUD)))
"""


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Callable[[str], dict[str, object]]]:
    """Runs a program in a network namespace of its own; what it prints is its findings."""
    name = f"centralino-sets-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)

    def run(program: str) -> dict[str, object]:
        done = subprocess.run(
            ["ip", "netns", "exec", name, sys.executable, "-c", BEGIN + program],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    yield run
    subprocess.run(["ip", "netns", "del", name], check=True)


def test_elements_come_are_renewed_and_go(inside: Callable[[str], dict[str, object]]) -> None:
    found = inside("""
four, six = ip_address("203.0.113.9"), ip_address("2001:db8::9")
kernel.put("banned", [Element(four, 600), Element(six, 60)])
first = {str(each.address): each.seconds for each in kernel.elements("banned")}
kernel.put("banned", [Element(four, 7200)])
renewed = {str(each.address): each.seconds for each in kernel.elements("banned")}
kernel.remove("banned", [four, ip_address("203.0.113.10")])
left = [str(each.address) for each in kernel.elements("banned")]
try:
    kernel.put("no_such_set", [Element(four, 60)])
    refused = ""
except CentralinoError as error:
    refused = str(error)
print(json.dumps({"first": first, "renewed": renewed, "left": left, "refused": refused}))
""")
    first, renewed = found["first"], found["renewed"]
    assert isinstance(first, dict) and isinstance(renewed, dict)
    assert 590 < first["203.0.113.9"] <= 600 and 50 < first["2001:db8::9"] <= 60
    assert 7190 < renewed["203.0.113.9"] <= 7200
    assert found["left"] == ["2001:db8::9"]
    assert "No such file" in str(found["refused"])


def test_twenty_thousand_in_one_go(inside: Callable[[str], dict[str, object]]) -> None:
    found = inside("""
kernel.put("banned", [Element(ip_address(2**30 + number), 900) for number in range(20000)])
print(json.dumps({"count": len(kernel.elements("banned"))}))
""")
    assert found["count"] == 20000


def test_a_table_made_anew_and_a_changed_set_are_noticed(inside: Callable[[str], dict[str, object]]) -> None:
    found = inside("""
table, generation, digest = kernel.table(), kernel.generation(), kernel.digest(SETTLED_SETS)
kernel.put("banned", [Element(ip_address("203.0.113.9"), 600)])
same_after_ban = (kernel.table() == table, kernel.digest(SETTLED_SETS) == digest)
moved = kernel.generation() > generation
nft("add", "element", "inet", "centralino", "trusted4", "{ 192.0.2.1 }")
changed = kernel.digest(SETTLED_SETS) != digest
nft("delete", "table", "inet", "centralino")
gone = kernel.table() is None
nft("-f", "-", script=render(Policy(Mode.CLOUD)))
anew = kernel.table() not in (None, table)
print(json.dumps({"found": [*same_after_ban, moved, changed, gone, anew]}))
""")
    assert found["found"] == [True] * 6


def test_the_shield_puts_everything_back_after_a_reboot(inside: Callable[[str], dict[str, object]]) -> None:
    found = inside("""
def shield():
    return Shield(lambda: settings, Path("none"), Path("."), sessions=lambda: [])
settings = Settings()
attacker, phone = ip_address("203.0.113.9"), ip_address("198.51.100.7")
before = shield()
now = time.time()
before.welcome(phone, now)
for number in range(5):
    for source in (attacker, phone):
        before.hold_against(Evidence(now, source, Offence.WRONG_PASSWORD, True, "100", "UDP"))
why = before.why(attacker)
in_kernel = [[str(each.address) for each in kernel.elements(name)] for name in ("banned", "phones")]
before.stop()
nft("flush", "ruleset")
nft("-f", "-", script=render(Policy(Mode.CLOUD)))
after = shield()
after.restore()
again = [[str(each.address) for each in kernel.elements(name)] for name in ("banned", "phones")]
spared = after.why(phone)["spared_because"]
unblocked = after.unblock(attacker)
left = [str(each.address) for each in kernel.elements("banned")]
print(json.dumps({"before": in_kernel, "after": again, "same": after.why(attacker)["times_blocked"],
    "until": why["until"] - now, "spared": spared, "unblocked": unblocked, "left": left}))
""")
    assert found["before"] == found["after"] == [["203.0.113.9"], ["198.51.100.7"]]
    assert 599 < float(str(found["until"])) < 601
    assert "authenticated" in str(found["spared"])
    assert (found["unblocked"], found["left"]) == (True, [])


def test_changes_of_rules_are_told_and_packets_of_the_wire_are_none(
    inside: Callable[[str], dict[str, object]],
) -> None:
    found = inside(
        """
import socket
from firewall.kernel_changes import KernelChanges

changes = KernelChanges()

def told(limit_seconds):
    began = time.monotonic()
    changes.wait(limit_seconds)
    return time.monotonic() - began < limit_seconds

findings = {"quiet": told(1.0)}
kernel.put("banned", [Element(ip_address("192.0.2.7"), 60.0)])
findings["element"] = told(10.0)
findings["quiet again"] = told(1.0)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.sendto(b"OPTIONS sip:box SIP/2.0", ("127.0.0.1", 5060))
findings["packets"] = told(1.0)
nft("flush", "ruleset")
findings["flush"] = told(10.0)
nft("-f", "-", script=render(Policy(Mode.CLOUD)))
findings["load"] = told(10.0)
# More than the socket holds.
for number in range(20):
    first = 0xC6120000 + 5000 * number
    kernel.put("banned", [Element(ip_address(first + each), 60.0) for each in range(5000)])
findings["overrun"] = told(10.0)
findings["quiet at last"] = told(1.0)
print(json.dumps(findings))
"""
    )
    quiet = {name for name, heard in found.items() if not heard}
    assert quiet == {"quiet", "quiet again", "packets", "quiet at last"}, found
