"""Phones of the lab: what a node sounds like from outside.

Signalling of registrations and calls is SIPp's; timing (`OptionsProber`) and media (`RtpEcho`) are small
probes of our own on sockets that live in a client's namespace; their clock is this process's monotonic one.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from appliance.lab import Client, Node
from appliance.lab_host import LabError, LabTimeoutError, wait_for
from appliance.run import require

Made = TypeVar("Made")
CLONE_NEWNET = 0x40000000
FRAME_SECONDS = 0.02
FRAME_BYTES = 160  # 20 ms of G.711
PCMA = 8
ECHO_NUMBER = "600"
SCENARIOS = Path(__file__).parent


def in_namespace(namespace: Path, make: Callable[[], Made]) -> Made:
    """What `make` makes in a network namespace; the caller itself stays where it is.

    A thread enters the namespace (setns(2) acts on one thread alone), makes it, and ends.
    """

    def enter() -> Made:
        library = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if library.setns(descriptor, CLONE_NEWNET) != 0:
                raise LabError(f"{namespace} cannot be entered: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(descriptor)
        return make()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()


def socket_in(namespace: Path, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    """A socket that belongs to a network namespace."""
    return in_namespace(namespace, lambda: socket.socket(family, kind))


@dataclass(frozen=True)
class Answer:
    """One answered OPTIONS: monotonic times of sending and answer, and the SIP status."""

    sent: float
    received: float
    status: int


class OptionsProber:
    """Sends an OPTIONS every `interval_seconds` and keeps every answer; use it as a context manager.

    Each request is new (own branch and Call-ID), so an answer tells about the moment when it was sent.
    """

    def __init__(
        self, client: Client, target: str, *, port: int = 5060, interval_seconds: float = 0.02
    ) -> None:
        self.client = client
        self.target = target
        self.port = port
        self.interval_seconds = interval_seconds
        self.answers: list[Answer] = []
        self.sent = 0
        self._pending: dict[str, float] = {}
        self._end = threading.Event()
        self._news = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._socket: socket.socket | None = None

    def __enter__(self) -> OptionsProber:
        self._socket = socket_in(self.client.namespace, socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((self.client.address(), 0))
        self._socket.settimeout(0.2)
        self._threads = [
            threading.Thread(target=each, args=(self._socket,), daemon=True)
            for each in (self._send, self._hear)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        if self._socket is not None:
            self._socket.close()

    def first_after(self, moment: float, limit_seconds: float) -> Answer:
        """The earliest answer to a request that was sent after `moment`; waits until `moment` + limit."""
        with self._news:
            while True:
                found = next((answer for answer in self.answers if answer.sent > moment), None)
                if found is not None:
                    return found
                left = moment + limit_seconds - time.monotonic()
                if left <= 0:
                    raise LabTimeoutError(f"{self.target} answered no OPTIONS within {limit_seconds:g} s")
                self._news.wait(left)

    def longest_silence(self, begin: float, end: float) -> float:
        """Seconds of the longest span between `begin` and `end` in which no answer arrived."""
        inside = [answer.received for answer in list(self.answers) if begin < answer.received < end]
        marks = [begin, *inside, end]
        return max(later - earlier for earlier, later in pairwise(marks))

    def _send(self, wire: socket.socket) -> None:
        local_address, local_port = wire.getsockname()
        while not self._end.wait(self.interval_seconds):
            name = secrets.token_hex(8)
            request = (
                f"OPTIONS sip:{self.target}:{self.port} SIP/2.0\r\n"
                f"Via: SIP/2.0/UDP {local_address}:{local_port};branch=z9hG4bK{name}\r\n"
                f"From: <sip:probe@{local_address}>;tag={name}\r\n"
                f"To: <sip:{self.target}>\r\n"
                f"Call-ID: {name}\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
            )
            self._pending[name] = time.monotonic()
            try:
                wire.sendto(request.encode(), (self.target, self.port))
                self.sent += 1
            except OSError:
                continue  # no route, or a refusal of an earlier request: the next one asks again

    def _hear(self, wire: socket.socket) -> None:
        while not self._end.is_set():
            try:
                text = wire.recv(65536).decode(errors="replace")
            except OSError:
                continue
            now = time.monotonic()
            status = re.match(r"SIP/2\.0 (\d{3})", text)
            name = re.search(r"^Call-ID: *(\S+)", text, re.MULTILINE | re.IGNORECASE)
            sent = self._pending.pop(name.group(1), None) if name else None
            if status and sent is not None:
                with self._news:
                    self.answers.append(Answer(sent, now, int(status.group(1))))
                    self._news.notify_all()


@dataclass(frozen=True)
class Phone:
    """An account of a phone; the password never goes to a command line."""

    number: str
    password: str


def add_phone(node: Node, number: str, context: str = "internal") -> Phone:
    """Write a phone's endpoint, password and AOR into the node's database."""
    if not (number.isdigit() and context.isidentifier()):
        raise LabError(f"a phone needs digits and the word of a context, not {number!r} and {context!r}")
    phone = Phone(number, secrets.token_hex(12))
    media = "direct_media, rtp_symmetric, force_rport, rewrite_contact"
    statements = f"""
        REPLACE INTO ps_aors (id, max_contacts, remove_existing, default_expiration)
            VALUES ('{number}', 1, 'yes', 300);
        REPLACE INTO ps_auths (id, auth_type, username, password)
            VALUES ('{number}', 'userpass', '{number}', '{phone.password}');
        REPLACE INTO ps_endpoints (id, context, disallow, allow, aors, auth, {media})
            VALUES ('{number}', '{context}', 'all', 'alaw',
                    '{number}', '{number}', 'no', 'yes', 'yes', 'yes');
        """  # noqa: S608 - every part was checked above or made here
    node.run(["mysql", "centralino"], input_text=statements)
    return phone


def welcome_prober(node: Node, client: Client) -> None:
    """Let a client's OPTIONS be answered 200 instead of challenged, so that none counts as an attack.

    From then on that client's address is no phone's: Asterisk asks for the address before the name.
    """
    name = f"lab-{client.name}"
    statements = f"""
        REPLACE INTO ps_endpoints (id, context, disallow, allow)
            VALUES ('{name}', 'centralino-probe', 'all', 'alaw');
        REPLACE INTO ps_endpoint_id_ips (id, endpoint, `match`)
            VALUES ('{name}', '{name}', '{client.address()}');
        """  # noqa: S608 - the lab's own names
    node.run(["mysql", "centralino"], input_text=statements)


@dataclass(frozen=True)
class MediaResult:
    """Frames that went out, came back unchanged, and came in altogether; seconds to the first echo."""

    sent: int
    echoed: int
    received: int
    first_echo_seconds: float | None


@dataclass(frozen=True)
class CallResult:
    """A finished call: `setup_seconds` from INVITE to answer and what became of the media."""

    setup_seconds: float
    media: MediaResult


class RtpEcho:
    """Sends frames of random sound from a client's port and counts those that come back bit by bit."""

    def __init__(self, client: Client, port: int) -> None:
        self.wire = socket_in(client.namespace, socket.AF_INET, socket.SOCK_DGRAM)
        self.wire.bind((client.address(), port))

    def run(self, target: tuple[str, int], seconds: float, enough: int = 50) -> MediaResult:
        """Talk to `target` for `seconds`, or until `enough` frames came back."""
        waiting: set[bytes] = set()
        sent = echoed = received = 0
        first: float | None = None
        began = time.monotonic()
        source = secrets.randbits(32)
        while time.monotonic() - began < seconds and echoed < enough:
            payload = secrets.token_bytes(FRAME_BYTES)
            header = struct.pack("!BBHII", 0x80, PCMA, sent & 0xFFFF, sent * FRAME_BYTES & 0xFFFFFFFF, source)
            self.wire.sendto(header + payload, target)
            waiting.add(payload)
            sent += 1
            due = began + sent * FRAME_SECONDS
            while (left := due - time.monotonic()) > 0:
                self.wire.settimeout(left)
                try:
                    frame = self.wire.recv(2048)
                except OSError:
                    continue
                received += 1
                if frame[12:] in waiting:
                    waiting.discard(frame[12:])
                    echoed += 1
                    first = first if first is not None else time.monotonic() - began
        return MediaResult(sent, echoed, received, first)

    def close(self) -> None:
        """Give the port back."""
        self.wire.close()


def register(client: Client, phone: Phone, target: str, *, limit_seconds: float = 20.0) -> float:
    """Register a phone with digest authentication; returns the seconds it took. Raises LabError."""
    with tempfile.TemporaryDirectory() as folder:
        return _sipp(client, "lab_register.xml", [_account(phone)], target, Path(folder), limit_seconds)


def call_echo(
    client: Client,
    phone: Phone,
    target: str,
    *,
    number: str = ECHO_NUMBER,
    hold_seconds: float = 6.0,
    media_port: int = 18000,
) -> CallResult:
    """Call the echo test, or another number whose sound comes back; hold the call, check the sound, hang up.

    Raises LabError when the call fails; silence is told in the result.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        echo = RtpEcho(client, media_port)
        try:
            log = Path(folder) / "messages.log"
            fields = [f"{_account(phone)};{number};{media_port}"]
            extra = ["-d", str(int(hold_seconds * 1000)), "-trace_logs", "-log_file", str(log)]
            began = time.monotonic()
            call: Future[float] = pool.submit(
                _sipp, client, "lab_call.xml", fields, target, Path(folder), hold_seconds + 20, extra
            )
            wait_for(
                lambda: call.done() or _media_port(log),
                20,
                f"the answer of {target} to a call",
                interval_seconds=0.02,
            )
            answered = time.monotonic()
            if call.done():
                # Refused: that is said at once, and not after the time that an answer may take.
                call.result()
            port = _media_port(log)
            media = echo.run((target, port), hold_seconds - 1)
            call.result()
            return CallResult(answered - began, media)
        finally:
            echo.close()


def _media_port(log: Path) -> int:
    """The port that the far end named, from SIPp's log; 0 while there is none."""
    found = re.search(r"media (\d+)", log.read_text()) if log.exists() else None
    return int(found.group(1)) if found else 0


def _account(phone: Phone) -> str:
    return f"{phone.number};[authentication username={phone.number} password={phone.password}]"


def _sipp(
    client: Client,
    scenario: str,
    rows: list[str],
    target: str,
    folder: Path,
    limit_seconds: float,
    extra: list[str] | None = None,
) -> float:
    """Run one SIPp scenario once per row; the seconds it took, or LabError with SIPp's complaint."""
    require({"sipp": "sip-tester"})
    accounts = folder / "accounts.csv"
    accounts.touch(mode=0o600)
    accounts.write_text("SEQUENTIAL\n" + "\n".join(rows) + "\n")
    complaints = folder / "errors.log"
    result = client.run(
        [
            *("sipp", f"{target}:5060", "-sf", str(SCENARIOS / scenario), "-inf", str(accounts)),
            *(
                "-m",
                str(len(rows)),
                "-i",
                client.address(),
                "-nostdin",
                "-trace_err",
                "-error_file",
                str(complaints),
            ),
            *("-timeout", f"{int(limit_seconds)}s", "-timeout_error", *(extra or [])),
        ],
        limit_seconds=limit_seconds + 5,
        check=False,
    )
    if not result.ok:
        said = (
            complaints.read_text(errors="replace") if complaints.exists() else result.output + result.errors
        )
        raise LabError(
            f"SIPp's {scenario} against {target} ended with status {result.status}: {said.strip()[-800:]}"
        )
    return result.seconds
