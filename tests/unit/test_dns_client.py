"""The DNS client against servers on the loopback that answer what a test tells them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import dns
from daemon.dns import Answer, AnswerCode, RecordType
from daemon.errors import UnavailableError

HERE = ip_address("127.0.0.1")
Reply = Callable[[bytes], bytes]


class Server:
    """UDP and TCP on one free port; `udp` and `tcp` make an answer of a question (empty: none)."""

    def __init__(self) -> None:
        self.udp: Reply = lambda _question: b""
        self.tcp: Reply = lambda _question: b""
        self.tcp_socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.tcp_socket.getsockname()[1]
        self.udp_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp_socket.bind(("127.0.0.1", self.port))
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()

    def _serve_udp(self) -> None:
        while True:
            try:
                question, sender = self.udp_socket.recvfrom(4096)
            except OSError:
                return
            if answer := self.udp(question):
                self.udp_socket.sendto(answer, sender)

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self.tcp_socket.accept()
            except OSError:
                return
            with connection:
                answer = self.tcp(connection.recv(4096)[2:])
                connection.sendall(struct.pack("!H", len(answer)) + answer)

    def close(self) -> None:
        # A thread that waits in accept is woken by shutdown alone.
        self.tcp_socket.shutdown(socket.SHUT_RDWR)
        self.tcp_socket.close()
        self.udp_socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def ask(server: Server, name: str = "pbx.example.com", kind: RecordType = RecordType.A) -> Answer:
    return dns.ask(name, kind, HERE, port=server.port, limit_seconds=0.6)


def record(owner: bytes, kind: int, body: bytes) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, 60, len(body)) + body


def reply(question: bytes, records: bytes = b"", count: int = 0, flags: int = 0x8180) -> bytes:
    return question[:2] + struct.pack("!HHHHH", flags, 1, count, 0, 0) + question[12:-11] + records


NAME_OF_QUESTION = b"\xc0\x0c"
ADDRESS = record(NAME_OF_QUESTION, RecordType.A, bytes([203, 0, 113, 10]))


def test_an_address_is_read(server: Server) -> None:
    server.udp = lambda question: reply(question, ADDRESS, 1)
    assert ask(server) == Answer(AnswerCode.NO_ERROR, (ip_address("203.0.113.10"),))


def test_aliases_are_followed_within_the_answer(server: Server) -> None:
    edge = b"\x04edge\x07example\x03net\x00"
    records = record(NAME_OF_QUESTION, RecordType.CNAME, edge)
    records += record(edge, RecordType.A, bytes([198, 51, 100, 7]))
    records += record(b"\x05other\x00", RecordType.A, bytes([10, 0, 0, 1]))
    server.udp = lambda question: reply(question, records, 3)
    assert ask(server) == Answer(0, (ip_address("198.51.100.7"),), ("edge.example.net",))


def test_a_name_that_does_not_exist_is_an_answer(server: Server) -> None:
    server.udp = lambda question: reply(question, flags=0x8183)
    assert ask(server).code == AnswerCode.NO_SUCH_NAME


def test_a_long_answer_comes_over_tcp(server: Server) -> None:
    server.udp = lambda question: reply(question, flags=0x8380)
    server.tcp = lambda question: reply(question, ADDRESS * 200, 200)
    assert len(ask(server).addresses) == 200


def test_a_forged_answer_is_not_taken() -> None:
    question = dns._question("pbx.example.com", RecordType.A)
    true = reply(question, ADDRESS, 1)
    another_number = bytes([question[0] ^ 1, question[1]]) + true[2:]
    another_name = question[:2] + reply(dns._question("bad.example", RecordType.A), ADDRESS, 1)[2:]
    no_answer = question[:2] + b"\0\0" + true[4:]
    assert not any(dns._answers(question, forged) for forged in (another_number, another_name, no_answer))
    assert dns._answers(question, true)


def test_silence_is_named_within_the_limit(server: Server) -> None:
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1 does not answer: no answer in time"):
        ask(server)


def test_nobody_there_is_named(server: Server) -> None:
    server.close()
    with pytest.raises(UnavailableError, match="does not answer"):
        ask(server)
    server.__init__()  # type: ignore[misc]  # for the fixture to close


def test_a_loop_in_an_answer_ends(server: Server) -> None:
    server.udp = lambda question: reply(question, b"\xc0\x1d" + b"\0" * 20, 1)[:-20]
    with pytest.raises(UnavailableError):
        ask(server)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(rest: bytes) -> None:
    question = dns._question("pbx.example.com", RecordType.A)
    data = reply(question, rest, 3)
    with contextlib.suppress(ValueError, IndexError, struct.error):  # `ask` makes a damaged answer of these
        dns._read(question, data)
