"""The SIP shield by evidence: hears Asterisk, scores sources, has the kernel drop the worst.

Two threads that sleep until something comes: one on the kept AMI connection, one on the kernel's samples.
What is blocked and who has authenticated outlives a reboot in a file that is written every few minutes and at
the end, not on every block.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from itertools import chain
from pathlib import Path

from daemon.errors import CentralinoError
from daemon.files import read_text
from daemon.later import LaterWriter
from daemon.services.probes.asking import ProbeError
from daemon.services.probes.manager_interface import Message
from daemon.settings import Settings
from firewall.asterisk_events import AsteriskEvents
from firewall.evidence import Address, Block, Evidence, Limits, Scoreboard
from firewall.kernel_sets import Element, KernelSets
from firewall.policy import Network
from firewall.scanners import Samples, judge
from firewall.security_events import Authenticated, read_event
from firewall.sessions import ssh_sources

STATE_FILE = "firewall-sources"
PHONE_MARK = "phone "
SAVE_SECONDS = 300.0
TRUNKS_SECONDS = 300.0
LISTEN_SECONDS = 30.0
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 30.0
# Longer than any registration lives (Asterisk's maximum_expiration is 7200 s).
PHONE_SECONDS = 7500.0
TRUNK_SECONDS = 2 * TRUNKS_SECONDS + 600
LARGEST_TRUNK_NETWORK = 256
MOST_PHONES = 100_000
# Asterisk's channel states (asterisk/channelstate.h).
RINGS_IN, UP = "4", "6"

log = logging.getLogger(__name__)


class Shield:
    """Safe to use from every thread. `settings` gives those in force."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        secret_file: Path,
        state: Path,
        *,
        kernel: KernelSets | None = None,
        sessions: Callable[[], Iterable[Address]] = ssh_sources,
        events: Callable[[], AsteriskEvents] | None = None,
    ) -> None:
        self._settings = settings
        self._kernel = kernel or KernelSets()
        self._sessions = sessions
        self._new_events = events or (lambda: AsteriskEvents(secret_file))
        self._state_file = state / STATE_FILE
        self._writer = LaterWriter(self._state_file)
        self._lock = threading.RLock()
        self._board = Scoreboard(Limits(), lambda address: self.spared(address) is not None)
        self._phones: dict[Address, float] = {}
        self._trunks: set[Network] = set()
        self._live: dict[str, Address] = {}
        self._connected = False
        self._trouble = "not connected yet"
        self._stopped = threading.Event()
        self._events: AsteriskEvents | None = None
        self._samples: Samples | None = None
        self._dirty = False
        self._saved = time.monotonic()

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take back what the state file holds and begin to listen; call it when the table is loaded."""
        self.restore()
        threading.Thread(target=self._listen, name="sip shield", daemon=True).start()
        threading.Thread(target=self._sample, name="sip samples", daemon=True).start()

    def stop(self) -> None:
        """Stop listening and keep what is known."""
        self._stopped.set()
        self.save()
        if self._samples is not None:
            self._samples.close()
        self._writer.flush(2.0)

    def restore(self) -> None:
        """Put blocked and authenticated sources back into the kernel, in one transaction a set."""
        now = time.time()
        try:
            lines = (read_text(self._state_file) or "").splitlines()
        except CentralinoError as error:
            log.warning("%s; the shield starts without memory", error)
            lines = []
        with self._lock:
            for line in lines:
                if line.startswith(PHONE_MARK):
                    self._restore_phone(line.removeprefix(PHONE_MARK), now)
            known = self._board.restore(line for line in lines if not line.startswith(PHONE_MARK))
        if lines:
            log.info("the shield remembers %d blocked sources and %d phones", known, len(self._phones))
        self.fill_kernel()

    def fill_kernel(self) -> None:
        """Bring the kernel's sets to what is known here; after a start, or when the table had been lost."""
        now = time.time()
        with self._lock:
            blocked = [Element(block.source, block.until - now) for block in self._board.blocks(now)]
            phones = [Element(address, until - now) for address, until in self._phones.items() if until > now]
        self._put("phones", phones)
        self._put("banned", blocked)

    def save(self) -> None:
        """Have the state file written, from a thread of its own."""
        now = time.time()
        with self._lock:
            self._phones = {address: until for address, until in self._phones.items() if until > now}
            phones = (f"{PHONE_MARK}{address} {until:.0f}" for address, until in self._phones.items())
            text = "".join(f"{line}\n" for line in chain(phones, self._board.dump(now)))
            self._dirty = False
            self._saved = time.monotonic()
        self._writer.put(text)

    def _restore_phone(self, text: str, now: float) -> None:
        address, _, until = text.partition(" ")
        try:
            if float(until) > now:
                self._phones[ip_address(address)] = float(until)
        except ValueError:
            log.warning("the shield's memory holds a phone that makes no sense; it is left out")

    # --- what the bus asks ----------------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """Whether it listens, and how many it knows."""
        now = time.time()
        with self._lock:
            return {
                "enabled": self._settings().firewall.shield.enabled,
                "listening": self._connected,
                "trouble": None if self._connected else self._trouble,
                "blocked": self._board.count(now),
                "phones": sum(1 for until in self._phones.values() if until > now),
                "trunks": sorted(str(network) for network in self._trunks),
                "live_channels": len(self._live),
            }

    def why(self, address: Address) -> dict[str, object]:
        """Everything held against a source, and what speaks for it."""
        with self._lock:
            found = self._board.why(address, time.time())
        found["spared_because"] = self.spared(address)
        return found

    def top(self, count: int) -> list[dict[str, object]]:
        """The worst sources first."""
        with self._lock:
            return self._board.top(count)

    def unblock(self, address: Address) -> bool:
        """Forgive a source; false if the shield had not blocked it."""
        now = time.time()
        with self._lock:
            blocked = any(block.source == address for block in self._board.blocks(now))
            self._board.forgive(address)
            self._dirty = True
        self._kernel.remove("banned", [address])
        return blocked

    def spared(self, address: Address) -> str | None:
        """Why this address is never blocked; None if it may be."""
        firewall = self._settings().firewall
        if address.is_loopback:
            return "it is this box itself"
        if _inside(address, firewall.trusted_networks):
            return "it is in a trusted network"
        now = time.time()
        if _inside(address, (entry.network for entry in firewall.allow if not _over(entry.until, now))):
            return "it is on the list of allowed networks"
        if self._phones.get(address, 0.0) > now:
            return "a phone has authenticated from there"
        if _inside(address, self._trunks):
            return "it is a provider of this box"
        if address in self._live.values():
            return "it has a live call"
        if address in self._sessions():
            return "somebody is logged in over SSH from there"
        return None

    # --- evidence -------------------------------------------------------------------------------------------

    def take(self, message: Message, when: float) -> None:
        """Judge one AMI event."""
        kind = message.get("Event")
        if kind == "Hangup":
            self._live.pop(message.get("Channel", ""), None)
            return
        if kind in ("Newchannel", "Newstate"):
            # Of a call that we make, the far end is known only when it answers.
            if message.get("ChannelState") in (RINGS_IN, UP):
                self._follow(message.get("Channel", ""), came_in=message["ChannelState"] == RINGS_IN)
            return
        found = read_event(message, when)
        if isinstance(found, Authenticated):
            self.welcome(found.source, when)
        elif found is not None:
            self.hold_against(found)

    def hold_against(self, evidence: Evidence) -> Block | None:
        """Take one offence down, and have the kernel drop the source if it was the one too many."""
        if not self._settings().firewall.shield.enabled:
            return None
        with self._lock:
            self._board.limits = self._limits()
            block = self._board.record(evidence)
            self._dirty = self._dirty or block is not None
        if block is not None:
            self._put("banned", [Element(block.source, block.until - evidence.when)])
            log.warning(
                "%s is blocked for %d s: it %s",
                block.source,
                round(block.until - block.since),
                evidence.offence.value,
            )
        return block

    def welcome(self, source: Address, when: float) -> None:
        """A source has authenticated: nothing is held against it any more, and its packets get more room."""
        if source.is_loopback:
            return
        with self._lock:
            self._board.forgive(source)
            fresh = self._phones.get(source, 0.0) - when < PHONE_SECONDS / 2
            if not fresh or len(self._phones) >= MOST_PHONES:
                return
            self._phones[source] = when + PHONE_SECONDS
            self._dirty = True
        self._put("phones", [Element(source, PHONE_SECONDS)])

    # --- threads --------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        wait = FIRST_RETRY_SECONDS
        while not self._stopped.is_set():
            events = self._new_events()
            try:
                events.connect()
                self._seed(events)
                wait = FIRST_RETRY_SECONDS
                self._hear(events)
            except (OSError, EOFError, ProbeError) as error:
                self._lose(str(error) or type(error).__name__)
            except Exception:
                log.exception("the shield stumbled; it goes on")
                self._lose("an internal error, see the journal")
            finally:
                self._events = None
                events.close()
            if self._stopped.wait(wait):
                return
            wait = min(2 * wait, LONGEST_RETRY_SECONDS)

    def _hear(self, events: AsteriskEvents) -> None:
        asked = time.monotonic()
        while not self._stopped.is_set():
            message = events.next(LISTEN_SECONDS)
            if message is not None:
                self.take(message, time.time())
            now = time.monotonic()
            if self._dirty and now - self._saved > SAVE_SECONDS:
                self.save()
            if now - asked > TRUNKS_SECONDS:
                asked = now
                self._learn_trunks(events)

    def _seed(self, events: AsteriskEvents) -> None:
        """Who is registered, who provides, who is in a call: known before the first event is judged."""
        when = time.time()
        self._learn_trunks(events)
        for source in events.registered():
            self.welcome(source, when)
        self._live = {
            channel: address
            for channel in events.live_channels()
            if (address := events.caller_address(channel) or events.called_address(channel)) is not None
        }
        self._events = events
        self._connected, self._trouble = True, ""
        log.info("the shield listens to Asterisk")

    def _learn_trunks(self, events: AsteriskEvents) -> None:
        trunks = events.trunks()
        with self._lock:
            self._trunks = trunks
        hosts = [
            Element(address, TRUNK_SECONDS)
            for network in trunks
            if network.num_addresses <= LARGEST_TRUNK_NETWORK
            for address in network
        ]
        self._put("phones", hosts)

    def _follow(self, channel: str, *, came_in: bool) -> None:
        events = self._events
        if not channel.startswith("PJSIP/") or channel in self._live or events is None:
            return
        address = events.caller_address(channel) if came_in else events.called_address(channel)
        if address is not None:
            self._live[channel] = address

    def _lose(self, reason: str) -> None:
        if self._connected or self._trouble == "not connected yet":
            log.warning("the shield does not hear Asterisk: %s", reason)
        self._connected, self._trouble = False, reason
        self._live = {}

    def _sample(self) -> None:
        try:
            self._samples = Samples()
        except OSError as error:
            log.warning("scanning tools are not recognized by what they send: %s", error)
            return
        for source, payload in self._samples:
            offence = judge(payload)
            if offence is not None:
                # A datagram proves nothing about where it came from.
                self.hold_against(Evidence(time.time(), source, offence, proven=False, transport="UDP"))

    def _put(self, name: str, elements: list[Element]) -> None:
        if not elements:
            return
        try:
            self._kernel.put(name, elements)
        except CentralinoError as error:
            log.error("%d addresses could not be put into %s: %s", len(elements), name, error)

    def _limits(self) -> Limits:
        shield = self._settings().firewall.shield
        return Limits(
            points=float(shield.failures_before_block),
            first_block_seconds=shield.block_seconds,
            longest_block_seconds=shield.longest_block_seconds,
        )


def _inside(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _over(until: object, now: float) -> bool:
    from datetime import datetime

    return isinstance(until, datetime) and until.timestamp() <= now
