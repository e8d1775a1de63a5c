"""Command lines of QEMU for boot tests, its control channel, and screenshots."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import TracebackType

from appliance.errors import HostError

PROBE_SECONDS = 10.0


class Firmware(StrEnum):
    """What starts the machine."""

    BIOS = "bios"
    UEFI = "uefi"
    SECURE_BOOT = "secure-boot"


class Attachment(StrEnum):
    """How the image is connected: a disc, a stick, the machine's own disk, or a boot server."""

    CD = "cd"
    USB = "usb"
    DISK = "disk"
    NETWORK = "network"


# (code, variables) in order of preference; Debian's ovmf, then Enterprise Linux' edk2-ovmf.
_UEFI = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
)
# Variables that hold Microsoft's keys, so that unsigned loaders are refused.
_SECURE_BOOT = (
    ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"),
)


@dataclass(frozen=True)
class Machine:
    """The machine to start. `disk_bytes` adds an empty disk to install on, `netdev` a network card.

    For `Attachment.NETWORK` the image is a network boot tree, and `netdev` leads to its server. `window` is
    for an image inside of another file: (offset, length) in bytes.
    """

    image: Path
    firmware: Firmware = Firmware.BIOS
    attachment: Attachment = Attachment.CD
    image_format: str = "raw"
    window: tuple[int, int] | None = None
    memory_mib: int = 2048
    cpus: int = 2
    disk_bytes: int = 0
    netdev: str = ""


@cache
def accelerated() -> bool:
    """Whether KVM works here: it may be forbidden, or be there and yet fail inside another machine.

    Only a firmware that ran to its end proves it, so one is run: without a disk, for a moment.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35", "-accel", "kvm"]
    words += ["-cpu", "host", "-m", "64", "-display", "none", "-vga", "none", "-monitor", "none"]
    # SeaBIOS tells its debug port what it does.
    words += ["-chardev", "stdio,id=debug", "-device", "isa-debugcon,iobase=0x402,chardev=debug"]
    console, writer = os.pipe()
    try:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.DEVNULL)
    except OSError:
        os.close(console)
        return False
    finally:
        os.close(writer)
    seen = b""
    deadline = time.monotonic() + PROBE_SECONDS
    try:
        while b"No bootable device" not in seen and (left := deadline - time.monotonic()) > 0:
            if not select.select([console], [], [], left)[0] or not (data := os.read(console, 65536)):
                break
            seen += data
    finally:
        process.kill()
        process.wait()
        os.close(console)
    return b"No bootable device" in seen


def firmware_files(firmware: Firmware) -> tuple[Path, Path] | None:
    """Code and variables of UEFI, None for BIOS; raises HostError naming the package."""
    if firmware is Firmware.BIOS:
        return None
    for code, variables in _UEFI if firmware is Firmware.UEFI else _SECURE_BOOT:
        if Path(code).is_file() and Path(variables).is_file():
            return Path(code), Path(variables)
    raise HostError("no UEFI firmware for QEMU was found", "install ovmf (Debian) or edk2-ovmf (AlmaLinux)")


def command_line(machine: Machine, workshop: Path) -> list[str]:
    """QEMU's arguments; `workshop` holds `variables.fd` (UEFI), `target.qcow2` (a disk) and `qmp`."""
    secure = machine.firmware is Firmware.SECURE_BOOT
    words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-name", "boot-test"]
    words += ["-machine", f"q35,smm={'on' if secure else 'off'}"]
    words += ["-accel", "kvm", "-cpu", "host"] if accelerated() else ["-accel", "tcg", "-cpu", "max"]
    words += ["-m", str(machine.memory_mib), "-smp", str(machine.cpus)]
    words += ["-display", "none", "-vga", "std", "-serial", "stdio", "-monitor", "none"]
    words += ["-qmp", f"unix:{workshop / 'qmp'},server=on,wait=off"]
    words += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]
    if files := firmware_files(machine.firmware):
        if secure:
            words += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        words += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_escape(files[0])}"]
        words += ["-drive", f"if=pflash,unit=1,format=raw,file={_escape(workshop / 'variables.fd')}"]
    words += _attach(machine)
    if machine.disk_bytes:
        target = _escape(workshop / "target.qcow2")
        words += ["-drive", f"if=none,id=target,format=qcow2,cache=unsafe,file={target}"]
        words += ["-device", "virtio-blk-pci,drive=target,bootindex=2"]
    if machine.netdev:
        words += ["-netdev", machine.netdev, "-device", "virtio-net-pci,netdev=net,bootindex=3"]
    return words


def _attach(machine: Machine) -> list[str]:
    if machine.attachment is Attachment.NETWORK:
        return []
    # snapshot=on: whatever the guest writes is lost, the artefact stays as it is.
    drive = f"if=none,id=image,format={machine.image_format},file={_source(machine)}"
    match machine.attachment:
        case Attachment.CD:
            return ["-drive", f"{drive},media=cdrom,readonly=on", "-device", "ide-cd,drive=image,bootindex=1"]
        case Attachment.USB:
            device = "usb-storage,bus=xhci.0,drive=image,removable=on,bootindex=1"
            return ["-drive", f"{drive},snapshot=on", "-device", "qemu-xhci,id=xhci", "-device", device]
        case Attachment.DISK:
            return ["-drive", f"{drive},snapshot=on", "-device", "virtio-blk-pci,drive=image,bootindex=1"]


def _source(machine: Machine) -> str:
    if machine.window is None:
        return _escape(machine.image)
    offset, length = machine.window
    file = {"driver": "file", "filename": str(machine.image)}
    inside = {"driver": "raw", "offset": offset, "size": length, "file": file}
    return _escape(f"json:{json.dumps({'driver': machine.image_format, 'file': inside})}")


def _escape(value: Path | str) -> str:
    # QEMU splits options at commas; a doubled one is a comma.
    return str(value).replace(",", ",,")


class Control:
    """QEMU's control channel (QMP): one command at a time. Raises HostError if QEMU does not answer."""

    def __init__(self, path: Path, limit_seconds: float = 20.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(limit_seconds)
        try:
            self._socket.connect(str(path))
            self._stream = self._socket.makefile("rw", encoding="utf-8")
            self._stream.readline()
            self.command("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise HostError(f"QEMU's control channel does not answer: {error}") from error

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def command(self, name: str, **arguments: str | int) -> None:
        """Run a command and wait for its answer."""
        self._stream.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._stream.flush()
        while line := self._stream.readline():
            answer = json.loads(line)
            if "return" in answer:
                return
            if "error" in answer:
                raise HostError(f"QEMU refused {name}: {answer['error'].get('desc', '')}")
        raise HostError(f"QEMU ended before it answered {name}")


def screenshot(control: Control, target: Path) -> None:
    """Write the machine's screen as PNG (QEMU before 7.1 writes PPM only, so that is converted)."""
    raw = target.with_suffix(".ppm")
    try:
        control.command("screendump", filename=str(raw))
        target.write_bytes(png(raw.read_bytes()))
    finally:
        raw.unlink(missing_ok=True)


def png(ppm: bytes) -> bytes:
    """A binary PPM (P6, 8 bits) as PNG (RFC 2083)."""
    fields = ppm.split(maxsplit=4)
    if len(fields) < 4 or fields[0] != b"P6" or fields[3] != b"255":
        raise HostError("QEMU wrote a screenshot in an unknown format")
    width, height = int(fields[1]), int(fields[2])
    # Pixels may begin with bytes that look like white space: count from the end.
    pixels = ppm[len(ppm) - 3 * width * height :]
    rows = b"".join(b"\x00" + pixels[3 * width * row : 3 * width * (row + 1)] for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks: Sequence[tuple[bytes, bytes]] = (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(rows, 6)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
