"""A silent node: SIP closed in both directions by a small nftables table of its own.

The firewall's policy is centralinod's and takes a whole transaction of many rules; the step that opens a
node must be one short command that works while centralinod is away. So the table stands beside the policy:
its drops come first (priority -5) and deleting it opens what the policy lets in. Silence in the other
direction keeps a slave's Asterisk from qualifying phones that belong to the master.
"""

from __future__ import annotations

from daemon.errors import CommandFailedError
from daemon.run import run

TABLE = "inet centralino_role"
PORTS = "{ 5060-5063, 5070-5071 }"
LIMIT_SECONDS = 5.0

CLOSED = f"""\
add table {TABLE}
delete table {TABLE}
add table {TABLE}
add chain {TABLE} input {{ type filter hook input priority -5; policy accept; }}
add chain {TABLE} output {{ type filter hook output priority -5; policy accept; }}
add rule {TABLE} input iif lo accept
add rule {TABLE} input udp dport {PORTS} drop
add rule {TABLE} input tcp dport {PORTS} drop
add rule {TABLE} output oif lo accept
add rule {TABLE} output udp sport {PORTS} drop
add rule {TABLE} output tcp sport {PORTS} drop
add rule {TABLE} output tcp dport {PORTS} drop
"""
OPEN = f"add table {TABLE}\ndelete table {TABLE}\n"
# "REGISTER" at the beginning of a datagram. What is registered is written to the database; a phone that gets
# no answer asks again within half a second (RFC 3261 section 17.1.2), one that hears of a failure much later.
REGISTER = f"@th,64,64 0x{b'REGISTER'.hex()}"
UNREGISTERED = f"""\
{OPEN}add table {TABLE}
add chain {TABLE} input {{ type filter hook input priority -5; policy accept; }}
add rule {TABLE} input iif lo accept
add rule {TABLE} input udp dport {PORTS} {REGISTER} drop
add rule {TABLE} input tcp dport {PORTS} drop
"""


def close() -> None:
    """Close SIP, in one transaction. Raises CommandFailedError."""
    run(["nft", "-f", "-"], input_text=CLOSED, limit_seconds=LIMIT_SECONDS)


def open_but_for_registrations() -> None:
    """Open SIP over UDP, and leave out what needs a database that takes writes. Raises CommandFailedError."""
    run(["nft", "-f", "-"], input_text=UNREGISTERED, limit_seconds=LIMIT_SECONDS)


def open_sip() -> None:
    """Open what the firewall's policy lets in. Raises CommandFailedError."""
    run(["nft", "-f", "-"], input_text=OPEN, limit_seconds=LIMIT_SECONDS)


def is_closed() -> bool:
    """Whether the kernel has the table and both its chains. Raises CommandFailedError if nobody can tell."""
    done = run(["nft", "-s", "list", "table", *TABLE.split()], limit_seconds=LIMIT_SECONDS, check=False)
    if done.status != 0:
        if "No such file" in done.errors:
            return False
        raise CommandFailedError(f"nft does not answer: {done.errors.strip()[:200]}")
    return done.output.count("drop") >= 5
