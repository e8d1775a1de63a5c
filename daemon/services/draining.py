"""Ends the PBX core without cutting calls: no new ones, wait for those that are up, at most so long."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from daemon.services.api import Progress
from daemon.services.probes.asking import Deadline, ProbeError
from daemon.services.probes.manager_interface import PORT, Manager

LOOPBACK = "127.0.0.1"
ANSWER_SECONDS = 2.0
LOOK_SECONDS = 1.0

log = logging.getLogger(__name__)

_TROUBLE = (OSError, EOFError, ProbeError)


class CallDrain:
    """`core stop gracefully` by the manager interface, with our own deadline, since Asterisk has none.

    The command does not return before the last channel is gone, so it has a connection of its own; a second
    one counts calls. Asterisk ends by itself when the last call does.
    """

    def __init__(self, secret_file: Path, host: str = LOOPBACK, port: int = PORT) -> None:
        self._order = Manager(host, port, secret_file)
        self._count = Manager(host, port, secret_file)

    def run(self, seconds: float, ended: Callable[[float], bool], progress: Progress) -> bool:
        """Drain for at most `seconds`; true if nothing is left, false if calls must be cut.

        `ended(t)` waits up to t seconds for the end of the process and says whether it ended. Whatever
        `progress` raises takes the order back, and is raised again.
        """
        deadline = Deadline(seconds)
        try:
            self._count.connect(Deadline(ANSWER_SECONDS))
            self._order.connect(Deadline(ANSWER_SECONDS))
            self._order.send(Deadline(ANSWER_SECONDS), "Command", Command="core stop gracefully")
        except _TROUBLE as error:
            log.warning("the calls cannot be drained, since Asterisk does not take the order: %s", error)
            self._close()
            return False
        first: int | None = None
        try:
            while True:
                left = deadline.ends - time.monotonic()
                calls = self._calls()
                first = calls if first is None else max(first, calls or 0)
                if left <= 0:
                    log.warning("%s are cut off after %g s", said(calls), seconds)
                    return False
                fraction = None if not first or calls is None else 1.0 - calls / first
                progress(fraction, f"{said(calls)} left, cut off in {left:.0f} s at the latest")
                if ended(min(LOOK_SECONDS, left)):
                    return True
        except BaseException:
            self._take_back()
            raise
        finally:
            self._close()

    def _calls(self) -> int | None:
        """Live calls; None while Asterisk is already going and does not say."""
        try:
            deadline = Deadline(ANSWER_SECONDS)
            self._count.connect(deadline)
            return self._count.live_calls(deadline)
        except _TROUBLE:
            self._count.close()
            return None

    def _take_back(self) -> None:
        with contextlib.suppress(*_TROUBLE):
            deadline = Deadline(ANSWER_SECONDS)
            self._count.connect(deadline)
            self._count.command(deadline, "core abort shutdown")
            log.info("the graceful stop was taken back")

    def _close(self) -> None:
        self._order.close()
        self._count.close()


def said(calls: int | None) -> str:
    """`3 live calls`, for sentences."""
    if calls is None:
        return "live calls"
    return f"{calls} live call{'' if calls == 1 else 's'}"
