"""The shared addresses as the kernel has them: seen by netlink events, removed where they must not be.

The events come through `daemon.network.netlink`, which reads the same messages as pyroute2 for a twentieth
of its memory; the rare change is one `ip` command.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable, Iterable, Sequence

from daemon.errors import CommandFailedError
from daemon.network import netlink
from daemon.network.wire import Question, ask
from daemon.run import run
from fault_tolerance.announce import announce, hardware_addresses
from fault_tolerance.keepalived import Held

CHANGE_LIMIT_SECONDS = 3.0
LOOK_LIMIT_SECONDS = 0.5

log = logging.getLogger(__name__)


class Addresses:
    """`held` is fresh after every event; a look that fails keeps the last one and is tried again."""

    def __init__(
        self,
        shared: Sequence[Held],
        selector: selectors.BaseSelector,
        on_change: Callable[[], None],
    ) -> None:
        self._shared = tuple(shared)
        self._on_change = on_change
        self._events = netlink.event_socket()
        self._selector = selector
        self._selector.register(self._events, selectors.EVENT_READ, self._event)
        self._stale = True
        self._held: frozenset[Held] = frozenset()
        self._carrier: dict[str, bool] = {}
        self._looked = 0.0

    def look(self) -> None:
        """Read the kernel if anything may have changed, and every few seconds besides."""
        now = time.monotonic()
        if not self._stale and now - self._looked < 5.0:
            return
        try:
            held, carrier = held_now(self._shared), _carriers({held.interface for held in self._shared})
        except CommandFailedError as error:
            log.warning("%s", error)
            return
        self._stale, self._looked = False, now
        if held != self._held or carrier != self._carrier:
            for gone in self._held - held:
                log.info("the shared address %s is gone from here", gone.address.ip)
            for came in held - self._held:
                log.info("the shared address %s is here", came.address.ip)
            self._held, self._carrier = held, carrier
            self._on_change()

    @property
    def held(self) -> frozenset[Held]:
        """Which of them this node has."""
        return self._held

    @property
    def missing(self) -> tuple[Held, ...]:
        """Which of them it has not."""
        return tuple(held for held in self._shared if held not in self._held)

    @property
    def carrier(self) -> bool:
        """Whether every interface that carries one has a link."""
        return all(self._carrier.get(held.interface, False) for held in self._shared)

    def announce(self) -> None:
        """Tell the wire where the addresses that are held are."""
        if not self._held:
            return
        try:
            announce(self._held, hardware_addresses())
        except CommandFailedError as error:
            log.warning("the shared addresses could not be announced: %s", error)

    def close(self) -> None:
        """Hear no more."""
        self._selector.unregister(self._events)
        self._events.close()

    def _event(self) -> None:
        netlink.drain(self._events)
        self._stale = True
        self.look()


def held_now(shared: Iterable[Held]) -> frozenset[Held]:
    """Ask the kernel. Raises CommandFailedError."""
    names = {row.index: row.name for row in netlink.links(LOOK_LIMIT_SECONDS)}
    there = {(names.get(row.index), row.address) for row in netlink.addresses(LOOK_LIMIT_SECONDS)}
    return frozenset(held for held in shared if (held.interface, held.address.ip) in there)


def duplicates(shared: Iterable[Held]) -> dict[str, str]:
    """Shared addresses that another machine answers for, and its hardware address; waits 0.15 s."""
    own = hardware_addresses()
    questions = [
        Question(held.interface, own[held.interface].hex(":"), held.address.ip)
        for held in shared
        if held.interface in own
    ]
    try:
        found = ask(questions) if questions else {}
    except OSError as error:
        log.debug("the wire could not be asked: %s", error.strerror)
        return {}
    return {str(question.target): hardware for question, hardware in found.items()}


def remove(addresses: Iterable[Held]) -> None:
    """Take addresses away; one that is not there is fine. Raises CommandFailedError if `ip` does not run."""
    for held in addresses:
        single = f"{held.address.ip}/{held.address.ip.max_prefixlen}"
        run(
            ["ip", "address", "del", single, "dev", held.interface],
            limit_seconds=CHANGE_LIMIT_SECONDS,
            check=False,
        )


def put_back(addresses: Iterable[Held]) -> None:
    """Add addresses as keepalived would. Raises CommandFailedError if `ip` does not run."""
    for held in addresses:
        run(
            ["ip", "address", "replace", *held.line().removesuffix(" -nodad").split()]
            + (["nodad"] if held.address.version == 6 else []),
            limit_seconds=CHANGE_LIMIT_SECONDS,
            check=False,
        )


def _carriers(interfaces: Iterable[str]) -> dict[str, bool]:
    wanted = set(interfaces)
    return {
        row.name: bool(row.flags & netlink.IFF_UP and row.flags & netlink.IFF_LOWER_UP)
        for row in netlink.links(LOOK_LIMIT_SECONDS)
        if row.name in wanted
    }
