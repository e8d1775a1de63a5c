"""What the database of a node must know because the node is one of a pair."""

from __future__ import annotations

import zlib
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from daemon.files import read_text, remove_file, write_file

FILE_NAME = "70-centralino-pair.cnf"


def server_id(own: IPv4Address | IPv6Address, peer: IPv4Address | IPv6Address) -> int:
    """The number of this node in every GTID that it writes; the peer's is another (1..2^32-1)."""
    mine, theirs = _number(own), _number(peer)
    if mine != theirs:
        return mine
    return mine if int(own) < int(peer) else mine % 0xFFFF_FFFF + 1


def _number(address: IPv4Address | IPv6Address) -> int:
    whole = int(address) if isinstance(address, IPv4Address) else zlib.crc32(address.packed)
    return max(2, whole)  # 1 is what a node without a peer has


def render(number: int) -> str:
    """The file below the database's configuration. It starts read-only, whatever this node was before."""
    return f"""\
# Written by the pair's runtime, removed when the pair is dissolved.
[mariadb]
server_id = {number}
read_only = ON
"""


def write(directory: Path, number: int) -> None:
    """Write it where it differs. Raises StorageError."""
    path = directory / FILE_NAME
    if read_text(path) != render(number):
        write_file(path, render(number))


def is_written(directory: Path, number: int) -> bool:
    """Whether a database that starts now comes up read-only."""
    return read_text(directory / FILE_NAME) == render(number)


def remove(directory: Path) -> None:
    """The node stands alone again: the next start is writable. Raises StorageError."""
    remove_file(directory / FILE_NAME)
