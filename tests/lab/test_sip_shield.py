"""The SIP shield on a booted appliance: real Asterisk, real scanners, and phones that must not suffer."""

from __future__ import annotations

import json
import socket
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lab import LOGS, Client, Lab, Node
from appliance.lab_host import Result, wait_for
from appliance.lab_sip import add_phone, call_echo
from tests.support.shielded_box import PASSWORD, configure, open_account, phone, shield

pytestmark = pytest.mark.lab

PROGRAMS = Path(sysconfig.get_path("scripts"))
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


@pytest.fixture(scope="module")
def lab_of_one(
    lab_root: Path,
    code: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Lab]:
    with Lab(lab_root, tmp_path_factory.mktemp("shield") / "lab") as lab:
        made = lab.add_node(binds=code)
        for name in ("phone", "attacker", "stranger", "provider"):
            lab.add_client(name)
        lab.power_on_all()
        open_account(made)
        yield lab
        if request.session.testsfailed:
            lab.save_logs(LOGS / "shield")


@pytest.fixture
def node(lab_of_one: Lab) -> Node:
    return lab_of_one.node("node1")


def centralino(node: Node, *words: str) -> Result:
    return node.run(["centralino", *words], check=False, limit_seconds=90)


def why(node: Node, address: str) -> dict[str, object]:
    return dict(json.loads(centralino(node, "firewall", "why", address, "--json").output))


def statuses(client: Client, *words: str) -> list[int]:
    found = phone(client, *words)["statuses"]
    assert isinstance(found, list)
    return found


def guess_until_blocked(attacker: Client, node: Node) -> list[int]:
    """Five wrong passwords, and wait for what follows from them."""
    heard = statuses(attacker, "register", node.address(), "phone1", "wrong", "5")
    wait_for(lambda: why(node, attacker.address())["blocked"] is True, 10, "the block")
    return heard


def elements(node: Node, name: str) -> str:
    return node.run(["nft", "list", "set", "inet", "centralino", name]).output


def test_a_phone_that_authenticates_is_known_and_spared(lab_of_one: Lab, node: Node) -> None:
    client = lab_of_one.clients["phone"]
    assert statuses(client, "register", node.address(), "phone1", PASSWORD) == [200]
    wait_for(lambda: client.address() in elements(node, "phones4"), 10, "the phone in the kernel's set")
    found = why(node, client.address())
    assert found["blocked"] is False
    assert "authenticated" in str(found["shield"]["spared_because"])  # type: ignore[index]


def test_wrong_passwords_block_an_attacker_and_only_him(lab_of_one: Lab, node: Node) -> None:
    attacker, friend = lab_of_one.clients["attacker"], lab_of_one.clients["phone"]
    assert guess_until_blocked(attacker, node)[:4] == [401] * 4
    assert statuses(attacker, "options", node.address(), "1", "0") == [0]
    found = why(node, attacker.address())
    assert (found["blocked"], found["by"]) == (True, "shield")
    assert found["since"] and found["until"]
    evidence = found["shield"]["evidence"]  # type: ignore[index]
    assert len(evidence) >= 5
    assert {item["offence"] for item in evidence} == {"answered our challenge with a wrong password"}
    assert statuses(friend, "register", node.address(), "phone1", PASSWORD) == [200]
    top = json.loads(centralino(node, "firewall", "top", "--json").output)
    assert top[0]["address"] == attacker.address()
    print(centralino(node, "firewall", "why", attacker.address()).output)


def test_an_administrator_forgives(lab_of_one: Lab, node: Node) -> None:
    attacker = lab_of_one.clients["attacker"]
    done = centralino(node, "firewall", "unblock", attacker.address(), "--yes", "--comment", "was a typo")
    assert done.ok, done.errors
    assert statuses(attacker, "options", node.address(), "1", "0") != [0]
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
    statuses(attacker, "forge", node.address(), friend.address(), "nobody", "150")
    wait_for(
        lambda: int(str(why(node, friend.address())["shield"]["offences"])) > before,  # type: ignore[index]
        10,
        "the forged evidence",
    )
    found = why(node, friend.address())
    assert found["blocked"] is False, found
    assert friend.address() not in elements(node, "banned4")
    assert statuses(friend, "register", node.address(), "phone1", PASSWORD) == [200]


def test_a_far_end_is_spared_while_its_call_lives(lab_of_one: Lab, node: Node) -> None:
    stranger = lab_of_one.clients["stranger"]
    words = ["sipp", "-sn", "uas", "-i", stranger.address(), "-p", "5060", "-nostdin"]
    answering = stranger.start(words, "sipp-far.log")

    def held() -> dict[str, object]:
        return dict(why(node, stranger.address())["shield"])  # type: ignore[call-overload]

    try:
        # Made only now: the contacts that the shield finds when it connects count as known phones.
        far = FAR_END.format(address=stranger.address())
        configure(node, "far", far)
        # The image has no need of it: nobody calls from Asterisk's console there.
        node.run(["asterisk", "-rx", "module load res_clioriginate.so"])
        show = ["asterisk", "-rx", "pjsip show endpoint far"]
        wait_for(lambda: "Aor:  far" in node.run(show).output, 15, "the far end's endpoint")
        node.run(["asterisk", "-rx", "channel originate PJSIP/far application Wait 120"])
        wait_for(lambda: shield(node)["live_channels"] == 1, 15, "the live call")
        assert "live call" in str(held()["spared_because"])
        statuses(stranger, "register", node.address(), "phone1", "wrong", "7")
        wait_for(lambda: int(str(held()["offences"])) >= 5, 10, "the evidence")
        assert held()["blocked"] is False
        node.run(["asterisk", "-rx", "channel request hangup all"])
        wait_for(lambda: shield(node)["live_channels"] == 0, 15, "the end of the call")
        statuses(stranger, "register", node.address(), "phone1", "wrong", "1")
        wait_for(lambda: held()["blocked"] is True, 10, "the block after the call")
    finally:
        answering.kill()
        answering.wait()


TLS_CALLER = """
import json, socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
held, ends = [], []
for _ in range(int(sys.argv[2])):
    try:
        held.append(context.wrap_socket(socket.create_connection((sys.argv[1], 5061), 3)))
    except OSError as error:
        ends.append(type(error).__name__)
print(json.dumps([len(held), ends]))
"""


def test_one_source_holds_so_many_tls_connections(lab_of_one: Lab, node: Node) -> None:
    def limit(number: int) -> None:
        word = f"firewall.shield.tls_connections={number}"
        assert centralino(node, "config", "set", word, "--yes").ok
        assert centralino(node, "config", "confirm").ok

    def held(client: Client, tries: int) -> int:
        done = client.run([sys.executable, "-c", TLS_CALLER, node.address(), str(tries)], limit_seconds=60)
        return int(json.loads(done.output)[0])

    limit(6)
    try:
        assert held(lab_of_one.clients["attacker"], 9) == 6
        assert held(lab_of_one.clients["provider"], 2) == 2
    finally:
        limit(50)


# Known by its address, and where the box registers.
PROVIDER = """
[provider]
type = endpoint
context = centralino-probe
disallow = all
allow = alaw
aors = provider
[provider]
type = aor
contact = sip:{address}
[provider]
type = identify
endpoint = provider
match = {address}
[provider]
type = registration
server_uri = sip:{address}
client_uri = sip:box@{address}
retry_interval = 60
"""


def test_a_provider_is_known_from_the_first_moment_and_spared(lab_of_one: Lab, node: Node) -> None:
    provider, attacker = lab_of_one.clients["provider"], lab_of_one.clients["attacker"]
    configure(node, "provider", PROVIDER.format(address=provider.address()))
    node.run(["systemctl", "restart", "centralinod.service"], limit_seconds=60)
    wait_for(lambda: shield(node)["listening"] is True, 60, "the shield's connection")
    assert f"{provider.address()}/32" in shield(node)["trunks"]  # type: ignore[operator]
    assert provider.address() in elements(node, "phones4")
    # What a provider sends in one second on a busy day; a stranger is held to sixty.
    assert len(statuses(provider, "burst", node.address(), "150")) > 120
    before = int(str(why(node, provider.address())["shield"]["offences"]))  # type: ignore[index]
    phone(attacker, "forge", node.address(), provider.address(), "nobody", "150")
    wait_for(
        lambda: int(str(why(node, provider.address())["shield"]["offences"])) > before,  # type: ignore[index]
        10,
        "the forged evidence",
    )
    found = why(node, provider.address())
    assert found["blocked"] is False, found
    assert found["shield"]["spared_because"]  # type: ignore[index]


def test_audio_moves_with_its_setting(lab_of_one: Lab, node: Node) -> None:
    client, account = lab_of_one.clients["phone"], add_phone(node, "1001")
    ports = ("media.rtp_first_port=40000", "media.rtp_last_port=40099")
    assert centralino(node, "config", "set", *ports, "--yes").ok
    assert centralino(node, "config", "confirm").ok
    assert (
        "udp dport 40000-40099 accept"
        in node.run(["nft", "list", "chain", "inet", "centralino", "open_local"]).output
    )
    # The echo speaks only when it is spoken to: without the firewall's consent there is silence.
    assert call_echo(client, account, node.address()).media.echoed >= 50
    back = ("media.rtp_first_port=10000", "media.rtp_last_port=20000")
    assert centralino(node, "config", "set", *back, "--yes").ok
    assert centralino(node, "config", "confirm").ok


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
        assert statuses(attacker, "options", node.address(), "1", "0") == [0]
