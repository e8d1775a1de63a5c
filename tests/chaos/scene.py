"""The pair in the middle of its life: what a fault may do to it, and what the audits ask."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from appliance.lab import Client, Node
from appliance.lab_host import LabError, Result, wait_for
from appliance.lab_pair import PairOfNodes, centralino
from tests.chaos.load import Load
from tests.chaos.observe import Observer

PEER, VRRP, DAEMON = "centralino-peer.service", "centralino-vrrp.service", "centralinod.service"
CORE, DATABASE = "asterisk.service", "mariadb.service"
TREE = "/var/spool/asterisk/voicemail"
MESSAGES = f"{TREE}/chaos"
SET_ASIDE = f"{TREE}/.centralino-removed"
EVIDENCE = "/var/lib/centralino/fault-tolerance/database/evidence"
WRECKS = "/var/lib/mysql/data.kept-*"


@dataclass
class Scene:
    """`master` and `slave` are what the nodes were when the fault began; `chance` is the fault's own."""

    pair: PairOfNodes
    observers: dict[str, Observer]
    load: Load
    probe: Client
    chance: random.Random
    master: Node
    slave: Node
    wait: Callable[[float], None]
    notes: list[str] = field(default_factory=list)

    # --- who is what ----------------------------------------------------------------------------------

    def observer(self, node: Node) -> Observer:
        """What watches this node."""
        return self.observers[node.name]

    def role(self, node: Node) -> str:
        """The role that it says it has, "" while it says nothing."""
        said = self.observer(node).latest()
        return "" if said is None else said.role

    def trouble(self) -> str:
        """Why the pair is not healthy now, "" when it is."""
        said = {node.name: self.observer(node).latest() for node in self.pair.nodes}
        roles = sorted("" if each is None else each.role for each in said.values())
        if roles != ["master", "slave"]:
            return f"the roles are {roles}"
        master = next(node for node in self.pair.nodes if self.role(node) == "master")
        told = said[master.name]
        if told is None or not told.peer_ready or told.vrrp != "master" or told.synchronous is not True:
            return "the master does not hold the addresses, or the slave is not ready and in step"
        if [self.observer(node).writable() for node in (master, self.pair.other(master))] != [True, False]:
            return "not the master's database alone is writable"
        return ""

    def describe(self) -> str:
        """Both nodes in their own words."""
        words = []
        for node in self.pair.nodes:
            said = self.observer(node).latest()
            words.append(f"{node.name}: {node.state() if said is None else said.text}")
        return " | ".join(words)

    # --- what faults do -------------------------------------------------------------------------------

    def power_off(self, node: Node) -> float:
        """Cut its power; nothing of ours is started in it meanwhile."""
        self.observer(node).allowed = False
        return node.power_off()

    def power_on(self, *nodes: Node) -> None:
        """Boot nodes, all at the same time, without waiting for more than systemd."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda node: node.power_on(120), nodes))
        for node in nodes:
            self.observer(node).allowed = True

    def strike(self, node: Node, unit: str, number: signal.Signals = signal.SIGKILL) -> bool:
        """Signal every process of a unit; False if it has none just now."""
        try:
            node.signal_unit(unit, number)
        except LabError as error:
            self.notes.append(str(error))
            return False
        return True

    def thaw(self, node: Node, unit: str) -> None:
        """Continue what of a frozen unit is still there; supervision may have replaced it."""
        if node.powered:
            self.strike(node, unit, signal.SIGCONT)

    def forbid(self, node: Node, unit: str) -> None:
        """Let a unit not start any more, whoever asks, and end it: its program is gone, in effect."""
        drop_in = f"/run/systemd/system/{unit}.d"
        node.run(["mkdir", "-p", drop_in])
        node.run(
            ["tee", f"{drop_in}/99-chaos.conf"],
            input_text="[Service]\nExecStartPre=\nExecStartPre=/bin/false\n",
        )
        node.run(["systemctl", "daemon-reload"])
        self.strike(node, unit)

    def allow(self, node: Node, unit: str) -> None:
        """Undo `forbid`, as a person who mended it would: the unit is started."""
        node.run(["rm", "-f", f"/run/systemd/system/{unit}.d/99-chaos.conf"])
        node.run(["systemctl", "daemon-reload"])
        node.run(["systemctl", "reset-failed", unit], check=False)
        node.run(["systemctl", "start", "--no-block", unit], check=False)

    def sql(self, node: Node, text: str, *, check: bool = True) -> Result:
        """A statement as root."""
        words = ["mariadb", "--batch", "--skip-column-names", "centralino"]
        return node.run(words, input_text=text, check=check, limit_seconds=60)

    def ask(self, node: Node, *words: str, limit_seconds: float = 120.0) -> Result:
        """The command line, as an administrator."""
        return centralino(node, *words, limit_seconds=limit_seconds)

    def until(self, condition: Callable[[], object], limit_seconds: float, what: str) -> bool:
        """Wait for something that this fault needs; False, with a note, if it does not happen."""
        try:
            wait_for(condition, limit_seconds, what, interval_seconds=0.02)
        except LabError as error:
            self.notes.append(str(error))
            return False
        return True
