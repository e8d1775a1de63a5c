"""One generator per kind of fault: inject, `yield` (the campaign waits here), heal."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from appliance.lab import Node
from appliance.lab_host import LabError, Result
from appliance.lab_pair import SHARED
from tests.chaos.scene import MESSAGES, PEER, TREE, Scene
from tests.support.shifted_clock import shift_clock

Play = Callable[[Scene], Iterator[None]]
PAIR_FILE = "/var/lib/centralino/fault-tolerance/pair.json"


def chosen(scene: Scene, which: str) -> Node:
    """`master` or `slave` of the moment when the fault began."""
    return scene.master if which == "master" else scene.slave


# --- power and processes --------------------------------------------------------------------------------


def power_off_master(scene: Scene) -> Iterator[None]:
    """The classic."""
    scene.power_off(scene.master)
    yield
    scene.power_on(scene.master)


def power_off_slave(scene: Scene) -> Iterator[None]:
    """Nobody notices, and the pair says that it is none any more."""
    scene.power_off(scene.slave)
    yield
    scene.power_on(scene.slave)


def _both_off(scene: Scene) -> None:
    nodes = [scene.master, scene.slave]
    scene.chance.shuffle(nodes)
    scene.power_off(nodes[0])
    scene.wait(scene.chance.uniform(0.0, 1.5))
    scene.power_off(nodes[1])


def both_off_together(scene: Scene) -> Iterator[None]:
    """The mains fail and return."""
    _both_off(scene)
    yield
    scene.power_on(scene.master, scene.slave)


def both_off_master_first(scene: Scene) -> Iterator[None]:
    """The old master returns first, the other one after the hold."""
    _both_off(scene)
    scene.power_on(scene.master)
    yield
    scene.power_on(scene.slave)


def both_off_slave_first(scene: Scene) -> Iterator[None]:
    """The old slave returns first, the other one after the hold."""
    _both_off(scene)
    scene.power_on(scene.slave)
    yield
    scene.power_on(scene.master)


def freeze_master(scene: Scene) -> Iterator[None]:
    """A stalled machine: the link stays up, nothing answers, then everything goes on as if no time passed."""
    yield from _freeze(scene, scene.master)


def freeze_slave(scene: Scene) -> Iterator[None]:
    """The same at the slave."""
    yield from _freeze(scene, scene.slave)


def _freeze(scene: Scene, node: Node) -> Iterator[None]:
    scene.observer(node).allowed = False
    node.freeze()
    yield
    node.thaw()
    scene.observer(node).allowed = True


def strike(scene: Scene, node: Node, unit: str, number: signal.Signals) -> Iterator[None]:
    """Kill a unit's processes, or freeze them and let them go on after the hold if they still are there."""
    scene.strike(node, unit, number)
    yield
    if number is signal.SIGSTOP:
        scene.thaw(node, unit)


def forbid(unit: str) -> Play:
    """A unit of the master dies and cannot start until a person mends it."""

    def play(scene: Scene) -> Iterator[None]:
        scene.forbid(scene.master, unit)
        yield
        scene.allow(scene.master, unit)

    return play


# --- wires ----------------------------------------------------------------------------------------------


def links(which: str, *segments: str) -> Play:
    """Cables of one node are pulled: it sees the carrier go."""

    def play(scene: Scene) -> Iterator[None]:
        node = chosen(scene, which)
        node.network.cable(node.name, segments, up=False)
        yield
        if node.powered:
            node.network.cable(node.name, segments, up=True)

    return play


def one_way(which: str, *segments: str) -> Play:
    """What one node sends to the other one is lost, the other direction works, carriers stay."""

    def play(scene: Scene) -> Iterator[None]:
        sender = chosen(scene, which)
        receiver = scene.pair.other(sender)
        scene.pair.lab.partition([sender.name], [receiver.name], segments=segments, one_way=True)
        yield
        scene.pair.lab.heal()

    return play


def _cut_off(scene: Scene, node: Node) -> Iterator[None]:
    lab = scene.pair.lab
    others = [scene.pair.other(node).name, "gateway"]
    lab.partition([node.name], others)
    # Clients have a cable of the lan alone.
    lab.partition([node.name], list(lab.clients), segments=["lan"])
    yield
    lab.heal()


def partition_master(scene: Scene) -> Iterator[None]:
    """The master is alone, the slave has everybody else."""
    yield from _cut_off(scene, scene.master)


def partition_slave(scene: Scene) -> Iterator[None]:
    """The slave is alone."""
    yield from _cut_off(scene, scene.slave)


def partition_between(scene: Scene) -> Iterator[None]:
    """Both networks are cut between the two nodes only; both see gateway and clients."""
    scene.pair.lab.partition([scene.master.name], [scene.slave.name])
    yield
    scene.pair.lab.heal()


def gateway_gone(scene: Scene) -> Iterator[None]:
    """The router dies; nodes and clients of the lan see each other."""
    network = scene.pair.lab.network
    network.cable("gateway", ["lan", "mgmt"], up=False)
    yield
    network.cable("gateway", ["lan", "mgmt"], up=True)


def flapping(segment: str) -> Play:
    """A loose contact at the master."""

    def play(scene: Scene) -> Iterator[None]:
        for _ in range(scene.chance.randrange(3, 8)):
            scene.master.link_down(segment)
            scene.wait(scene.chance.uniform(0.05, 1.2))
            scene.master.link_up(segment)
            scene.wait(scene.chance.uniform(0.05, 1.5))
        yield

    return play


def address_deleted(scene: Scene) -> Iterator[None]:
    """By hand, or by a program that thinks that the interface is its own."""
    scene.master.run(["ip", "address", "del", f"{SHARED}/32", "dev", "eth0"], check=False)
    yield


# --- data -----------------------------------------------------------------------------------------------


def disk_full(which: str) -> Play:
    """No byte is left; a person makes room."""

    def play(scene: Scene) -> Iterator[None]:
        node = chosen(scene, which)
        node.fill_disk()
        yield
        node.free_disk()

    return play


def tree_emptied(scene: Scene) -> Iterator[None]:
    """Somebody deletes all messages at the master; a person sees the alarm and brings them back."""
    before = scene.slave.path(MESSAGES)
    # Not what came just now and is only on its way: that would be lost by the hand that deletes it.
    scene.master.run(["find", MESSAGES, "-type", "f", "-mmin", "+0.1", "-delete"], limit_seconds=60)
    yield
    # As `rsync` from the slave by hand would; what came meanwhile stays.
    into = scene.master.path(MESSAGES)
    for file in sorted(before.glob("*.wav")):
        if not (into / file.name).exists():
            target = into / f"{file.name}.part"
            shutil.copy2(file, target)
            shutil.chown(target, file.stat().st_uid, file.stat().st_gid)
            target.rename(into / file.name)
    done = scene.ask(scene.slave, "replication", "start", "--what", "files", "--follow", "--yes")
    if not done.ok:
        scene.notes.append(f"replication start --what files: {done.output}{done.errors}")


def tree_unmounted(scene: Scene) -> Iterator[None]:
    """Something empty is where the messages were; then the disk is back."""
    scene.master.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "chaos", TREE])
    yield
    scene.master.run(["umount", "--lazy", TREE])
    done = scene.ask(scene.slave, "replication", "start", "--what", "files", "--follow", "--yes")
    if not done.ok:
        scene.notes.append(f"replication start --what files: {done.output}{done.errors}")


def replica_stopped(scene: Scene) -> Iterator[None]:
    """Somebody says STOP SLAVE."""
    scene.sql(scene.slave, "STOP SLAVE;", check=False)
    yield


def errant_write(scene: Scene) -> Iterator[None]:
    """Root writes on the slave; the audits look for the evidence and take it away."""
    scene.sql(scene.slave, f"INSERT INTO chaos_errant (n) VALUES ({scene.chance.randrange(1 << 30)});")
    yield


def other_version(scene: Scene) -> Iterator[None]:
    """The slave says that it runs another version."""
    _set_version(scene, "9.9.9")
    yield
    _set_version(scene, str(json.loads(scene.master.path(PAIR_FILE).read_text())["version"]))


def _set_version(scene: Scene, version: str) -> None:
    file = scene.slave.path(PAIR_FILE)
    table = json.loads(file.read_text()) | {"version": version}
    scene.slave.run(["tee", PAIR_FILE], input_text=json.dumps(table, indent=1, sort_keys=True) + "\n")
    scene.slave.run(["systemctl", "restart", PEER], limit_seconds=60)


def clock_stepped(which: str) -> Play:
    """The time of day jumps where the role runtime reads it, as after a host that was suspended."""

    def play(scene: Scene) -> Iterator[None]:
        node = chosen(scene, which)
        shift_clock(node, "run", scene.chance.choice((-1, 1)) * scene.chance.uniform(3.0, 4000.0))
        yield
        shift_clock(node, "run", 0)

    return play


# --- in the middle of something -------------------------------------------------------------------------


def switch(scene: Scene) -> Iterator[None]:
    """A planned switch: no fault, and nothing may be lost."""
    done = scene.ask(scene.master, "fault-tolerance", "switch", "--yes", "--json")
    if not done.ok:
        scene.notes.append(f"switch: {done.output}{done.errors}")
    yield


def _switching(scene: Scene, pool: ThreadPoolExecutor) -> Future[Result | None]:
    def run() -> Result | None:
        try:
            return scene.ask(scene.master, "fault-tolerance", "switch", "--yes", limit_seconds=30)
        except LabError:
            return None  # the node went away under it

    return pool.submit(run)


def _leaving(scene: Scene) -> None:
    """Wait until the master steps down, then a random part of a switch."""
    scene.until(lambda: scene.role(scene.master) != "master", 20, "the beginning of the switch")
    scene.wait(scene.chance.uniform(0.0, 0.5))


def switch_then_power_off(which: str) -> Play:
    """The power of a node fails while the role is being handed over."""

    def play(scene: Scene) -> Iterator[None]:
        with ThreadPoolExecutor(1) as pool:
            _switching(scene, pool)
            _leaving(scene)
            scene.power_off(chosen(scene, which))
        yield
        scene.power_on(chosen(scene, which))

    return play


def switch_then_kill(unit: str) -> Play:
    """A unit of the old master dies while the role is being handed over."""

    def play(scene: Scene) -> Iterator[None]:
        with ThreadPoolExecutor(1) as pool:
            _switching(scene, pool)
            _leaving(scene)
            scene.strike(scene.master, unit)
        yield

    return play


def during_promotion(unit: str) -> Play:
    """The master dies, and a unit of the slave dies while it takes over."""

    def play(scene: Scene) -> Iterator[None]:
        scene.power_off(scene.master)
        scene.wait(scene.chance.uniform(0.6, 1.6))
        scene.strike(scene.slave, unit)
        yield
        scene.power_on(scene.master)

    return play


def seeding_then_power_off(which: str) -> Play:
    """The power of a node fails while the slave takes a new copy of the database."""

    def play(scene: Scene) -> Iterator[None]:
        scene.ask(scene.slave, "replication", "start", "--what", "db", "--yes")
        scene.wait(scene.chance.uniform(0.0, 4.0))
        node = chosen(scene, which)
        scene.power_off(node)
        yield
        scene.power_on(node)

    return play
