"""Runs on each node as root and writes what is true there as lines of JSON: what its database allows twenty
times a second, what its role runtime says five times a second. Moments are monotonic, the same on all nodes
and on their host, because they share its kernel.

    node_watch.py DATABASE_SOCKET CONTROL_SOCKET
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time

import pymysql

DATABASE_SECONDS = 0.05
ROLE_SECONDS = 0.2
DATABASE, CONTROL = sys.argv[1:3]
KEPT = ("role", "epoch", "reason", "obstacles", "vrrp", "failure", "work")

_turn = threading.Lock()


def say(table: dict[str, object]) -> None:
    """One line."""
    with _turn:
        print(json.dumps(table), flush=True)


def watch_database() -> None:
    """`read_only` with the moments before and after the answer; nothing while nobody answers."""
    connection = None
    while True:
        try:
            if connection is None:
                connection = pymysql.connect(
                    unix_socket=DATABASE, user="root", connect_timeout=1, read_timeout=1, autocommit=True
                )
            asked = time.monotonic()
            with connection.cursor() as cursor:
                cursor.execute("SELECT @@read_only")
                row = cursor.fetchone()
            say({"asked": asked, "answered": time.monotonic(), "writable": row is not None and row[0] == 0})
        except (pymysql.err.MySQLError, OSError):
            with contextlib.suppress(pymysql.err.MySQLError, OSError, AttributeError):
                if connection is not None:
                    connection.close()
            connection = None
        time.sleep(DATABASE_SECONDS)


def watch_role() -> None:
    """Role, reason, obstacles, alarms, as the runtime tells them to centralinod."""
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.settimeout(2)
                link.connect(CONTROL)
                reader = link.makefile("r")
                while True:
                    link.sendall(b'{"id":1,"method":"subscribe"}\n')
                    table = json.loads(reader.readline())
                    while "event" in table:
                        table = json.loads(reader.readline())
                    said(table["result"])
                    time.sleep(ROLE_SECONDS)
        except (OSError, ValueError, KeyError):
            time.sleep(ROLE_SECONDS)


def said(found: dict[str, dict[str, object]]) -> None:
    """Of the status, what the audits read."""
    status = found["status"]
    peer = status.get("peer")
    database, files = status["database"], status["files"]
    table = {key: status[key] for key in KEPT}
    table |= {
        "moment": time.monotonic(),
        "alarms": found["alarms"],
        "link": status["link"]["state"],  # type: ignore[index]
        "peer_ready": isinstance(peer, dict) and peer["ready"] is True and peer["role"] == "slave",
        "synchronous": database["synchronous"],  # type: ignore[index]
        "database": database["detail"],  # type: ignore[index]
        "files": files["detail"],  # type: ignore[index]
    }
    say(table)


if __name__ == "__main__":
    threading.Thread(target=watch_database, daemon=True).start()
    watch_role()
