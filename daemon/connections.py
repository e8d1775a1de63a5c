"""D-Bus connections stay for the life of the process, because letting one go can stop the process for ever.

GDBus' worker thread takes a reference to the connection, under its own lock, for every message; PyGObject
then waits for the interpreter. If the interpreter is just finalizing that connection, it waits for the same
lock, and both wait for good. A closed connection costs a few kilobytes and is made again at most once per
restart of the bus, so it is kept; a process that ends leaves by `os._exit`, without finalizing anything.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn, TypeVar

Connection = TypeVar("Connection")

_kept: list[object] = []


def keep(connection: Connection) -> Connection:
    """Never let go of this connection; returns it."""
    _kept.append(connection)
    return connection


def leave(code: int) -> NoReturn:
    """End the process with an exit code, without finalizing what is kept."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
