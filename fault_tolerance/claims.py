"""Does the peer claim the shared addresses while nobody can talk to it? Its adverts say so.

keepalived gives way to a greater priority and ignores a lesser one, and between two nodes that both serve the
base priority decides, not who came last. When words pass in one direction only, the slave cannot hear its
master and takes over; the master hears the adverts of the new one and steps down by them.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Callable

from fault_tolerance.pair import Pair

VRRP_PROTOCOL = 112
ADVERT = 0x31  # version 3, type 1 (RFC 9568 section 5.2)
# Longer than two nodes need to agree by priority after a heal, when both spoke for a moment.
PERSISTENT_SECONDS = 1.0
MISSED = 4

log = logging.getLogger(__name__)


class Claims:
    """Listens only when it is told to, for it is rarely needed; never raises."""

    def __init__(
        self,
        pair: Pair,
        selector: selectors.BaseSelector,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pair = pair
        self._selector = selector
        self._on_change = on_change
        self._clock = clock
        self._socket: socket.socket | None = None
        self._first = self._last = 0.0

    @property
    def standing(self) -> bool:
        """Whether the peer has sent adverts for a while, and goes on."""
        return self._fresh and self._last - self._first >= PERSISTENT_SECONDS

    def listen(self, wanted: bool) -> None:
        """Begin or end to listen."""
        if wanted == (self._socket is not None):
            return
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None
            self._first = self._last = 0.0
            return
        family = socket.AF_INET if self._pair.own_service.version == 4 else socket.AF_INET6
        try:
            made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, VRRP_PROTOCOL)
        except OSError as error:
            log.debug("adverts cannot be heard: %s", error.strerror)
            return
        made.setblocking(False)
        self._socket = made
        self._selector.register(made, selectors.EVENT_READ, self._readable)

    def close(self) -> None:
        """Hear no more."""
        self.listen(False)

    @property
    def _fresh(self) -> bool:
        return self._clock() - self._last < MISSED * self._pair.adverts.value

    def _readable(self) -> None:
        before = self.standing
        with contextlib.suppress(OSError):
            while self._socket is not None:
                data, sender = self._socket.recvfrom(512)
                if sender[0].partition("%")[0] == str(self._pair.peer_service):
                    self.hear(data)
        if self.standing is not before:
            self._on_change()

    def hear(self, packet: bytes) -> None:
        """One packet of the peer; IPv4 brings its own header along."""
        body = packet[(packet[0] & 15) * 4 :] if self._pair.own_service.version == 4 and packet else packet
        # Priority 0 is a farewell.
        if len(body) >= 8 and body[0] == ADVERT and body[1] == self._pair.router and body[2]:
            if not self._fresh:
                self._first = self._clock()
            self._last = self._clock()
