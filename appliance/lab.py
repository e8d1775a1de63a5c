"""A lab: booted nodes, clients and a gateway on wires of their own, on one host.

    with Lab(root, directory) as lab:
        first, second = lab.add_node("node1"), lab.add_node("node2")
        lab.power_on_all()
        phone = lab.add_client("phone")
        phone.run(["ping", "-c1", first.address()])
        lab.partition(["node1"], ["node2"], segments=["lan"])
        moment = first.power_off()

Needs root, a kernel with overlay, loop, bridge and nftables, and systemd-nspawn; not systemd as process 1.
`Lab` cleans up when its block ends, however it ends; what a killed process leaves behind is removed by the
next lab or by `centralino-build lab down --all`. The clock cannot be a node's own: see docs/lab.md.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from types import TracebackType

from appliance.lab_disk import discard
from appliance.lab_host import ControlGroup, LabError, Result, execute, start
from appliance.lab_network import NAMESPACES, Loss, Network, enter, prefix, remove_namespaces
from appliance.lab_node import Node, NodeSpecification

REGISTRY = Path("/run/centralino-lab")
LOGS = Path("out/lab-logs")
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "nft": "nftables",
    "mkfs.ext4": "e2fsprogs",
    "sysctl": "procps",
    "dnsmasq": "dnsmasq-base",
}


class Client:
    """A machine on the lan that runs the host's programs: a phone, an admin, a provider."""

    def __init__(self, lab: str, name: str, number: int, network: Network, directory: Path) -> None:
        self.name = name
        self.number = number
        self.network = network
        self.directory = directory
        self.group = ControlGroup(f"{lab}/{name}")

    def address(self, segment: str = "lan") -> str:
        """Its IPv4 address on a segment."""
        return str(self.network.segments[segment].address(self.number))

    def address6(self, segment: str = "lan") -> str:
        """Its IPv6 address on a segment."""
        return str(self.network.segments[segment].address6(self.number))

    @property
    def namespace(self) -> Path:
        """Its network namespace, for programs that enter by themselves."""
        return NAMESPACES / self.network.namespace(self.name)

    def run(
        self,
        arguments: Sequence[str],
        *,
        input_text: str | None = None,
        limit_seconds: float = 30.0,
        check: bool = True,
    ) -> Result:
        """Run one of the host's programs with the client's network."""
        return execute(
            enter(self.network.namespace(self.name), arguments),
            input_text=input_text,
            limit_seconds=limit_seconds,
            groups=self.group.make(),
            shown=[f"{self.name}:", *arguments],
            check=check,
        )

    def start(self, arguments: Sequence[str], log_name: str) -> subprocess.Popen[bytes]:
        """Start a program that stays; it ends with the lab. Its output goes to `directory/log_name`."""
        log = self.directory / log_name
        return start(enter(self.network.namespace(self.name), arguments), log, groups=self.group.make())


class Lab:
    """See the module's text. `name` is unique on the host and at most 12 characters long."""

    def __init__(self, root: Path, directory: Path, name: str | None = None, *, dhcp: bool = False) -> None:
        self.root = root.resolve()
        self.directory = directory.resolve()
        self.name = name or f"{os.getpid() % 100000}{secrets.token_hex(2)}"
        self.network = Network(self.name)
        self.dhcp = dhcp
        self.nodes: dict[str, Node] = {}
        self.clients: dict[str, Client] = {}
        self.group = ControlGroup(self.name)
        self.keep_logs: Path | None = LOGS

    # --- life -----------------------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        self.create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.keep_logs is not None:
            self.save_logs(self.keep_logs)
        self.remove()

    def create(self, *, detached: bool = False) -> None:
        """Make switch, gateway and directories; with `detached` it outlives this process."""
        from appliance.run import require

        if os.geteuid() != 0:
            raise LabError("a lab needs root", "run it with sudo or in a root shell")
        require(PROGRAMS)
        if not (self.root / "etc/os-release").exists() and not (self.root / "usr/lib/os-release").exists():
            raise LabError(
                f"{self.root} is no root tree", "build one with `centralino-build image --format root`"
            )
        if len(self.name) > 12 or not self.name.isalnum():
            raise LabError(f"the lab name {self.name!r} must be 1 to 12 letters and digits")
        remove_leftovers()
        if (REGISTRY / f"{self.name}.json").exists():
            raise LabError(
                f"a lab named {self.name} exists", f"`centralino-build lab down --name {self.name}` ends it"
            )
        if self.directory in registered().values() or _mounts_below(self.directory):
            raise LabError(f"{self.directory} is in use by another lab", "choose another directory")
        # Disks that a reboot of the host left here belong to no lab; a lab begins with empty ones.
        shutil.rmtree(self.directory / "nodes", ignore_errors=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        REGISTRY.mkdir(exist_ok=True)
        owner = None if detached else {"process": os.getpid(), "started": _start_time(os.getpid())}
        _write_json(REGISTRY / f"{self.name}.json", {"directory": str(self.directory), "owner": owner})
        try:
            # Mounts below must vanish everywhere at once, also in the copies that booted nodes took.
            execute(["mount", "--bind", str(self.directory), str(self.directory)])
            execute(["mount", "--make-shared", str(self.directory)])
            self.group.make()
            self.network.create()
            self._save()
        except BaseException:
            self.remove()
            raise

    @classmethod
    def open(cls, directory: Path) -> Lab:
        """A handle on a lab that exists, by its directory."""
        try:
            table = json.loads((directory / "lab.json").read_text())
        except OSError as error:
            raise LabError(
                f"{directory} holds no lab", "`centralino-build lab status` lists the labs"
            ) from error
        lab = cls(Path(table["root"]), directory, table["name"], dhcp=table["dhcp"])
        for entry in table["nodes"]:
            lab._know_node(NodeSpecification(**{**entry, "segments": tuple(entry["segments"])}))
        for entry in table["clients"]:
            lab._know_client(entry["name"], entry["number"])
        return lab

    @classmethod
    def find(cls, name: str | None = None) -> Lab:
        """A handle by the lab's name; without name the only lab there is."""
        labs = registered()
        if name is None and len(labs) != 1:
            raise LabError(
                "no lab is up" if not labs else f"several labs are up: {', '.join(labs)}",
                "start one with `centralino-build lab up`" if not labs else "choose one with --name",
            )
        chosen = name or next(iter(labs))
        if chosen not in labs:
            raise LabError(f"there is no lab named {chosen}", f"labs: {', '.join(labs) or 'none'}")
        return cls.open(labs[chosen])

    def remove(self, *, keep_disks: bool = False) -> None:
        """End every process, and remove namespaces, mounts, control groups and files of the lab."""
        tear_down(self.name, self.directory, keep_disks=keep_disks)
        self.nodes.clear()
        self.clients.clear()

    # --- members --------------------------------------------------------------------------------------

    def add_node(self, name: str | None = None, **options: object) -> Node:
        """Add a node that is still off; options as in `NodeSpecification` (`size`, `addressing`, `binds`)."""
        chosen = name or f"node{len(self.nodes) + 1}"
        self._refuse_taken(chosen)
        number = 11 + len(self.nodes)
        options.setdefault("addressing", "dhcp" if self.dhcp else "static")
        node = self._know_node(NodeSpecification(chosen, number, **options))  # type: ignore[arg-type]
        node.directory.mkdir(parents=True, exist_ok=True)
        self._save()
        self.start_names()
        return node

    def start_names(self) -> None:
        """Start DNS (and DHCP if the lab has it) on the gateway, or start it anew."""
        hosts = {each.name: each.specification.number for each in self.nodes.values()}
        self.network.serve_names(hosts, self.directory, dhcp=self.dhcp)

    def stop_names(self) -> None:
        """A fault: DNS and DHCP are gone."""
        ControlGroup(f"{self.name}/gateway").kill()

    def add_client(self, name: str = "phone", segments: Sequence[str] = ("lan",)) -> Client:
        """Add a client with static addresses on the given segments."""
        self._refuse_taken(name)
        client = self._know_client(name, 101 + len(self.clients))
        self.network.attach(name, client.number, segments)
        for segment in segments:
            self.network.address(name, self.network.segments[segment], client.number, route=segment == "lan")
        self._save()
        return client

    def node(self, name: str) -> Node:
        """The node of that name."""
        if name not in self.nodes:
            raise LabError(f"lab {self.name} has no node {name}", f"nodes: {', '.join(self.nodes) or 'none'}")
        return self.nodes[name]

    def power_on_all(self, limit_seconds: float = 120.0) -> None:
        """Boot every node that is off, all at the same time."""
        off = [node for node in self.nodes.values() if not node.powered]
        with ThreadPoolExecutor(max(1, len(off))) as pool:
            list(pool.map(lambda node: node.power_on(limit_seconds), off))

    # --- faults between members -----------------------------------------------------------------------

    def partition(
        self,
        these: Sequence[str],
        those: Sequence[str],
        *,
        segments: Sequence[str] = ("lan", "mgmt"),
        one_way: bool = False,
    ) -> None:
        """Lose every frame between two groups of hosts (`gateway` is one); `one_way`: only these -> those."""
        pairs = list(product(these, those))
        self.network.cut(pairs if one_way else pairs + [(b, a) for a, b in pairs], segments)

    def heal(self) -> None:
        """Undo every partition and every lossy cable."""
        self.network.heal()

    def lose_frames(self, host: str, loss: Loss, *, segments: Sequence[str] = ("lan", "mgmt")) -> None:
        """Lose a share of what a host sends."""
        self.network.weaken(host, segments, loss)

    def save_logs(self, directory: Path) -> Path:
        """Keep journal and console of every node below `directory/LAB/`; never raises."""
        kept = directory / self.name
        for node in self.nodes.values():
            try:
                node.save_logs(kept)
            except (LabError, OSError) as error:
                kept.mkdir(parents=True, exist_ok=True)
                (kept / f"{node.name}.missing").write_text(f"{error}\n")
        for log in self.directory.glob("*.log"):
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, kept)
        return kept

    # --- details --------------------------------------------------------------------------------------

    def _refuse_taken(self, name: str) -> None:
        if name in self.nodes or name in self.clients or name in ("gateway", "switch"):
            raise LabError(f"lab {self.name} already has a host named {name}")

    def _know_node(self, specification: NodeSpecification) -> Node:
        directory = self.directory / "nodes" / specification.name
        node = Node(self.name, specification, self.root, directory, self.network)
        self.nodes[specification.name] = node
        return node

    def _know_client(self, name: str, number: int) -> Client:
        self.clients[name] = Client(self.name, name, number, self.network, self.directory)
        return self.clients[name]

    def _save(self) -> None:
        table = {
            "name": self.name,
            "root": str(self.root),
            "dhcp": self.dhcp,
            "nodes": [node.specification.as_json() for node in self.nodes.values()],
            "clients": [{"name": client.name, "number": client.number} for client in self.clients.values()],
        }
        _write_json(self.directory / "lab.json", table)


def registered() -> dict[str, Path]:
    """Name and directory of every lab on this host."""
    return {name: directory for name, directory, _ in _entries()}


def remove_leftovers(*, everything: bool = False) -> list[str]:
    """Remove labs whose process died without cleaning up; with `everything` all labs. Their names."""
    removed = []
    REGISTRY.mkdir(exist_ok=True)
    with (REGISTRY / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two labs that start together must not clean the same leftovers
        for name, directory, orphan in list(_entries()):
            if everything or orphan:
                tear_down(name, directory)
                removed.append(name)
    return removed


def tear_down(name: str, directory: Path, *, keep_disks: bool = False) -> None:
    """Remove whatever exists of a lab; safe to repeat, and on one that was only half made."""
    group = ControlGroup(name)
    group.kill()
    for target in _mounts_below(directory):
        if target.name == "disk" and not keep_disks:
            discard(target)  # nobody will read it again: spare the host the writing
        # Whoever still looks into the lab's directory (a shell, a loop device) must not keep it mounted.
        execute(["umount", *(["--lazy"] if target == directory else []), str(target)])
    remove_namespaces(name)
    group.remove()
    if not keep_disks:
        shutil.rmtree(directory / "nodes", ignore_errors=True)
        for file in (directory / "lab.json", *directory.glob("*.log")):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or somebody put files of his own into it
            directory.rmdir()
    (REGISTRY / f"{name}.json").unlink(missing_ok=True)


def _entries() -> Iterator[tuple[str, Path, bool]]:
    """Name, directory, and whether its owner is gone, of every registered lab."""
    for file in sorted(REGISTRY.glob("*.json")):
        try:
            table = json.loads(file.read_text())
        except (OSError, ValueError):
            continue  # another process is just removing it
        owner = table["owner"]
        orphan = owner is not None and _start_time(owner["process"]) != owner["started"]
        yield file.stem, Path(table["directory"]), orphan


def _mounts_below(directory: Path) -> list[Path]:
    """Mount points at and below a directory, the deepest and newest first."""
    targets = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = Path(line.split()[4].replace("\\040", " "))
        if target == directory or directory in target.parents:
            targets.append(target)
    return sorted(targets, key=lambda each: len(each.parts), reverse=True)


def _start_time(process: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22); None if there is none."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def _write_json(file: Path, table: object) -> None:
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text(json.dumps(table, indent=2, default=str) + "\n")
    fresh.replace(file)


__all__ = ["Client", "Lab", "LabError", "Loss", "Node", "Result", "prefix", "registered", "remove_leftovers"]
