"""Two booted lab nodes made a pair as an administrator would, and what tests ask of them."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from appliance.lab import Client, Lab, Node
from appliance.lab_host import Result, wait_for
from appliance.lab_tree import packages_of_this_tree

SHARED = "10.77.0.200"
# Of the ports for audio, which the firewall leaves open.
ECHO_PORT = 19999
READY_SECONDS = 180.0
SILENCE_SECONDS = 0.1

# A UDP echo server that only answers what is asked at the shared address.
ECHO = f"""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("{SHARED}", {ECHO_PORT}))
while True:
    data, sender = s.recvfrom(64)
    s.sendto(data, sender)
"""

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

        wait_for(healthy, limit_seconds, f"a healthy pair; {self.describe()}")
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
            start_echo(node)


def start_echo(node: Node) -> None:
    """A transient unit that answers UDP at the shared address, also before the node holds it."""
    node.run(["systemctl", "stop", "lab-echo"], check=False)
    node.run(
        [
            "systemd-run",
            "--unit=lab-echo",
            "--property=Restart=always",
            "/opt/centralino/venv/bin/python",
            "-c",
            ECHO,
        ]
    )


class EchoProber:
    """Asks the shared address by UDP each 5 ms from a client's namespace, and keeps when answers came."""

    INTERVAL = 0.005

    def __init__(self, client: Client, address: str = SHARED, port: int = ECHO_PORT) -> None:
        self._address = (address, port)
        self._socket = in_namespace(
            client.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        )
        self._socket.setblocking(False)
        self._ended = threading.Event()
        self.answers: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> EchoProber:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(2)
        self._socket.close()

    def first_after(self, moment: float, limit_seconds: float) -> float:
        """Seconds from `moment` to the first answer after the silence that follows it.

        Answers of the node that is about to die do not count: a silence is a tenth of a second at least.
        """
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            before = moment
            for _asked, received in self.answers:
                if received < moment:
                    continue
                if received - before >= SILENCE_SECONDS:
                    return received - moment
                before = received
            time.sleep(0.005)
        raise AssertionError(f"{self._address[0]} did not answer within {limit_seconds:g} s")

    def longest_gap(self, since: float) -> float:
        """The longest time without an answer after `since`."""
        times = [received for _, received in self.answers if received >= since]
        return max((later - earlier for earlier, later in pairwise(times)), default=0.0)

    def _run(self) -> None:
        while not self._ended.wait(self.INTERVAL):
            with suppress(OSError):
                self._socket.sendto(struct.pack("d", time.monotonic()), self._address)
            while True:
                try:
                    data = self._socket.recv(64)
                except OSError:
                    break
                self.answers.append((struct.unpack("d", data)[0], time.monotonic()))


def in_namespace(path: Path, make: Callable[[], socket.socket]) -> socket.socket:
    """Make a socket in another network namespace, by a thread that enters it and ends."""
    import ctypes

    made: list[socket.socket] = []

    def enter() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        with path.open() as namespace:
            if library.setns(namespace.fileno(), 0x40000000) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        made.append(make())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]


def boot_two(lab: Lab, initial: dict[str, object] | None = None) -> PairOfNodes:
    """Two nodes of this tree and a client, not paired; `initial` are the settings that their images bring."""
    binds = packages_of_this_tree(lab.root)
    first, second = lab.add_node(binds=binds), lab.add_node(binds=binds)
    probe = lab.add_client("probe")
    for node in (first, second) if initial else ():
        node.prepare()
        node.disk.mount()
        node.path("/etc/centralino/initial-settings.json").write_text(json.dumps(initial))
        node.disk.unmount()
    lab.power_on_all()
    for node in (first, second):
        node.wait_active("centralinod.service", 60)
        done = centralino(node, "status", "--wait", "90")
        assert done.ok, done.output
    return PairOfNodes(lab, first, second, probe)


def make_pair(pair: PairOfNodes, *, profile: str = "standard") -> None:
    """As docs/fault-tolerance.md tells an administrator."""
    done = centralino(
        pair.first,
        *("fault-tolerance", "configure", "--shared", f"{SHARED}/24@eth0", "--profile", profile, "--yes"),
    )
    assert done.ok, done.errors
    invitation = centralino(pair.second, "fault-tolerance", "invite", "--yes", "--json")
    assert invitation.ok, invitation.errors
    code = json.loads(invitation.output)["code"]
    peer = str(pair.lab.network.segments["mgmt"].address(pair.second.specification.number))
    done = pair.first.run(
        ["centralino", "fault-tolerance", "pair", peer, "--code-from", "-", "--yes"],
        input_text=f"{code}\n",
        limit_seconds=120,
        check=False,
    )
    assert done.ok, done.output + done.errors
