"""Phones of our own for what SIPp cannot do: measure registrations, and be called without registering again.

`Deskphone` is a UDP phone that registers once and then answers calls and sends every sound back. `Registrar`
registers over and over, and notes when it was accepted. Sources: RFC 3261, RFC 2617.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from appliance.lab import Client
from appliance.lab_host import LabError, wait_for
from appliance.lab_sip import Phone, socket_in
from appliance.lab_watch import LONG_SILENCE_SECONDS, Watcher

PORT = 5060
MEDIA_PORT = 18100
EXPIRES_SECONDS = 300
_CHALLENGE = re.compile(r'(realm|nonce|opaque)="([^"]+)"')


@dataclass(frozen=True)
class Message:
    """A SIP request or response as it came."""

    text: str

    @property
    def start(self) -> str:
        """Its first line."""
        return self.text.partition("\r\n")[0]

    @property
    def status(self) -> int:
        """The status of a response; 0 for a request."""
        found = re.match(r"SIP/2\.0 (\d{3})", self.text)
        return int(found[1]) if found else 0

    def all(self, name: str) -> list[str]:
        """Every header line of that name, as it stands."""
        head = self.text.partition("\r\n\r\n")[0]
        return re.findall(rf"^{name} *:.*$", head.replace("\r\n", "\n"), re.MULTILINE | re.IGNORECASE)

    def value(self, name: str) -> str:
        """The value of a header; "" without it."""
        lines = self.all(name)
        return lines[0].partition(":")[2].strip() if lines else ""


def register_request(phone: Phone, host: str, own: tuple[str, int], identity: str, answered: str = "") -> str:
    """A REGISTER; with `answered`, the text of a challenge, the one that answers it."""
    here = f"{own[0]}:{own[1]}"
    sequence = 2 if answered else 1
    return (
        f"REGISTER sip:{host} SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP {here};rport;branch=z9hG4bK{identity}{sequence}\r\n"
        f"From: <sip:{phone.number}@{host}>;tag={identity}\r\nTo: <sip:{phone.number}@{host}>\r\n"
        f"Call-ID: {identity}\r\nCSeq: {sequence} REGISTER\r\nMax-Forwards: 70\r\n"
        f"Contact: <sip:{phone.number}@{here}>\r\nExpires: {EXPIRES_SECONDS}\r\n"
        f"{_authorization(phone, host, answered) if answered else ''}Content-Length: 0\r\n\r\n"
    )


def _authorization(phone: Phone, host: str, challenge: str) -> str:
    given = dict(_CHALLENGE.findall(Message(challenge).value("WWW-Authenticate")))
    uri, once = f"sip:{host}", secrets.token_hex(4)
    secret = _md5(f"{phone.number}:{given['realm']}:{phone.password}")
    response = _md5(f"{secret}:{given['nonce']}:00000001:{once}:auth:{_md5(f'REGISTER:{uri}')}")
    return (
        f'Authorization: Digest username="{phone.number}", realm="{given["realm"]}", '
        f'nonce="{given["nonce"]}", uri="{uri}", response="{response}", algorithm=MD5, '
        f'cnonce="{once}", nc=00000001, qop=auth, opaque="{given.get("opaque", "")}"\r\n'
    )


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class Deskphone:
    """A phone on a desk: registers when told, answers every call, sends back what it hears.

    `registrations` counts what it sent itself; `callers` are the addresses that INVITEs came from.
    """

    def __init__(self, client: Client, phone: Phone, host: str) -> None:
        self.phone, self.host = phone, host
        self.registrations = 0
        self.callers: list[str] = []
        self._own = (client.address(), PORT)
        self._identity = secrets.token_hex(8)
        self._accepted = threading.Event()
        self._refused = ""
        self._ended = threading.Event()
        self._wire = socket_in(client.namespace, socket.AF_INET, socket.SOCK_DGRAM)
        self._sound = socket_in(client.namespace, socket.AF_INET, socket.SOCK_DGRAM)
        self._wire.bind(self._own)
        self._sound.bind((client.address(), MEDIA_PORT))
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._hear, self._echo)]

    def __enter__(self) -> Deskphone:
        for each in (self._wire, self._sound):
            each.settimeout(0.2)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._wire.close()
        self._sound.close()

    def register(self, limit_seconds: float = 20.0) -> float:
        """Register once; the seconds it took. Raises LabError when it is refused or nobody answers."""
        began = time.monotonic()
        self._accepted.clear()
        self.registrations += 1

        def accepted() -> bool:
            self._send(register_request(self.phone, self.host, self._own, self._identity))
            return self._accepted.wait(0.5)

        wait_for(accepted, limit_seconds, f"the registration of {self.phone.number} at {self.host}")
        if self._refused:
            raise LabError(f"{self.host} refuses to register {self.phone.number}: {self._refused}")
        return time.monotonic() - began

    def _send(self, text: str, to: tuple[str, int] | None = None) -> None:
        with suppress(OSError):
            self._wire.sendto(text.encode(), to or (self.host, PORT))

    def _hear(self) -> None:
        while not self._ended.is_set():
            try:
                data, sender = self._wire.recvfrom(65536)
            except OSError:
                continue
            message = Message(data.decode("utf-8", "replace"))
            if message.status:
                self._answered(message)
            else:
                self._asked(message, sender)

    def _answered(self, message: Message) -> None:
        if message.value("Call-ID") != self._identity or message.status < 200:
            return
        if message.status == 401 and message.value("CSeq").startswith("1 "):
            again = register_request(self.phone, self.host, self._own, self._identity, message.text)
            self._send(again)
            return
        self._refused = "" if message.status == 200 else message.start
        self._accepted.set()

    def _asked(self, message: Message, sender: tuple[str, int]) -> None:
        method = message.start.partition(" ")[0]
        if method == "ACK":
            return
        if method == "INVITE":
            self.callers.append(sender[0])
            self._send(self._reply(message, "180 Ringing"), sender)
            self._send(self._reply(message, "200 OK", self._offer()), sender)
            return
        known = method in ("BYE", "OPTIONS", "CANCEL", "NOTIFY", "UPDATE")
        self._send(self._reply(message, "200 OK" if known else "405 Method Not Allowed"), sender)

    def _reply(self, request: Message, status: str, body: str = "") -> str:
        echoed = [line for name in ("Via", "From", "Call-ID", "CSeq") for line in request.all(name)]
        tag = "" if "tag=" in request.value("To") else f";tag={self._identity}"
        kind = "Content-Type: application/sdp\r\n" if body else ""
        return (
            "\r\n".join([f"SIP/2.0 {status}", *echoed, *request.all("Record-Route")])
            + f"\r\nTo: {request.value('To')}{tag}\r\n"
            + f"Contact: <sip:{self.phone.number}@{self._own[0]}:{self._own[1]}>\r\n"
            + f"{kind}Content-Length: {len(body)}\r\n\r\n{body}"
        )

    def _offer(self) -> str:
        return (
            f"v=0\r\no=- 1 1 IN IP4 {self._own[0]}\r\ns=-\r\nc=IN IP4 {self._own[0]}\r\nt=0 0\r\n"
            f"m=audio {MEDIA_PORT} RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\na=ptime:20\r\n"
        )

    def _echo(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError):
                frame, sender = self._sound.recvfrom(2048)
                self._sound.sendto(frame, sender)


class Registrar(Watcher):
    """Begins a registration each 50 ms and notes when one was accepted; an unanswered one is not repeated."""

    interval_seconds = 0.05
    silence_seconds = LONG_SILENCE_SECONDS
    what = "an accepted registration"
    OPEN = 200

    def __init__(self, client: Client, phone: Phone, host: str) -> None:
        super().__init__(client, host, PORT)
        self._phone, self._host = phone, host
        self._wire.bind((client.address(), 0))
        self._waiting: dict[str, None] = {}

    def __enter__(self) -> Registrar:
        self._thread.start()
        return self

    def _run(self) -> None:
        own = self._wire.getsockname()
        due = time.monotonic()
        while not self._ended.is_set():
            if time.monotonic() >= due:
                due = time.monotonic() + self.interval_seconds
                identity = secrets.token_hex(8)
                self._waiting[identity] = None
                for old in list(self._waiting)[: -self.OPEN]:
                    del self._waiting[old]
                self._send(register_request(self._phone, self._host, own, identity))
            self._wire.settimeout(max(0.001, due - time.monotonic()))
            try:
                message = Message(self._wire.recv(65536).decode("utf-8", "replace"))
            except OSError:
                continue
            identity = message.value("Call-ID")
            if identity not in self._waiting:
                continue
            if message.status == 401:
                self._send(register_request(self._phone, self._host, own, identity, message.text))
            elif message.status == 200:
                self.received.append(time.monotonic())
                del self._waiting[identity]

    def _send(self, text: str) -> None:
        with suppress(OSError):
            self._wire.sendto(text.encode(), self._address)
