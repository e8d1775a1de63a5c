"""The names of the lab's pair for tests; the demonstration uses the same."""

from __future__ import annotations

from appliance import lab_watch
from appliance.lab import Client, Node
from appliance.lab_pair import (
    READY_SECONDS,
    SHARED,
    WHO_HAS,
    PairOfNodes,
    boot_two,
    centralino,
    make_pair,
    peer_ready,
    role,
    status,
)
from appliance.lab_sip import in_namespace
from appliance.lab_watch import ECHO_PORT, serve_echo

__all__ = (
    "ECHO_PORT",
    "READY_SECONDS",
    "SHARED",
    "WHO_HAS",
    "EchoProber",
    "PairOfNodes",
    "boot_two",
    "centralino",
    "in_namespace",
    "make_pair",
    "peer_ready",
    "role",
    "start_echo",
    "status",
)


class EchoProber(lab_watch.EchoProber):
    """Asks the shared address of the pair."""

    def __init__(self, client: Client, address: str = SHARED, port: int = ECHO_PORT) -> None:
        super().__init__(client, address, port)


def start_echo(node: Node) -> None:
    """A transient unit that answers UDP at the shared address, also before the node holds it."""
    serve_echo(node, SHARED)
