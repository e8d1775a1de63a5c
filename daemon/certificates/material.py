"""Reading an upload: PEM in any order, DER, PKCS#8, PKCS#12, in one file or several (S-CE-02)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
    pkcs7,
    pkcs12,
)

from daemon.errors import CentralinoError

LARGEST_UPLOAD_BYTES = 1024 * 1024
_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_KEY_LABELS = {b"PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY", b"ENCRYPTED PRIVATE KEY"}
_CERTIFICATE_LABELS = {b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE"}
_HARMLESS_LABELS = {b"EC PARAMETERS", b"DH PARAMETERS", b"PUBLIC KEY", b"X509 CRL"}


class UploadFault(StrEnum):
    """Why an upload cannot be read, as sentences."""

    EMPTY = "the upload is empty"
    TOO_LARGE = "the upload is larger than 1 MiB, so it is not a certificate"
    UNKNOWN = "the file is neither PEM, DER nor PKCS#12"
    DAMAGED_BLOCK = "a PEM block is damaged"
    PASSWORD_MISSING = "the private key is encrypted and no password was given"  # noqa: S105 - a sentence
    PASSWORD_WRONG = "the password does not open the private key"  # noqa: S105 - a sentence
    NO_KEY = "there is no private key"
    SEVERAL_KEYS = "there are several different private keys"
    NO_CERTIFICATE = "there is no certificate"
    REQUEST = "this is a certificate request, not a certificate"
    UNSUPPORTED_KEY = "the private key is of a kind that is not supported"


class UploadError(CentralinoError):
    """An upload that cannot be read; `fault` says why."""

    exit_code = 3

    def __init__(self, fault: UploadFault, remedy: str, detail: str = "") -> None:
        super().__init__(f"{fault.value} ({detail})" if detail else fault.value, remedy)
        self.fault = fault


@dataclass(frozen=True)
class Material:
    """One private key and the certificates that came with it, in the order of the upload, without doubles."""

    key: PrivateKeyTypes
    certificates: tuple[x509.Certificate, ...]


def read_material(
    blobs: Sequence[bytes], password: str | None = None, key: PrivateKeyTypes | None = None
) -> Material:
    """Read the uploaded files; `key` is one that already lies on the box (answer to a request, S-CE-04).

    Raises UploadError with one fault and its remedy.
    """
    keys: list[PrivateKeyTypes] = [key] if key is not None else []
    certificates: list[x509.Certificate] = []
    for blob in blobs:
        if len(blob) > LARGEST_UPLOAD_BYTES:
            raise UploadError(UploadFault.TOO_LARGE, "upload the certificate, its key and its chain only")
        found_keys, found_certificates = _read_blob(blob, password)
        keys += found_keys
        certificates += found_certificates
    if not any(blob.strip() for blob in blobs):
        raise UploadError(UploadFault.EMPTY, "choose the file that the certificate authority sent")
    distinct = {_public_bytes(candidate): candidate for candidate in keys}
    if not distinct:
        raise UploadError(UploadFault.NO_KEY, "upload the key that belongs to the certificate as well")
    if len(distinct) > 1:
        raise UploadError(UploadFault.SEVERAL_KEYS, "upload only the key that belongs to the certificate")
    if not certificates:
        raise UploadError(UploadFault.NO_CERTIFICATE, "upload the certificate that belongs to the key")
    return Material(next(iter(distinct.values())), tuple(dict.fromkeys(certificates)))


def _public_bytes(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _read_blob(blob: bytes, password: str | None) -> tuple[list[PrivateKeyTypes], list[x509.Certificate]]:
    if not blob.strip():
        return [], []
    if b"-----BEGIN " in blob:
        return _read_pem(blob, password)
    for read in (_read_der_certificate, _read_pkcs12, _read_pkcs7, _read_der_key):
        result = read(blob, password)
        if result is not None:
            return result
    raise UploadError(UploadFault.UNKNOWN, "export it again as PEM or PKCS#12 (.pfx, .p12)")


def _blocks(blob: bytes) -> Iterator[tuple[bytes, bytes]]:
    count = 0
    for match in _PEM_BLOCK.finditer(blob):
        count += 1
        yield match.group(1), match.group(0)
    if count != blob.count(b"-----BEGIN "):
        raise UploadError(UploadFault.DAMAGED_BLOCK, "copy the file again, whole", "a block has no end")


def _read_pem(blob: bytes, password: str | None) -> tuple[list[PrivateKeyTypes], list[x509.Certificate]]:
    keys: list[PrivateKeyTypes] = []
    certificates: list[x509.Certificate] = []
    for label, block in _blocks(blob.replace(b"\r\n", b"\n").replace(b"\r", b"\n")):
        name = label.decode("ascii").lower()
        if label in _KEY_LABELS:
            keys.append(_load_key(block, password, pem=True))
        elif label in _CERTIFICATE_LABELS:
            plain = block.replace(label, b"CERTIFICATE")
            try:
                certificates.append(x509.load_pem_x509_certificate(plain))
            except ValueError as error:
                raise UploadError(UploadFault.DAMAGED_BLOCK, "copy the file again, whole", name) from error
        elif label == b"PKCS7":
            try:
                certificates += pkcs7.load_pem_pkcs7_certificates(block)
            except (ValueError, UnsupportedAlgorithm) as error:
                raise UploadError(UploadFault.DAMAGED_BLOCK, "copy the file again, whole", name) from error
        elif label in (b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST"):
            raise UploadError(
                UploadFault.REQUEST, "send it to the certificate authority and upload the answer"
            )
        elif label not in _HARMLESS_LABELS:
            raise UploadError(UploadFault.UNKNOWN, "leave that block out", name)
    return keys, certificates


def _load_key(data: bytes, password: str | None, *, pem: bool) -> PrivateKeyTypes:
    load = load_pem_private_key if pem else load_der_private_key
    secret = password.encode() if password else None
    try:
        try:
            return load(data, secret)
        except TypeError:
            # cryptography's way to say "a password for a key that is not encrypted", or the reverse.
            if secret is None:
                raise UploadError(
                    UploadFault.PASSWORD_MISSING, "give the password that it was exported with"
                ) from None
            return load(data, None)
    except UnsupportedAlgorithm as error:
        raise UploadError(UploadFault.UNSUPPORTED_KEY, "use an RSA or EC key", str(error)) from error
    except ValueError as error:
        encrypted = b"ENCRYPTED" in data or not pem
        if secret is not None and encrypted:
            raise UploadError(UploadFault.PASSWORD_WRONG, "check the password and try again") from error
        raise UploadError(UploadFault.DAMAGED_BLOCK, "copy the file again, whole", "private key") from error


Found = tuple[list[PrivateKeyTypes], list[x509.Certificate]]


def _read_der_certificate(blob: bytes, password: str | None) -> Found | None:
    del password
    try:
        return [], [x509.load_der_x509_certificate(blob)]
    except ValueError:
        return None


def _read_pkcs7(blob: bytes, password: str | None) -> Found | None:
    del password
    try:
        return [], list(pkcs7.load_der_pkcs7_certificates(blob))
    except (ValueError, UnsupportedAlgorithm):
        return None


def _read_der_key(blob: bytes, password: str | None) -> Found | None:
    try:
        return [_load_key(blob, password, pem=False)], []
    except UploadError as error:
        if error.fault is UploadFault.DAMAGED_BLOCK or (
            error.fault is UploadFault.PASSWORD_WRONG and not _is_encrypted_pkcs8(blob)
        ):
            return None
        raise


def _is_encrypted_pkcs8(blob: bytes) -> bool:
    # PBES2 (RFC 8018) or any PKCS#12 scheme right at the start of the EncryptedPrivateKeyInfo.
    head = blob[:40]
    return b"\x2a\x86\x48\x86\xf7\x0d\x01\x05" in head or b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c" in head


# An empty PKCS#12 fails the same way as a wrong password, so the outer structure tells them apart:
# PFX ::= SEQUENCE { version INTEGER 3, ... } (RFC 7292).
_PFX_VERSION = b"\x02\x01\x03"


def _read_pkcs12(blob: bytes, password: str | None) -> Found | None:
    if _PFX_VERSION not in blob[:8]:
        return None
    secret = password.encode() if password else None
    try:
        bundle = pkcs12.load_pkcs12(blob, secret)
    except UnsupportedAlgorithm as error:
        raise UploadError(
            UploadFault.UNSUPPORTED_KEY, "export it again with AES-256 encryption", str(error)
        ) from error
    except ValueError as error:
        if secret is None:
            raise UploadError(
                UploadFault.PASSWORD_MISSING, "give the password that it was exported with"
            ) from error
        raise UploadError(UploadFault.PASSWORD_WRONG, "check the password and try again") from error
    certificates = [bundle.cert.certificate] if bundle.cert else []
    certificates += [extra.certificate for extra in bundle.additional_certs]
    return ([bundle.key] if bundle.key else []), certificates
