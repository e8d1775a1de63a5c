"""Word of every change of the network: a netlink socket in the daemon's main loop, gathered for a moment.

The kernel only wakes us; what is true is then asked for. A cable that goes or comes raises and clears an
alarm within the second, not at the next look.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Protocol

from daemon.alarms import Alarms
from daemon.errors import CentralinoError
from daemon.network import netlink
from daemon.network.truth import Link, Truth, look
from daemon.settings import Settings
from daemon.settings.messages import Severity

GATHER_SECONDS = 0.2
LIMIT_SECONDS = 1.0

log = logging.getLogger(__name__)

Picture = tuple[object, ...]


class Loop(Protocol):
    """The part of GLib's main loop that is needed."""

    def watch(self, listening: socket.socket, readable: Callable[[], None]) -> None:
        """Call `readable` on the main loop whenever the socket has something."""
        ...


class NetworkEvents:
    """Tells `on_change` when links, addresses or gateways changed, and keeps one alarm an interface."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        alarms: Alarms,
        on_change: Callable[[], None],
        *,
        look: Callable[[float], Truth] = look,
    ) -> None:
        self._settings = settings
        self._alarms = alarms
        self._on_change = on_change
        self._look = look
        self._socket: socket.socket | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._seen: Picture | None = None

    def start(self, loop: Loop) -> None:
        """Begin to listen; without netlink the daemon goes on, only later aware of things."""
        try:
            self._socket = netlink.event_socket()
        except OSError as error:
            log.warning("changes of the network are not told at once: %s", error)
            return
        loop.watch(self._socket, self._arrived)
        self.judge()

    def stop(self) -> None:
        """Stop listening."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def judge(self) -> None:
        """Look, tell a change, raise or clear the alarms."""
        try:
            truth = self._look(LIMIT_SECONDS)
        except CentralinoError as error:
            log.warning("%s", error)
            return
        # Counters and times are no change; what a person would see is.
        picture: Picture = (
            tuple((link.name, link.up, link.carrier, link.addresses) for link in truth.links.values()),
            truth.gateways,
        )
        for name, interface in self._settings().network.interfaces.items():
            identifier = f"network.{name}"
            trouble = _trouble(name, truth.links.get(name)) if interface.enabled else None
            if trouble is None:
                self._alarms.clear_alarm(identifier)
            else:
                self._alarms.raise_alarm(identifier, trouble, Severity.CRITICAL)
        changed, self._seen = self._seen not in (None, picture), picture
        if changed:
            self._on_change()

    def _arrived(self) -> None:
        with self._lock:
            if self._socket is None:
                return
            netlink.drain(self._socket)
            if self._timer is not None and self._timer.is_alive():
                return
            self._timer = threading.Timer(GATHER_SECONDS, self.judge)
            self._timer.daemon = True
            self._timer.start()


def _trouble(name: str, link: Link | None) -> str | None:
    if link is None:
        return f"The interface {name} is gone: check the card, or the adapter of the virtual machine."
    if not link.carrier:
        return f"The interface {name} has no link: check its cable, or its connection in the hypervisor."
    return None
