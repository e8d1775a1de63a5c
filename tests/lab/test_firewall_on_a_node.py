"""The firewall on a booted appliance: what it opens, what it keeps, and that it locks nobody out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.lab import LOGS, Client, Lab, Node
from appliance.lab_host import Result, wait_for
from firewall.ports import Mode, Service, Zone, services

pytestmark = pytest.mark.lab

REPOSITORY = Path(__file__).resolve().parents[2]
BLAST = REPOSITORY / "tests/support/port_blast.py"
UNIT = "centralinod.service"
POLICY = "/etc/centralino/nftables.d/50-policy.nft"
# A network that is neither private nor anybody's (RFC 5737): the administrator comes from far away.
BOX, ADMIN, ELSEWHERE = "198.51.100.1", "198.51.100.2", "203.0.113.0/24"
NAME = "pbx.example.com"
WITNESS = """
add table inet witness
delete table inet witness
table inet witness {
    set seen_tcp { type inet_service; size 65535; flags dynamic; }
    set seen_udp { type inet_service; size 65535; flags dynamic; }
    chain input {
        type filter hook input priority filter + 10; policy accept;
        iifname eth0 ct state new meta l4proto tcp update @seen_tcp { tcp dport } drop
        iifname eth0 ct state new meta l4proto udp update @seen_udp { udp dport } drop
    }
}
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
    with Lab(lab_root, tmp_path_factory.mktemp("firewall") / "lab") as lab:
        made = lab.add_node(binds=with_this_tree(lab_root, tmp_path_factory.mktemp("tree")))
        client = lab.add_client("admin")
        lab.power_on_all()
        made.wait_active(UNIT)
        client.run(["ip", "address", "add", f"{ADMIN}/24", "dev", "eth0"])
        key = lab.directory / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        made.run(["mkdir", "-p", "-m", "700", "/root/.ssh"])
        public = key.with_suffix(".pub").read_text()
        made.run(["tee", "/root/.ssh/authorized_keys"], input_text=public)
        far_address(made)
        yield lab
        if request.session.testsfailed:
            lab.save_logs(LOGS / "firewall")


def far_address(node: Node) -> None:
    node.run(["ip", "address", "replace", f"{BOX}/24", "dev", "eth0"])


@pytest.fixture
def node(lab_of_one: Lab) -> Node:
    return lab_of_one.node("node1")


@pytest.fixture
def admin(lab_of_one: Lab) -> Client:
    return lab_of_one.clients["admin"]


def centralino(node: Node, *words: str) -> Result:
    return node.run(["centralino", *words], check=False, limit_seconds=90)


def set_values(node: Node, *words: str) -> Result:
    return centralino(node, "config", "set", *words, "--yes")


def firewall(node: Node) -> dict[str, object]:
    found = centralino(node, "firewall", "status", "--json")
    return dict(json.loads(found.output)) if found.ok else {}


def alarms(node: Node) -> set[str]:
    found = json.loads(centralino(node, "status", "--json").output)
    return {alarm["id"] for alarm in found["alarms"]}


def pending(node: Node) -> object:
    found = centralino(node, "status", "--json")
    return json.loads(found.output)["pending"] if found.ok else "unknown"


def ssh_words(lab: Lab, *words: str) -> list[str]:
    options = [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "ConnectTimeout=3",
        "LogLevel=ERROR",
    ]
    flags = [part for option in options for part in ("-o", option)]
    return ["ssh", *flags, "-i", str(lab.directory / "key"), "-b", ADMIN, f"root@{BOX}", *words]


class Shell:
    """One SSH session that stays."""

    def __init__(self, lab: Lab, client: Client) -> None:
        words = [
            "nsenter",
            f"--net={client.namespace}",
            *ssh_words(lab, "while read word; do echo got $word; done"),
        ]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answers(self, word: str) -> bool:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip() == f"got {word}"


@contextmanager
def shell(lab: Lab, client: Client) -> Iterator[Shell]:
    made = Shell(lab, client)
    try:
        assert made.answers("hello")
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def gets_in(lab: Lab, client: Client) -> bool:
    """Whether a new SSH session can be opened."""
    return client.run(ssh_words(lab, "true"), check=False, limit_seconds=20).ok


def test_the_daemon_loads_the_policy(node: Node) -> None:
    found = firewall(node)
    assert (found["healthy"], found["mode"], found["failsafe"]) == (True, "standard", None), found
    rules = node.run(["nft", "list", "table", "inet", "centralino"]).output
    assert "chain sip_udp" in rules and "chain local " not in rules
    assert node.run(["stat", "-c", "%a", POLICY]).output.strip() == "600"


def ports_of(chosen: tuple[Service, ...]) -> set[tuple[str, int]]:
    return {
        (service.protocol.value, port)
        for service in chosen
        for port in range(service.first, service.last + 1)
    }


def scan(node: Node, client: Client, target: str, source: str) -> set[tuple[str, int]]:
    node.run(["nft", "-f", "-"], input_text=WITNESS)
    found = set()
    for word in ("tcp", "udp"):
        client.run([sys.executable, str(BLAST), target, source, word], limit_seconds=120)
        text = node.run(["nft", "-j", "list", "set", "inet", "witness", f"seen_{word}"]).output
        found |= {(word, int(port)) for port in json.loads(text)["nftables"][1]["set"].get("elem", [])}
    node.run(["nft", "delete", "table", "inet", "witness"])
    return found


def test_a_scan_finds_exactly_the_table_in_standard_mode(node: Node, admin: Client) -> None:
    """Management is everybody in a new box, so SSH shows too."""
    expected = ports_of(services(Mode.STANDARD, Zone.LOCAL)) | {("tcp", 22)}
    assert scan(node, admin, node.address(), admin.address()) == expected
    assert scan(node, admin, node.address6(), admin.address6()) == expected
    assert scan(node, admin, BOX, ADMIN) == {("tcp", 22)}


def test_a_policy_that_shuts_the_session_out_returns(lab_of_one: Lab, node: Node, admin: Client) -> None:
    with shell(lab_of_one, admin) as session:
        done = set_values(node, "firewall.management_networks", ELSEWHERE, "--confirm-seconds", "8")
        assert done.ok, done.errors
        assert "not get in again" in done.output + done.errors
        assert session.answers("alive")
        # The session's address may even come back, for an hour; whoever else is outside stays outside.
        assert gets_in(lab_of_one, admin)
        other = admin.run(
            [sys.executable, "-c", f"import socket; socket.create_connection(('{node.address()}', 22), 2)"],
            check=False,
        )
        assert not other.ok
        wait_for(lambda: pending(node) is None, 30, "the return")
        assert session.answers("still alive")
    assert gets_in(lab_of_one, admin)
    assert firewall(node)["management"] == ["0.0.0.0/0", "::/0"]


def test_it_returns_although_the_daemon_was_killed(lab_of_one: Lab, node: Node, admin: Client) -> None:
    with shell(lab_of_one, admin) as session:
        assert set_values(node, "firewall.management_networks", ELSEWHERE, "--confirm-seconds", "15").ok
        node.run(["systemctl", "kill", "-s", "KILL", UNIT])
        assert session.answers("alive")
        node.wait_active(UNIT)
        assert session.answers("the new daemon runs")
        wait_for(lambda: pending(node) is None, 40, "the return")
        assert session.answers("returned")
    assert firewall(node)["management"] == ["0.0.0.0/0", "::/0"]


def test_it_returns_over_a_reboot(lab_of_one: Lab, node: Node, admin: Client) -> None:
    assert set_values(node, "firewall.management_networks", ELSEWHERE, "--confirm-seconds", "3600").ok
    assert "203.0.113.0/24" in node.run(["cat", POLICY]).output
    node.reboot()
    node.wait_active(UNIT)
    far_address(node)
    wait_for(lambda: gets_in(lab_of_one, admin), 40, "the administrator's way in")
    assert firewall(node)["management"] == ["0.0.0.0/0", "::/0"]
    assert "203.0.113.0/24" not in node.run(["cat", POLICY]).output


def test_a_confirmed_policy_stays(lab_of_one: Lab, node: Node, admin: Client) -> None:
    assert set_values(node, "firewall.management_networks", '["198.51.100.0/24", "10.77.0.0/24"]').ok
    assert centralino(node, "config", "confirm").ok
    node.reboot()
    node.wait_active(UNIT)
    far_address(node)
    wait_for(lambda: gets_in(lab_of_one, admin), 40, "the administrator's way in")
    assert set_values(node, "firewall.management_networks", "[]").ok
    assert centralino(node, "config", "confirm").ok


def test_a_damaged_file_leaves_ssh_and_an_alarm(lab_of_one: Lab, node: Node, admin: Client) -> None:
    """The file is what the boot loads before the daemon runs."""
    node.run(["sh", "-c", f"echo 'add rule inet centralino nonsense' >> {POLICY}"])
    node.run(["systemctl", "disable", UNIT])
    node.reboot()
    far_address(node)
    rules = node.run(["nft", "list", "chain", "inet", "centralino", "input"]).output
    assert "policy drop" in rules and "dport 22" in rules
    for port, reached in ((22, True), (443, False), (80, False)):
        program = f"import socket; socket.create_connection(('{node.address()}', {port}), 2)"
        assert admin.run([sys.executable, "-c", program], check=False).ok is reached, port
    node.run(["systemctl", "enable", "--now", UNIT], limit_seconds=60)
    node.wait_active(UNIT)
    wait_for(lambda: firewall(node).get("healthy") is True, 30, "the policy of the settings")
    assert "firewall.file" in alarms(node)
    assert "nonsense" not in node.run(["cat", POLICY]).output
    program = f"import socket; socket.create_connection(('{node.address()}', 443), 2)"
    assert admin.run([sys.executable, "-c", program], check=False).ok


def test_a_table_that_was_taken_away_comes_back(node: Node) -> None:
    node.run(["nft", "add", "element", "inet", "centralino", "trusted4", "{ 192.0.2.1 }"])
    assert firewall(node)["drift"] == [
        "the firewall's table was changed by something else than these settings"
    ]
    assert centralino(node, "firewall", "reload", "--yes").ok
    assert firewall(node)["drift"] == []
    node.run(["nft", "add", "element", "inet", "centralino", "banned4", "{ 192.0.2.9 timeout 600s }"])
    node.run(["systemctl", "reload", "nftables.service"])
    assert "192.0.2.9" in node.run(["nft", "list", "set", "inet", "centralino", "banned4"]).output
    wait_for(lambda: firewall(node)["healthy"] is True, 20, "the policy after the reload of the unit")
    node.run(["nft", "flush", "ruleset"])
    wait_for(
        lambda: node.run(["nft", "list", "table", "inet", "centralino"], check=False).ok, 40, "the table"
    )
    assert "firewall.drift" in alarms(node)
    assert firewall(node)["healthy"] is True


def test_lists_support_and_why(node: Node) -> None:
    done = centralino(node, "firewall", "block", "203.0.113.7", "--for", "2h", "--comment", "noisy", "--yes")
    assert done.ok, done.errors
    assert pending(node) is None, "a list of addresses needs no confirmation"
    assert "203.0.113.7" in node.run(["nft", "list", "set", "inet", "centralino", "blocked_until4"]).output
    assert "203.0.113.7" not in node.run(["cat", POLICY]).output
    answer = json.loads(centralino(node, "firewall", "why", "203.0.113.7", "--json").output)
    assert (answer["blocked"], answer["by"]) == (True, "settings")
    assert "noisy" in answer["sentence"]
    assert centralino(node, "firewall", "unblock", "203.0.113.7", "--yes").ok
    assert (
        "203.0.113.7" not in node.run(["nft", "list", "set", "inet", "centralino", "blocked_until4"]).output
    )
    assert centralino(node, "firewall", "allow", "203.0.113.0/28", "--yes").ok
    assert json.loads(centralino(node, "firewall", "why", "203.0.113.7", "--json").output)["zones"] == [
        "management",
        "allowed",
    ]
    assert centralino(node, "firewall", "disallow", "203.0.113.0/28", "--yes").ok
    assert centralino(node, "firewall", "support", "192.0.2.0/28", "--hours", "4", "--yes").ok
    assert firewall(node)["support"]["open"] is True  # type: ignore[index]
    assert "192.0.2.0/28" in node.run(["nft", "list", "set", "inet", "centralino", "support4"]).output
    assert centralino(node, "firewall", "support", "--end", "--yes").ok
    assert firewall(node)["support"]["open"] is False  # type: ignore[index]


def test_cloud_mode_shuts_nobody_out_and_opens_exactly_the_table(
    lab_of_one: Lab, node: Node, admin: Client
) -> None:
    """The lab's own name server plays that of the provider."""
    answers = f"--host-record={NAME},{BOX}"
    flags = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
    admin.start(["dnsmasq", *flags, answers], "names.log")
    done = set_values(node, "network.dns.servers", admin.address())
    assert done.ok, done.errors
    assert centralino(node, "config", "confirm").ok
    cloud = ("mode.mode=cloud", f"domain.fqdn={NAME}", f"domain.public_address={BOX}")
    with shell(lab_of_one, admin):
        refused = set_values(node, *cloud)
        assert not refused.ok
        assert "firewall.management_networks" in refused.errors and ADMIN in refused.errors
    wait_for(lambda: ADMIN not in node.run(["ss", "-tnH", "sport", "=", ":22"]).output, 20, "the end of SSH")
    done = set_values(node, *cloud, f'firewall.management_networks=["{ELSEWHERE}"]')
    assert done.ok, done.errors
    assert centralino(node, "config", "confirm").ok
    # Whoever has just been connected over SSH keeps that way for an hour: forget it for the count.
    for version in (4, 6):
        node.run(["nft", "flush", "set", "inet", "centralino", f"session{version}"])
    expected = ports_of(services(Mode.CLOUD, Zone.PUBLIC))
    assert scan(node, admin, BOX, ADMIN) == expected
    assert scan(node, admin, node.address6(), admin.address6()) == expected
