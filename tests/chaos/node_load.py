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


def write_rows(wire: socket.socket, orders: queue.Queue[Order]) -> None:
    """One connection of the kind that Asterisk has; thrown away after any error."""
    connection = None
    while True:
        _, number, sender = orders.get()
        try:
            if connection is None:
                connection = pymysql.connect(
                    unix_socket=DATABASE,
                    user="asterisk",
                    database="centralino",
                    connect_timeout=LIMIT_SECONDS,
                    read_timeout=LIMIT_SECONDS,
                    write_timeout=LIMIT_SECONDS,
                    autocommit=True,
                )
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO chaos_rows (n, node) VALUES (%s, %s)", (number, NODE))
            wire.sendto(f"row {number} {NODE}".encode(), sender)
        except (pymysql.err.MySQLError, OSError):
            with contextlib.suppress(pymysql.err.MySQLError, OSError, AttributeError):
                if connection is not None:
                    connection.close()
            connection = None


def write_files(wire: socket.socket, orders: queue.Queue[Order]) -> None:
    """As voicemail is written: beside, flushed, renamed into place."""
    while True:
        _, number, sender = orders.get()
        chance = random.Random(number)
        data = chance.randbytes(chance.randrange(1_000, 40_000))
        try:
            TREE.mkdir(exist_ok=True)
            target = TREE / f"message{number}.wav"
            temporary = target.with_suffix(".part")
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(target)
            folder = os.open(TREE, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
            wire.sendto(f"file {number} {NODE} {hashlib.sha256(data).hexdigest()}".encode(), sender)
        except OSError:
            continue


if __name__ == "__main__":
    serve()
