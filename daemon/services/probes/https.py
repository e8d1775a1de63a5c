"""A real HTTPS request to the box itself, with a check that the certificate served is the box's own."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.services.model import Finding, Outcome
from daemon.services.probes.asking import Deadline, ProbeError, asked

if TYPE_CHECKING:
    import ssl

LONGEST_HEAD = 16_384


class HttpsProbe:
    """Requests `path`; used by one thread only.

    The certificate file that the web server is configured with is the only trust anchor: whether that one is
    self-signed or comes from an authority, the server must present it, and it must be valid now. A server
    that still serves an old certificate after a renewal fails the check.
    """

    def __init__(self, host: str, port: int, certificate: Path, path: str = "/") -> None:
        self._address = (host, port)
        self._certificate = certificate
        self._path = path
        self._context: ssl.SSLContext | None = None
        self._made_from: tuple[int, int, int] | None = None

    def ask(self, limit_seconds: float) -> Outcome:
        """One request; any answer below 500 proves that the web is served."""
        return asked("HTTPS request", limit_seconds, self._request)

    def _request(self, deadline: Deadline) -> Outcome:
        # Imported here, since it costs memory that a box without a web server need not pay.
        import ssl

        context = self._trusting()
        with socket.create_connection(self._address, timeout=deadline.left()) as tcp:
            tcp.settimeout(deadline.left())
            try:
                with context.wrap_socket(tcp, server_hostname=self._address[0]) as tls:
                    status = self._status(tls, deadline)
            except ssl.SSLCertVerificationError as error:
                reason = f"the certificate served is not a valid {self._certificate} ({error.verify_message})"
                raise ProbeError(Finding.FAULTY, reason) from error
            except ssl.SSLEOFError as error:
                raise EOFError from error
            except ssl.SSLError as error:
                raise ProbeError(Finding.FAULTY, f"TLS failed ({error.reason})") from error
        if status >= 500:
            raise ProbeError(Finding.FAULTY, f"HTTP {status}")
        return Outcome(Finding.ALIVE, f"HTTPS request: HTTP {status}", deadline.used())

    def _status(self, tls: ssl.SSLSocket, deadline: Deadline) -> int:
        tls.settimeout(deadline.left())
        request = f"GET {self._path} HTTP/1.1\r\nHost: {self._address[0]}\r\nUser-Agent: Centralino\r\n"
        tls.sendall(f"{request}Connection: close\r\n\r\n".encode())
        head = b""
        while b"\r\n" not in head:
            tls.settimeout(deadline.left())
            piece = tls.recv(4096)
            if not piece or len(head) > LONGEST_HEAD:
                raise EOFError
            head += piece
        version, _, rest = head.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise ProbeError(Finding.FAULTY, "something that does not speak HTTP answers")
        return int(rest[:3])

    def _trusting(self) -> ssl.SSLContext:
        """A context that trusts the certificate file alone, made anew when the file changed."""
        import ssl

        try:
            found = self._certificate.stat()
            made_from = (found.st_ino, found.st_size, found.st_mtime_ns)
            if self._context is None or made_from != self._made_from:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
                context.load_verify_locations(cafile=str(self._certificate))
                self._context, self._made_from = context, made_from
        except (OSError, ssl.SSLError) as error:
            reason = f"{self._certificate} cannot be used ({error.strerror or error})"
            raise ProbeError(Finding.FAULTY, reason) from error
        return self._context
