"""Telling the wire where an address is: gratuitous ARP (RFC 5944 section 4.6) and unsolicited neighbour
advertisements (RFC 4861 section 7.2.6), sent by packet socket after every change of role and every heal.

keepalived announces by itself when it takes an address. The node that stayed master gets no event when two
masters meet again, and the loser's last announcement may have won (keepalived issue 166): hence this.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address

from daemon.network import netlink
from fault_tolerance.keepalived import Held

EVERYBODY = b"\xff" * 6
ARP, IPV6 = 0x0806, 0x86DD
ALL_NODES = IPv6Address("ff02::1").packed
ADVERTISEMENT, ICMP6 = 136, 58
OVERRIDE = 0x20000000

log = logging.getLogger(__name__)


def gratuitous_arp(address: IPv4Address, hardware: bytes) -> tuple[bytes, bytes]:
    """The request and the reply form: some switches and phones believe only one of them."""
    frames = []
    for operation, target in ((1, bytes(6)), (2, hardware)):
        body = struct.pack(
            "!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, hardware, address.packed, target, address.packed
        )
        frames.append(EVERYBODY + hardware + ARP.to_bytes(2, "big") + body)
    return frames[0], frames[1]


def unsolicited_advertisement(address: IPv6Address, hardware: bytes) -> bytes:
    """To all nodes, with the override flag."""
    option = b"\x02\x01" + hardware
    body = struct.pack("!BBHI", ADVERTISEMENT, 0, 0, OVERRIDE) + address.packed + option
    pseudo = address.packed + ALL_NODES + struct.pack("!II", len(body), ICMP6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), ICMP6, 255) + address.packed + ALL_NODES
    return b"\x33\x33\x00\x00\x00\x01" + hardware + IPV6.to_bytes(2, "big") + header + body


def announce(shared: Iterable[Held], hardware: Mapping[str, bytes]) -> None:
    """Announce every address on its interface, once; a failure is logged, the next announcement follows."""
    for held in shared:
        own = hardware.get(held.interface)
        if own is None:
            continue
        address = held.address.ip
        frames = (
            gratuitous_arp(address, own)
            if isinstance(address, IPv4Address)
            else (unsolicited_advertisement(address, own),)
        )
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as out:
                out.bind((held.interface, 0))
                for frame in frames:
                    out.send(frame)
        except OSError as error:
            log.warning("%s could not be announced on %s: %s", address, held.interface, error.strerror)


def hardware_addresses(limit_seconds: float = 0.5) -> dict[str, bytes]:
    """Interface to hardware address."""
    return {
        row.name: bytes.fromhex(row.hardware_address.replace(":", ""))
        for row in netlink.links(limit_seconds)
        if len(row.hardware_address) == 17
    }


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
