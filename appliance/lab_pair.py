"""Two booted lab nodes made a pair as an administrator would, and what one may ask them from outside."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.lab import Client, Lab, Node
from appliance.lab_host import LabError, Result, wait_for
from appliance.lab_tree import packages_of_this_tree
from appliance.lab_watch import serve_echo

SHARED = "10.77.0.200"
READY_SECONDS = 180.0

# Everybody who answers within a second, not only the first one.
WHO_HAS = f"""
import socket, struct, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
s.bind(("eth0", 0x0806))
own = s.getsockname()[4]
target = socket.inet_aton("{SHARED}")
s.send(
    b"\\xff" * 6
    + own
    + struct.pack("!HHHBBH6s4s6s4s", 0x0806, 1, 0x0800, 6, 4, 1, own, bytes(4), bytes(6), target)
)
end = time.monotonic() + 1
while (left := end - time.monotonic()) > 0:
    s.settimeout(left)
    try:
        frame = s.recv(128)
    except TimeoutError:
        break
    if frame[20:22] == bytes((0, 2)) and frame[28:32] == target:
        print(frame[22:28].hex(":"))
"""


def centralino(node: Node, *words: str, limit_seconds: float = 120.0) -> Result:
    """The command line on a node."""
    return node.run(["centralino", *words], check=False, limit_seconds=limit_seconds)


def status(node: Node) -> dict[str, object]:
    """`fault-tolerance status --json`, {} while the daemon or the runtime is away."""
    done = centralino(node, "fault-tolerance", "status", "--json")
    try:
        found = json.loads(done.output)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def role(node: Node) -> str:
    """The node's role, "" while nobody can tell."""
    return str(status(node).get("role", "")) if node.powered and not node.group.frozen else ""


def peer_ready(node: Node) -> bool:
    """Whether the node says that its peer could take over now."""
    peer = status(node).get("peer")
    return isinstance(peer, dict) and peer.get("ready") is True and peer.get("role") == "slave"


@dataclass
class PairOfNodes:
    """The lab, its two nodes and a client on the lan. `first` was master first."""

    lab: Lab
    first: Node
    second: Node
    probe: Client
    nodes: tuple[Node, Node] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = (self.first, self.second)

    def other(self, node: Node) -> Node:
        """The other one."""
        return self.second if node is self.first else self.first

    def master(self) -> Node | None:
        """Which node says that it is master; None if none does or both do."""
        found = [node for node in self.nodes if role(node) == "master"]
        return found[0] if len(found) == 1 else None

    def wait_healthy(self, limit_seconds: float = READY_SECONDS) -> Node:
        """Wait until one is master, the other a ready slave, and the address where it belongs; the master."""
        found: list[Node] = []

        def healthy() -> bool:
            master = self.master()
            if master is None or role(self.other(master)) != "slave" or not peer_ready(master):
                return False
            found[:] = [master]
            return self.holders() == [master]

        try:
            wait_for(healthy, limit_seconds, "a healthy pair")
        except LabError as error:
            raise LabError(f"{error}; {self.describe()}") from error
        return found[0]

    def describe(self) -> str:
        """Roles and reasons, for messages."""
        said = []
        for node in self.nodes:
            if node.powered and not node.group.frozen:
                found = status(node)
                said.append(
                    f"{node.name}: {found.get('role')}, {found.get('reason')}, {found.get('obstacles')}"
                )
            else:
                said.append(f"{node.name}: {node.state()}")
        return "; ".join(said)

    def holders(self) -> list[Node]:
        """Which nodes have the shared address in their kernel."""
        found = []
        for node in self.nodes:
            if node.powered and not node.group.frozen:
                shown = node.run(["ip", "-4", "-o", "address", "show", "to", SHARED], check=False).output
                if SHARED in shown:
                    found.append(node)
        return found

    def answers_on_the_wire(self) -> set[str]:
        """The hardware addresses that answer for the shared address, asked by ARP from the client."""
        found: set[str] = set()
        for _ in range(3):
            done = self.probe.run([sys.executable, "-c", WHO_HAS], check=False, limit_seconds=20)
            found |= set(done.output.split())
        return found

    def start_echo(self) -> None:
        """Answer UDP at the shared address on both nodes; only who holds it is reached."""
        for node in self.nodes:
            serve_echo(node, SHARED)


def add_two(lab: Lab) -> PairOfNodes:
    """Two nodes that run this source tree and a client; the nodes are off."""
    binds = packages_of_this_tree(lab.root)
    first, second = lab.add_node(binds=binds), lab.add_node(binds=binds)
    return PairOfNodes(lab, first, second, lab.add_client("probe"))


def power_on(pair: PairOfNodes) -> None:
    """Boot both and wait until each says that it is healthy. Raises LabError."""
    pair.lab.power_on_all()
    for node in pair.nodes:
        node.wait_active("centralinod.service", 60)
        centralino(node, "status", "--wait", "90").check()


def boot_two(lab: Lab, initial: dict[str, object] | None = None) -> PairOfNodes:
    """Two nodes of this tree and a client, not paired; `initial` are the settings that their images bring."""
    pair = add_two(lab)
    for node in pair.nodes if initial else ():
        node.prepare()
        node.disk.mount()
        node.path("/etc/centralino/initial-settings.json").write_text(json.dumps(initial))
        node.disk.unmount()
    power_on(pair)
    return pair


def make_pair(pair: PairOfNodes, *, profile: str = "standard", more_shared: Sequence[str] = ()) -> None:
    """As docs/fault-tolerance.md tells an administrator; `more_shared` are ADDRESS/PREFIX@INTERFACE.

    Raises LabError with what a command said."""
    shared = [word for each in (f"{SHARED}/24@eth0", *more_shared) for word in ("--shared", each)]
    centralino(pair.first, *("fault-tolerance", "configure", *shared, "--profile", profile, "--yes")).check()
    invitation = centralino(pair.second, "fault-tolerance", "invite", "--yes", "--json").check()
    code = json.loads(invitation.output)["code"]
    peer = pair.second.address("mgmt")
    pair.first.run(
        ["centralino", "fault-tolerance", "pair", peer, "--code-from", "-", "--yes"],
        input_text=f"{code}\n",
        limit_seconds=120,
    )
