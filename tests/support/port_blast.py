"""One packet to every port: TCP SYN and UDP, IPv4 and IPv6, from raw sockets. A program; needs root.

    python port_blast.py TARGET SOURCE tcp|udp [FIRST LAST]

Both addresses are of one IP version. The datagrams look like SIP requests, so that no guard drops them for
their contents.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from ipaddress import ip_address

REQUEST = b"REGISTER sip:scan SIP/2.0\r\n\r\n"
BURST = 200
PAUSE_SECONDS = 0.004


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo(source: bytes, target: bytes, protocol: int, length: int) -> bytes:
    """RFC 9293 section 3.1, RFC 8200 section 8.1."""
    if len(source) == 4:
        return source + target + struct.pack(">BBH", 0, protocol, length)
    return source + target + struct.pack(">IHBB", length, 0, 0, protocol)


def segment(source: bytes, target: bytes, port: int, protocol: int) -> bytes:
    """A SYN or a datagram to `port`."""
    if protocol == socket.IPPROTO_TCP:
        head = struct.pack(">HHIIBBHHH", 40000, port, port, 0, 5 << 4, 2, 64240, 0, 0)
        place, body = 16, head
    else:
        place, body = 6, struct.pack(">HHHH", 40000, port, 8 + len(REQUEST), 0) + REQUEST
    total = checksum(pseudo(source, target, protocol, len(body)) + body) or 0xFFFF
    return body[:place] + struct.pack(">H", total) + body[place + 2 :]


def blast(target: str, source: str, word: str, first: int = 1, last: int = 65535) -> None:
    """Send one packet to every port, slowly enough for a small machine."""
    protocol = socket.IPPROTO_TCP if word == "tcp" else socket.IPPROTO_UDP
    version = socket.AF_INET if ip_address(target).version == 4 else socket.AF_INET6
    packed = [ip_address(text).packed for text in (source, target)]
    with socket.socket(version, socket.SOCK_RAW, protocol) as link:
        link.bind((source, 0))
        for port in range(first, last + 1):
            link.sendto(segment(packed[0], packed[1], port, protocol), (target, 0))
            if port % BURST == 0:
                time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    words = sys.argv[1:]
    blast(words[0], words[1], words[2], *(int(word) for word in words[3:]))
