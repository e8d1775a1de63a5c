"""The probes against small servers that answer well, badly, late or not at all. Real ones: tests/lab."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.services.draining import CallDrain
from daemon.services.model import Finding, Outcome
from daemon.services.probes.asking import STALL_SECONDS, Deadline, ProbeError, asked
from daemon.services.probes.https import HttpsProbe
from daemon.services.probes.manager_interface import Manager, ManagerProbe, parse
from daemon.services.probes.mariadb import ask_mariadb
from daemon.services.probes.sip import PROBE_USER, ask_sip, final_status

LOOPBACK = "127.0.0.1"
GENEROUS = 5.0
SHORT = 0.05

Talk = Callable[[socket.socket], None]


class Server:
    """Accepts connections and lets `talk` handle each in a thread; remembers how many there were."""

    def __init__(self, listener: socket.socket, talk: Talk) -> None:
        self.listener = listener
        self.connections = 0
        self._talk = talk
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def close(self) -> None:
        self.listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection, as a process that dies does."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._talk(connection)


@contextlib.contextmanager
def tcp(talk: Talk) -> Iterator[Server]:
    listener = socket.create_server((LOOPBACK, 0))
    server = Server(listener, talk)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def unix(path: Path, talk: Talk) -> Iterator[Server]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    server = Server(listener, talk)
    try:
        yield server
    finally:
        server.close()


def silence(connection: socket.socket) -> None:
    """Takes everything and says nothing, like a stopped process."""
    while connection.recv(65_536):
        pass


# --- what all share ---------------------------------------------------------------------------------------


def test_a_wait_that_overran_its_limit_says_nothing_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole machine stood still: both the service and the prober were frozen."""

    def frozen(deadline: Deadline) -> Outcome:
        deadline.begun -= STALL_SECONDS + 1.0
        raise TimeoutError

    assert asked("SQL ping", 0.1, frozen).finding is Finding.UNSURE


@pytest.mark.parametrize(
    ("error", "finding", "said"),
    [
        (TimeoutError(), Finding.SILENT, "no answer within 1 s"),
        (ConnectionRefusedError(111, "refused"), Finding.REFUSED, "connection refused"),
        (ConnectionResetError(104, "reset"), Finding.REFUSED, "closed without an answer"),
        (FileNotFoundError(2, "none"), Finding.REFUSED, "connection refused"),
        (EOFError(), Finding.REFUSED, "closed without an answer"),
        (OSError(24, "Too many open files"), Finding.FAULTY, "Too many open files"),
        (ProbeError(Finding.DENIED, "wrong password"), Finding.DENIED, "wrong password"),
    ],
)
def test_everything_a_socket_raises_becomes_an_outcome(error: Exception, finding: Finding, said: str) -> None:
    def question(_deadline: Deadline) -> Outcome:
        raise error

    outcome = asked("X", 1.0, question)
    assert outcome.finding is finding
    assert said in outcome.detail
    assert outcome.detail.startswith("X: ")


# --- SIP --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sip_server(answer: Callable[[str], list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Answers each datagram by `answer`; gives its port and what it received."""
    received: list[str] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, reply_socket = self.request
            received.append(data.decode())
            for text in answer(received[-1]):
                reply_socket.sendto(text.encode(), self.client_address)

    with socketserver.ThreadingUDPServer((LOOPBACK, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server.server_address[1], received
        server.shutdown()
        thread.join()


def call_of(request: str) -> str:
    return next(line.split(": ")[1] for line in request.split("\r\n") if line.startswith("Call-ID"))


def reply(request: str, status: str, header: str = "Call-ID") -> str:
    return f"SIP/2.0 {status}\r\n{header}: {call_of(request)}\r\nCSeq: 1 OPTIONS\r\n\r\n"


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "401 Unauthorized", "603 Decline"])
@pytest.mark.parametrize("header", ["Call-ID", "i", "CALL-ID"])
def test_sip_any_final_reply_is_life(status: str, header: str) -> None:
    with sip_server(lambda request: [reply(request, status, header)]) as (port, received):
        outcome = ask_sip(LOOPBACK, port, GENEROUS)
    assert outcome.finding is Finding.ALIVE
    assert received[0].startswith(f"OPTIONS sip:{LOOPBACK}:{port} SIP/2.0\r\n")
    assert PROBE_USER in received[0]
    assert received[0].endswith("\r\n\r\n")


def test_sip_provisional_and_foreign_replies_do_not_count() -> None:
    def answers(request: str) -> list[str]:
        foreign = reply(request, "200 OK").replace(call_of(request), "another-call")
        return [reply(request, "100 Trying"), foreign, reply(request, "486 Busy Here")]

    with sip_server(answers) as (port, _):
        assert "486" in ask_sip(LOOPBACK, port, GENEROUS).detail
    with sip_server(lambda request: answers(request)[:2]) as (port, _):
        assert ask_sip(LOOPBACK, port, 0.3).finding is Finding.SILENT


def test_sip_lost_request_is_sent_again() -> None:
    asked_before: list[str] = []

    def second_time(request: str) -> list[str]:
        asked_before.append(request)
        return [reply(request, "200 OK")] if len(asked_before) > 1 else []

    with sip_server(second_time) as (port, received):
        assert ask_sip(LOOPBACK, port, GENEROUS).finding is Finding.ALIVE
    assert len(received) == 2
    assert received[0] == received[1]


def test_sip_closed_port_is_refused_and_nonsense_is_faulty() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind((LOOPBACK, 0))
        port = unused.getsockname()[1]
    assert ask_sip(LOOPBACK, port, GENEROUS).finding is Finding.REFUSED
    with sip_server(lambda _request: ["HTTP/1.1 200 OK\r\n\r\n"]) as (port, _):
        assert ask_sip(LOOPBACK, port, GENEROUS).finding is Finding.FAULTY


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", b"SIP/2.0", b"SIP/2.0 \r\n\r\n", b"SIP/2.0 2x0 OK\r\n\r\n"]
)
def test_sip_garbage_never_parses(text: bytes) -> None:
    with pytest.raises(ProbeError):
        final_status(text, "call")


# --- AMI --------------------------------------------------------------------------------------------------


class Ami:
    """A manager interface in small: commands are answered by `outputs`."""

    def __init__(self, login: str = "right") -> None:
        self.login = login
        self.outputs = {"core show calls": "2 active calls\n7 calls processed"}
        self.received: list[dict[str, str]] = []

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(b"Asterisk Call Manager/5.0\r\n")
        stream = connection.makefile("rwb")
        while True:
            lines: list[str] = []
            while (line := stream.readline().decode()) not in ("\r\n", ""):
                lines.append(line)
            if not lines:
                return
            message = parse("".join(lines))
            self.received.append(message)
            number = message.get("ActionID", "")
            stream.write(b"Event: FullyBooted\r\nStatus: x\r\n\r\n")
            for text in self.answer(message):
                stream.write(f"{text}ActionID: {number}\r\n\r\n".encode())
            stream.flush()

    def answer(self, message: dict[str, str]) -> list[str]:
        action = message["Action"]
        if action == "Login":
            good = (message["Username"], message["Secret"]) == ("centralino", self.login)
            fail = "Response: Error\r\nMessage: Authentication failed\r\n"
            return ["Response: Success\r\n"] if good else [fail]
        if action == "Ping":
            return ["Response: Success\r\nPing: Pong\r\n"]
        output = self.outputs.get(message.get("Command", ""))
        if output is None:
            return ["Response: Error\r\nMessage: Permission denied\r\n"]
        lines = "".join(f"Output: {line}\r\n" for line in output.split("\n"))
        return [f"Response: Success\r\nMessage: Command output follows\r\n{lines}"]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "asterisk-ami"
    file.write_text("right\n")
    return file


def test_ami_pings_over_one_kept_connection_and_counts_calls(secret: Path) -> None:
    ami = Ami()
    with tcp(ami) as server:
        probe = ManagerProbe(LOOPBACK, server.port, secret)
        for _ in range(3):
            outcome = probe.ask(GENEROUS)
            assert (outcome.finding, outcome.live_calls) == (Finding.ALIVE, 2)
        assert server.connections == 1
    assert [message["Action"] for message in ami.received].count("Login") == 1
    assert ami.received[0]["Events"] == "off"


def test_ami_that_came_back_is_asked_over_a_new_connection_at_once(secret: Path) -> None:
    with tcp(Ami()) as server:
        probe = ManagerProbe(LOOPBACK, server.port, secret)
        assert probe.ask(GENEROUS).finding is Finding.ALIVE
        server.hang_up()
        assert probe.ask(GENEROUS).finding is Finding.ALIVE
        assert server.connections == 2


def test_ami_tells_refused_silent_and_denied_apart(secret: Path, tmp_path: Path) -> None:
    with tcp(Ami(login="another")) as server:
        outcome = ManagerProbe(LOOPBACK, server.port, secret).ask(GENEROUS)
        assert outcome.finding is Finding.DENIED
        assert "Authentication failed" in outcome.detail
        assert "right" not in outcome.detail
        port = server.port
        missing = ManagerProbe(LOOPBACK, port, tmp_path / "none").ask(GENEROUS)
        assert missing.finding is Finding.DENIED
        assert str(tmp_path / "none") in missing.detail
    with socket.socket() as unused:
        unused.bind((LOOPBACK, 0))
        port = unused.getsockname()[1]
    assert ManagerProbe(LOOPBACK, port, secret).ask(GENEROUS).finding is Finding.REFUSED
    with tcp(silence) as server:
        assert ManagerProbe(LOOPBACK, server.port, secret).ask(SHORT).finding is Finding.SILENT


def test_ami_without_the_right_to_count_calls_is_still_alive(secret: Path) -> None:
    ami = Ami()
    ami.outputs = {}
    with tcp(ami) as server:
        outcome = ManagerProbe(LOOPBACK, server.port, secret).ask(GENEROUS)
    assert (outcome.finding, outcome.live_calls) == (Finding.ALIVE, None)


def test_ami_endless_garbage_is_faulty(secret: Path) -> None:
    def flood(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"x" * 65_536)

    with tcp(flood) as server:
        assert ManagerProbe(LOOPBACK, server.port, secret).ask(GENEROUS).finding is Finding.FAULTY


# --- draining ---------------------------------------------------------------------------------------------


class Calls(Ami):
    """Asterisk with so many calls; the graceful stop never answers, as in the real one."""

    def __init__(self, calls: list[int]) -> None:
        super().__init__()
        self.calls = calls

    def answer(self, message: dict[str, str]) -> list[str]:
        command = message.get("Command")
        if command == "core stop gracefully":
            return []
        if command == "core abort shutdown":
            return ["Response: Success\r\nOutput: done\r\n"]
        if command == "core show calls":
            now = self.calls.pop(0) if len(self.calls) > 1 else self.calls[0]
            self.outputs = {
                "core show calls": f"{now} active call{'' if now == 1 else 's'}\n9 calls processed"
            }
        return super().answer(message)

    def commands(self) -> list[str]:
        return [message["Command"] for message in self.received if "Command" in message]


def test_a_drain_reports_the_calls_that_are_left_and_ends_with_the_process(secret: Path) -> None:
    calls = Calls([4, 2, 1])
    reports: list[tuple[float | None, str]] = []
    with tcp(calls) as server:
        drain = CallDrain(secret, LOOPBACK, server.port)
        ended = drain.run(60.0, lambda _s: len(reports) >= 3, lambda *report: reports.append(report))
    assert ended
    assert [fraction for fraction, _ in reports] == [0.0, 0.5, 0.75]
    assert "1 live call left" in reports[2][1]
    assert calls.commands().count("core stop gracefully") == 1


def test_a_drain_gives_up_at_its_deadline(secret: Path) -> None:
    with tcp(Calls([3])) as server:
        drain = CallDrain(secret, LOOPBACK, server.port)
        assert not drain.run(0.0, lambda _s: False, lambda *_report: None)


def test_a_cancelled_drain_lets_asterisk_take_calls_again(secret: Path) -> None:
    def cancel(*_report: object) -> None:
        raise RuntimeError("cancelled")

    calls = Calls([3])
    with tcp(calls) as server:
        drain = CallDrain(secret, LOOPBACK, server.port)
        with pytest.raises(RuntimeError, match="cancelled"):
            drain.run(60.0, lambda _s: False, cancel)
    assert calls.commands()[-1] == "core abort shutdown"


def test_a_drain_of_something_that_does_not_answer_is_no_drain(secret: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind((LOOPBACK, 0))
        port = unused.getsockname()[1]
    assert not CallDrain(secret, LOOPBACK, port).run(60.0, lambda _s: False, lambda *_report: None)


def test_a_manager_without_connection_raises_instead_of_guessing(secret: Path) -> None:
    with pytest.raises(ConnectionError):
        Manager(LOOPBACK, 1, secret).action(Deadline(1.0), "Ping")


# --- MariaDB ----------------------------------------------------------------------------------------------

GREETING = b"\x0a5.5.5-10.11\0" + b"\1\0\0\0" + b"12345678\0" + b"\xff\xf7\x21\2\0\xff\x81\x15" + b"\0" * 10
OK = b"\0\0\0\2\0\0\0"


def packet(number: int, payload: bytes) -> bytes:
    return struct.pack("<I", len(payload) | number << 24) + payload


def error(code: int, text: str, state: str = "#28000") -> bytes:
    return b"\xff" + struct.pack("<H", code) + state.encode() + text.encode()


class Database:
    """The server's half of the packets; keeps what the client sent."""

    def __init__(self, greeting: bytes = GREETING, answers: tuple[bytes, ...] = (OK, OK)) -> None:
        self.greeting = greeting
        self.answers = answers
        self.received: list[tuple[int, bytes]] = []

    def __call__(self, connection: socket.socket) -> None:
        # In pieces, as a loaded machine may deliver them.
        for byte in packet(0, self.greeting):
            connection.sendall(bytes([byte]))
        stream = connection.makefile("rb")
        for answer in self.answers:
            (head,) = struct.unpack("<I", stream.read(4))
            self.received.append((head >> 24, stream.read(head & 0xFFFFFF)))
            connection.sendall(packet((head >> 24) + 1, answer))
        stream.read()


def ask_database(tmp_path: Path, server: Talk, limit: float = GENEROUS) -> Outcome:
    path = tmp_path / "mysqld.sock"
    with unix(path, server):
        return ask_mariadb(path, limit)


def test_sql_logs_in_as_its_own_user_and_pings(tmp_path: Path) -> None:
    database = Database()
    assert ask_database(tmp_path, database).finding is Finding.ALIVE
    (login_number, login), (ping_number, ping) = database.received
    assert login_number == 1
    assert login[32:].startswith(b"root\0")
    assert (ping_number, ping) == (0, b"\x0e")


def test_sql_follows_the_server_to_another_plugin(tmp_path: Path) -> None:
    database = Database(answers=(b"\xfeunix_socket\0", OK, OK))
    assert ask_database(tmp_path, database).finding is Finding.ALIVE
    assert database.received[1] == (3, b"")


@pytest.mark.parametrize(
    ("greeting", "answers", "finding", "said"),
    [
        (
            GREETING,
            (error(1698, "Access denied for user 'root'@'localhost'"),),
            Finding.DENIED,
            "Access denied",
        ),
        (
            error(1040, "Too many connections", "#08004"),
            (),
            Finding.FAULTY,
            "error 1040: Too many connections",
        ),
        (GREETING, (OK, error(1053, "Server shutdown in progress")), Finding.FAULTY, "1053"),
        (GREETING, (OK, b"\x01?"), Finding.FAULTY, "not answered"),
        (b"\x09old", (), Finding.FAULTY, "protocol"),
        (b"", (), Finding.FAULTY, "empty packet"),
    ],
)
def test_sql_says_what_is_wrong(
    tmp_path: Path, greeting: bytes, answers: tuple[bytes, ...], finding: Finding, said: str
) -> None:
    outcome = ask_database(tmp_path, Database(greeting, answers))
    assert outcome.finding is finding
    assert said in outcome.detail


def test_sql_silent_server_and_missing_socket(tmp_path: Path) -> None:
    assert ask_database(tmp_path, silence, SHORT).finding is Finding.SILENT
    assert ask_mariadb(tmp_path / "none.sock", GENEROUS).finding is Finding.REFUSED


def test_sql_server_that_hangs_up(tmp_path: Path) -> None:
    assert ask_database(tmp_path, lambda connection: connection.close()).finding is Finding.REFUSED


# --- HTTPS ------------------------------------------------------------------------------------------------


def self_signed(directory: Path, name: str, days: int = 30) -> tuple[Path, Path]:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / f"{name}.crt", directory / f"{name}.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate_file, key_file


def web(files: tuple[Path, Path], answer: bytes) -> Talk:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(65_536)
            tls.sendall(answer)

    return talk


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nok", Finding.ALIVE),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", Finding.ALIVE),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", Finding.FAULTY),
        (b"SSH-2.0-OpenSSH\r\n", Finding.FAULTY),
        (b"", Finding.REFUSED),
    ],
)
def test_https_status_decides(tmp_path: Path, answer: bytes, finding: Finding) -> None:
    files = self_signed(tmp_path, "box")
    with tcp(web(files, answer)) as server:
        assert HttpsProbe(LOOPBACK, server.port, files[0]).ask(GENEROUS).finding is finding


def test_https_served_certificate_must_be_the_configured_one_and_valid(tmp_path: Path) -> None:
    files, other = self_signed(tmp_path, "box"), self_signed(tmp_path, "renewed")
    good = b"HTTP/1.1 200 OK\r\n\r\n"
    with tcp(web(files, good)) as server:
        outcome = HttpsProbe(LOOPBACK, server.port, other[0]).ask(GENEROUS)
        assert outcome.finding is Finding.FAULTY
        assert "certificate" in outcome.detail
        assert HttpsProbe(LOOPBACK, server.port, tmp_path / "none").ask(GENEROUS).finding is Finding.FAULTY
    expired = self_signed(tmp_path, "old", days=-1)
    with tcp(web(expired, good)) as server:
        assert "expired" in HttpsProbe(LOOPBACK, server.port, expired[0]).ask(GENEROUS).detail


def test_https_follows_a_renewed_certificate_file(tmp_path: Path) -> None:
    files, other = self_signed(tmp_path, "box"), self_signed(tmp_path, "renewed")
    with tcp(web(other, b"HTTP/1.1 200 OK\r\n\r\n")) as server:
        probe = HttpsProbe(LOOPBACK, server.port, files[0])
        assert probe.ask(GENEROUS).finding is Finding.FAULTY
        other[0].replace(files[0])
        assert probe.ask(GENEROUS).finding is Finding.ALIVE


def test_https_silent_server(tmp_path: Path) -> None:
    files = self_signed(tmp_path, "box")
    with tcp(silence) as server:
        assert HttpsProbe(LOOPBACK, server.port, files[0]).ask(SHORT).finding is Finding.SILENT


def test_https_refused_no_tls_and_a_broken_file(tmp_path: Path) -> None:
    files = self_signed(tmp_path, "box")
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    assert HttpsProbe(LOOPBACK, port, files[0]).ask(GENEROUS).finding is Finding.REFUSED

    def plain(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with tcp(plain) as server:
        outcome = HttpsProbe(LOOPBACK, server.port, files[0]).ask(GENEROUS)
        assert (outcome.finding, "TLS failed" in outcome.detail) == (Finding.FAULTY, True)
        files[0].write_text("no certificate")
        outcome = HttpsProbe(LOOPBACK, server.port, files[0]).ask(GENEROUS)
        assert (outcome.finding, "cannot be used" in outcome.detail) == (Finding.FAULTY, True)
