"""The SIP shield on a booted appliance: real Asterisk, real scanners, and phones that must not suffer."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lab import LOGS, Client, Lab, Node
from appliance.lab_host import Result, wait_for

pytestmark = pytest.mark.lab

REPOSITORY = Path(__file__).resolve().parents[2]
PHONE = REPOSITORY / "tests/support/sip_phone.py"
PROGRAMS = Path(sysconfig.get_path("scripts"))
PASSWORD = "right-4711"
ACCOUNT = f"""
[phone1]
type = endpoint
context = centralino-probe
disallow = all
allow = alaw
auth = phone1
aors = phone1
[phone1]
type = auth
auth_type = userpass
username = phone1
password = {PASSWORD}
[phone1]
type = aor
max_contacts = 1
remove_existing = yes
"""


# A far end that never registers nor authenticates: only its call speaks for it.
FAR_END = """
[far]
type = endpoint
context = centralino-probe
disallow = all
allow = ulaw
aors = far
[far]
type = aor
contact = sip:far@{address}:5060
"""


def with_this_tree(lab_root: Path, copy: Path) -> dict[str, str]:
    """This tree's packages, as they are now, in place of those in the image."""
    (site,) = (lab_root / "opt/centralino/venv/lib").glob("python3*/site-packages")
    inside = "/" / site.relative_to(lab_root)
    names = ("daemon", "firewall", "fault_tolerance")
    for name in names:
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return {str(copy / name): str(inside / name) for name in names}


@pytest.fixture(scope="module")
def lab_of_one(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Lab]:
    with Lab(lab_root, tmp_path_factory.mktemp("shield") / "lab") as lab:
        made = lab.add_node(binds=with_this_tree(lab_root, tmp_path_factory.mktemp("tree")))
        for name in ("phone", "attacker", "stranger"):
            lab.add_client(name)
        lab.power_on_all()
        made.run(["tee", "/etc/asterisk/pjsip.d/test.conf"], input_text=ACCOUNT)
        made.wait_active("asterisk.service", 90)
        wait_for(
            lambda: made.run(["asterisk", "-rx", "core waitfullybooted"], check=False).ok, 60, "Asterisk"
        )
        made.run(["asterisk", "-rx", "module reload res_pjsip.so"])
        wait_for(lambda: shield(made)["listening"] is True, 60, "the shield's connection")
        yield lab
        if request.session.testsfailed:
            lab.save_logs(LOGS / "shield")


@pytest.fixture
def node(lab_of_one: Lab) -> Node:
    return lab_of_one.node("node1")


def centralino(node: Node, *words: str) -> Result:
    return node.run(["centralino", *words], check=False, limit_seconds=90)


def shield(node: Node) -> dict[str, object]:
    found = centralino(node, "firewall", "status", "--json")
    return dict(json.loads(found.output)["shield"]) if found.ok else {"listening": False}


def why(node: Node, address: str) -> dict[str, object]:
    return dict(json.loads(centralino(node, "firewall", "why", address, "--json").output))


def phone(client: Client, *words: str, limit_seconds: float = 60) -> list[int]:
    done = client.run([sys.executable, str(PHONE), *words], limit_seconds=limit_seconds)
    return list(json.loads(done.output)["statuses"])


def guess_until_blocked(attacker: Client, node: Node) -> list[int]:
    """Five wrong passwords, and wait for what follows from them."""
    statuses = phone(attacker, "register", node.address(), "phone1", "wrong", "5")
    wait_for(lambda: why(node, attacker.address())["blocked"] is True, 10, "the block")
    return statuses


def elements(node: Node, name: str) -> str:
    return node.run(["nft", "list", "set", "inet", "centralino", name]).output


def test_a_phone_that_authenticates_is_known_and_spared(lab_of_one: Lab, node: Node) -> None:
    client = lab_of_one.clients["phone"]
    assert phone(client, "register", node.address(), "phone1", PASSWORD) == [200]
    wait_for(lambda: client.address() in elements(node, "phones4"), 10, "the phone in the kernel's set")
    found = why(node, client.address())
    assert found["blocked"] is False
    assert "authenticated" in str(found["shield"]["spared_because"])  # type: ignore[index]


def test_wrong_passwords_block_an_attacker_and_only_him(lab_of_one: Lab, node: Node) -> None:
    attacker, friend = lab_of_one.clients["attacker"], lab_of_one.clients["phone"]
    assert guess_until_blocked(attacker, node)[:4] == [401] * 4
    assert phone(attacker, "options", node.address(), "1", "0") == [0]
    found = why(node, attacker.address())
    assert (found["blocked"], found["by"]) == (True, "shield")
    assert found["since"] and found["until"]
    evidence = found["shield"]["evidence"]  # type: ignore[index]
    assert len(evidence) >= 5
    assert {item["offence"] for item in evidence} == {"answered our challenge with a wrong password"}
    assert phone(friend, "register", node.address(), "phone1", PASSWORD) == [200]
    top = json.loads(centralino(node, "firewall", "top", "--json").output)
    assert top[0]["address"] == attacker.address()
    print(centralino(node, "firewall", "why", attacker.address()).output)


def test_an_administrator_forgives(lab_of_one: Lab, node: Node) -> None:
    attacker = lab_of_one.clients["attacker"]
    done = centralino(node, "firewall", "unblock", attacker.address(), "--yes", "--comment", "was a typo")
    assert done.ok, done.errors
    assert phone(attacker, "options", node.address(), "1", "0") != [0]
    assert why(node, attacker.address())["blocked"] is False
    again = centralino(node, "firewall", "unblock", attacker.address(), "--yes")
    assert not again.ok and "not blocked" in again.errors


CONNECTION = """
import socket, sys
host = sys.argv[1]
link = socket.create_connection((host, 5060), 5)
text = "\\r\\n".join((
    "OPTIONS sip:{h} SIP/2.0", "Via: SIP/2.0/TCP 1.2.3.4:5060;branch=z9hG4bK{n}", "From: <sip:a@{h}>;tag=1",
    "To: <sip:{h}>", "Call-ID: {n}", "CSeq: 1 OPTIONS", "Max-Forwards: 70", "Content-Length: 0", "", ""))
link.settimeout(3)
for line in sys.stdin:
    try:
        link.sendall(text.format(h=host, n=line.strip()).encode())
        print(link.recv(4096).decode().split("\\r\\n")[0] or "closed", flush=True)
    except OSError as error:
        print("silent", flush=True)
"""


def test_a_block_bites_connections_that_stand(lab_of_one: Lab, node: Node) -> None:
    """No conntrack entry has to be cut: the question who is banned comes before `established`."""
    import subprocess

    attacker = lab_of_one.clients["attacker"]
    program = ["nsenter", f"--net={attacker.namespace}", sys.executable, "-c", CONNECTION, node.address()]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as line:
        assert line.stdin and line.stdout
        line.stdin.write("before\n")
        line.stdin.flush()
        assert line.stdout.readline().startswith("SIP/2.0")
        guess_until_blocked(attacker, node)
        line.stdin.write("after\n")
        line.stdin.flush()
        assert line.stdout.readline().strip() == "silent"
        line.kill()
    centralino(node, "firewall", "unblock", attacker.address(), "--yes")


@pytest.mark.parametrize(
    "tool",
    [
        ["sipvicious_svmap", "{node}"],
        ["sipvicious_svwar", "--force", "-e100-400", "-m", "INVITE", "{node}"],
        ["sipvicious_svcrack", "-u", "phone1", "-r", "1000-1200", "{node}"],
    ],
    ids=["svmap", "svwar", "svcrack"],
)
def test_known_scanners_get_nowhere(lab_of_one: Lab, node: Node, tool: list[str]) -> None:
    attacker = lab_of_one.clients["attacker"]
    words = [str(PROGRAMS / tool[0]), *(word.format(node=node.address()) for word in tool[1:])]
    done = attacker.run(["timeout", "40", *words], check=False, limit_seconds=60)
    print(tool[0], done.output[-400:], done.errors[-400:])
    found = why(node, attacker.address())
    assert "phone1" not in done.output
    if tool[0] == "sipvicious_svmap":
        # One datagram, whose first line the kernel knows: it saw nothing at all.
        assert node.address() not in done.output
    elif tool[0] == "sipvicious_svwar":
        # It gives up when accounts that exist and accounts that do not get the same answer.
        offences = {item["offence"] for item in found["shield"]["evidence"]}  # type: ignore[index]
        assert "behaves like a known scanning tool" in offences
    else:
        assert found["by"] == "shield", found
    if found["blocked"]:
        assert centralino(node, "firewall", "unblock", attacker.address(), "--yes").ok


def test_forged_datagrams_cannot_have_a_phone_blocked(lab_of_one: Lab, node: Node) -> None:
    attacker, friend = lab_of_one.clients["attacker"], lab_of_one.clients["phone"]
    before = why(node, friend.address())["shield"]["offences"]  # type: ignore[index]
    phone(attacker, "forge", node.address(), friend.address(), "nobody", "150")
    wait_for(
        lambda: int(str(why(node, friend.address())["shield"]["offences"])) > before,  # type: ignore[index]
        10,
        "the forged evidence",
    )
    found = why(node, friend.address())
    assert found["blocked"] is False, found
    assert friend.address() not in elements(node, "banned4")
    assert phone(friend, "register", node.address(), "phone1", PASSWORD) == [200]


def test_a_far_end_is_spared_while_its_call_lives(lab_of_one: Lab, node: Node) -> None:
    stranger = lab_of_one.clients["stranger"]
    words = ["sipp", "-sn", "uas", "-i", stranger.address(), "-p", "5060", "-nostdin"]
    answering = stranger.start(words, "sipp-far.log")

    def held() -> dict[str, object]:
        return dict(why(node, stranger.address())["shield"])  # type: ignore[call-overload]

    try:
        # Made only now: the contacts that the shield finds when it connects count as known phones.
        far = FAR_END.format(address=stranger.address())
        node.run(["tee", "/etc/asterisk/pjsip.d/far.conf"], input_text=far)
        node.run(["asterisk", "-rx", "module reload res_pjsip.so"])
        # The image has no need of it: nobody calls from Asterisk's console there.
        node.run(["asterisk", "-rx", "module load res_clioriginate.so"])
        show = ["asterisk", "-rx", "pjsip show endpoint far"]
        wait_for(lambda: "Aor:  far" in node.run(show).output, 15, "the far end's endpoint")
        node.run(["asterisk", "-rx", "channel originate PJSIP/far application Wait 120"])
        wait_for(lambda: shield(node)["live_channels"] == 1, 15, "the live call")
        assert "live call" in str(held()["spared_because"])
        phone(stranger, "register", node.address(), "phone1", "wrong", "7")
        wait_for(lambda: int(str(held()["offences"])) >= 5, 10, "the evidence")
        assert held()["blocked"] is False
        node.run(["asterisk", "-rx", "channel request hangup all"])
        wait_for(lambda: shield(node)["live_channels"] == 0, 15, "the end of the call")
        phone(stranger, "register", node.address(), "phone1", "wrong", "1")
        wait_for(lambda: held()["blocked"] is True, 10, "the block after the call")
    finally:
        answering.kill()
        answering.wait()


def test_blocks_and_phones_outlive_a_reboot(lab_of_one: Lab, node: Node) -> None:
    attacker, friend = lab_of_one.clients["attacker"], lab_of_one.clients["phone"]
    guess_until_blocked(attacker, node)
    until = why(node, attacker.address())["until"]
    node.reboot()
    node.wait_active("centralinod.service", 60)
    wait_for(lambda: why(node, attacker.address()).get("until") == until, 30, "the block after the reboot")
    assert attacker.address() in elements(node, "banned4")
    assert friend.address() in elements(node, "phones4")
    with socket.socket():
        assert phone(attacker, "options", node.address(), "1", "0") == [0]
