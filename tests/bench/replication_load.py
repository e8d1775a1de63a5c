"""Load for the figures of replication; runs on a node with its Python, prints one line of JSON.

Words: `commits SECONDS PER_SECOND THREADS` writes rows and tells when each was begun and confirmed; `watch
SECONDS` on the slave, when each was first seen; `latency COUNT`, seconds of single commits; `files COUNT
SECONDS BYTES DIRECTORY...` writes files that carry their moment in their name; `arrivals DIRECTORY`, seconds
from that moment to their arrival.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

SOCKET = "/run/mysqld/mysqld.sock"
TABLE = "centralino.bench_rows"


def connect() -> object:
    import pymysql

    return pymysql.connect(unix_socket=SOCKET, user="root", autocommit=True)


def execute(connection: object, statement: str) -> object:
    with connection.cursor() as cursor:  # type: ignore[attr-defined]
        cursor.execute(statement)
        return cursor.fetchone()


def commits(seconds: float, per_second: float, threads: int) -> object:
    moments: dict[int, tuple[float, float]] = {}
    began = time.time() + 1
    total = int(seconds * per_second)

    def write(first: int) -> None:
        link = connect()
        for number in range(first, total, threads):
            due = began + number / per_second
            time.sleep(max(0.0, due - time.time()))
            start = time.time()
            execute(link, f"INSERT INTO {TABLE} (n) VALUES ({number})")
            moments[number] = (start, time.time())

    writers = [threading.Thread(target=write, args=(number,)) for number in range(threads)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    return moments


def watch(seconds: float) -> object:
    seen: dict[int, float] = {}
    link, until, newest = connect(), time.time() + seconds, -1
    while time.time() < until:
        with link.cursor() as cursor:  # type: ignore[attr-defined]
            cursor.execute(f"SELECT n FROM {TABLE} WHERE n > {newest - 400}")
            rows = [row[0] for row in cursor.fetchall()]
        now = time.time()
        for row in rows:
            seen.setdefault(row, now)
        newest = max([newest, *rows])
        time.sleep(0.002)
    return seen


def latency(count: int) -> object:
    link, times = connect(), []
    for _ in range(count):
        began = time.perf_counter()
        execute(link, f"INSERT INTO {TABLE} (n) VALUES (NULL)")
        times.append(time.perf_counter() - began)
    return times


def files(count: int, seconds: float, size: int, directories: list[str]) -> object:
    began, body = time.time(), os.urandom(size)
    for number in range(count):
        time.sleep(max(0.0, began + number * seconds / count - time.time()))
        for directory in directories:
            path = Path(directory) / f"{time.time_ns()}-{number}.wav"
            with path.open("wb") as file:
                file.write(body)
    return count


def arrivals(directory: str) -> object:
    """The change time of a file is the moment at which it got its name at the receiver."""
    found = []
    for entry in os.scandir(directory):
        if entry.name.endswith(".wav"):
            made = int(entry.name.partition("-")[0])
            found.append((entry.stat().st_ctime_ns - made) / 1e9)
    return found


def main(words: list[str]) -> None:
    match words:
        case ["commits", seconds, per_second, threads]:
            answer = commits(float(seconds), float(per_second), int(threads))
        case ["watch", seconds]:
            answer = watch(float(seconds))
        case ["latency", count]:
            answer = latency(int(count))
        case ["files", count, seconds, size, *directories]:
            answer = files(int(count), float(seconds), int(size), directories)
        case ["arrivals", directory]:
            answer = arrivals(directory)
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
