"""The newest lines of a unit's journal, fit to be shown: no control characters, no endless lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime

from daemon.errors import CommandFailedError, NotFoundError, UnavailableError
from daemon.run import Completed, run
from daemon.subsystem import JsonObject

LIMIT_SECONDS = 10.0
MOST_LINES = 10_000
LONGEST_LINE = 4_000
MICROSECONDS = 1_000_000
PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_CURSOR = re.compile(r"[A-Za-z0-9=;]{1,512}")
# Everything that could move a cursor, ring a bell or reorder text on a terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def read(unit: str, lines: int, cursor: str, execute: Callable[..., Completed] = run) -> JsonObject:
    """`{"lines": [{"when", "priority", "message"}], "cursor"}`, oldest first.

    `cursor`: only what came after it, "" for none. Raises NotFoundError for something that is no cursor,
    UnavailableError if the journal does not answer.
    """
    if cursor and not _CURSOR.fullmatch(cursor):
        raise NotFoundError("the cursor is none of the journal's", "read the log again without a cursor")
    words = ["journalctl", "--quiet", "--no-pager", "--output=json", f"--unit={unit}"]
    words += ["--output-fields=MESSAGE,PRIORITY", f"--lines={max(1, min(lines, MOST_LINES))}"]
    if cursor:
        words.append(f"--after-cursor={cursor}")
    try:
        output = execute(words, limit_seconds=LIMIT_SECONDS).output
    except CommandFailedError as error:
        raise UnavailableError(f"the journal does not answer: {error.message}", "try again") from error
    entries = [entry for entry in (_entry(line) for line in output.splitlines()) if entry is not None]
    last = entries[-1][0] if entries else cursor
    return {"lines": [entry for _, entry in entries], "cursor": last}


def _entry(line: str) -> tuple[str, JsonObject] | None:
    try:
        record = json.loads(line)
        moment = datetime.fromtimestamp(int(record["__REALTIME_TIMESTAMP"]) / MICROSECONDS, UTC)
        priority = PRIORITIES[int(record.get("PRIORITY", 6))]
        entry: JsonObject = {
            "when": moment.isoformat(timespec="milliseconds"),
            "priority": priority,
            "message": clean(_text(record.get("MESSAGE"))),
        }
        return str(record["__CURSOR"]), entry
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, OSError):
        return None


def _text(message: object) -> str:
    """The journal gives text, a list of bytes if they are no text, or null if they are too many."""
    if isinstance(message, str):
        return message
    if isinstance(message, list):
        return bytes(byte & 0xFF for byte in message if isinstance(byte, int)).decode("utf-8", "replace")
    return "(too long for the journal's export)"


def clean(text: str) -> str:
    """The text without control characters (tab and line feed stay), cut to LONGEST_LINE."""
    shown = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return shown if len(shown) <= LONGEST_LINE else shown[:LONGEST_LINE] + " ..."
