"""Structured logging to systemd's journal over its native socket, or to stderr where there is none.

Protocol: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. Records carry MESSAGE, PRIORITY, SYSLOG_IDENTIFIER,
LOGGER, CODE_FILE, CODE_LINE, CODE_FUNC, and upper-case fields given as `extra={"fields": {...}}`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "centralinod"
PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
LONGEST_FIELD = 64 * 1024


class JournalHandler(logging.Handler):
    """Sends each record as one datagram; a journal that is away never stops the daemon."""

    def __init__(self, path: Path = SOCKET) -> None:
        """Raises OSError if the socket is not there."""
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.connect(str(path))

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record; one that the journal does not take goes to stderr."""
        try:
            data = encode(fields_of(record))
            try:
                self._socket.send(data)
            except OSError as error:
                if error.errno in (errno.ECONNREFUSED, errno.ENOTCONN, errno.ENOENT):
                    self._socket.connect(str(self._path))
                    self._socket.send(data)
                else:
                    raise
        except (OSError, ValueError):
            _write_to_stderr(record)


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """The journal fields of one log record; a traceback is part of MESSAGE."""
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
    fields = {
        "MESSAGE": message,
        "PRIORITY": str(next((number for level, number in PRIORITIES if record.levelno >= level), 7)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
    }
    extra = getattr(record, "fields", None)
    if isinstance(extra, Mapping):
        fields |= {f"CENTRALINO_{str(name).upper()}": str(value) for name, value in extra.items()}
    return fields


def encode(fields: Mapping[str, str]) -> bytes:
    """The datagram: `NAME=value` lines, and length-prefixed values where a value holds a newline."""
    parts: list[bytes] = []
    for name, value in fields.items():
        data = value.encode(errors="backslashreplace")[:LONGEST_FIELD]
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def start_logging(level: int = logging.INFO, path: Path = SOCKET) -> None:
    """Send all logging to the journal if systemd started us, else to stderr."""
    handler: logging.Handler | None = None
    if os.environ.get("JOURNAL_STREAM") or os.environ.get("NOTIFY_SOCKET"):
        with contextlib.suppress(OSError):
            handler = JournalHandler(path)
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # pydbus logs a traceback for every refused call; the edge says the same in one line.
    logging.getLogger("pydbus").setLevel(logging.CRITICAL)


def _write_to_stderr(record: logging.LogRecord) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{record.levelname} {record.name}: {record.getMessage()}\n")
