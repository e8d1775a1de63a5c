"""Time that no step of the wall clock can move, comparable between two runs of the daemon in one boot."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

BOOT_IDENTIFIER = Path("/proc/sys/kernel/random/boot_id")


class Clock:
    """Seconds since boot, counting suspend (CLOCK_BOOTTIME), and the name of this boot."""

    def seconds(self) -> float:
        """Seconds since boot; comparable across processes, within one boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot(self) -> str:
        """An identifier of this boot; empty if the kernel gives none, then no boot equals another."""
        try:
            return BOOT_IDENTIFIER.read_text().strip()
        except OSError:
            return ""

    def wall_time_in(self, seconds: float) -> str:
        """The wall-clock moment `seconds` from now, ISO 8601 in UTC, for people."""
        return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")
