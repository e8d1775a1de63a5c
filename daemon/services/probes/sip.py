"""SIP OPTIONS to the box itself over UDP (RFC 3261 section 11): any final reply proves that SIP is served."""

from __future__ import annotations

import secrets
import socket

from daemon.services.model import Finding, Outcome
from daemon.services.probes.asking import Deadline, ProbeError, asked

# The user part that the PBX core knows as an endpoint without rights, from loopback only: an unknown sender
# would be an attack event of the SIP shield every few seconds.
PROBE_USER = "centralino-probe"
FIRST_RETRANSMISSION = 0.5
LARGEST_DATAGRAM = 65_535


def ask_sip(host: str, port: int, limit_seconds: float) -> Outcome:
    """Send OPTIONS to `host`:`port` and wait for a final reply (status 200 to 699) of the same call."""
    return asked("SIP OPTIONS", limit_seconds, lambda deadline: _options(host, port, deadline))


def _options(host: str, port: int, deadline: Deadline) -> Outcome:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((host, port))
        call = secrets.token_hex(8)
        request = _request(host, port, udp.getsockname()[1], call)
        wait = FIRST_RETRANSMISSION
        udp.send(request)
        while True:
            left = deadline.left()
            udp.settimeout(min(wait, left))
            try:
                reply = udp.recv(LARGEST_DATAGRAM)
            except TimeoutError:
                deadline.left()
                udp.send(request)
                wait *= 2
                continue
            status = final_status(reply, call)
            if status is not None:
                return Outcome(Finding.ALIVE, f"SIP OPTIONS: {status}", deadline.used())


def _request(host: str, port: int, own_port: int, call: str) -> bytes:
    target = f"sip:{host}:{port}"
    lines = (
        f"OPTIONS {target} SIP/2.0",
        f"Via: SIP/2.0/UDP {host}:{own_port};rport;branch=z9hG4bK{call}",
        "Max-Forwards: 70",
        f"From: <sip:{PROBE_USER}@{host}>;tag={call}",
        f"To: <{target}>",
        f"Call-ID: {call}",
        "CSeq: 1 OPTIONS",
        f"Contact: <sip:{PROBE_USER}@{host}:{own_port}>",
        "User-Agent: Centralino",
        "Content-Length: 0",
    )
    return "\r\n".join((*lines, "", "")).encode()


def final_status(reply: bytes, call: str) -> int | None:
    """The status of a final reply to our call; None for provisional or foreign ones.

    Raises ProbeError when something that is not SIP answers.
    """
    head = reply.partition(b"\r\n\r\n")[0].decode("utf-8", "replace")
    first, *fields = head.split("\r\n")
    version, _, rest = first.partition(" ")
    if version != "SIP/2.0" or not rest[:3].isdigit():
        raise ProbeError(Finding.FAULTY, "something that does not speak SIP answers")
    names = {"call-id", "i"}
    ours = any(
        value.strip() == call
        for name, _, value in (field.partition(":") for field in fields)
        if name.strip().lower() in names
    )
    status = int(rest[:3])
    return status if ours and status >= 200 else None
