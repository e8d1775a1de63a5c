"""Certificates that an edge server pushes to its appliances (S-CE-05): the interface, nothing behind it yet.

The edge client is a later part of the appliance. It authenticates the edge and hands over what the edge sent;
from there on the certificate takes the way of every other: judged, tried, proven, kept or given back.
"""

from __future__ import annotations

from typing import Protocol

from daemon.errors import UnavailableError


class EdgeClient(Protocol):
    """What a certificate from an edge needs of the client that keeps the connection."""

    def authenticated(self) -> bool:
        """Whether the edge has proven who it is on the connection that stands now."""
        ...

    def accepts(self, names: tuple[str, ...]) -> bool:
        """Whether the edge may decide for these names."""
        ...


def refuse_without(client: EdgeClient | None) -> EdgeClient:
    """The client, or UnavailableError: nobody may push where no edge is configured."""
    if client is None or not client.authenticated():
        raise UnavailableError("no edge is configured, so none may push a certificate", "upload it instead")
    return client
