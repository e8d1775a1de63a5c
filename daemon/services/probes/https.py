"""A real HTTPS request to the box itself, with a check that the certificate served is the box's own.

The request is made by `openssl s_client`: it runs for some milliseconds each half minute, where a TLS library
inside the daemon would keep 5 MB for good. Options as of OpenSSL 1.1.1.
"""

from __future__ import annotations

import re
from pathlib import Path

from daemon.errors import CommandFailedError
from daemon.run import Completed, run
from daemon.services.model import Finding, Outcome
from daemon.services.probes.asking import Deadline, ProbeError, asked

STATUS_LINE = re.compile(r"HTTP/1\.[01] (\d{3})\b")
VERIFY_ERROR = re.compile(r"verify error:num=\d+:(.+)")
NO_ANCHOR = re.compile(r"x509 certificate routines:[^:]*:([^:\n]+)", re.IGNORECASE)
REFUSED = re.compile(r"errno=111|connection refused", re.IGNORECASE)
# What servers do that close without a word: no TLS error, just the end.
ENDED = re.compile(r"unexpected eof|errno=104|connection reset|errno=0", re.IGNORECASE)
TLS_ERROR = re.compile(r"error:[0-9A-F]+:(?:SSL routines|lib\(\d+\)):[^:]*:([^:\n]+)", re.IGNORECASE)


class HttpsProbe:
    """Requests `path`; used by one thread only.

    The certificate file that the web server is configured with is the only trust anchor: whether that one is
    self-signed or comes from an authority, the server must present it, and it must be valid now. A server
    that still serves an old certificate after a renewal fails the check.
    """

    def __init__(self, host: str, port: int, certificate: Path, path: str = "/") -> None:
        self._host = host
        self._port = port
        self._certificate = certificate
        self._path = path

    def ask(self, limit_seconds: float) -> Outcome:
        """One request; any answer below 500 proves that the web is served."""
        return asked("HTTPS request", limit_seconds, self._request)

    def _request(self, deadline: Deadline) -> Outcome:
        if not self._certificate.is_file():
            raise ProbeError(Finding.FAULTY, f"{self._certificate} cannot be used (it is missing)")
        done = self._talk(deadline)
        if (wrong := VERIFY_ERROR.search(done.errors)) is not None:
            reason = f"the certificate served is not a valid {self._certificate} ({wrong.group(1)})"
            raise ProbeError(Finding.FAULTY, reason)
        if not done.output:
            raise self._failure(done)
        status = STATUS_LINE.match(done.output)
        if status is None:
            raise ProbeError(Finding.FAULTY, "something that does not speak HTTP answers")
        if int(status.group(1)) >= 500:
            raise ProbeError(Finding.FAULTY, f"HTTP {status.group(1)}")
        return Outcome(Finding.ALIVE, f"HTTPS request: HTTP {status.group(1)}", deadline.used())

    def _talk(self, deadline: Deadline) -> Completed:
        """Send the request over TLS; `-partial_chain` makes any certificate in the file an anchor."""
        request = f"GET {self._path} HTTP/1.1\r\nHost: {self._host}\r\nUser-Agent: Centralino\r\n"
        limit_seconds = deadline.left()
        try:
            return run(
                [
                    "openssl",
                    "s_client",
                    "-quiet",
                    "-connect",
                    f"{self._host}:{self._port}",
                    "-CAfile",
                    str(self._certificate),
                    "-no-CApath",
                    "-partial_chain",
                    "-verify_return_error",
                ],
                limit_seconds=limit_seconds,
                input_text=f"{request}Connection: close\r\n\r\n",
                check=False,
            )
        except CommandFailedError as error:
            if deadline.used() >= limit_seconds:
                raise TimeoutError from error
            raise ProbeError(Finding.UNSURE, str(error)) from error

    def _failure(self, done: Completed) -> Exception:
        """Why there was no answer at all."""
        if (unusable := NO_ANCHOR.search(done.errors)) is not None:
            reason = f"{self._certificate} cannot be used ({unusable.group(1).strip()})"
            return ProbeError(Finding.FAULTY, reason)
        if REFUSED.search(done.errors):
            return ConnectionRefusedError()
        wrong = TLS_ERROR.search(done.errors)
        if wrong is None or ENDED.search(done.errors):
            return EOFError()
        return ProbeError(Finding.FAULTY, f"TLS failed ({wrong.group(1).strip()})")
