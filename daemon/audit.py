"""The audit log: every mutating and every refused call, one JSON object a line, durable before the answer."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from daemon.errors import StorageError
from daemon.files import append_line, ensure_directory, read_text, rotate
from daemon.subsystem import JsonObject

log = logging.getLogger(__name__)

KEPT_FILES = 5
LONGEST_VALUE = 200
MEBIBYTE = 1024 * 1024


class AuditLog:
    """Append-only; a disk that refuses sends entries to the journal and is reported by `trouble`."""

    def __init__(self, path: Path, maximum_bytes: int = 16 * MEBIBYTE) -> None:
        self.path = path
        self.maximum_bytes = maximum_bytes
        self.trouble: str | None = None
        self._lock = threading.Lock()

    def record(
        self, *, who: str, uid: int, method: str, arguments: Mapping[str, object], outcome: str
    ) -> None:
        """Write one entry; never raises. Values are cut at 200 characters."""
        entry: JsonObject = {
            "when": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": who,
            "uid": uid,
            "method": method,
            "arguments": {name: _short(value) for name, value in arguments.items()},
            "outcome": _short(outcome),
        }
        line = json.dumps(entry, ensure_ascii=True)
        with self._lock:
            try:
                ensure_directory(self.path.parent, 0o750)
                size = append_line(self.path, line.encode())
                self.trouble = None
            except StorageError as error:
                self.trouble = f"the audit log goes to the journal: {error}"
                log.error("audit %s (%s)", line, error)
                return
            try:
                if size > self.maximum_bytes:
                    rotate(self.path, KEPT_FILES)
            except StorageError as error:
                self.trouble = f"the audit log could not be rotated: {error}"
                log.error("%s", self.trouble)

    def entries(self, limit: int) -> list[JsonObject]:
        """The newest entries first, over all kept files; lines that are damaged are left out.

        Raises StorageError if a file cannot be read.
        """
        found: list[JsonObject] = []
        for number in range(KEPT_FILES + 1):
            file = self.path if number == 0 else self.path.with_name(f"{self.path.name}.{number}")
            text = read_text(file, limit=4 * self.maximum_bytes)
            for line in reversed((text or "").splitlines()):
                if len(found) >= limit:
                    return found
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    found.append(entry)
        return found


def _short(value: object) -> object:
    if isinstance(value, str):
        return value if len(value) <= LONGEST_VALUE else value[: LONGEST_VALUE - 3] + "..."
    if isinstance(value, list | tuple):
        return [_short(item) for item in value[:50]]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _short(str(value))
