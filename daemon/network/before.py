"""What was true before a change on trial: kept below /run, so that a restarted daemon judges it as well."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from daemon.errors import StorageError
from daemon.files import read_text, remove_file, write_file
from daemon.network.sessions import Session

Address = IPv4Address | IPv6Address
Gateway = tuple[str, Address]
"""The interface that it is reached through, and its address."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Before:
    """What did not answer already, the admin's sessions with the index of the interface that leads back to
    each, and NetworkManager's checkpoint (its object path, "" if there is none)."""

    silent_gateways: frozenset[Gateway] = frozenset()
    silent_servers: frozenset[Address] = frozenset()
    ways: Mapping[Session, int | None] = field(default_factory=dict)
    peer_was_lost: bool = False
    checkpoint: str = ""

    def keep(self, file: Path) -> None:
        """Write it; without it a daemon that restarts judges nothing, which is only logged."""
        document = {
            "silent_gateways": [[name, str(address)] for name, address in self.silent_gateways],
            "silent_servers": [str(address) for address in self.silent_servers],
            "ways": [
                [str(session.local), str(session.peer), session.peer_port, way]
                for session, way in self.ways.items()
            ],
            "peer_was_lost": self.peer_was_lost,
            "checkpoint": self.checkpoint,
        }
        try:
            write_file(file, json.dumps(document) + "\n", mode=0o600)
        except StorageError as error:
            log.warning("%s", error)


def remembered(file: Path) -> Before | None:
    """What `keep` wrote; None if there is nothing, or nothing that can be read."""
    try:
        text = read_text(file)
        if text is None:
            return None
        document = json.loads(text)
        return Before(
            frozenset((str(name), ip_address(address)) for name, address in document["silent_gateways"]),
            frozenset(ip_address(address) for address in document["silent_servers"]),
            {
                Session(ip_address(local), ip_address(peer), int(port)): way
                for local, peer, port, way in document["ways"]
            },
            bool(document["peer_was_lost"]),
            str(document["checkpoint"]),
        )
    except (StorageError, ValueError, KeyError, TypeError) as error:
        log.warning("what was true before the change is not known any more: %s", error)
        return None


def forget(file: Path) -> None:
    """The trial is over."""
    remove_file(file)
