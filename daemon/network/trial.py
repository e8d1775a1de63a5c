"""What watches over a network change that waits for confirm.

Two nets: our own checks right after the change (does the gateway answer, does a name server, does the admin's
session live, is the peer seen), which make the engine return at once; and NetworkManager's own timed
checkpoint, a while after our deadline, should this daemon be dead by then. NetworkManager's return would take
shared addresses away (it re-applies all), so it is only the second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from daemon import dns
from daemon.errors import CentralinoError, UnavailableError
from daemon.network import netlink, wire
from daemon.network.before import Before, Gateway, forget, remembered
from daemon.network.manager import Manager
from daemon.network.sessions import Session, Traffic, sessions
from daemon.network.truth import LIMIT_SECONDS, Link, Truth
from daemon.settings import Settings
from daemon.settings.network import NetworkSection

Address = IPv4Address | IPv6Address

BEFORE_FILE = "network-trial.json"
CHECKPOINT_MARGIN_SECONDS = 30
GATEWAY_LIMIT_SECONDS = 5.0
GATEWAY_ATTEMPTS = 10
BEFORE_LIMIT_SECONDS = 0.3
NAME_SERVER_LIMIT_SECONDS = 3.0
SESSION_LIMIT_SECONDS = 4.0
# The link is given up after two seconds of silence and dialled anew until it stands.
PEER_LIMIT_SECONDS = 10.0
# After a change that cuts only the way there, the peer is heard on until it hangs up, two seconds later; a
# second later it counts as lost.
PEER_SETTLE_SECONDS = 4.0
PEER_POLL_SECONDS = 0.25
POLL_SECONDS = 0.05
LOST_AFTER_REPEATS = 3

log = logging.getLogger(__name__)


class Trial:
    """One change on trial at a time; see daemon.subsystem.Guard."""

    def __init__(
        self,
        manager: Manager,
        look: Callable[[float], Truth],
        run_directory: Path,
        peer_trouble: Callable[[], str | None],
    ) -> None:
        """`peer_trouble` says why a pair is cut in two, None where it is not or where there is no pair."""
        self._manager = manager
        self._look = look
        self._file = run_directory / BEFORE_FILE
        self._peer_trouble = peer_trouble
        self._before = Before()

    def begin(self, old: Settings, seconds: int, *, checkpoint: bool) -> None:
        """Remember what was true, and with `checkpoint` have NetworkManager remember it too.

        Takes milliseconds as a rule.
        """
        truth = self._look(LIMIT_SECONDS)
        gateways = list(_gateways(old.network, truth))
        self._before = Before(
            frozenset(gateways) - _answering(gateways, truth, BEFORE_LIMIT_SECONDS),
            frozenset(
                server for server in old.network.dns.servers if not _serves(server, "", BEFORE_LIMIT_SECONDS)
            ),
            {session: _way(session) for session in sessions()},
            self._peer_trouble() is not None,
            self._checkpoint(seconds) if checkpoint else "",
        )
        self._before.keep(self._file)

    def resume(self) -> bool:
        """After a restart of the daemon: whether it is known what was true before the change."""
        before = remembered(self._file)
        if before is not None:
            self._before = before
        return before is not None

    def _checkpoint(self, seconds: int) -> str:
        try:
            return self._manager.create_checkpoint(seconds + CHECKPOINT_MARGIN_SECONDS)
        except UnavailableError as error:
            log.warning("NetworkManager keeps no checkpoint, our own return has to do: %s", error)
            return ""

    def trouble(self, new: Settings) -> str | None:
        """Why the box must return at once, None if it need not. Waits only for what does not answer."""
        for check in (self._gateway, self._name_servers, self._session, self._peer):
            if reason := check(new):
                return reason
        return None

    def end(self) -> None:
        """Let NetworkManager forget; nothing if it need not."""
        before = remembered(self._file)
        try:
            if before is not None and before.checkpoint:
                self._manager.destroy_checkpoint(before.checkpoint)
        finally:
            forget(self._file)

    def _gateway(self, new: Settings) -> str | None:
        truth = self._look(LIMIT_SECONDS)
        wanted = [
            entry for entry in _gateways(new.network, truth) if entry not in self._before.silent_gateways
        ]
        missing = set(wanted) - _answering(wanted, truth, GATEWAY_LIMIT_SECONDS, GATEWAY_ATTEMPTS)
        if not missing:
            return None
        interface, gateway = sorted(missing, key=str)[0]
        return f"the gateway {gateway} does not answer on {interface}"

    def _name_servers(self, new: Settings) -> str | None:
        servers = [server for server in new.network.dns.servers if server not in self._before.silent_servers]
        if not servers:
            return None
        limit = NAME_SERVER_LIMIT_SECONDS / len(servers)
        if any(_serves(server, new.domain.fqdn or "", limit) for server in servers):
            return None
        return f"no name server answers ({', '.join(str(server) for server in servers)})"

    def _session(self, _new: Settings) -> str | None:
        """Sessions to an address that the box still has must live; others end by the admin's own wish."""
        if not self._before.ways:
            return None
        own = {address.ip for link in self._look(LIMIT_SECONDS).links.values() for address in link.addresses}
        kept = {session: way for session, way in self._before.ways.items() if session.local in own}
        for session, way in kept.items():
            now = _way(session)
            if now is None or now != way:
                return f"the way back to the SSH session from {session.peer} has changed"
        ends = time.monotonic() + SESSION_LIMIT_SECONDS
        while kept:
            seen = sessions()
            lost = [session for session in kept if _is_lost(seen.get(session))]
            if lost:
                return f"the SSH session from {lost[0].peer} does not answer any more"
            waiting = [session for session in kept if session in seen and seen[session].unacknowledged]
            if not waiting or time.monotonic() > ends:
                return None
            time.sleep(POLL_SECONDS)
        return None

    def _peer(self, new: Settings) -> str | None:
        """A link that the change interrupts is dialled anew; it gets the time for that, and to be missed."""
        if self._before.peer_was_lost or not new.fault_tolerance.enabled:
            return None
        began = time.monotonic()
        while True:
            reason, passed = self._peer_trouble(), time.monotonic() - began
            if passed >= (PEER_SETTLE_SECONDS if reason is None else PEER_LIMIT_SECONDS):
                return reason
            time.sleep(PEER_POLL_SECONDS)


def _is_lost(traffic: Traffic | None) -> bool:
    """Sent again and again without an answer; a session that is gone was closed by its owner."""
    return traffic is not None and traffic.unacknowledged > 0 and traffic.repeats >= LOST_AFTER_REPEATS


def _way(session: Session) -> int | None:
    way = netlink.route_to(session.peer)
    return None if way is None else way.index


def _gateways(network: NetworkSection, truth: Truth) -> Iterator[Gateway]:
    """The settings' gateways and those that the kernel has, each once, where there is a cable."""
    found: list[Gateway] = []
    for name, interface in network.interfaces.items():
        if interface.enabled:
            found += [(name, gateway) for gateway in (interface.gateway, interface.gateway6) if gateway]
    for line in truth.gateways:
        address, _, name = line.partition(" via ")
        found.append((name, ip_address(address)))
    for entry in dict.fromkeys(found):
        link = truth.links.get(entry[0])
        if link is not None and link.carrier and link.hardware_address:
            yield entry


def _answering(
    gateways: Sequence[Gateway], truth: Truth, limit_seconds: float, attempts: int = wire.ATTEMPTS
) -> set[Gateway]:
    questions = {}
    for name, gateway in gateways:
        link = truth.links[name]
        question = wire.Question(name, link.hardware_address, gateway, _source(link, gateway))
        questions[question] = (name, gateway)
    try:
        return {questions[question] for question in wire.ask(list(questions), limit_seconds, attempts)}
    except OSError as error:
        log.warning("the gateways could not be asked: %s", error)
        return set(gateways)


def _source(link: Link, gateway: Address) -> Address | None:
    """The own address in the gateway's subnet, else any of its family."""
    own = [address for address in link.addresses if address.version == gateway.version]
    near = [address.ip for address in own if gateway in address.network]
    return next(iter([*near, *(address.ip for address in own)]), None)


def _serves(server: Address, name: str, limit_seconds: float) -> bool:
    """Whether a name server answers at all; what it answers is not ours to judge here."""
    try:
        dns.ask(name, dns.RecordType.A, server, limit_seconds=limit_seconds)
    except CentralinoError:
        return False
    return True
