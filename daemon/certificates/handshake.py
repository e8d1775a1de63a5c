"""A real TLS handshake with each consumer, to see which certificate it serves.

By `openssl s_client`, which shows whatever is served, also what no client would trust. What it prints is
compared as it is; nothing is parsed here.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from daemon.errors import CommandFailedError
from daemon.run import run

ONE_TRY_SECONDS = 2.0
PAUSE_SECONDS = 0.05
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_REFUSED = re.compile(r"errno=111|connection refused", re.IGNORECASE)
_ERROR = re.compile(r"error:[0-9A-F]+:(?:SSL routines|lib\(\d+\)):[^:]*:([^:\n]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Served:
    """What a port served last: the certificate in PEM, and its `fingerprint` (SHA-256 of the DER form, in
    upper-case hexadecimal). Both are "" if there was no handshake; `trouble` says why."""

    name: str
    port: int
    certificate: str
    fingerprint: str
    trouble: str


def serve_all(targets: Sequence[tuple[str, str, int]], wanted: str, patience_seconds: float) -> list[Served]:
    """Ask (name, host, port) each until it serves the certificate with fingerprint `wanted`.

    Those that do not are asked again until `patience_seconds` have passed.
    """
    end = time.monotonic() + patience_seconds
    served = {target: ask(*target) for target in targets}
    while True:
        left = [target for target in targets if served[target].fingerprint != wanted]
        if not left or time.monotonic() >= end:
            return list(served.values())
        time.sleep(PAUSE_SECONDS)
        served |= {target: ask(*target) for target in left}


def ask(name: str, host: str, port: int) -> Served:
    """One handshake. Which certificate is served is the question, not whether anybody trusts it."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        done = run(["openssl", "s_client", "-connect", target], limit_seconds=ONE_TRY_SECONDS, check=False)
    except CommandFailedError as error:
        return Served(name, port, "", "", error.message)
    found = _CERTIFICATE.search(done.output)
    if found is None:
        return Served(name, port, "", "", _why(done.errors))
    return Served(name, port, found[0] + "\n", fingerprint(found[0]), "")


def fingerprint(certificate: str) -> str:
    """SHA-256 of the DER form of the first certificate in PEM; "" if there is none."""
    found = _CERTIFICATE.search(certificate)
    if found is None:
        return ""
    inner = "".join(line for line in found[0].splitlines() if not line.startswith("-----"))
    try:
        return sha256(base64.b64decode(inner)).hexdigest().upper()
    except binascii.Error:
        return ""


def _why(errors: str) -> str:
    if _REFUSED.search(errors):
        return "connection refused"
    found = _ERROR.search(errors)
    return f"the TLS handshake failed: {found[1].strip()}" if found else "it closed without a handshake"
