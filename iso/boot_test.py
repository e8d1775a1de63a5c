"""Boots an ISO or a disk image in QEMU and watches the serial console for declared milestones.

KVM where it is usable, software emulation elsewhere (its time limits are longer by a factor). The console's
log and a screenshot stay, whatever happens; the image itself is never written to.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import IO

from appliance.errors import BootTestError, HostError, InputError
from appliance.run import find_program, require, run
from appliance.scratch import Scratch
from iso.inspect_live import is_live
from iso.network_boot import serving
from iso.qemu import Attachment, Control, Machine, accelerated, command_line, firmware_files, screenshot

# Without KVM a guest runs 8 to 15 times slower (measured with a kernel boot).
EMULATION_FACTOR = 12.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\r")


@dataclass(frozen=True)
class Milestone:
    """Something the console must say (regular expression), at most `seconds` after the one before it.

    `answer` is typed on the console once it was said; a line needs its `\\n`.
    """

    title: str
    pattern: str
    seconds: float
    answer: str = ""


@dataclass(frozen=True)
class Expectation:
    """Milestones in their order, and what ends the test at once because it means failure."""

    milestones: tuple[Milestone, ...]
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class BootResult:
    """What was reached: title and seconds since power on."""

    reached: tuple[tuple[str, float], ...]
    accelerated: bool
    log: Path
    screenshot: Path | None
    console: str = field(repr=False, default="")

    def as_json(self) -> dict[str, object]:
        """Keys `reached` (title, seconds), `accelerated`, `log`, `screenshot`."""
        return {
            "reached": [{"title": title, "seconds": round(seconds, 1)} for title, seconds in self.reached],
            "accelerated": self.accelerated,
            "log": str(self.log),
            "screenshot": None if self.screenshot is None else str(self.screenshot),
        }


def load_expectation(name: str) -> Expectation:
    """Milestones from a TOML file, or the shipped `installer`, `live` and `disk`; raises InputError."""
    shipped = resources.files("iso") / "milestones" / f"{name}.toml"
    try:
        text = shipped.read_text() if shipped.is_file() else Path(name).read_text(encoding="utf-8")
        document = tomllib.loads(text)
        milestones = tuple(
            Milestone(
                str(entry["title"]),
                str(entry["pattern"]),
                float(entry["seconds"]),
                str(entry.get("answer", "")),
            )
            for entry in document["milestone"]
        )
        failures = tuple(str(pattern) for pattern in document.get("failures", ()))
        for pattern in (*failures, *(milestone.pattern for milestone in milestones)):
            re.compile(pattern)
    except OSError as error:
        raise InputError(
            f"{name} cannot be read: {error.strerror}", "name a file, or installer, live or disk"
        ) from error
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, re.error) as error:
        raise InputError(
            f"{name} holds no milestones: {error}", "each [[milestone]] needs title, pattern and seconds"
        ) from error
    return Expectation(milestones, failures)


def disk_inside(image: Path) -> tuple[int, int] | None:
    """Where the disk lies in an OVA, (offset, length) in bytes; None for what is no archive.

    Raises InputError for an archive that no machine can start from.
    """
    with image.open("rb") as stream:
        start = stream.read(512)
    if start[:2] == b"\x1f\x8b":
        raise InputError(f"{image} is compressed", "unpack it, and name the disk")
    if start[257:262] != b"ustar":
        return None
    try:
        with tarfile.open(image, "r:") as archive:
            disks = [member for member in archive if member.name.endswith(".vmdk")]
    except tarfile.TarError as error:
        raise InputError(f"{image} is a damaged archive: {error}", "fetch or build it again") from error
    if len(disks) != 1:
        raise InputError(f"{image} is an archive of {len(disks)} VMDKs", "name an OVA with one, or a disk")
    return disks[0].offset_data, disks[0].size


def image_format(image: Path) -> str:
    """`raw`, `qcow2`, `vmdk`, `vhdx` or `vpc`, as qemu-img sees it, an OVA's disk's; raises InputError."""
    if image.is_dir():
        return "raw"
    if not image.is_file():
        raise InputError(f"{image} is no file", "name an ISO or a disk image")
    if disk_inside(image):
        return "vmdk"
    require({"qemu-img": "qemu-utils"})
    import json

    found = run(
        ["qemu-img", "info", "--output=json", image], limit_seconds=60, remedy="name an ISO or a disk image"
    )
    return str(json.loads(found.output)["format"])


def is_iso(image: Path) -> bool:
    """Whether the image has an ISO 9660 volume descriptor."""
    if image.is_dir():
        return False
    with image.open("rb") as stream:
        stream.seek(16 * 2048)
        return stream.read(6) == b"\x01CD001"


def usual_milestones(image: Path) -> str:
    """The shipped milestones for this kind of image: `installer`, `live` or `disk`."""
    if image.is_dir():
        return "installer"
    if not is_iso(image):
        return "disk"
    return "live" if is_live(image) else "installer"


def boot_test(
    machine: Machine,
    expectation: Expectation,
    log: Path,
    *,
    on_milestone: Callable[[str, float], None] = lambda title, seconds: None,
) -> BootResult:
    """Start the machine and wait for every milestone.

    `log` gets the console, `log` with the suffix `.png` the screen. Raises BootTestError naming the
    milestone that was not reached, or the failure that was seen, with the last lines of the console.
    """
    require({"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils"})
    if machine.attachment in (Attachment.CD, Attachment.USB) and machine.image_format != "raw":
        raise InputError(
            f"{machine.image} is {machine.image_format}; only a raw image can be a disc or a stick"
        )
    if machine.attachment is Attachment.NETWORK and not machine.netdev:
        with serving(machine.image) as served:
            reached = replace(machine, netdev=served.netdev())
            return boot_test(reached, expectation, log, on_milestone=on_milestone)
    log.parent.mkdir(parents=True, exist_ok=True)
    with Scratch(prefix="boot-test-") as name:
        workshop = Path(name)
        _prepare(machine, workshop)
        with log.open("wb") as stream, _started(machine, workshop) as (process, console):
            watcher = _Watcher(console, process.stdin, stream, expectation, on_milestone)
            picture: Path | None = log.with_suffix(".png")
            try:
                watcher.watch()
            finally:
                picture = _picture(process, workshop / "qmp", log.with_suffix(".png"))
    result = BootResult(tuple(watcher.reached), accelerated(), log, picture, watcher.text)
    if watcher.problem:
        last = [line for line in watcher.text.splitlines() if line.strip()][-8:]
        raise BootTestError(
            f"{machine.image.name}, {machine.firmware}, {machine.attachment}: {watcher.problem}\n"
            + "\n".join(f"    | {line}" for line in last),
            f"read {log}" + (f" and look at {picture}" if picture else ""),
        )
    return result


def _prepare(machine: Machine, workshop: Path) -> None:
    if files := firmware_files(machine.firmware):
        shutil.copyfile(files[1], workshop / "variables.fd")
    if machine.disk_bytes:
        run(["qemu-img", "create", "-q", "-f", "qcow2", workshop / "target.qcow2", str(machine.disk_bytes)])


@contextmanager
def _started(machine: Machine, workshop: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """QEMU and the descriptor of its console, ended when the block is left, however it is left."""
    words = command_line(machine, workshop)
    words[0] = str(find_program(words[0]))
    # Not appliance.run: the console is read while the machine runs.
    console, writer = os.pipe()
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=writer, stderr=writer, start_new_session=True
        )
    except BaseException:
        os.close(console)
        raise
    finally:
        os.close(writer)
    try:
        yield process, console
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.kill()
        process.wait()
        os.close(console)
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()


def _picture(process: subprocess.Popen[bytes], channel: Path, target: Path) -> Path | None:
    """The screen as it is now; None if the machine is already off."""
    if process.poll() is not None:
        return None
    try:
        with Control(channel) as control:
            screenshot(control, target)
    except (HostError, OSError):
        # A missing picture must not hide what the console said.
        return None
    return target


class _Watcher:
    """Reads the console, keeps it, and compares it with what is expected."""

    def __init__(
        self,
        console: int,
        keyboard: IO[bytes] | None,
        log: IO[bytes],
        expectation: Expectation,
        on_milestone: Callable[[str, float], None],
    ) -> None:
        self._console = console
        self._keyboard = keyboard
        self._log = log
        self._expectation = expectation
        self._on_milestone = on_milestone
        self.text = ""
        self.problem = ""
        self.reached: list[tuple[str, float]] = []

    def watch(self) -> None:
        """Until the last milestone, a failure, a limit, or the end of the machine."""
        started = time.monotonic()
        position = 0
        factor = 1.0 if accelerated() else EMULATION_FACTOR
        with selectors.DefaultSelector() as selector:
            selector.register(self._console, selectors.EVENT_READ)
            for milestone in self._expectation.milestones:
                deadline = time.monotonic() + milestone.seconds * factor
                while True:
                    if found := re.search(milestone.pattern, self.text[position:]):
                        position += found.end()
                        self.reached.append((milestone.title, time.monotonic() - started))
                        self._on_milestone(*self.reached[-1])
                        self._type(milestone.answer)
                        break
                    if self._failed():
                        return
                    left = deadline - time.monotonic()
                    if left <= 0:
                        self._failed(at_end=True)
                        self.problem = self.problem or (
                            f"`{milestone.title}` was not reached within {milestone.seconds * factor:.0f} s"
                        )
                        return
                    if selector.select(timeout=min(left, 5.0)) and not self._read():
                        if re.search(milestone.pattern, self.text[position:]):
                            continue
                        self._failed(at_end=True)
                        self.problem = self.problem or f"the machine went off before `{milestone.title}`"
                        return
        self._failed()

    def _type(self, text: str) -> None:
        if text and self._keyboard is not None:
            # A machine that is off by now takes nothing; the next milestone says so.
            with suppress(OSError):
                self._keyboard.write(text.encode())
                self._keyboard.flush()

    def _read(self) -> bool:
        data = os.read(self._console, 65536)
        self._log.write(data)
        self._log.flush()
        self.text += _ESCAPES.sub("", data.decode("utf-8", "replace"))
        return bool(data)

    def _failed(self, *, at_end: bool = False) -> bool:
        """Whether a failure was seen; its line must be whole, because the reason follows the word."""
        for pattern in self._expectation.failures:
            if found := re.search(pattern, self.text):
                line, end, _ = self.text[self.text.rfind("\n", 0, found.start()) + 1 :].partition("\n")
                if not end and not at_end:
                    continue
                self.problem = f"the console says `{line.strip()}`"
                return True
        return False


def default_attachments(image: Path) -> Sequence[Attachment]:
    """How an image is meant to be used: an installer as disc and as stick, a directory from a boot server."""
    if image.is_dir():
        return (Attachment.NETWORK,)
    return (Attachment.CD, Attachment.USB) if is_iso(image) else (Attachment.DISK,)
