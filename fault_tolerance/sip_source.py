"""SIP over UDP speaks from the shared address, as phones, their NAT and providers expect.

Asterisk listens at every address with one socket, and the kernel gives what such a socket sends the first
address of the interface: a request to the shared address would be answered from the node's own, and a phone
behind NAT, or with a connected socket, would never see the answer. TCP and TLS know their own ends.

A table of its own: what comes to a shared address is handed to the node's own, so that the kernel changes the
answers back; what Asterisk sends by itself goes out as the primary shared address. It may stand on a slave as
well, which has no shared address and whose SIP is dropped before.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from daemon.run import run
from fault_tolerance.pair import Pair
from fault_tolerance.silence import PORTS

TABLE = "ip centralino_sip"
LIMIT_SECONDS = 5.0
GONE = f"add table {TABLE}\ndelete table {TABLE}\n"


def render(pair: Pair) -> str:
    """The transaction that puts the table in place of an older one; only its removal where it has no use.

    Shared addresses beside the primary one's interface are left alone: the node's own address there is not
    known to the pair.
    """
    shared = [
        held.address.ip
        for held in pair.shared
        if held.interface == pair.interface and isinstance(held.address.ip, IPv4Address)
    ]
    if pair.cloud or not shared or not isinstance(pair.own_service, IPv4Address):
        return GONE
    addresses = ", ".join(map(str, shared))
    return f"""\
{GONE}add table {TABLE}
add chain {TABLE} arriving {{ type nat hook prerouting priority -100; policy accept; }}
add chain {TABLE} leaving {{ type nat hook postrouting priority 100; policy accept; }}
add rule {TABLE} arriving ip daddr {{ {addresses} }} udp dport {PORTS} dnat to {pair.own_service}
add rule {TABLE} leaving oifname "{pair.interface}" ip saddr {pair.own_service} udp sport {PORTS} \
snat to {shared[0]}
"""


def apply(pair: Pair) -> None:
    """Put the table in place. Raises CommandFailedError."""
    run(["nft", "-f", "-"], input_text=render(pair), limit_seconds=LIMIT_SECONDS)


def remove() -> None:
    """Without a pair there is no shared address. Raises CommandFailedError."""
    run(["nft", "-f", "-"], input_text=GONE, limit_seconds=LIMIT_SECONDS)
