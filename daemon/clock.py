"""Time that no step of the wall clock can move, comparable between two runs of the daemon in one boot."""

from __future__ import annotations

import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

from daemon.errors import StorageError
from daemon.files import ensure_directory, read_text, write_file

_marking = threading.Lock()


class Clock:
    """Seconds since boot, counting suspend (CLOCK_BOOTTIME), and the name of this boot.

    `marker` is a file below /run: what is written there ends with the boot. The kernel's own boot_id will not
    do, since a unit with ProtectKernelTunables= in a container reads that of the host.
    """

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def seconds(self) -> float:
        """Seconds since boot; comparable across processes, within one boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot(self) -> str:
        """An identifier of this boot; empty if it cannot be kept, then no boot equals another."""
        with _marking:
            try:
                known = (read_text(self._marker) or "").strip()
                if not known:
                    known = str(uuid.uuid4())
                    ensure_directory(self._marker.parent)
                    write_file(self._marker, f"{known}\n", mode=0o644)
            except StorageError:
                return ""
        return known

    def wall_time_in(self, seconds: float) -> str:
        """The wall-clock moment `seconds` from now, ISO 8601 in UTC, for people."""
        return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")
