"""Real TLS, HTTP and DNS servers on loopback for certificate tests."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path


class TlsServer:
    """Serves what lies in `chain` and `key` since its last `reload`; nothing but handshakes."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._files = (chain, key)
        self.deaf = False
        """Whether `reload` is ignored, as by a service that takes no new certificate."""
        self.reload()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def reload(self) -> None:
        """Read the files again."""
        if self.deaf:
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._files)
        self._context = context

    def close(self) -> None:
        """Serve no more."""
        with contextlib.suppress(OSError):
            # Closing alone would not wake the thread that waits for a connection.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with (
                contextlib.suppress(OSError),
                plain,
                self._context.wrap_socket(plain, server_side=True) as secure,
            ):
                secure.settimeout(2)
                secure.recv(1)


class NameServer:
    """Answers A and AAAA from `records`; a name that is not there does not exist."""

    def __init__(self, records: Mapping[str, list[str]]) -> None:
        self.records = dict(records)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                question, sender = self._socket.recvfrom(2048)
            except OSError:
                return
            self._socket.sendto(self._answer(question), sender)

    def _answer(self, question: bytes) -> bytes:
        labels, place = [], 12
        while question[place]:
            labels.append(question[place + 1 : place + 1 + question[place]].decode())
            place += question[place] + 1
        end = place + 5
        (kind,) = struct.unpack_from("!H", question, place + 1)
        found = [ip_address(text) for text in self.records.get(".".join(labels).lower(), [])]
        known = ".".join(labels).lower() in self.records
        wanted = [one for one in found if (one.version == 4) == (kind == 1)]
        header = question[:2] + struct.pack("!HHHHH", 0x8180 | (0 if known else 3), 1, len(wanted), 0, 0)
        rows = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 1, len(one.packed)) + one.packed for one in wanted
        )
        return header + question[12:end] + rows


class WebServer:
    """Serves a directory over plain HTTP, as nginx does on port 80; `answer` instead, if it is set."""

    def __init__(self, root: Path, address: str = "127.0.0.1", port: int = 0) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                file = root / self.path.lstrip("/")
                found = file.read_bytes() if file.is_file() else b""
                body = found if server.answer is None else server.answer
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                return

        self.answer: bytes | None = None
        self._server = ThreadingHTTPServer((address, port), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


class RefusingService:
    """The beginning of an ACME service over TLS: a directory, nonces, and one refusal for all the rest."""

    def __init__(self, chain: Path, key: Path) -> None:
        self.status = 429
        self.problem: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.asked: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                base = f"https://127.0.0.1:{service.port}"
                names = ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange")
                self._send(200, {name: f"{base}/{name}" for name in names}, "application/json")

            def do_HEAD(self) -> None:
                self._send(200, {}, "application/json")

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                service.asked.append(self.path)
                self._send(service.status, service.problem, "application/problem+json", service.headers)

            def _send(
                self,
                status: int,
                table: Mapping[str, str],
                kind: str,
                headers: Mapping[str, str] | None = None,
            ) -> None:
                body = json.dumps(table).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Replay-Nonce", f"{len(service.asked):016d}")
                self.send_header("Content-Length", str(len(body)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def directory(self) -> str:
        """Its ACME directory."""
        return f"https://127.0.0.1:{self.port}/directory"

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
