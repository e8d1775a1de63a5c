"""One node of the lab: a real boot of the root tree by systemd-nspawn, and what may happen to it.

A keeper process (`appliance.lab_keeper`) owns each running node: it boots the node again when the node
reboots itself, whoever made the lab and whether or not that process still lives.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from appliance import lab_identity
from appliance.lab_disk import DEFAULT_SIZE, Disk
from appliance.lab_host import ControlGroup, LabError, Result, execute, start, wait_for
from appliance.lab_network import Network

# What a virtual machine may do and a bare container may not. No CAP_SYS_TIME: the clock is the host's.
CAPABILITIES = "CAP_NET_ADMIN,CAP_NET_RAW,CAP_SYS_NICE,CAP_IPC_LOCK,CAP_SYS_PTRACE,CAP_SYSLOG"
REBOOT_STATUS = 133  # systemd-nspawn(1), --keep-unit: "the container asks for a reboot"


@dataclass(frozen=True)
class NodeSpecification:
    """What a node is made of: host `number` (see `Segment`), disk `size` in bytes, and how it gets addresses.

    `addressing` is `static` (NetworkManager profiles written before the first boot), `dhcp` or `none` (left
    to whatever the image does). `binds` are host directories shown read-only in the node.
    """

    name: str
    number: int
    size: int = DEFAULT_SIZE
    addressing: str = "static"
    segments: tuple[str, ...] = ("lan", "mgmt")
    binds: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """For the lab's state file."""
        return asdict(self)


class Node:
    """A node by its specification; many handles may exist, the truth lies in the kernel and on disk."""

    def __init__(
        self, lab: str, specification: NodeSpecification, root: Path, directory: Path, network: Network
    ) -> None:
        self.lab = lab
        self.specification = specification
        self.name = specification.name
        self.directory = directory
        self.network = network
        self.disk = Disk(root, directory, specification.size)
        self.group = ControlGroup(f"{lab}/{self.name}")
        self.keeper_group = ControlGroup(f"{lab}/keeper-{self.name}")

    # --- what is true now -----------------------------------------------------------------------------

    def address(self, segment: str = "lan") -> str:
        """Its IPv4 address on a segment."""
        return str(self.network.segments[segment].address(self.specification.number))

    def address6(self, segment: str = "lan") -> str:
        """Its IPv6 address on a segment."""
        return str(self.network.segments[segment].address6(self.specification.number))

    @property
    def powered(self) -> bool:
        """Whether any process of the node exists."""
        return any(True for _ in self.group.processes())

    @property
    def init(self) -> int:
        """The host's process id of the node's process 1; raises LabError when the node is off."""
        for process in self.group.processes():
            try:
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:
                continue
            spaces = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
            if len(spaces) > 1 and spaces[-1] == "1":
                return process
        raise LabError(f"{self.name} is off or only starting", f"see {self.console}")

    @property
    def console(self) -> Path:
        """What the node wrote to its console, over all boots."""
        return self.directory / "console.log"

    def state(self) -> str:
        """`off`, `frozen`, or what `systemctl is-system-running` says (`starting`, `running`, `degraded`)."""
        if not self.powered:
            return "off"
        if self.group.frozen:
            return "frozen"
        try:
            answer = self.run(["systemctl", "is-system-running"], limit_seconds=5, check=False)
        except LabError:
            return "starting"
        return answer.output.strip() or "starting"

    # --- power ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the disk and write what makes this node itself: host name, machine id, addresses."""
        if self.disk.image.exists():
            return
        self.disk.create()
        self.disk.mount()
        specification, tree = self.specification, self.disk.tree
        try:
            lab_identity.write_name(tree, self.name, self._identity)
            lab_identity.let_clock_observe(tree)
            lab_identity.shorten_shutdown(tree)
            if specification.addressing != "none":
                segments = [self.network.segments[name] for name in specification.segments]
                dhcp = specification.addressing == "dhcp"
                lab_identity.write_connections(
                    tree, specification.number, segments, self._identity, dhcp=dhcp
                )
        finally:
            self.disk.unmount()

    def power_on(self, limit_seconds: float = 60.0, *, wait: bool = True) -> float:
        """Boot it, and with `wait` until systemd says that all start jobs are done; returns the seconds."""
        if self.powered:
            raise LabError(f"{self.name} is already running")
        self.keeper_group.kill()
        self.prepare()
        began = time.monotonic()
        keeper = [sys.executable, "-m", "appliance.lab_keeper", str(self.directory.parent.parent), self.name]
        search = os.pathsep.join(path for path in sys.path if path)
        start(
            keeper,
            self.directory / "keeper.log",
            groups=self.keeper_group.make(),
            environment={"PYTHONPATH": search},
        )
        if wait:
            self.wait_booted(limit_seconds)
        return time.monotonic() - began

    def wait_booted(self, limit_seconds: float = 60.0) -> None:
        """Wait until systemd in the node has nothing more to start; failed units do not matter here."""
        try:
            wait_for(
                lambda: self.state() in ("running", "degraded"), limit_seconds, f"the boot of {self.name}"
            )
        except LabError as error:
            raise LabError(
                f"{error}; the console ended with: {self.console_end()}", f"read {self.console}"
            ) from error

    def boot_once(self) -> int:
        """Boot the node and wait for its end; the status of systemd-nspawn (the keeper's work)."""
        specification = self.specification
        self.disk.mount()
        self.network.detach(self.name)
        self.network.attach(self.name, specification.number, specification.segments)
        arguments = [
            *("systemd-nspawn", "--boot", "--register=no", "--keep-unit", "--quiet", "--console=pipe"),
            f"--directory={self.disk.tree}",
            f"--machine={self.name}",
            f"--uuid={self._identity}",
            f"--network-namespace-path=/run/netns/{self.network.namespace(self.name)}",
            f"--capability={CAPABILITIES}",
            "--link-journal=no",
            "--resolv-conf=off",
            "--timezone=off",
            *(f"--bind-ro={source}:{target}" for source, target in specification.binds.items()),
        ]
        environment = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}
        machine = start(arguments, self.console, groups=self.group.make(), environment=environment)
        return machine.wait()

    def clear(self, *, power_loss: bool) -> None:
        """Take away what a boot left: processes, cables with their addresses and rules, mounts."""
        self.group.kill()
        if power_loss:
            self.disk.lose_power()
        self.disk.unmount()
        self.network.detach(self.name)
        self.group.remove()

    def power_off(self) -> float:
        """Cut the power, without goodbye: nothing more is sent, run or written.

        What the node had not fsynced may be lost, as on real disks. Returns the monotonic time just
        before the cut, so that what is measured from it is never flattered.
        """
        self.keeper_group.kill()
        moment = time.monotonic()
        if self.powered:
            self.network.cable(self.name, self.specification.segments, up=False)
        if self.group.frozen:
            self.network.mute(self.name, self.specification.segments, muted=False)
        self.clear(power_loss=True)
        self.keeper_group.remove()
        return moment

    def shut_down(self, limit_seconds: float = 90.0) -> None:
        """Ask the node to power itself off, and wait until it has."""
        self.run(["systemctl", "poweroff"], check=False)
        wait_for(
            lambda: not any(self.keeper_group.processes()),
            limit_seconds,
            f"the orderly power-off of {self.name}",
        )
        self.power_off()

    def reboot(self, limit_seconds: float = 90.0) -> None:
        """Ask the node to reboot itself in good order, and wait until it is up again."""
        before = self.boots()
        self.run(["systemctl", "reboot"], check=False)
        wait_for(lambda: self.boots() > before, limit_seconds, f"the reboot of {self.name}")
        self.wait_booted(limit_seconds)

    def boots(self) -> int:
        """How often it has been booted so far, reboots of its own will included."""
        try:
            return int((self.directory / "boots").read_text())
        except OSError:
            return 0

    # --- inside ---------------------------------------------------------------------------------------

    def run(
        self,
        arguments: Sequence[str],
        *,
        input_text: str | None = None,
        limit_seconds: float = 30.0,
        user: str | None = None,
        check: bool = True,
    ) -> Result:
        """Run a program in the node as if at its own prompt, by `user` (default root); see `execute`."""
        if self.group.frozen:
            raise LabError(f"{self.name} is frozen and runs nothing", "thaw it first")
        words = [str(word) for word in arguments]
        inside = ["runuser", "-u", user, "--", *words] if user else words
        return execute(
            ["nsenter", f"--target={self.init}", "--all", "--", *inside],
            limit_seconds=limit_seconds,
            input_text=input_text,
            groups=ControlGroup(f"{self.group.name}/exec").make(),
            shown=[f"{self.name}:", *words],
            check=check,
        )

    def json(self, arguments: Sequence[str], **options: float) -> dict[str, object]:
        """The JSON object that a program in the node prints, whatever its exit status."""
        answer = self.run(arguments, check=False, **options)  # type: ignore[arg-type]
        try:
            value = json.loads(answer.output)
        except ValueError as error:
            raise LabError(
                f"{self.name}: `{' '.join(arguments)}` printed no JSON: {answer.output}{answer.errors}"
            ) from error
        if not isinstance(value, dict):
            raise LabError(f"{self.name}: `{' '.join(arguments)}` printed JSON that is no object")
        return value

    def path(self, inside: str) -> Path:
        """Where a file of the node lies on the host, to read and write (not for `/run` and `/tmp`)."""
        return self.disk.tree / inside.lstrip("/")

    def processes_of(self, unit: str) -> list[int]:
        """The host's ids of the processes of a unit, in order."""
        return sorted(self.unit_group(unit).processes())

    def signal_unit(self, unit: str, number: signal.Signals = signal.SIGKILL) -> float:
        """Send a signal to every process of a unit from outside; the monotonic time just before.

        Raises LabError if the unit has no process.
        """
        processes = self.processes_of(unit)
        if not processes:
            raise LabError(f"{self.name}: {unit} has no process to send {number.name} to")
        moment = time.monotonic()
        for process in processes:
            with suppress(ProcessLookupError):  # it ended while we looked
                os.kill(process, number)
        return moment

    def wait_active(self, unit: str, limit_seconds: float = 30.0) -> None:
        """Wait until systemd calls a unit active."""
        wait_for(
            lambda: self.run(["systemctl", "is-active", unit], check=False).output.strip() == "active",
            limit_seconds,
            f"{unit} becoming active on {self.name}",
        )

    def journal(self, *arguments: str) -> str:
        """The node's journal as text, from inside if it runs, else from its disk."""
        if self.powered and not self.group.frozen:
            return self.run(
                ["journalctl", "--no-pager", "--output=short-precise", *arguments], check=False
            ).output
        where = "/var/log/journal"
        self.disk.mount()
        return execute(
            [
                "journalctl",
                "--no-pager",
                "--output=short-precise",
                f"--directory={self.path(where)}",
                *arguments,
            ],
            check=False,
        ).output

    def console_end(self, lines: int = 5) -> str:
        """The last lines of the console, on one line."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return " | ".join(line.strip() for line in text.splitlines()[-lines:]) or "nothing"

    def save_logs(self, directory: Path) -> Path:
        """Keep journal and console of the node in `directory/NODE/` and return that."""
        kept = directory / self.name
        kept.mkdir(parents=True, exist_ok=True)
        if self.disk.image.exists():
            (kept / "journal.log").write_text(self.journal())
        if self.console.exists():
            (kept / "console.log").write_bytes(self.console.read_bytes())
        return kept

    # --- faults ---------------------------------------------------------------------------------------

    def freeze(self, *, silent: bool = True) -> float:
        """Stop every process at once; with `silent` its kernel is mute, too. Monotonic time just before."""
        moment = time.monotonic()
        if silent:
            self.network.mute(self.name, self.specification.segments, muted=True)
        self.group.freeze(True)
        return moment

    def thaw(self) -> float:
        """Undo `freeze`. Monotonic time just before."""
        moment = time.monotonic()
        self.group.freeze(False)
        self.network.mute(self.name, self.specification.segments, muted=False)
        return moment

    def link_down(self, segment: str = "lan") -> float:
        """Pull the cable of a segment: the node sees the carrier go. Monotonic time just before."""
        moment = time.monotonic()
        self.network.cable(self.name, [segment], up=False)
        return moment

    def link_up(self, segment: str = "lan") -> float:
        """Plug the cable of a segment in again. Monotonic time just before."""
        moment = time.monotonic()
        self.network.cable(self.name, [segment], up=True)
        return moment

    def fill_disk(self, leave_bytes: int = 0) -> None:
        """Leave only `leave_bytes` of free space on its disk."""
        self.disk.fill(leave_bytes)

    def free_disk(self) -> None:
        """Give the space back."""
        self.disk.free()

    # --- details --------------------------------------------------------------------------------------

    def unit_group(self, unit: str) -> ControlGroup:
        """The host's view of a unit's control group; raises LabError if the unit does not run."""
        answer = self.run(["systemctl", "show", "--property=ControlGroup", "--value", unit])
        inside = answer.output.strip().lstrip("/")
        if not inside:
            raise LabError(f"{self.name}: {unit} is not running")
        return ControlGroup(f"{self.group.name}/payload/{inside}")

    @property
    def _identity(self) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_URL, f"centralino-lab:{self.directory}")


def repeat_boots(node: Node, boot: Callable[[], int]) -> int:
    """Boot until the node stays off by its own will; the status of the last boot."""
    while True:
        counter = node.directory / "boots"
        counter.write_text(str(node.boots() + 1))
        status = boot()
        node.clear(power_loss=False)
        if status != REBOOT_STATUS:
            return status
