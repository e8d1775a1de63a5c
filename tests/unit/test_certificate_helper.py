"""The helper process: what it makes and judges; and that the daemon itself stays free of OpenSSL."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from certificate_authority import PrivateAuthority
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from daemon.certificates.facts import Facts
from daemon.certificates.helper import Answer, Verb, ask_helper
from daemon.errors import UnavailableError

NAME = "pbx.example.com"


def encoded(*texts: str) -> list[str]:
    return [base64.b64encode(text.encode()).decode() for text in texts]


def judged(roots: Path, *texts: str, password: str | None = None, pending_key: str | None = None) -> Answer:
    return ask_helper(
        Verb.JUDGE,
        files=encoded(*texts),
        password=password,
        pending_key=pending_key,
        names=[NAME],
        roots=str(roots),
    )


@pytest.fixture
def authority(tmp_path: Path) -> PrivateAuthority:
    made = PrivateAuthority()
    (tmp_path / "roots.pem").write_text(made.root)
    return made


def test_the_modules_of_the_daemon_load_neither_tls_nor_keys() -> None:
    program = (
        "import sys, daemon.lean, daemon.bus_certificates, daemon.certificates.subsystem;"
        "print([name for name in ('ssl', '_ssl', '_hashlib', 'cryptography', 'acme', 'requests')"
        " if sys.modules.get(name)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_self_signed_certificates_name_the_box_and_its_addresses() -> None:
    answer = ask_helper(Verb.SELF_SIGNED, names=[NAME, "pbx"], key_type="ec-p256")
    certificate = x509.load_pem_x509_certificate(answer["chain"].encode())
    certificate.verify_directly_issued_by(certificate)
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert held.get_values_for_type(x509.DNSName) == [NAME, "pbx"]
    assert "127.0.0.1" in map(str, held.get_values_for_type(x509.IPAddress))
    facts = Facts.from_json(answer["facts"])
    assert facts.self_signed
    assert facts.key == "EC secp256r1"
    assert facts == Facts.from_json(json.loads(json.dumps(facts.as_json())))
    assert isinstance(load_pem_private_key(answer["key"].encode(), None), ec.EllipticCurvePrivateKey)


def test_requests_hold_names_and_organisation_and_the_key_asked_for() -> None:
    organisation = {"organisation": "Società & Söhne", "country": "IT", "locality": "Aosta"}
    answer = ask_helper(
        Verb.REQUEST, names=[NAME, "www.example.com"], key_type="rsa3072", organisation=organisation
    )
    made = x509.load_pem_x509_csr(answer["request"].encode())
    assert made.is_signature_valid
    public = made.public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    assert public.key_size == 3072
    held = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert held.get_values_for_type(x509.DNSName) == [NAME, "www.example.com"]
    subject = {attribute.oid: attribute.value for attribute in made.subject}
    assert subject[NameOID.ORGANIZATION_NAME] == "Società & Söhne"
    assert subject[NameOID.COMMON_NAME] == NAME


def test_a_country_is_two_letters() -> None:
    answer = ask_helper(Verb.REQUEST, names=[NAME], key_type="ec-p256", organisation={"country": "Italy"})
    assert answer["problems"][0]["path"] == "request"


def test_an_upload_is_accepted_ordered_and_described(authority: PrivateAuthority, tmp_path: Path) -> None:
    certificate, key = authority.issue([NAME])
    answer = judged(tmp_path / "roots.pem", key, certificate)
    assert answer["problems"] == []
    assert answer["chain"] == certificate
    assert answer["facts"]["names"] == [NAME]
    assert not answer["used_pending_key"]


def test_the_answer_to_a_request_needs_no_key(authority: PrivateAuthority, tmp_path: Path) -> None:
    made = ask_helper(Verb.REQUEST, names=[NAME], key_type="ec-p256", organisation={})
    certificate = authority.answer(made["request"])
    answer = judged(tmp_path / "roots.pem", certificate, pending_key=made["key"])
    assert answer["problems"] == []
    assert answer["used_pending_key"]
    assert answer["key"] == made["key"]
    stranger, _ = authority.issue([NAME])
    refused = judged(tmp_path / "roots.pem", stranger, pending_key=made["key"])
    assert refused["problems"][0]["path"] == "certificate.wrong-pair"


def test_wrong_password_wrong_pair_and_incomplete_chain_each_have_a_message(
    authority: PrivateAuthority, tmp_path: Path
) -> None:
    certificate, key = authority.issue([NAME])
    _, stranger = authority.issue([NAME])
    locked = (
        load_pem_private_key(key.encode(), None)
        .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"sesame"))
        .decode()
    )
    roots = tmp_path / "roots.pem"
    found = {
        judged(roots, locked, certificate, password=password)["problems"][0]["message"]
        for password in (None, "wrong")
    }
    found.add(judged(roots, stranger, certificate)["problems"][0]["message"])
    found.add(judged(tmp_path / "none", key, certificate)["problems"][0]["message"])
    assert len(found) == 4
    assert any("the chain is incomplete" in message for message in found)
    assert judged(roots, locked, certificate, password="sesame")["problems"] == []


@pytest.mark.parametrize(
    "text", ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_nonsense_is_a_verdict_and_no_crash(tmp_path: Path, text: str) -> None:
    answer = judged(tmp_path / "none", text)
    assert answer["problems"]
    assert "chain" not in answer


def test_a_helper_that_cannot_answer_is_said_so() -> None:
    with pytest.raises(UnavailableError, match="the helper for certificates failed at `describe`"):
        ask_helper(Verb.DESCRIBE, chain="no certificate")
