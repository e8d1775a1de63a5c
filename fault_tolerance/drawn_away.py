"""Where does the gateway send what is for the shared address? The one witness that two nodes always have.

Nodes that are cut off from each other, but not from the gateway, both serve: neither can tell the cut from
the death of the other one. The one that took over has announced the shared address, so the gateway's answers
to it end there. The master that was replaced finds that echoes from its own address are answered and those
from the shared address no more, and steps down; the new one takes no writes until that must have happened. A
gateway that answers no echo, or none to the shared address, proves nothing and changes nothing.

While the peer is heard, the same finding means that the gateway was misled (a slave that held the address for
a moment announced it), and the master announces the address again.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Callable

from fault_tolerance.pair import Pair
from fault_tolerance.sights import Address, echo_request, is_echo_reply, open_echo
from fault_tolerance.view import SERVING, Link, Sight, View

# So many pairs of questions in a row, the own one answered, the shared one not. They are asked in turns, so a
# gateway that answers only so many echoes a second starves both and is not taken for a witness.
PROOFS = 5
# Seconds between questions: while the peer is heard, which shows that this gateway answers the shared address
# at all; while the peer falls silent and when it has; and when it stays so.
CALM_SECONDS, HURRY_SECONDS, LONELY_SECONDS = 2.0, 0.04, 1.0
HURRIES_FOR_SECONDS = 10.0
# From the first announcement of the new master to the closed database of the one that it replaced: the
# proofs, and what the step down takes.
NOTICED_SECONDS = PROOFS * HURRY_SECONDS + 0.4

log = logging.getLogger(__name__)


def writes_after(view: View) -> float:
    """For how many seconds a node that takes over, and has just announced the shared addresses, leaves its
    database closed: a master that only this node does not hear learns meanwhile that it was replaced. Only
    the gateway tells it, so without one there is nothing to wait for; nor is there for one that stepped down.
    """
    may_live = view.link is not Link.UP and (view.peer is None or view.peer.role in SERVING)
    return NOTICED_SECONDS if may_live and view.gateway is Sight.SEEN else 0.0


class DrawnAway:
    """Asked while this node serves; `standing` matters only while the peer cannot be talked to.

    Never raises.
    """

    def __init__(
        self,
        pair: Pair,
        selector: selectors.BaseSelector,
        on_change: Callable[[], None],
        on_misled: Callable[[float], None],
        open_echo: Callable[[Address, Address], socket.socket] = open_echo,
    ) -> None:
        self._own = pair.own_service
        self._shared = pair.shared[0].address.ip if pair.shared else None
        self._selector = selector
        self._on_change, self._on_misled = on_change, on_misled
        self._open_echo = open_echo
        self._sockets: dict[Address, socket.socket] = {}
        self._target: Address | None = None
        self._answered: set[Address] = set()
        self._asked = self._asked_alone = False
        self._knows_shared = False
        self._proofs = 0
        self._number = 0
        self._asked_at = 0.0

    @property
    def standing(self) -> bool:
        """Whether somebody else has the shared address, as far as the gateway knows."""
        return self._proofs >= PROOFS

    def due(self, lonely_for: float | None) -> float:
        """When to `look` again; `lonely_for` seconds the peer has been silent, None: it speaks."""
        if lonely_for is None:
            return self._asked_at + CALM_SECONDS
        return self._asked_at + (HURRY_SECONDS if lonely_for < HURRIES_FOR_SECONDS else LONELY_SECONDS)

    def look(self, now: float, target: Address | None, *, serving: bool, lonely_for: float | None) -> None:
        """Judge the last questions and ask again, if it is time to. `target` is the gateway, times are
        monotonic seconds."""
        if now < self.due(lonely_for):
            return
        self._asked_at = now
        if not serving or self._shared is None or target is None or target.version != self._shared.version:
            self.close()
            return
        self._judge(now)
        if not self._sockets or target != self._target:
            self._open(target, self._shared)
        self._ask()
        self._asked_alone = lonely_for is not None

    def close(self) -> None:
        """Ask no more, and forget."""
        for made in self._sockets.values():
            self._selector.unregister(made)
            made.close()
        self._sockets = {}
        self._asked = self._knows_shared = False
        self._proofs = 0

    def _judge(self, now: float) -> None:
        if not self._asked:
            return
        if self._shared in self._answered:
            self._knows_shared, self._proofs = True, 0
        elif self._own not in self._answered or not self._knows_shared:
            self._proofs = 0
        elif not self._asked_alone:
            self._proofs = 0
            log.warning("the gateway does not know that %s is here; it is announced again", self._shared)
            self._on_misled(now)
        else:
            self._proofs += 1
            if self._proofs == PROOFS:
                log.warning("the gateway sends what is for %s to another machine", self._shared)
                self._on_change()

    def _open(self, target: Address, shared: Address) -> None:
        """Sockets that hear only what the gateway sends to their own address."""
        self.close()
        self._target = target
        for source in (self._own, shared):
            try:
                made = self._open_echo(target, source)
            except OSError as error:
                # The shared address comes and goes with the role.
                log.debug("the gateway cannot be asked from %s: %s", source, error.strerror)
                self.close()
                return
            self._sockets[source] = made
            self._selector.register(made, selectors.EVENT_READ, lambda source=source: self._readable(source))

    def _ask(self) -> None:
        self._answered.clear()
        self._asked = bool(self._sockets)
        self._number += 1
        turn = list(self._sockets.values())
        for out in turn if self._number % 2 else reversed(turn):
            try:
                out.send(echo_request(self._own.version, self._number))
            except OSError:
                # A question that nobody heard proves nothing.
                self._asked = False

    def _readable(self, source: Address) -> None:
        made = self._sockets[source]
        while True:
            try:
                data = made.recv(2048)
            except OSError:
                return
            if is_echo_reply(data, source.version, self._number):
                self._answered.add(source)
