"""Questions to the wire itself: who has this address? ARP for IPv4, neighbour discovery for IPv6.

Asked with packet sockets, so that nothing need be configured first: an address can be looked for before it is
ours (RFC 5227 section 2.1.1, RFC 4862 section 5.4), and a gateway without the kernel's own cache. RFC 5227
waits several seconds because thousands of hosts may start at once; here one box asks, so three questions a
few hundredths of a second apart do, and whoever answers later is caught by the check after the change.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

ARP, IPV6 = 0x0806, 0x86DD
ARP_REQUEST, ICMP6 = 1, 58
SOLICITATION, ADVERTISEMENT = 135, 136
EVERYBODY = b"\xff" * 6
UNKNOWN = bytes(6)
ATTEMPTS = 3
PAUSE_SECONDS = 0.03
LIMIT_SECONDS = 0.1
FRAME_BYTES = 2048
_ARP = struct.Struct("!HHBBH6s4s6s4s")


@dataclass(frozen=True)
class Question:
    """Who on the wire of `interface` (whose own hardware address is given) has `target`?

    `source` is the asker's own address there; None asks without one, as long as it has none (a probe).
    """

    interface: str
    hardware_address: str
    target: Address
    source: Address | None = None


def ask(
    questions: Sequence[Question], limit_seconds: float = LIMIT_SECONDS, attempts: int = ATTEMPTS
) -> dict[Question, str]:
    """Ask all at once; the hardware address of whoever has each target. What is missing got no answer.

    Returns as soon as every question is answered, at the latest after `limit_seconds`. Raises OSError when an
    interface cannot be listened to.
    """
    answers: dict[Question, str] = {}
    pause = PAUSE_SECONDS if attempts <= ATTEMPTS else limit_seconds / attempts
    sockets: dict[tuple[str, int], socket.socket] = {}
    try:
        for question in questions:
            if (place := _place(question)) not in sockets:
                # Made without a protocol, because one that already receives would be stopped and started
                # again by bind, which waits for every processor.
                made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
                sockets[place] = made
                made.bind(place)
                made.setblocking(False)
        _converse(questions, sockets, answers, limit_seconds, attempts, pause)
    finally:
        # The kernel lets a packet socket go only after a grace period; nobody need wait for that.
        threading.Thread(target=_close, args=(list(sockets.values()),), daemon=True).start()
    return answers


def _place(question: Question) -> tuple[str, int]:
    return question.interface, ARP if question.target.version == 4 else IPV6


def _close(sockets: Sequence[socket.socket]) -> None:
    for open_socket in sockets:
        open_socket.close()


def _converse(
    questions: Sequence[Question],
    sockets: Mapping[tuple[str, int], socket.socket],
    answers: dict[Question, str],
    limit_seconds: float,
    attempts: int,
    pause: float,
) -> None:
    """Send every question up to `attempts` times and gather answers until all are there or time is over."""
    started = time.monotonic()
    sent = 0
    while len(answers) < len(questions):
        now = time.monotonic() - started
        if now >= limit_seconds:
            return
        if sent < attempts and now >= sent * pause:
            sent += 1
            for question in questions:
                if question not in answers:
                    sockets[_place(question)].send(_frame(question))
        wake = min(limit_seconds, sent * pause) if sent < attempts else limit_seconds
        readable, _, _ = select.select(list(sockets.values()), [], [], max(0.0, wake - now))
        for place, listening in sockets.items():
            if listening in readable:
                _take(
                    listening, [question for question in questions if question.interface == place[0]], answers
                )


def _take(listening: socket.socket, questions: Sequence[Question], answers: dict[Question, str]) -> None:
    """Read every frame that waits and note whom it shows."""
    while True:
        try:
            data, sender = listening.recvfrom(FRAME_BYTES)
        except BlockingIOError:
            return
        if sender[2] == socket.PACKET_OUTGOING:
            continue
        shown = _shown(data)
        if shown is None:
            continue
        address, hardware = shown
        for question in questions:
            own = question.hardware_address.lower()
            if question.target == address and hardware != own:
                answers.setdefault(question, hardware)


def _shown(frame: bytes) -> tuple[Address, str] | None:
    """The address that a frame proves to be somebody's, and whose; None for every other frame."""
    if len(frame) < 14:
        return None
    kind = int.from_bytes(frame[12:14], "big")
    if kind == ARP and len(frame) >= 14 + _ARP.size:
        _type, _protocol, _length, _length4, _operation, hardware, address, _, _ = _ARP.unpack_from(frame, 14)
        # A probe has no sender address and proves nothing.
        return (IPv4Address(address), _text(hardware)) if any(address) else None
    if kind == IPV6 and len(frame) >= 14 + 40 + 24 and frame[20] == ICMP6 and frame[54] == ADVERTISEMENT:
        target = IPv6Address(frame[62:78])
        # Type 2: the target's own link-layer address, where it is told.
        option = frame[80:86] if len(frame) >= 86 and frame[78] == 2 else frame[6:12]
        return target, _text(option)
    return None


def _frame(question: Question) -> bytes:
    own = bytes.fromhex(question.hardware_address.replace(":", ""))
    if isinstance(question.target, IPv4Address):
        source = question.source.packed if isinstance(question.source, IPv4Address) else bytes(4)
        body = _ARP.pack(1, 0x0800, 6, 4, ARP_REQUEST, own, source, UNKNOWN, question.target.packed)
        return EVERYBODY + own + ARP.to_bytes(2, "big") + body
    return _solicitation(own, question.target, question.source)


def _solicitation(own: bytes, target: IPv6Address, source: Address | None) -> bytes:
    """A neighbour solicitation to the target's solicited-node group (RFC 4861 section 4.3)."""
    group = bytes.fromhex("ff0200000000000000000001ff") + target.packed[13:]
    known = isinstance(source, IPv6Address)
    sender = source.packed if source is not None and known else bytes(16)
    # Without a source address the option must not be there, and the answer goes to all nodes.
    option = b"\x01\x01" + own if known else b""
    body = struct.pack("!BBHI", SOLICITATION, 0, 0, 0) + target.packed + option
    pseudo = sender + group + struct.pack("!II", len(body), ICMP6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), ICMP6, 255) + sender + group
    return b"\x33\x33" + group[12:] + own + IPV6.to_bytes(2, "big") + header + body


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _text(hardware: bytes) -> str:
    return ":".join(f"{octet:02x}" for octet in hardware)
