"""The runtime of a node that has no pair yet: it lets one guest in who can do nothing but pair, then ends."""

from __future__ import annotations

import logging
import selectors
import signal
import sys
import time
from collections.abc import Sequence

from daemon.errors import NotFoundError
from daemon.notify import ServiceManagerLink
from fault_tolerance.contracts import Channel
from fault_tolerance.control import Doors
from fault_tolerance.pair import RUN
from fault_tolerance.pairing import INVITATION_MINUTES

log = logging.getLogger(__name__)


def wait_for_guest() -> int:
    """Until the invitation is over or centralinod restarts this unit with a pair."""
    selector = selectors.DefaultSelector()
    systemd = ServiceManagerLink()
    ends = time.monotonic() + INVITATION_MINUTES * 60
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stopped.append(received))
    doors = Doors(RUN / "link", selector, lambda *_streams: None, _serve)
    systemd.ready("a guest may pair")
    log.info("waiting for a guest")
    while not stopped and time.monotonic() < ends:
        for key, _ in selector.select(1.0):
            key.data()
        systemd.alive()
    doors.close()
    return 0


def _serve(channel: Channel, _words: Sequence[str], guest: bool) -> list[str]:
    if channel is not Channel.PAIR or not guest:
        raise NotFoundError("this node has no pair")
    return [sys.executable, "-m", "fault_tolerance.service", "greet"]
