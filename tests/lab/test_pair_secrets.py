"""Secrets and certificates of a pair: the slave has them, serves them after a failover, and nothing older."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificate_authority import PrivateAuthority
from certificate_lab import certificate, served_serial
from cryptography.x509 import load_pem_x509_certificate
from pair_of_nodes import SHARED, PairOfNodes, boot_two, make_pair, status

from appliance.lab import LOGS, Lab, Node
from appliance.lab_host import LabError, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PORTS = (443, 5061)
NAME = "pbx.example.com"
SECRET = "Glockenspiel-4711"
ASK = "import ssl, sys; print(ssl.get_server_certificate((sys.argv[1], int(sys.argv[2])), timeout=5))"


@pytest.fixture(scope="module")
def authority() -> PrivateAuthority:
    return PrivateAuthority()


@pytest.fixture(scope="module")
def pair(
    lab_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    authority: PrivateAuthority,
) -> Iterator[PairOfNodes]:
    with Lab(lab_root, tmp_path_factory.mktemp("secrets") / "lab") as lab:
        made = boot_two(lab)
        for node in made.nodes:
            node.run(["tee", "/usr/local/share/ca-certificates/lab.crt"], input_text=authority.root)
            node.run(["update-ca-certificates"])
        make_pair(made)
        made.wait_healthy()
        yield made
        if request.session.testsfailed:
            lab.save_logs(LOGS / "pair-secrets")


def serials(node: Node) -> set[str]:
    """What the node's own services serve, from inside."""
    return {served_serial(node, port).lstrip("0") for port in PORTS}


def seen_outside(pair: PairOfNodes) -> set[str]:
    """The serials that a client gets in handshakes with the shared address."""
    found = set()
    for port in PORTS:
        done = pair.probe.run([sys.executable, "-c", ASK, SHARED, str(port)], check=False, limit_seconds=20)
        if done.ok:
            found.add(f"{load_pem_x509_certificate(done.output.encode()).serial_number:X}")
        else:
            found.add(done.errors)
    return found


def agree(pair: PairOfNodes, master: Node) -> None:
    """Wait until the slave says that it has what the master has, and both serve the same."""

    def same() -> bool:
        peer = status(master).get("peer")
        told = isinstance(peer, dict) and peer.get("secrets_agree") is True
        return told and serials(pair.other(master)) == serials(master)

    try:
        wait_for(same, 60, "the same certificates on both nodes")
    except LabError:
        print([(node.name, serials(node), status(node).get("peer")) for node in pair.nodes])
        raise


def upload(node: Node, authority: PrivateAuthority) -> str:
    """Upload a new certificate; its serial."""
    files = []
    chain, key = authority.issue([NAME])
    for name, text in (("up.crt", chain), ("up.key", key)):
        node.run(["sh", "-c", f"umask 077; cat > /root/{name}"], input_text=text)
        files.append(f"/root/{name}")
    certificate(node, "upload", *files, "--yes")
    (serial,) = serials(node)
    return serial


def test_the_slave_serves_the_certificate_of_its_master(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    agree(pair, master)
    (serial,) = serials(master)
    assert seen_outside(pair) == {serial}


def test_a_secret_arrives_for_root_alone_and_is_said_nowhere(pair: PairOfNodes) -> None:
    master = pair.wait_healthy()
    slave = pair.other(master)
    master.run(["centralino", "config", "secret", "mail", "--stdin", "--yes"], input_text=f"{SECRET}\n")
    file = slave.path("/etc/centralino/secrets/mail")
    wait_for(lambda: file.exists() and file.read_text() == SECRET, 60, "the secret on the slave")
    assert slave.run(["stat", "-c", "%U %a", "/etc/centralino/secrets/mail"]).output.split() == [
        "root",
        "600",
    ]
    for node in pair.nodes:
        said = (
            "journalctl --no-pager; cat /var/log/centralino/*; find /var/lib/centralino -type f | xargs cat"
        )
        assert SECRET not in node.run(["sh", "-c", said], limit_seconds=60).output
    own = [node.run(["cat", "/etc/centralino/secrets/asterisk-ami"]).output for node in pair.nodes]
    assert own[0] != own[1], "what belongs to one node stays there"


def test_an_upload_is_served_by_the_new_master(pair: PairOfNodes, authority: PrivateAuthority) -> None:
    """The master dies right after the slave has it: callers see the same certificate at the same address."""
    old = pair.wait_healthy()
    new = pair.other(old)
    serial = upload(old, authority)
    agree(pair, old)
    keys = "find /var/lib/centralino/certificates -printf '%U %m %y\\n' | sort -u"
    assert new.run(["sh", "-c", keys]).output.split("\n")[:-1] == ["0 600 f", "0 700 d"]
    refused = certificate(new, "rollback", "--yes", check=False)
    assert "takes its certificates from the master" in refused.errors
    old.power_off()
    wait_for(lambda: pair.master() is new, 60, "the new master")
    wait_for(lambda: seen_outside(pair) == {serial}, 30, "the certificate at the shared address")
    # While the other one is away the master goes on: what it gets now must not be lost to an older state.
    later = upload(new, authority)
    assert later != serial
    old.power_on()
    assert pair.wait_healthy() is new
    agree(pair, new)
    assert serials(old) == {later}
    assert seen_outside(pair) == {later}
