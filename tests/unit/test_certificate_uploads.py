"""What administrators upload (S-CE-02), made by `cryptography` and by openssl, each with its verdict."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs7,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from daemon.certificates.check import Fault, Note, Verdict, check, covers
from daemon.certificates.material import LARGEST_UPLOAD_BYTES, UploadError, UploadFault, read_material

NOW = datetime(2030, 6, 15, 12, tzinfo=UTC)
DOMAIN = "pbx.example.com"
PASSWORD = "correct horse; $(battery) 'staple' ü"


def subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@dataclass(frozen=True)
class Issued:
    key: PrivateKeyTypes
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self, form: PrivateFormat = PrivateFormat.PKCS8, password: str | None = None) -> bytes:
        encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        return self.key.private_bytes(Encoding.PEM, form, encryption)

    def key_der(self, password: str | None = None) -> bytes:
        encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        return self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, encryption)


@cache
def ec_key(name: str) -> PrivateKeyTypes:
    del name
    return ec.generate_private_key(ec.SECP256R1())


@cache
def rsa_key(bits: int) -> PrivateKeyTypes:
    return rsa.generate_private_key(65537, bits)


def issue(
    name: str,
    issuer: Issued | None = None,
    *,
    key: PrivateKeyTypes | None = None,
    names: tuple[str, ...] = (DOMAIN,),
    authority: bool = False,
    start: datetime = NOW - timedelta(days=10),
    end: datetime = NOW + timedelta(days=80),
    digest: hashes.HashAlgorithm | None = None,
    usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.SERVER_AUTH,
) -> Issued:
    own = key or ec_key(name)
    signer = issuer.key if issuer else own
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(name))
        .issuer_name(issuer.certificate.subject if issuer else subject(name))
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
    )
    if names and not authority:
        entries: list[x509.GeneralName] = []
        for entry in names:
            try:
                entries.append(x509.IPAddress(ip_address(entry)))
            except ValueError:
                entries.append(x509.DNSName(entry))
        builder = builder.add_extension(x509.SubjectAlternativeName(entries), critical=False)
    if usage is not None and not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    needs_none = isinstance(signer, ed25519.Ed25519PrivateKey)
    return Issued(own, builder.sign(signer, None if needs_none else digest or hashes.SHA256()))


FOREVER = NOW + timedelta(days=3650)
LONG_AGO = NOW - timedelta(days=3650)
ROOT = issue("root", authority=True, start=LONG_AGO, end=FOREVER)
UPPER = issue("upper", ROOT, authority=True, start=LONG_AGO, end=FOREVER)
LOWER = issue("lower", UPPER, authority=True, start=LONG_AGO, end=FOREVER)
LEAF = issue("leaf", LOWER)
OTHER = issue("other", LOWER, names=("other.example.com",))
RSA_LEAF = issue("rsa", LOWER, key=rsa_key(2048))


def bundle(*parts: Issued | bytes) -> bytes:
    return b"".join(part if isinstance(part, bytes) else part.pem for part in parts)


def pfx(leaf: Issued, extra: tuple[Issued, ...] = (), password: str | None = PASSWORD) -> bytes:
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    return pkcs12.serialize_key_and_certificates(
        b"upload", leaf.key, leaf.certificate, [part.certificate for part in extra], encryption
    )


def openssl(tmp: Path, *arguments: str, password: str | None = PASSWORD) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PW": password or "", "HOME": str(tmp)}
    subprocess.run(
        ["openssl", *arguments], cwd=tmp, env=environment, check=True, capture_output=True, timeout=30
    )


def judge(blobs: list[bytes], password: str | None = None, names: tuple[str, ...] = (DOMAIN,)) -> Verdict:
    return check(read_material(blobs, password), names, NOW, [ROOT.certificate])


ACCEPTED: dict[str, tuple[Callable[[], list[bytes]], str | None]] = {
    "one PEM file, key first": (lambda: [bundle(LEAF.key_pem(), LEAF, LOWER, UPPER)], None),
    "one PEM file, key last": (lambda: [bundle(LEAF, LOWER, UPPER, LEAF.key_pem())], None),
    "one PEM file, chain reversed": (lambda: [bundle(UPPER, LOWER, LEAF, LEAF.key_pem())], None),
    "root included": (lambda: [bundle(ROOT, LEAF.key_pem(), LEAF, UPPER, LOWER)], None),
    "everything twice": (lambda: [bundle(LEAF, LOWER, UPPER, LEAF.key_pem()) * 2], None),
    "windows line ends": (
        lambda: [bundle(LEAF, LOWER, UPPER, LEAF.key_pem()).replace(b"\n", b"\r\n")],
        None,
    ),
    "old Macintosh line ends": (
        lambda: [bundle(LEAF, LOWER, UPPER, LEAF.key_pem()).replace(b"\n", b"\r")],
        None,
    ),
    "text between the blocks": (
        lambda: [
            b"Bag Attributes\n  friendlyName: x\n".join([LEAF.pem, LOWER.pem, UPPER.pem, LEAF.key_pem()])
        ],
        None,
    ),
    "key and certificate apart, bundle": (
        lambda: [LEAF.key_pem(), LEAF.pem, bundle(LOWER, UPPER)],
        None,
    ),
    "single intermediates": (lambda: [LEAF.key_pem(), LEAF.pem, LOWER.pem, UPPER.pem], None),
    "an empty extra field": (lambda: [LEAF.key_pem(), bundle(LEAF, LOWER, UPPER), b""], None),
    "DER certificate and DER key": (
        lambda: [
            LEAF.key_der(),
            LEAF.certificate.public_bytes(Encoding.DER),
            LOWER.certificate.public_bytes(Encoding.DER),
            UPPER.certificate.public_bytes(Encoding.DER),
        ],
        None,
    ),
    "EC key in SEC1 form": (
        lambda: [bundle(LEAF.key_pem(PrivateFormat.TraditionalOpenSSL), LEAF, LOWER, UPPER)],
        None,
    ),
    "RSA key in PKCS#1 form": (
        lambda: [bundle(RSA_LEAF.key_pem(PrivateFormat.TraditionalOpenSSL), RSA_LEAF, LOWER, UPPER)],
        None,
    ),
    "encrypted PKCS#8 PEM": (lambda: [bundle(LEAF.key_pem(password=PASSWORD), LEAF, LOWER, UPPER)], PASSWORD),
    "encrypted PKCS#8 DER": (lambda: [LEAF.key_der(PASSWORD), bundle(LEAF, LOWER, UPPER)], PASSWORD),
    "encrypted PKCS#1": (
        lambda: [
            bundle(RSA_LEAF.key_pem(PrivateFormat.TraditionalOpenSSL, PASSWORD), RSA_LEAF, LOWER, UPPER)
        ],
        PASSWORD,
    ),
    "a password that is not needed": (lambda: [bundle(LEAF.key_pem(), LEAF, LOWER, UPPER)], PASSWORD),
    "PKCS#12": (lambda: [pfx(LEAF, (LOWER, UPPER))], PASSWORD),
    "PKCS#12 without password": (lambda: [pfx(LEAF, (LOWER, UPPER), None)], None),
    "PKCS#12 plus intermediates as PEM": (lambda: [pfx(LEAF), bundle(LOWER, UPPER)], PASSWORD),
    "PKCS#7 chain in PEM": (
        lambda: [
            LEAF.key_pem(),
            pkcs7.serialize_certificates(
                [LEAF.certificate, LOWER.certificate, UPPER.certificate], Encoding.PEM
            ),
        ],
        None,
    ),
    "PKCS#7 chain in DER": (
        lambda: [
            LEAF.key_pem(),
            pkcs7.serialize_certificates(
                [LEAF.certificate, LOWER.certificate, UPPER.certificate], Encoding.DER
            ),
        ],
        None,
    ),
    "wildcard": (lambda: _signed(names=("*.example.com",)), None),
    "RSA 3072": (lambda: _signed(key=rsa_key(3072)), None),
    "EC P-384": (lambda: _signed(key=ec.generate_private_key(ec.SECP384R1())), None),
    "no extended key usage": (lambda: _signed(usage=None), None),
    "superfluous certificate": (lambda: [bundle(LEAF, LOWER, UPPER, OTHER, LEAF.key_pem())], None),
}


def _signed(
    *,
    key: PrivateKeyTypes | None = None,
    names: tuple[str, ...] = (DOMAIN,),
    start: datetime = NOW - timedelta(days=10),
    end: datetime = NOW + timedelta(days=80),
    digest: hashes.HashAlgorithm | None = None,
    usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.SERVER_AUTH,
    authority: bool = False,
) -> list[bytes]:
    leaf = issue(
        "made",
        LOWER,
        key=key,
        names=names,
        start=start,
        end=end,
        digest=digest,
        usage=usage,
        authority=authority,
    )
    return [bundle(leaf.key_pem(), leaf, LOWER, UPPER)]


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_with_the_chain_in_order(case: str) -> None:
    make, password = ACCEPTED[case]
    verdict = judge(make(), password)
    assert verdict.accepted, [finding.sentence() for finding in verdict.faults]
    assert [certificate.subject for certificate in verdict.chain[1:]] == [subject("lower"), subject("upper")]
    assert covers(verdict.chain[0], DOMAIN)


UNREADABLE: dict[str, tuple[Callable[[], list[bytes]], str | None, UploadFault]] = {
    "nothing": (lambda: [b""], None, UploadFault.EMPTY),
    "white space": (lambda: [b" \n\t"], None, UploadFault.EMPTY),
    "a picture": (lambda: [b"\x89PNG\r\n\x1a\n" + bytes(100)], None, UploadFault.UNKNOWN),
    "plain text": (lambda: [b"hello"], None, UploadFault.UNKNOWN),
    "too large": (lambda: [b"a" * (LARGEST_UPLOAD_BYTES + 1)], None, UploadFault.TOO_LARGE),
    "truncated PEM": (lambda: [bundle(LEAF.key_pem(), LEAF)[:-30]], None, UploadFault.DAMAGED_BLOCK),
    "damaged base64 in the certificate": (
        lambda: [bundle(LEAF.key_pem(), LEAF.pem[:100] + b"!!!!" + LEAF.pem[104:])],
        None,
        UploadFault.DAMAGED_BLOCK,
    ),
    "damaged key": (
        lambda: [bundle(LEAF.key_pem()[:60] + b"AAAAAAAA" + LEAF.key_pem()[68:], LEAF)],
        None,
        UploadFault.DAMAGED_BLOCK,
    ),
    "no key": (lambda: [bundle(LEAF, LOWER, UPPER)], None, UploadFault.NO_KEY),
    "no certificate": (lambda: [LEAF.key_pem()], None, UploadFault.NO_CERTIFICATE),
    "two keys": (lambda: [bundle(LEAF.key_pem(), OTHER.key_pem(), LEAF)], None, UploadFault.SEVERAL_KEYS),
    "PKCS#8 without its password": (
        lambda: [bundle(LEAF.key_pem(password=PASSWORD), LEAF)],
        None,
        UploadFault.PASSWORD_MISSING,
    ),
    "PKCS#8 with a wrong password": (
        lambda: [bundle(LEAF.key_pem(password=PASSWORD), LEAF)],
        "wrong",
        UploadFault.PASSWORD_WRONG,
    ),
    "DER PKCS#8 without its password": (
        lambda: [LEAF.key_der(PASSWORD), LEAF.pem],
        None,
        UploadFault.PASSWORD_MISSING,
    ),
    "DER PKCS#8 with a wrong password": (
        lambda: [LEAF.key_der(PASSWORD), LEAF.pem],
        "wrong",
        UploadFault.PASSWORD_WRONG,
    ),
    "PKCS#12 without its password": (lambda: [pfx(LEAF)], None, UploadFault.PASSWORD_MISSING),
    "PKCS#12 with a wrong password": (lambda: [pfx(LEAF)], "wrong", UploadFault.PASSWORD_WRONG),
    "a request instead of a certificate": (
        lambda: [
            LEAF.key_pem(),
            x509.CertificateSigningRequestBuilder()
            .subject_name(subject(DOMAIN))
            .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
            .public_bytes(Encoding.PEM),
        ],
        None,
        UploadFault.REQUEST,
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_with_its_own_message(case: str) -> None:
    make, password, fault = UNREADABLE[case]
    with pytest.raises(UploadError) as caught:
        read_material(make(), password)
    assert caught.value.fault is fault
    assert caught.value.remedy
    if password:
        assert password not in str(caught.value)


REFUSED: dict[str, tuple[Callable[[], list[bytes]], set[Fault]]] = {
    "wrong pair": (lambda: [bundle(OTHER.key_pem(), LEAF, LOWER, UPPER)], {Fault.WRONG_PAIR}),
    "no intermediates": (lambda: [bundle(LEAF.key_pem(), LEAF)], {Fault.CHAIN_INCOMPLETE}),
    "a gap in the chain": (lambda: [bundle(LEAF.key_pem(), LEAF, UPPER)], {Fault.CHAIN_INCOMPLETE}),
    "expired": (lambda: _signed(end=NOW - timedelta(days=1)), {Fault.EXPIRED}),
    "not yet valid": (lambda: _signed(start=NOW + timedelta(days=1)), {Fault.NOT_YET_VALID}),
    "wrong name": (lambda: _signed(names=("other.example.com",)), {Fault.NAME_MISSING}),
    "wildcard of another level": (lambda: _signed(names=("*.pbx.example.com",)), {Fault.NAME_MISSING}),
    "wildcard of a top-level domain": (lambda: _signed(names=("*.com",)), {Fault.NAME_MISSING}),
    "no names at all": (lambda: _signed(names=()), {Fault.NO_NAMES}),
    "RSA 1024": (lambda: _signed(key=rsa_key(1024)), {Fault.WEAK_KEY}),
    "Ed25519": (lambda: _signed(key=ed25519.Ed25519PrivateKey.generate()), {Fault.UNSUPPORTED_KEY}),
    "curve secp256k1": (
        lambda: _signed(key=ec.generate_private_key(ec.SECP256K1())),
        {Fault.UNSUPPORTED_KEY},
    ),
    "for clients only": (lambda: _signed(usage=ExtendedKeyUsageOID.CLIENT_AUTH), {Fault.NOT_FOR_SERVERS}),
    "an authority's certificate": (
        lambda: [bundle(LOWER.key_pem(), LOWER, UPPER)],
        {Fault.IS_AUTHORITY, Fault.NO_NAMES},
    ),
    "several faults at once": (
        lambda: _signed(end=NOW - timedelta(days=1), names=("other.example.com",)),
        {Fault.EXPIRED, Fault.NAME_MISSING},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_every_fault_named(case: str) -> None:
    make, faults = REFUSED[case]
    verdict = judge(make())
    assert {finding.kind for finding in verdict.faults} == faults
    assert verdict.chain == ()
    assert all(finding.remedy for finding in verdict.faults)


def test_expired_intermediate_is_named() -> None:
    old = issue("old", UPPER, authority=True, start=LONG_AGO, end=NOW - timedelta(days=1))
    leaf = issue("under-old", old)
    verdict = judge([bundle(leaf.key_pem(), leaf, old, UPPER)])
    assert [finding.kind for finding in verdict.faults] == [Fault.CHAIN_EXPIRED]
    assert "CN=old" in verdict.faults[0].detail


def test_self_signed_is_accepted_with_a_note() -> None:
    own = issue("self")
    verdict = judge([bundle(own.key_pem(), own)])
    assert verdict.accepted
    assert [finding.kind for finding in verdict.notes] == [Note.SELF_SIGNED]


def test_private_authority_and_near_expiry_are_notes() -> None:
    leaf = issue("soon", LOWER, end=NOW + timedelta(days=3))
    material = read_material([bundle(leaf.key_pem(), leaf, LOWER, UPPER, ROOT)])
    verdict = check(material, [DOMAIN], NOW, roots=())
    assert verdict.accepted
    assert {finding.kind for finding in verdict.notes} == {Note.PRIVATE_AUTHORITY, Note.EXPIRES_SOON}


def test_renewed_certificate_on_the_same_key_wins() -> None:
    renewed = issue("leaf", LOWER, key=LEAF.key, end=NOW + timedelta(days=300))
    verdict = judge([bundle(LEAF, renewed, LOWER, UPPER, LEAF.key_pem())])
    assert verdict.chain[0] == renewed.certificate


def test_answer_to_a_request_needs_no_key_in_the_upload() -> None:
    material = read_material([bundle(LEAF, LOWER, UPPER)], key=LEAF.key)
    assert check(material, [DOMAIN], NOW, [ROOT.certificate]).accepted


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_addresses_are_names_too(address: str) -> None:
    verdict = judge(_signed(names=(address,)), names=(address,))
    assert verdict.accepted


OPENSSL_EXPORTS = {
    "PKCS#12 as OpenSSL 3 makes it": (
        "pkcs12",
        "-export",
        "-inkey",
        "k",
        "-in",
        "c",
        "-out",
        "o",
        "-passout",
        "env:PW",
    ),
    "PKCS#12 with the certificate in the clear": (
        *("pkcs12", "-export", "-inkey", "k", "-in", "c", "-out", "o", "-certpbe", "NONE"),
        *("-passout", "env:PW"),
    ),
    "PKCS#8 with AES-128": (
        "pkcs8",
        "-topk8",
        "-in",
        "k",
        "-out",
        "o",
        "-v2",
        "aes128",
        "-passout",
        "env:PW",
    ),
    "PKCS#8 with triple DES": (
        "pkcs8",
        "-topk8",
        "-in",
        "k",
        "-out",
        "o",
        "-v2",
        "des3",
        "-passout",
        "env:PW",
    ),
    "PKCS#8 with scrypt": ("pkcs8", "-topk8", "-in", "k", "-out", "o", "-scrypt", "-passout", "env:PW"),
    "EC key with its parameters": ("ecparam", "-name", "prime256v1", "-out", "o"),
}


@pytest.mark.parametrize("case", OPENSSL_EXPORTS)
def test_what_openssl_exports(case: str, tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(LEAF.key_pem())
    (tmp_path / "c").write_bytes(bundle(LEAF, LOWER, UPPER))
    openssl(tmp_path, *OPENSSL_EXPORTS[case])
    made = (tmp_path / "o").read_bytes()
    rest = bundle(LEAF, LOWER, UPPER)
    parameters_only = b"EC PARAMETERS" in made
    blobs = [made + LEAF.key_pem(PrivateFormat.TraditionalOpenSSL), rest] if parameters_only else [made, rest]
    verdict = judge(blobs, PASSWORD)
    assert verdict.accepted, [finding.sentence() for finding in verdict.faults]


def test_openssl_self_signed_with_sha1_is_refused(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(rsa_pem := Issued(rsa_key(2048), LEAF.certificate).key_pem())
    openssl(
        tmp_path,
        *("req", "-x509", "-key", "k", "-sha1", "-days", "3650", "-subj", f"/CN={DOMAIN}", "-out", "c"),
        *("-addext", f"subjectAltName=DNS:{DOMAIN}"),
    )
    material = read_material([rsa_pem, (tmp_path / "c").read_bytes()])
    verdict = check(material, [DOMAIN], datetime.now(UTC) + timedelta(days=1))
    assert [finding.kind for finding in verdict.faults] == [Fault.WEAK_SIGNATURE]
