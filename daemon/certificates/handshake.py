"""A real TLS handshake with each consumer, to see which certificate it serves; in the helper process."""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cryptography import x509

ONE_TRY_SECONDS = 2.0
PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Served:
    """What a port served last: `serial` and `fingerprint` are "" if there was no handshake, `trouble` says
    why. `seconds` is the time from the first try to this answer."""

    name: str
    serial: str
    fingerprint: str
    trouble: str
    seconds: float

    def as_json(self) -> dict[str, object]:
        """All fields."""
        return dict(vars(self))


def serve_all(targets: Sequence[tuple[str, str, int]], wanted: str, limit_seconds: float) -> list[Served]:
    """Ask (name, host, port) each until it serves the certificate with fingerprint `wanted`, or time is up.

    With `wanted` empty each is asked once.
    """
    with ThreadPoolExecutor(max(1, len(targets))) as pool:
        waiting = [pool.submit(_until, *target, wanted, limit_seconds) for target in targets]
        return [each.result() for each in waiting]


def _until(name: str, host: str, port: int, wanted: str, limit_seconds: float) -> Served:
    begin = time.monotonic()
    while True:
        served = _ask(name, host, port, begin)
        if not wanted or served.fingerprint == wanted or time.monotonic() - begin >= limit_seconds:
            return served
        time.sleep(PAUSE_SECONDS)


def _ask(name: str, host: str, port: int, begin: float) -> Served:
    # Which certificate is served is the question, not whether anybody trusts it.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=ONE_TRY_SECONDS) as plain,
            context.wrap_socket(plain) as secure,
        ):
            encoded = secure.getpeercert(binary_form=True) or b""
    except OSError as error:
        return Served(name, "", "", _why(error), time.monotonic() - begin)
    digits = f"{x509.load_der_x509_certificate(encoded).serial_number:X}"
    serial = digits.zfill(len(digits) + len(digits) % 2)
    fingerprint = hashlib.sha256(encoded).hexdigest().upper()
    return Served(name, serial, fingerprint, "", time.monotonic() - begin)


def _why(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake failed: {error.reason or error}"
    return error.strerror or str(error)
