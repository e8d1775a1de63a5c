"""Shared addresses where they must not be are removed, lost ones put back, and the wire told what is true.

keepalived owns the addresses; this is for the times at which it was killed, frozen, or overtaken by somebody
else: a hand at the prompt, NetworkManager, a machine that has been given the same address.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable

from fault_tolerance import addresses as kernel
from fault_tolerance.addresses import Addresses
from fault_tolerance.keepalived import Held
from fault_tolerance.pair import Pair

GRACE_SECONDS = 0.6
ANNOUNCE_AFTER_SECONDS = (0.0, 1.0, 3.0)
DUPLICATE_SECONDS = 10.0

Background = Callable[[str, Callable[[], None]], None]

log = logging.getLogger(__name__)


class AddressGuard:
    """`background(name, work)` runs what may wait. Times are monotonic seconds."""

    def __init__(
        self,
        pair: Pair,
        selector: selectors.BaseSelector,
        background: Background,
        on_change: Callable[[], None],
    ) -> None:
        self.addresses = Addresses(pair.shared, selector, on_change)
        self.duplicates: dict[str, str] = {}
        self._background = background
        self._announce: list[float] = []
        self._astray_since: float | None = None
        self._duplicates_due = 0.0

    def look(self, now: float, *, wanted: bool, serving: bool) -> None:
        """`wanted`: VRRP is master here. Addresses without it are stale; missing with it, lost."""
        self.addresses.look()
        held = self.addresses
        wrong: frozenset[Held] = frozenset(held.missing) if wanted else held.held
        if not wrong:
            self._astray_since = None
            return
        if self._astray_since is None:
            self._astray_since = now
        if now - self._astray_since < GRACE_SECONDS:
            return
        self._astray_since = None
        if not wanted:
            log.warning("shared addresses were left here although this node does not hold them; removed")
            self._background("remove", lambda: kernel.remove(wrong))
        elif serving:
            log.warning("shared addresses were taken away by something else; put back and announced")
            self._background("put back", lambda: kernel.put_back(wrong))
            self.announce_soon(now)

    def announce_soon(self, now: float) -> None:
        """After a change of roles, a heal, an address that was put back: at once, and twice again."""
        if not self._announce:
            self._announce = [now + seconds for seconds in ANNOUNCE_AFTER_SECONDS]

    def announce_once(self) -> None:
        """At once, and not again: later, the address may be another node's."""
        self._announce = []
        self.addresses.announce()

    def announce_due(self, now: float) -> None:
        """Called in every turn of the loop."""
        while self._announce and self._announce[0] <= now:
            self._announce.pop(0)
            self.addresses.announce()

    def look_for_duplicates(self, now: float, *, master: bool) -> None:
        """Each ten seconds a master asks the wire whether somebody else answers for its addresses."""
        if not master:
            self.duplicates = {}
        elif self.addresses.held and now >= self._duplicates_due:
            self._duplicates_due = now + DUPLICATE_SECONDS
            self._background("duplicates", self._find_duplicates)

    def _find_duplicates(self) -> None:
        """Somebody else who answers for a shared address draws phones away: say so, and be louder."""
        found = kernel.duplicates(self.addresses.held)
        if found:
            log.warning("another machine answers for a shared address: %s", found)
            self.addresses.announce()
        self.duplicates = found
