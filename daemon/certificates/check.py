"""Whether a certificate may be used: pair, chain, names, dates, strength, algorithm (S-CE-02)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from daemon.certificates.material import Material
from daemon.certificates.names import covers as covered

SMALLEST_RSA_BITS = 2048
CURVES = ("secp256r1", "secp384r1", "secp521r1")
WEAK_HASHES = ("md5", "sha1")
WARNING_DAYS = 14


class Fault(StrEnum):
    """Why a certificate is refused, as sentences; the detail follows in brackets."""

    WRONG_PAIR = "the certificate does not belong to the private key"
    EXPIRED = "the certificate has expired"
    NOT_YET_VALID = "the certificate is not valid yet"
    NAME_MISSING = "the certificate does not cover the domain"
    NO_NAMES = "the certificate names no host (no subject alternative names)"
    WEAK_KEY = "the key is too weak"
    UNSUPPORTED_KEY = "phones and clients do not support this kind of key"
    WEAK_SIGNATURE = "the certificate is signed with a broken hash"
    IS_AUTHORITY = "this is the certificate of an authority, not of a server"
    NOT_FOR_SERVERS = "the certificate is not meant for servers"
    CHAIN_INCOMPLETE = "the chain is incomplete"
    CHAIN_EXPIRED = "a certificate of the chain has expired"


class Note(StrEnum):
    """What is worth knowing and no reason to refuse."""

    SELF_SIGNED = "the certificate is self-signed: browsers warn, the mobile app refuses it"
    EXPIRES_SOON = "the certificate expires soon"
    PRIVATE_AUTHORITY = "the authority is not one that clients know by default"
    SUPERFLUOUS = "certificates that do not belong to the chain are left out"


@dataclass(frozen=True)
class Finding:
    """One fault or note with its detail and remedy."""

    kind: Fault | Note
    detail: str = ""
    remedy: str = ""

    def sentence(self) -> str:
        """For people."""
        text = f"{self.kind.value} ({self.detail})" if self.detail else self.kind.value
        return f"{text}; {self.remedy}" if self.remedy else text


@dataclass(frozen=True)
class Verdict:
    """`chain` starts with the server's certificate and ends below (or at) the root; empty when refused."""

    faults: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    chain: tuple[x509.Certificate, ...]

    @property
    def accepted(self) -> bool:
        """Whether the certificate may be used."""
        return not self.faults


def check(
    material: Material,
    names: Sequence[str],
    now: datetime,
    roots: Sequence[x509.Certificate] = (),
) -> Verdict:
    """Judge `material` for serving `names` (DNS names or addresses) at `now` (with time zone).

    `roots` are the authorities that clients know. All faults are found at once, except that without the
    right pair nothing else is looked at.
    """
    leaf = _leaf(material)
    if leaf is None:
        subjects = ", ".join(_name(certificate) for certificate in material.certificates)
        pair = Finding(Fault.WRONG_PAIR, subjects, "upload the key that the request was made with")
        return Verdict((pair,), (), ())
    chain, missing = _chain(leaf, material.certificates, roots)
    faults = [*_leaf_faults(leaf, names, now), *_chain_faults(chain, missing, now)]
    notes = list(_notes(leaf, chain, missing, material, roots, now))
    return Verdict(tuple(faults), tuple(notes), () if faults else tuple(chain))


def _leaf(material: Material) -> x509.Certificate | None:
    wanted = material.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    matching = [
        certificate
        for certificate in material.certificates
        if certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == wanted
    ]
    # A renewed certificate on the same key: the one that lasts longest.
    return max(matching, key=lambda certificate: certificate.not_valid_after_utc, default=None)


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _self_signed(certificate: x509.Certificate) -> bool:
    if certificate.subject != certificate.issuer:
        return False
    # The library refuses to verify broken hashes; `_strength` names those.
    digest = certificate.signature_hash_algorithm
    return _issued_by(certificate, certificate) or (digest is not None and digest.name in WEAK_HASHES)


def _chain(
    leaf: x509.Certificate, uploaded: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> tuple[list[x509.Certificate], str | None]:
    """The ordered chain without the root, and the name of the first issuer that is missing."""
    chain = [leaf]
    while True:
        last = chain[-1]
        if _self_signed(last):
            return (chain if len(chain) == 1 else chain[:-1]), None
        if any(_issued_by(last, root) for root in roots if root.subject == last.issuer):
            return chain, None
        issuer = next(
            (
                candidate
                for candidate in uploaded
                if candidate not in chain and candidate.subject == last.issuer and _issued_by(last, candidate)
            ),
            None,
        )
        if issuer is None:
            return chain, last.issuer.rfc4514_string()
        chain.append(issuer)


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "no subject"


def _alternative_names(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return names.get_values_for_type(x509.DNSName), addresses


def covers(certificate: x509.Certificate, name: str) -> bool:
    """Whether the certificate is valid for a DNS name or an address."""
    dns_names, addresses = _alternative_names(certificate)
    return covered([*dns_names, *addresses], name)


def _leaf_faults(leaf: x509.Certificate, names: Sequence[str], now: datetime) -> Iterator[Finding]:
    if leaf.not_valid_after_utc < now:
        yield Finding(Fault.EXPIRED, f"on {leaf.not_valid_after_utc:%Y-%m-%d}", "get a new one")
    if leaf.not_valid_before_utc > now:
        start = f"valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        yield Finding(Fault.NOT_YET_VALID, start, "check the clock of this box")
    dns_names, addresses = _alternative_names(leaf)
    if not dns_names and not addresses:
        yield Finding(Fault.NO_NAMES, _name(leaf), "request one with subject alternative names")
    else:
        for name in names:
            if not covers(leaf, name):
                held = ", ".join([*dns_names, *addresses])
                yield Finding(Fault.NAME_MISSING, f"{name} is not among {held}", "request one for the domain")
    yield from _strength(leaf)
    yield from _purpose(leaf)


def _strength(certificate: x509.Certificate) -> Iterator[Finding]:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < SMALLEST_RSA_BITS:
            yield Finding(Fault.WEAK_KEY, f"RSA with {key.key_size} bits", "use RSA 3072 or EC P-256")
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in CURVES:
            yield Finding(Fault.UNSUPPORTED_KEY, f"curve {key.curve.name}", "use EC P-256")
    else:
        kind = type(key).__name__.removesuffix("PublicKey")
        yield Finding(Fault.UNSUPPORTED_KEY, kind, "use RSA 3072 or EC P-256")
    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and algorithm.name in WEAK_HASHES:
        yield Finding(Fault.WEAK_SIGNATURE, algorithm.name.upper(), "have it issued again with SHA-256")


def _purpose(leaf: x509.Certificate) -> Iterator[Finding]:
    try:
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
        if constraints.ca and not _self_signed(leaf):
            yield Finding(Fault.IS_AUTHORITY, _name(leaf), "upload the server's certificate")
    except x509.ExtensionNotFound:
        pass
    try:
        usages = leaf.extensions.get_extension_for_oid(ExtensionOID.EXTENDED_KEY_USAGE).value
        assert isinstance(usages, x509.ExtendedKeyUsage)  # noqa: S101 - narrows the type
        allowed = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
        if not allowed & set(usages):
            yield Finding(Fault.NOT_FOR_SERVERS, _name(leaf), "request a server certificate")
    except x509.ExtensionNotFound:
        pass


def _chain_faults(chain: Sequence[x509.Certificate], missing: str | None, now: datetime) -> Iterator[Finding]:
    if missing is not None:
        yield Finding(Fault.CHAIN_INCOMPLETE, f"{missing} is missing", "add the authority's bundle")
    for certificate in chain[1:]:
        if certificate.not_valid_after_utc < now:
            yield Finding(Fault.CHAIN_EXPIRED, _name(certificate), "get the authority's current bundle")
        yield from _strength(certificate)


def _notes(
    leaf: x509.Certificate,
    chain: Sequence[x509.Certificate],
    missing: str | None,
    material: Material,
    roots: Sequence[x509.Certificate],
    now: datetime,
) -> Iterator[Finding]:
    if _self_signed(leaf):
        yield Finding(Note.SELF_SIGNED)
    elif missing is None and not any(_issued_by(chain[-1], root) for root in roots):
        yield Finding(Note.PRIVATE_AUTHORITY, chain[-1].issuer.rfc4514_string())
    left = leaf.not_valid_after_utc - now
    if timedelta(0) <= left < timedelta(days=WARNING_DAYS):
        yield Finding(Note.EXPIRES_SOON, f"in {left.days} days")
    extra = [item for item in material.certificates if item not in chain and not _self_signed(item)]
    if extra and missing is None:
        yield Finding(Note.SUPERFLUOUS, ", ".join(_name(item) for item in extra))
