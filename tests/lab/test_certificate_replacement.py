"""Certificates on a booted appliance: replaced on every service under live calls, or on none (S-CE-02)."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificate_authority import PrivateAuthority
from certificate_calls import calls, live_channels
from certificate_lab import certificate, served_serial, this_tree
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from appliance.demo_steps import wait_healthy
from appliance.lab import LOGS, Client, Lab, Node
from appliance.lab_host import Result

pytestmark = pytest.mark.lab

PORTS = (443, 5061)
NAME = "pbx.example.com"
EACH = 3


@pytest.fixture(scope="module")
def place(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Lab]:
    with Lab(lab_root, tmp_path_factory.mktemp("certificates") / "lab") as lab:
        node = lab.add_node(binds=this_tree(lab_root, tmp_path_factory.mktemp("tree")))
        lab.add_client("phone")
        lab.power_on_all()
        wait_healthy(node)
        yield lab
        if request.session.testsfailed:
            lab.save_logs(LOGS / "certificates")


@pytest.fixture
def node(place: Lab) -> Node:
    return place.node("node1")


@pytest.fixture
def phone(place: Lab) -> Client:
    return place.clients["phone"]


@pytest.fixture(scope="module")
def authority(place: Lab) -> PrivateAuthority:
    """Known to the box: its root lies in the platform's directory of roots."""
    made = PrivateAuthority()
    node = place.node("node1")
    node.run(["tee", "/usr/local/share/ca-certificates/lab.crt"], input_text=made.root)
    node.run(["update-ca-certificates"])
    return made


def put(node: Node, name: str, text: str) -> str:
    node.run(["sh", "-c", f"umask 077; cat > /root/{name}"], input_text=text)
    return f"/root/{name}"


def serials(node: Node) -> list[str]:
    return [served_serial(node, port) for port in PORTS]


def shown(node: Node) -> dict[str, object]:
    found: dict[str, object] = json.loads(certificate(node, "show", "--json").output)
    return found


def refused(done: Result, message: str) -> None:
    assert done.status == 3, done
    assert message in done.errors, done.errors


def test_no_call_is_dropped_by_renewal_upload_and_rollback(
    node: Node, phone: Client, authority: PrivateAuthority, tmp_path: Path
) -> None:
    chain, key = authority.issue([NAME])
    files = [put(node, "up.crt", chain), put(node, "up.key", key)]
    seen = [*set(serials(node))]
    assert len(seen) == 1
    with calls(node, phone, tmp_path, each=EACH, seconds=25) as standing:
        for words in (["renew"], ["upload", *files], ["rollback"], ["rollback"]):
            certificate(node, *words, "--yes")
            (serial,) = set(serials(node))
            seen.append(serial)
        assert live_channels(node) == 2 * EACH, "every call still stands"
        assert [call.over for call in standing if not call.ended_well(60)] == []
    assert len(set(seen)) == 3, "self-signed, renewed, uploaded"
    assert shown(node)["served"]["source"] == "uploaded"  # type: ignore[index]


def test_refusals_each_have_their_own_message(node: Node, authority: PrivateAuthority) -> None:
    chain, key = authority.issue([NAME])
    stranger, _ = PrivateAuthority("Unknown Authority").issue([NAME])
    _, other_key = authority.issue([NAME])
    locked = load_pem_private_key(key.encode(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame")
    )
    certificate_file, key_file = put(node, "a.crt", chain), put(node, "locked.key", locked.decode())
    before = serials(node)
    for command in ("check", "upload"):
        yes = ["--yes"] if command == "upload" else []
        refused(
            certificate(node, command, certificate_file, key_file, *yes, check=False),
            "the private key is encrypted and no password was given",
        )
        refused(
            certificate(
                node,
                command,
                certificate_file,
                key_file,
                *yes,
                "--password-stdin",
                check=False,
                input_text="no\n",
            ),
            "the password does not open the private key",
        )
        refused(
            certificate(node, command, certificate_file, put(node, "b.key", other_key), *yes, check=False),
            "the certificate does not belong to the private key",
        )
        unknown = put(node, "c.crt", stranger)
        refused(certificate(node, command, unknown, *yes, check=False), "there is no private key")
    assert serials(node) == before
    certificate(
        node, "upload", certificate_file, key_file, "--yes", "--password-stdin", input_text="open sesame\n"
    )
    assert serials(node) != before
    for secret in ("open sesame", "PRIVATE KEY"):
        done = node.run(
            ["sh", "-c", f"grep -r '{secret}' /var/log/centralino /var/lib/centralino/revisions"], check=False
        )
        assert done.output == ""
        assert secret not in node.journal()


def test_an_incomplete_chain_is_refused(node: Node) -> None:
    chain, key = PrivateAuthority("Nobody Knows").issue([NAME])
    files = [put(node, "d.crt", chain), put(node, "d.key", key)]
    refused(certificate(node, "upload", *files, "--yes", check=False), "the chain is incomplete")


def test_a_request_and_its_answer(node: Node, authority: PrivateAuthority) -> None:
    done = certificate(
        node,
        "request",
        "--name",
        NAME,
        "--organisation",
        "Example",
        "--country",
        "IT",
        "--output",
        "/root/req.pem",
    )
    assert "/root/req.pem" in done.output
    request = node.run(["cat", "/root/req.pem"]).output
    text = node.run(["openssl", "req", "-in", "/root/req.pem", "-noout", "-verify", "-text"]).output
    assert f"DNS:{NAME}" in text
    assert "O = Example" in text
    answer = put(node, "answer.crt", authority.answer(request))
    certificate(node, "upload", answer, "--yes")
    served = shown(node)
    assert served["pending_request"] is None
    assert set(serials(node)) == {served["served"]["serial"]}  # type: ignore[index]


def test_a_service_that_takes_nothing_returns_all_to_the_old_certificate(node: Node) -> None:
    before = serials(node)
    (master,) = {int(node.run(["systemctl", "show", "-P", "MainPID", "nginx.service"]).output)}
    node.run(["kill", f"-{int(signal.SIGSTOP)}", str(master)])
    try:
        done = certificate(node, "upload", *fresh(node), "--yes", check=False)
    finally:
        node.run(["kill", f"-{int(signal.SIGCONT)}", str(master)])
    assert done.status == 7, done
    assert "nginx still serves certificate" in done.errors
    assert "the old one is back" in done.errors
    assert serials(node) == before
    status = node.json(["centralino", "status", "--json"])
    assert [alarm["id"] for alarm in status["alarms"]] == ["certificate.replacement"]  # type: ignore[attr-defined]
    certificate(node, "upload", *fresh(node), "--yes")
    assert serials(node) != before
    status = node.json(["centralino", "status", "--json"])
    assert status["alarms"] == []


def fresh(node: Node) -> list[str]:
    """An upload of the authority that the box knows."""
    made = PrivateAuthority("Second Lab Root")
    node.run(["tee", "/usr/local/share/ca-certificates/second.crt"], input_text=made.root)
    node.run(["update-ca-certificates"])
    chain, key = made.issue([NAME])
    return [put(node, "fresh.crt", chain), put(node, "fresh.key", key)]


HTTP = """
[general]
enabled = yes
bindaddr = 127.0.0.1
tlsenable = yes
tlsbindaddr = 0.0.0.0:8089
tlscertfile = /etc/asterisk/keys/box.crt
tlsprivatekey = /etc/asterisk/keys/box.key
"""


def test_websockets_of_asterisk_take_the_certificate_where_they_are_enabled(node: Node) -> None:
    before = node.run(["cat", "/etc/asterisk/http.conf"]).output
    node.run(["tee", "/etc/asterisk/http.conf"], input_text=HTTP)
    try:
        node.run(["asterisk", "-rx", "module reload http"])
        first = served_serial(node, 8089)
        certificate(node, "upload", *fresh(node), "--yes")
        assert served_serial(node, 8089) == serials(node)[0] != first
        consumers = shown(node)["served"]["consumers"]  # type: ignore[index]
        assert "asterisk-wss" in {one["consumer"] for one in consumers}
    finally:
        node.run(["tee", "/etc/asterisk/http.conf"], input_text=before)
        node.run(["asterisk", "-rx", "module reload http"])


def test_a_power_cut_in_the_middle_leaves_one_pair_that_is_served(node: Node) -> None:
    """The power goes while certificates are replaced in a loop; afterwards all services serve one pair."""
    loop = "while centralino certificate renew --yes; do :; done"
    node.run(["centralino", "config", "set", "--yes", "certificates.source=self-signed"])
    for moment in range(3):
        node.run(["systemd-run", "--collect", "sh", "-c", loop])
        first = shown(node)["served"]["serial"]  # type: ignore[index]
        while shown(node)["served"]["serial"] == first:  # type: ignore[index]
            pass
        node.run(["sleep", f"0.{moment * 3}"])
        node.power_off()
        node.power_on(120)
        wait_healthy(node)
        (serial,) = set(serials(node))
        assert shown(node)["served"]["serial"] == serial  # type: ignore[index]
