"""Runs on each node, as the PBX core's own user: commits numbered rows and keeps files, asked for by UDP.

    node_load.py SHARED PORT NODE DATABASE_SOCKET TREE

It answers at the shared address alone, so only the node that holds it is reached. `row 17` is answered with
`row 17 node1` when the commit is done, `file 5` with `file 5 node1 SHA256` when the file is on the disk;
what could not be done is not answered. It knows nothing of roles, as a client of the database does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import random
import socket
import sys
import threading
from pathlib import Path

import pymysql

IP_FREEBIND = 15
LIMIT_SECONDS = 5
WRITERS = 4
SHARED, PORT, NODE, DATABASE, TREE = (
    sys.argv[1],
    int(sys.argv[2]),
    sys.argv[3],
    sys.argv[4],
    Path(sys.argv[5]),
)

Order = tuple[str, int, tuple[str, int]]


def serve() -> None:
    """Answer until the end."""
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wire.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    wire.bind((SHARED, PORT))
    # Short queues: who waits for a database that hangs must not be served a minute later.
    rows: queue.Queue[Order] = queue.Queue(16)
    files: queue.Queue[Order] = queue.Queue(4)
    for _ in range(WRITERS):
        threading.Thread(target=write_rows, args=(wire, rows), daemon=True).start()
    threading.Thread(target=write_files, args=(wire, files), daemon=True).start()
    while True:
        data, sender = wire.recvfrom(64)
        kind, number = data.decode().split()
        chosen = rows if kind == "row" else files
        if not chosen.full():
            chosen.put((kind, int(number), sender))


class Database:
    """One connection of the kind that Asterisk has; thrown away after any error."""

    def __init__(self) -> None:
        self._connection: pymysql.connections.Connection | None = None

    def commit(self, table: str, number: int) -> bool:
        """Whether the commit of a numbered row returned well."""
        try:
            if self._connection is None:
                self._connection = pymysql.connect(
                    unix_socket=DATABASE,
                    user="asterisk",
                    database="centralino",
                    connect_timeout=LIMIT_SECONDS,
                    read_timeout=LIMIT_SECONDS,
                    write_timeout=LIMIT_SECONDS,
                    autocommit=True,
                )
            with self._connection.cursor() as cursor:
                cursor.execute(f"INSERT INTO {table} (n, node) VALUES (%s, %s)", (number, NODE))
        except (pymysql.err.MySQLError, OSError):
            with contextlib.suppress(pymysql.err.MySQLError, OSError, AttributeError):
                if self._connection is not None:
                    self._connection.close()
            self._connection = None
            return False
        return True


def write_rows(wire: socket.socket, orders: queue.Queue[Order]) -> None:
    """Rows, one after the other."""
    database = Database()
    while True:
        _, number, sender = orders.get()
        if database.commit("chaos_rows", number):
            with contextlib.suppress(OSError):
                wire.sendto(f"row {number} {NODE}".encode(), sender)


def write_files(wire: socket.socket, orders: queue.Queue[Order]) -> None:
    """As voicemail is kept: its row first, which only a master takes; then the file, beside, flushed, renamed
    into place."""
    database = Database()
    while True:
        _, number, sender = orders.get()
        chance = random.Random(number)
        data = chance.randbytes(chance.randrange(1_000, 40_000))
        if not database.commit("chaos_files", number):
            continue
        with contextlib.suppress(OSError):
            keep(TREE / f"message{number}.wav", data)
            wire.sendto(f"file {number} {NODE} {hashlib.sha256(data).hexdigest()}".encode(), sender)


def keep(target: Path, data: bytes) -> None:
    """On the disk when it returns."""
    TREE.mkdir(exist_ok=True)
    temporary = target.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(target)
    folder = os.open(TREE, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


if __name__ == "__main__":
    serve()
