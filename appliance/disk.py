"""Assemble a disk image from a root tree without loop device, mount or device-mapper.

Layout, the same on every platform: GPT with a BIOS boot partition (1 MiB), an EFI system partition and the
root partition, last so that it can grow. One image boots by BIOS and by UEFI with Secure Boot on. Same
tree, seed, size and epoch give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from appliance.bootloader import BootPlan, core_image, efi_stub, install_bios, root_additions
from appliance.disk_data import DiskTable
from appliance.disk_identity import derived_uuid
from appliance.errors import BuildError, InputError
from appliance.ext4 import Ext4, write_ext4
from appliance.gpt import (
    ALIGNMENT,
    BIOS_BOOT,
    EFI_SYSTEM,
    LINUX_ROOT_X86_64,
    SECTOR,
    Partition,
    Table,
    write_table,
)
from appliance.run import require, run
from appliance.scratch import Scratch
from appliance.sparse import copy_into
from appliance.tree_entries import Addition, Entry, walk

BIOS_BYTES = 1 << 20
EFI_BYTES = 200 << 20
ROOT_NUMBER = 3
PROGRAMS = {
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "mmd": "mtools",
}
DISK_FILES = Path(__file__).parent / "templates" / "disk"
UNITS = ("centralino-grow-root.service", "centralino-guest-properties.service")
# What a running system fills; the directories themselves stay.
EMPTIED_DIRECTORIES = (
    "proc", "sys", "dev", "run", "tmp", "var/tmp", "var/cache/apt", "var/cache/dnf", "var/cache/yum",
    "var/lib/apt/lists", "var/lib/cloud", "boot/efi",
)  # fmt: skip
# What must be this box's own, or belongs to the build: made again at the first boot, or of no use.
EXCLUDED = (
    "etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/dhclient/*",
    "var/lib/NetworkManager/*.lease", "var/lib/NetworkManager/secret_key",
    "var/lib/NetworkManager/seen-bssids",
    "var/lib/systemd/credential.secret", "root/.bash_history", "root/.ansible", "root/.cache", "*.dpkg-bak",
    "var/cache/ldconfig/aux-cache", "var/cache/debconf/*-old", "var/lib/dpkg/*-old", "etc/.pwd.lock",
    ".dockerenv",
    "boot/loader/entries/*", "usr/sbin/policy-rc.d",
)  # fmt: skip
EMPTIED_FILES = ("etc/machine-id", "etc/resolv.conf", "var/log/*")


@dataclass(frozen=True)
class DiskPlan:
    """What is assembled: `size` in bytes, `seed` any text from which all identifiers are derived.

    `epoch` is in seconds since 1970; `additions` lie over the tree.
    """

    root: Path
    size: int
    seed: str
    epoch: int
    data: DiskTable
    title: str
    arguments: tuple[str, ...]
    additions: Mapping[str, Addition] = field(default_factory=dict)

    def identifier(self, name: str) -> UUID:
        """A UUID (version 4 in form) derived from seed and name."""
        return derived_uuid(self.seed, name)


def layout(plan: DiskPlan) -> Table:
    """The partitions of the disk. Raises BuildError if the size leaves no room."""
    if plan.size % ALIGNMENT or plan.size < EFI_BYTES + 512 * ALIGNMENT:
        raise BuildError(f"{plan.size} bytes are no size for this disk", "give whole MiB, at least 712")
    efi = ALIGNMENT + BIOS_BYTES
    root = efi + EFI_BYTES
    places = (
        (BIOS_BOOT, "bios", ALIGNMENT, BIOS_BYTES),
        (EFI_SYSTEM, "efi", efi, EFI_BYTES),
        # The last MiB holds the backup table.
        (LINUX_ROOT_X86_64, "root", root, plan.size - ALIGNMENT - root),
    )
    return Table(
        plan.identifier("disk"),
        plan.size,
        tuple(
            Partition(kind, plan.identifier(f"partition {name}"), start, size, f"centralino-{name}")
            for kind, name, start, size in places
        ),
    )


def assemble(plan: DiskPlan, output: Path, *, log: Path | None = None) -> list[Entry]:
    """Write the disk image to `output`; returns what is in its root file system.

    Raises HostError, InputError or BuildError.
    """
    require(PROGRAMS)
    table = layout(plan)
    bios, efi, root = table.partitions
    filesystem = plan.identifier("root file system")
    boot = BootPlan(plan.data, filesystem, plan.arguments, plan.title)
    volume = plan.identifier("efi file system").int & 0xFFFFFFFF
    with output.open("w+b") as stream, Scratch(prefix="centralino-disk-") as name:
        staging = Path(name)
        stream.truncate(plan.size)
        write_table(stream, table)
        core = core_image(boot, plan.root, ROOT_NUMBER, staging / "core.img", log=log)
        install_bios(stream, (plan.root / plan.data.grub_modules / "boot.img").read_bytes(), core, bios)
        _write_efi(plan, boot, volume, staging, log)
        copy_into(staging / "efi.img", stream, efi.start)
    entries = disk_entries(plan, boot, _fstab(filesystem, volume))
    write_ext4(
        Ext4(output, root.start, root.size, filesystem, plan.identifier("hash"), "centralino", plan.epoch),
        entries,
        log=log,
    )
    return entries


def disk_entries(plan: DiskPlan, boot: BootPlan, fstab: str) -> list[Entry]:
    """The root file system as it will be: the tree, what lies over it, without what belongs to the build."""
    return walk(
        plan.root,
        latest=plan.epoch,
        additions={
            **root_additions(boot, plan.root),
            **_unit_additions(),
            **_label_additions(plan.root),
            "etc/fstab": Addition(fstab.encode()),
            **plan.additions,
        },
        excluded=EXCLUDED,
        emptied=(*EMPTIED_DIRECTORIES, *EMPTIED_FILES),
    )


def _fstab(filesystem: UUID, volume: int) -> str:
    return (
        f"UUID={filesystem} / ext4 defaults,errors=remount-ro 0 1\n"
        # A box that boots by BIOS must start even if this is damaged.
        f"UUID={volume >> 16:04X}-{volume & 0xFFFF:04X} /boot/efi vfat umask=0077,nofail 0 2\n"
    )


def _unit_additions() -> dict[str, Addition]:
    """Units that only a disk image needs: an installation has its size and settings from the start."""
    added = {
        "usr/libexec/centralino/grow-root": Addition((DISK_FILES / "grow-root").read_bytes(), mode=0o755)
    }
    for unit in UNITS:
        name = f"etc/systemd/system/{unit}"
        added[name] = Addition((DISK_FILES / unit).read_bytes())
        added[f"etc/systemd/system/multi-user.target.wants/{unit}"] = Addition(target=f"/{name}")
    return added


def _label_additions(root: Path) -> dict[str, Addition]:
    """With SELinux the first start labels everything and restarts: what was added here has no labels."""
    return {".autorelabel": Addition(b"")} if (root / "etc/selinux/config").is_file() else {}


def efi_files(plan: DiskPlan, boot: BootPlan) -> dict[str, bytes]:
    """Every file of the EFI system partition, by its path there.

    First what the platform's packages left under boot/efi, then the platform file's map, then the stub.
    Raises InputError if a mapped file is missing.
    """
    files: dict[str, bytes] = {}
    packaged = plan.root / "boot/efi"
    for path in sorted(packaged.rglob("*")) if packaged.is_dir() else ():
        if path.is_file():
            files[path.relative_to(packaged).as_posix()] = path.read_bytes()
    for target, source in plan.data.efi_files.items():
        try:
            files[target] = (plan.root / source).read_bytes()
        except OSError as error:
            raise InputError(
                f"{plan.root} lacks {source}: {error.strerror}", "the tree must hold shim and the signed GRUB"
            ) from error
    for unwanted in plan.data.efi_left_out:
        files.pop(unwanted, None)
    files[f"EFI/{plan.data.efi_vendor}/grub.cfg"] = efi_stub(boot)
    return files


def _write_efi(plan: DiskPlan, boot: BootPlan, volume: int, staging: Path, log: Path | None) -> None:
    image = staging / "efi.img"
    with image.open("wb") as stream:
        stream.truncate(EFI_BYTES)
    # mtools take directory times from SOURCE_DATE_EPOCH and file times (-m) from the source, in local time.
    environment = {"SOURCE_DATE_EPOCH": str(plan.epoch), "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
    run(
        [
            "mkfs.vfat",
            "--invariant",
            "-F",
            "32",
            "-S",
            str(SECTOR),
            "-s",
            "1",
            "-i",
            f"{volume:08x}",
            "-n",
            "EFI",
            image,
        ],
        log=log,
        environment=environment,
    )
    made: set[str] = set()
    for path, content in sorted(efi_files(plan, boot).items()):
        for parent in sorted(str(parent) for parent in Path(path).parents if str(parent) != "."):
            if parent not in made:
                run(["mmd", "-i", image, f"::{parent}"], log=log, environment=environment)
                made.add(parent)
        source = staging / "file"
        source.write_bytes(content)
        os.utime(source, (plan.epoch, plan.epoch))
        run(["mcopy", "-m", "-i", image, source, f"::{path}"], log=log, environment=environment)
