"""What the stories of a pair share: programs that fail on command, wishes without the daemon, alarms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from pair_of_nodes import PairOfNodes, centralino

from appliance.lab import Node

SIP_TABLE = "centralino_role"
# Asks the role runtime itself, so that centralinod may be frozen meanwhile.
WISH = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as control:
    control.connect("/run/centralino-peer/control")
    control.sendall(json.dumps({"id": 1, "method": "wish", "wish": sys.argv[1]}).encode() + b"\\n")
    control.recv(4096)
"""
PYTHON = "/opt/centralino/venv/bin/python"


def wish(node: Node, role: str) -> None:
    """Ask the runtime of a node to become something."""
    node.run([PYTHON, "-c", WISH, role])


def alarms(node: Node) -> set[str]:
    """The identifiers of the alarms that a node shows; none while its daemon is away."""
    try:
        shown = json.loads(centralino(node, "status", "--json").output)
    except ValueError:
        return set()
    return {str(alarm["id"]) for alarm in shown.get("alarms", [])}


def runtime_process(node: Node) -> str:
    """The main process of the role runtime as the node counts; "0" while there is none."""
    words = ["systemctl", "show", "--property=MainPID", "--value", "centralino-peer"]
    return node.run(words).output.strip()


def runtime_role(node: Node) -> str:
    """The role as the runtime keeps it, also while the daemon is away."""
    return node.run(["cat", "/run/centralino-peer/role"], check=False).output.strip()


def forget_moves(pair: PairOfNodes) -> None:
    """A person has looked: what earlier stories moved does not count."""
    for node in pair.nodes:
        wish(node, runtime_role(node))


@contextmanager
def nft_that(node: Node, what: str) -> Iterator[None]:
    """Have nft do something first (a line of shell) when it closes or opens SIP: `$closes` is 1 or empty.

    A reboot ends that, for the order lies in memory.
    """
    wrapper = f"""#!/bin/sh
[ -e /run/lab-nft ] || exec /usr/sbin/nft.real "$@"
text=$(cat)
closes=; case $text in *"add chain inet {SIP_TABLE}"*) closes=1;; esac
case $text in *{SIP_TABLE}*) . /run/lab-nft;; esac
printf '%s\\n' "$text" | /usr/sbin/nft.real "$@"
"""
    with _instead_of(node, "/usr/sbin/nft", wrapper):
        node.run(["tee", "/run/lab-nft"], input_text=what + "\n")
        try:
            yield
        finally:
            if node.powered:
                node.run(["rm", "-f", "/run/lab-nft"], check=False)


@contextmanager
def systemctl_that_kills_nothing(node: Node) -> Iterator[None]:
    """As with a process in the kernel's uninterruptible sleep: the order is accepted, nothing ends."""
    wrapper = """#!/bin/sh
[ -e /run/lab-systemctl ] && [ "$1" = kill ] && exit 0
exec /usr/bin/systemctl.real "$@"
"""
    with _instead_of(node, "/usr/bin/systemctl", wrapper):
        node.run(["touch", "/run/lab-systemctl"])
        yield


@contextmanager
def _instead_of(node: Node, program: str, wrapper: str) -> Iterator[None]:
    # A restoring that fell into a power loss has left the stand-in, which does nothing without its order.
    node.run(["sh", "-c", f"[ -e {program}.real ] || cp -a {program} {program}.real"])
    node.run(["tee", f"{program}.new"], input_text=wrapper)
    node.run(["chmod", "755", f"{program}.new"])
    node.run(["mv", f"{program}.new", program])
    # A power loss must not leave half of it.
    node.run(["sync", "-f", program])
    try:
        yield
    finally:
        # From outside: the node may be off, or on its way up again.
        real = node.path(f"{program}.real")
        if real.exists():
            real.replace(node.path(program))
