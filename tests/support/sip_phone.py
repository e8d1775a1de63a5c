"""A small SIP phone for tests and figures: OPTIONS, REGISTER with digest, forged datagrams. Also a program.

    python sip_phone.py register HOST USER PASSWORD [COUNT]
    python sip_phone.py options HOST COUNT SECONDS_BETWEEN
    python sip_phone.py burst HOST COUNT
    python sip_phone.py watch HOST USER PASSWORD SECONDS SECONDS_BETWEEN
    python sip_phone.py guess HOST USER TRIES LIMIT_SECONDS
    python sip_phone.py forge HOST SOURCE USER COUNT

Sources: RFC 3261 sections 8, 10 and 22, RFC 2617.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import socket
import struct
import sys
import time

PORT = 5060
_CHALLENGE = re.compile(r'(realm|nonce|opaque|algorithm|qop)="?([^",]+)"?')


class Phone:
    """One UDP socket of its own port."""

    def __init__(self, host: str, user: str = "probe", password: str = "") -> None:
        self.host, self.user, self.password = host, user, password
        self.link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.link.connect((host, PORT))
        self.address, self.port = self.link.getsockname()
        self.sequence = 0

    def message(self, method: str, identity: str, extra: str = "") -> str:
        """The text of a request."""
        self.sequence += 1
        address = f"{self.address}:{self.port}"
        return (
            f"{method} sip:{self.host} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {address};rport;branch=z9hG4bK{secrets.token_hex(8)}\r\n"
            f"Max-Forwards: 70\r\nFrom: <sip:{self.user}@{self.host}>;tag={secrets.token_hex(4)}\r\n"
            f"To: <sip:{self.user}@{self.host}>\r\nCall-ID: {identity}\r\nCSeq: {self.sequence} {method}\r\n"
            f"Contact: <sip:{self.user}@{address}>\r\nUser-Agent: Test phone\r\n{extra}"
            "Content-Length: 0\r\n\r\n"
        )

    def ask(self, text: str, limit_seconds: float = 2.0) -> tuple[int, str]:
        """Send a request once; the final status and the text of the response, or 0 and nothing."""
        self.link.send(text.encode())
        identity = re.search(r"Call-ID: (\S+)", text)
        end = time.monotonic() + limit_seconds
        while (left := end - time.monotonic()) > 0:
            self.link.settimeout(left)
            try:
                answer = self.link.recv(65536).decode("utf-8", "replace")
            except (TimeoutError, ConnectionRefusedError):
                return 0, ""
            if identity and identity[1] in answer and answer.startswith("SIP/2.0") and answer[8:9] != "1":
                status = int(answer.split()[1])
                if status >= 200:
                    return status, answer
        return 0, ""

    def options(self, limit_seconds: float = 2.0) -> int:
        """The status of the answer to OPTIONS; 0 is none."""
        return self.ask(self.message("OPTIONS", secrets.token_hex(8)), limit_seconds)[0]

    def register(self, limit_seconds: float = 2.0) -> int:
        """The status of the answer to a REGISTER that answers the challenge; 0 is none."""
        identity = secrets.token_hex(8)
        status, answer = self.ask(self.message("REGISTER", identity), limit_seconds)
        if status != 401:
            return status
        header = next(line for line in answer.split("\r\n") if line.lower().startswith("www-authenticate:"))
        given = dict(_CHALLENGE.findall(header))
        uri = f"sip:{self.host}"
        first = _md5(f"{self.user}:{given['realm']}:{self.password}")
        second = _md5(f"REGISTER:{uri}")
        response = _md5(f"{first}:{given['nonce']}:00000001:00c0ffee:auth:{second}")
        fields = (
            f'Authorization: Digest username="{self.user}", realm="{given["realm"]}", '
            f'nonce="{given["nonce"]}", uri="{uri}", response="{response}", algorithm=MD5, '
            f'cnonce="00c0ffee", nc=00000001, qop=auth, opaque="{given.get("opaque", "")}"\r\n'
        )
        return self.ask(self.message("REGISTER", identity, fields), limit_seconds)[0]


def burst(host: str, count: int, limit_seconds: float = 2.0) -> list[int]:
    """Send so many OPTIONS at once; a status for each that was answered."""
    phone = Phone(host)
    phone.link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    waiting = {secrets.token_hex(8) for _ in range(count)}
    for identity in waiting:
        phone.link.send(phone.message("OPTIONS", identity).encode())
    statuses = []
    end = time.monotonic() + limit_seconds
    while waiting and (left := end - time.monotonic()) > 0:
        phone.link.settimeout(left)
        try:
            answer = phone.link.recv(65536).decode("utf-8", "replace")
        except TimeoutError:
            break
        found = re.search(r"^Call-ID: (\S+)", answer, re.MULTILINE)
        if found and found[1] in waiting:
            waiting.discard(found[1])
            statuses.append(int(answer.split()[1]))
    return statuses


def guess(host: str, user: str, tries: int, limit_seconds: float) -> tuple[list[int], float]:
    """Guess passwords, then ask until nothing answers any more.

    Returns the statuses and the seconds from the last failure to the first of twenty requests in a row that
    got no answer; -1 if that never happened within the limit.
    """
    phone = Phone(host, user, "wrong")
    statuses = [phone.register() for _ in range(tries)]
    failed = time.monotonic()
    silent_since, silent = 0.0, 0
    while time.monotonic() - failed < limit_seconds:
        moment = time.monotonic()
        if Phone(host).options(0.02):
            silent = 0
            time.sleep(0.005)
            continue
        silent_since = silent_since if silent else moment
        silent += 1
        if silent == 20:
            return statuses, silent_since - failed
    return statuses, -1.0


def forge(host: str, source: str, user: str, count: int) -> None:
    """Send REGISTERs that seem to come from `source`; needs root."""
    link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for number in range(count):
        text = (
            f"REGISTER sip:{host} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {source}:5060;branch=z9hG4bK{secrets.token_hex(8)}\r\n"
            f"From: <sip:{user}{number}@{host}>;tag={secrets.token_hex(4)}\r\n"
            f"To: <sip:{user}{number}@{host}>\r\n"
            f"Call-ID: {secrets.token_hex(8)}\r\nCSeq: 1 REGISTER\r\nMax-Forwards: 70\r\n"
            f"Contact: <sip:{user}@{source}>\r\nUser-Agent: friendly-scanner\r\nContent-Length: 0\r\n\r\n"
        ).encode()
        datagram = struct.pack(">HHHH", PORT, PORT, len(text) + 8, 0) + text
        header = struct.pack(
            ">BBHHHBBH4s4s",
            *(0x45, 0, 20 + len(datagram), number & 0xFFFF, 0, 64, socket.IPPROTO_UDP, 0),
            socket.inet_aton(source),
            socket.inet_aton(host),
        )
        link.sendto(header + datagram, (host, 0))
        time.sleep(0.02)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def main(words: list[str]) -> None:
    """One JSON document on stdout: the statuses, and the moment of the last answer."""
    statuses: list[int] = []
    last = 0.0
    match words:
        case ["register", host, user, password, *rest]:
            phone = Phone(host, user, password)
            for _ in range(int(rest[0]) if rest else 1):
                statuses.append(phone.register())
                last = time.time()
        case ["options", host, count, pause]:
            phone = Phone(host)
            for _ in range(int(count)):
                statuses.append(phone.options())
                time.sleep(float(pause))
        case ["burst", host, count]:
            statuses = burst(host, int(count))
        case ["watch", host, user, password, seconds, pause]:
            phone = Phone(host, user, password)
            phone.register()
            end = time.monotonic() + float(seconds)
            while time.monotonic() < end:
                statuses.append(phone.options(1.0))
                time.sleep(float(pause))
        case ["guess", host, user, tries, seconds]:
            statuses, last = guess(host, user, int(tries), float(seconds))
        case ["forge", host, source, user, count]:
            forge(host, source, user, int(count))
        case _:
            raise SystemExit(__doc__)
    print(json.dumps({"statuses": statuses, "last": last}))


if __name__ == "__main__":
    main(sys.argv[1:])
