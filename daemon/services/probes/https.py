"""A real HTTPS request to the box itself, with a check that the certificate served is the box's own.

Python's own TLS, with one context for as long as the certificate file stays the same: 2 MB of memory for
good, and a fifth of the processor time that an `openssl s_client` takes. No key is ever read here.
"""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path

from daemon.services.model import Finding, Outcome
from daemon.services.probes.asking import Deadline, ProbeError, asked

STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
LONGEST_STATUS_LINE = 4096


class HttpsProbe:
    """Requests `path`; used by one thread only.

    The certificate file that the web server is configured with is the only trust anchor: whether that one is
    self-signed or comes from an authority, the server must present it, and it must be valid now. A server
    that still serves an old certificate after a renewal fails the check.
    """

    def __init__(self, host: str, port: int, certificate: Path, path: str = "/") -> None:
        self._address = (host, port)
        self._certificate = certificate
        lines = (f"GET {path} HTTP/1.1", f"Host: {host}", "User-Agent: Centralino", "Connection: close")
        self._question = "\r\n".join((*lines, "", "")).encode()
        self._context: ssl.SSLContext | None = None
        self._file: tuple[int, ...] = ()

    def ask(self, limit_seconds: float) -> Outcome:
        """One request; any answer below 500 proves that the web is served."""
        return asked("HTTPS request", limit_seconds, self._request)

    def _request(self, deadline: Deadline) -> Outcome:
        context = self._anchored()
        try:
            answer = self._talk(context, deadline)
        except ssl.SSLCertVerificationError as error:
            reason = f"the certificate served is not a valid {self._certificate} ({error.verify_message})"
            raise ProbeError(Finding.FAULTY, reason) from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise EOFError from error
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).lower().replace("_", " ")
            raise ProbeError(Finding.FAULTY, f"TLS failed ({reason})") from error
        if not answer:
            raise EOFError
        status = STATUS_LINE.match(answer)
        if status is None:
            raise ProbeError(Finding.FAULTY, "something that does not speak HTTP answers")
        number = int(status.group(1))
        if number >= 500:
            raise ProbeError(Finding.FAULTY, f"HTTP {number}")
        return Outcome(Finding.ALIVE, f"HTTPS request: HTTP {number}", deadline.used())

    def _talk(self, context: ssl.SSLContext, deadline: Deadline) -> bytes:
        """The beginning of the answer, its first line at least unless the server ends before."""
        with (
            socket.create_connection(self._address, timeout=deadline.left()) as connection,
            context.wrap_socket(connection) as stream,
        ):
            stream.settimeout(deadline.left())
            stream.sendall(self._question)
            answer = b""
            while b"\n" not in answer and len(answer) < LONGEST_STATUS_LINE:
                stream.settimeout(deadline.left())
                piece = stream.recv(LONGEST_STATUS_LINE)
                if not piece:
                    break
                answer += piece
            return answer

    def _anchored(self) -> ssl.SSLContext:
        """The context that trusts what the certificate file holds now; any certificate in it is an anchor."""
        try:
            found = self._certificate.stat()
            file = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if self._context is None or file != self._file:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
                context.load_verify_locations(self._certificate)
                self._context, self._file = context, file
            return self._context
        except ssl.SSLError as error:
            reason = f"{self._certificate} cannot be used ({error.reason or error})"
            raise ProbeError(Finding.FAULTY, reason) from error
        except OSError as error:
            reason = f"{self._certificate} cannot be used ({error.strerror})"
            raise ProbeError(Finding.FAULTY, reason) from error
