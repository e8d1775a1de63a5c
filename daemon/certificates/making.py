"""Making keys, self-signed certificates and requests, and describing certificates; in the helper process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from daemon.certificates.facts import Facts

SELF_SIGNED_YEARS = 10
LONGEST_COMMON_NAME = 64
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

ORGANISATION_FIELDS = {
    "organisation": NameOID.ORGANIZATION_NAME,
    "unit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "locality": NameOID.LOCALITY_NAME,
    "state": NameOID.STATE_OR_PROVINCE_NAME,
    "country": NameOID.COUNTRY_NAME,
}
"""Subject fields that authorities advise (S-CE-04)."""


def make_key(kind: str) -> PrivateKey:
    """A fresh private key; `kind` is a value of KeyType, whose module would bring all the settings."""
    if kind == "rsa3072":
        return rsa.generate_private_key(public_exponent=65537, key_size=3072)
    return ec.generate_private_key(ec.SECP256R1())


def key_text(key: PrivateKey) -> str:
    """PKCS#8 in PEM, not encrypted: the services must read it without a person."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def read_key(text: str) -> PrivateKey:
    """The reverse of `key_text`; raises ValueError."""
    key = load_pem_private_key(text.encode(), None)
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise ValueError("the key is neither RSA nor EC")
    return key


def alternative_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    """Names and addresses as the extension that clients look at (RFC 6125)."""
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)


def self_signed(key: PrivateKey, names: Sequence[str], now: datetime) -> str:
    """A self-signed server certificate in PEM; the first name is the subject's too."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:LONGEST_COMMON_NAME])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # The clocks of phones are wrong at times.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * SELF_SIGNED_YEARS))
        .add_extension(alternative_names(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM).decode()


def request(key: PrivateKey, names: Sequence[str], organisation: Mapping[str, str] | None = None) -> str:
    """A certificate request (PKCS#10, RFC 2986) in PEM.

    `organisation` may hold the fields of ORGANISATION_FIELDS. Raises ValueError for a field that cannot be in
    a certificate (a country is two letters).
    """
    given = organisation or {}
    attributes = [
        x509.NameAttribute(identifier, given[field])
        for field, identifier in reversed(ORGANISATION_FIELDS.items())
        if given.get(field)
    ]
    if len(names[0]) <= LONGEST_COMMON_NAME:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, names[0]))
    made = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name(attributes))
        .add_extension(alternative_names(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


def describe(chain_text: str) -> Facts:
    """The facts of a chain in PEM, whose first certificate is the server's. Raises ValueError."""
    chain = x509.load_pem_x509_certificates(chain_text.encode())
    leaf = chain[0]
    return Facts(
        serial=serial_text(leaf),
        fingerprint=leaf.fingerprint(hashes.SHA256()).hex().upper(),
        subject=leaf.subject.rfc4514_string(),
        issuer=leaf.issuer.rfc4514_string(),
        names=tuple(_names(leaf)),
        not_before=leaf.not_valid_before_utc.astimezone(UTC),
        not_after=leaf.not_valid_after_utc.astimezone(UTC),
        key=_kind(leaf),
        self_signed=leaf.subject == leaf.issuer,
        chain=len(chain),
    )


def serial_text(certificate: x509.Certificate) -> str:
    """As `openssl x509 -serial` writes it: upper-case hexadecimal, whole bytes."""
    digits = f"{certificate.serial_number:X}"
    return digits.zfill(len(digits) + len(digits) % 2)


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in held.get_values_for_type(x509.IPAddress)]
    return [*held.get_values_for_type(x509.DNSName), *addresses]


def _kind(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    return type(key).__name__.removesuffix("PublicKey")
