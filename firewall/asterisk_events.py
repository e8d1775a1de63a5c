"""What the shield hears from Asterisk and asks it: one kept AMI connection, filtered by Asterisk itself."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

from daemon.services.probes.asking import Deadline
from daemon.services.probes.manager_interface import PORT, Manager, Message, parse
from firewall.evidence import Address
from firewall.policy import Network

LOOPBACK = "127.0.0.1"
ACTION_LIMIT_SECONDS = 5.0
# Only these leave Asterisk; a list of `Filter` actions lets through what any of them matches.
WANTED_EVENTS = ("Service: PJSIP", "Event: Newchannel", "Event: Newstate", "Event: Hangup")
MOST_NAMES = 50
_MATCH = re.compile(r"^\s*Match:\s+(\S+)", re.MULTILINE)
_URI_HOST = re.compile(r"sips?:(?:[^@;>\s]*@)?(\[[0-9A-Fa-f:.]+\]|[^:;>?\s]+)")

log = logging.getLogger(__name__)


class AsteriskEvents:
    """One connection; used by one thread. Every method raises OSError, EOFError or ProbeError."""

    def __init__(self, secret_file: Path, host: str = LOOPBACK, port: int = PORT) -> None:
        self._manager = _EventManager(host, port, secret_file)

    def connect(self) -> None:
        """Log in and ask for the events that matter."""
        deadline = Deadline(ACTION_LIMIT_SECONDS)
        self._manager.connect(deadline)
        for wanted in WANTED_EVENTS:
            self._manager.action(deadline, "Filter", Operation="Add", Filter=wanted)
        self._manager.action(deadline, "Events", EventMask="security,call")

    def next(self, limit_seconds: float) -> Message | None:
        """The next event, None if there is none within the limit."""
        return self._manager.next_event(limit_seconds)

    def close(self) -> None:
        """Hang up."""
        self._manager.close()

    def registered(self) -> set[Address]:
        """Where phones are registered from, by the contacts that Asterisk holds."""
        output = self._manager.command(Deadline(ACTION_LIMIT_SECONDS), "pjsip show contacts")
        return set(_addresses(_hosts(output), resolve=False))

    def trunks(self) -> set[Network]:
        """Providers: where we register, and networks that are identified without a password."""
        deadline = Deadline(ACTION_LIMIT_SECONDS)
        identified = self._manager.command(deadline, "pjsip show identifies")
        registrations = self._manager.command(deadline, "pjsip show registrations")
        found: set[Network] = set()
        for text in _MATCH.findall(identified):
            try:
                found.add(ip_network(text, strict=False))
            except ValueError:
                continue
        names = _hosts(registrations)[:MOST_NAMES]
        found |= {ip_network(f"{each}/{each.max_prefixlen}") for each in _addresses(names, resolve=True)}
        return {network for network in found if not network.is_loopback}

    def live_channels(self) -> list[str]:
        """Names of the channels of phones and trunks that are up."""
        output = self._manager.command(Deadline(ACTION_LIMIT_SECONDS), "core show channels concise")
        names = [line.partition("!")[0] for line in output.splitlines()]
        return [name for name in names if name.startswith("PJSIP/")]

    def caller_address(self, channel: str) -> Address | None:
        """Where the signalling of a call that came in comes from; None if it is gone or was not one."""
        text = self._ask(channel, "CHANNEL(pjsip,remote_addr)")
        try:
            return ip_address(text.rpartition(":")[0].strip("[]"))
        except ValueError:
            return None

    def called_address(self, channel: str) -> Address | None:
        """Where a call that went out was sent; None if it is gone, or was sent to a name."""
        hosts = _hosts(self._ask(channel, "CHANNEL(pjsip,target_uri)"))
        return next(_addresses(hosts, resolve=False), None)

    def _ask(self, channel: str, variable: str) -> str:
        deadline = Deadline(ACTION_LIMIT_SECONDS)
        return self._manager.action(deadline, "Getvar", Channel=channel, Variable=variable).get("Value", "")


class _EventManager(Manager):
    """A manager connection that keeps the events which arrive while an action waits for its answer."""

    def __init__(self, host: str, port: int, secret_file: Path) -> None:
        super().__init__(host, port, secret_file)
        self._waiting: list[Message] = []

    def action(self, deadline: Deadline, action: str, **fields: str) -> Message:
        number = self.send(deadline, action, **fields)
        while True:
            message = parse(self._read_until(b"\r\n\r\n", deadline))
            if message.get("ActionID") == number and "Response" in message:
                return message
            if "Event" in message:
                self._waiting.append(message)

    def next_event(self, limit_seconds: float) -> Message | None:
        if self._waiting:
            return self._waiting.pop(0)
        deadline = Deadline(limit_seconds)
        try:
            while True:
                message = parse(self._read_until(b"\r\n\r\n", deadline))
                if "Event" in message:
                    return message
        except TimeoutError:
            return None

    def close(self) -> None:
        self._waiting.clear()
        super().close()


def _hosts(text: str) -> list[str]:
    return [found.strip("[]") for found in dict.fromkeys(_URI_HOST.findall(text))]


def _addresses(hosts: list[str], *, resolve: bool) -> Iterator[Address]:
    for host in hosts:
        try:
            yield ip_address(host)
        except ValueError:
            if resolve:
                yield from _resolved(host)


def _resolved(name: str) -> Iterator[Address]:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except OSError as error:
        log.info("the provider's name %s cannot be resolved: %s", name, error.strerror)
        return
    for answer in answers:
        yield ip_address(str(answer[4][0]).partition("%")[0])
