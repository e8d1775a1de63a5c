"""What makes a disk boot by BIOS and by UEFI with Secure Boot: GRUB's files and configuration.

UEFI starts the distribution's signed shim, which starts its signed GRUB, whose only changeable part is the
`grub.cfg` beside it: a stub that looks for the root file system. BIOS starts boot.img in the MBR, which
loads core.img from its own partition; both are patched here as `grub-bios-setup` does it (GRUB manual,
section "BIOS installation"), which itself would need the disk as a block device.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from appliance.disk_data import BootEntries, DiskTable
from appliance.errors import BuildError, InputError
from appliance.gpt import SECTOR, Partition
from appliance.run import run
from appliance.tree_entries import Addition

BOOT_CODE_BYTES = 440
# Places in boot.img and diskboot.img, GRUB source: include/grub/i386/pc/boot.h.
KERNEL_SECTOR_AT = 0x5C
DRIVE_CHECK_AT = 0x66
BLOCK_LIST_AT = SECTOR - 12
NO_OPERATION_TWICE = b"\x90\x90"
CORE_MODULES = ("biosdisk", "part_gpt", "ext2")
MENU_SECONDS = 3


@dataclass(frozen=True)
class BootPlan:
    """`arguments` are the kernel's beside `root=`; `root` is the file system, `title` what the menu shows."""

    data: DiskTable
    root: UUID
    arguments: tuple[str, ...]
    title: str

    @property
    def command_line(self) -> str:
        """All kernel arguments."""
        return " ".join((f"root=UUID={self.root}", "ro", *self.arguments))


def efi_stub(plan: BootPlan) -> bytes:
    """The `grub.cfg` of the EFI system partition."""
    grub = "/" + plan.data.grub_directory
    return (
        f"search --no-floppy --fs-uuid --set=root {plan.root}\n"
        f"set prefix=($root){grub}\n"
        "configfile $prefix/grub.cfg\n"
    ).encode()


def root_additions(plan: BootPlan, root: Path) -> dict[str, Addition]:
    """GRUB's files in the root file system: configuration, BIOS modules, boot entries.

    Raises InputError if the tree lacks a kernel or an initramfs.
    """
    grub = plan.data.grub_directory
    kernels = kernel_releases(root)
    added = {
        f"{grub}/grub.cfg": Addition(_grub_cfg(plan).encode()),
        "etc/default/grub": Addition(_defaults(plan).encode()),
    }
    modules = root / plan.data.grub_modules
    for module in sorted(modules.glob("*")):
        if module.suffix in (".mod", ".lst"):
            added[f"{grub}/i386-pc/{module.name}"] = Addition(module.read_bytes())
    if plan.data.entries is BootEntries.BLS:
        added[f"{grub}/grubenv"] = Addition(environment_block({"kernelopts": plan.command_line}))
        for release in kernels:
            added[f"boot/loader/entries/centralino-{release}.conf"] = Addition(
                _loader_entry(plan, release).encode()
            )
    return added


def kernel_releases(root: Path) -> list[str]:
    """Releases of the kernels in `boot/` that have an initramfs, newest name last."""
    boot = root / "boot"
    found = sorted(
        path.name.removeprefix("vmlinuz-") for path in boot.glob("vmlinuz-*") if "rescue" not in path.name
    )
    complete = [release for release in found if initramfs_name(root, release)]
    if not complete:
        raise InputError(
            f"{root} holds no kernel with an initramfs under boot/",
            "the tree must be of the variant `disk`; see the platform file's disk packages",
        )
    return complete


def initramfs_name(root: Path, release: str) -> str | None:
    """The initramfs of a kernel: Debian and dracut name it differently."""
    for name in (f"initrd.img-{release}", f"initramfs-{release}.img"):
        if (root / "boot" / name).is_file():
            return name
    return None


def environment_block(values: dict[str, str]) -> bytes:
    """A GRUB environment block: 1024 bytes, padded with `#`."""
    text = "# GRUB Environment Block\n" + "".join(f"{key}={value}\n" for key, value in sorted(values.items()))
    block = text.encode().ljust(1024, b"#")
    if len(block) > 1024:
        raise BuildError(
            "the kernel arguments are too long for GRUB's environment block", "shorten boot.arguments"
        )
    return block


def _grub_cfg(plan: BootPlan) -> str:
    head = (
        "# Written with the image; the platform's own tools rewrite it when the kernel changes.\n"
        "if serial --unit=0 --speed=115200; then\n"
        "  terminal_input serial console\n"
        "  terminal_output serial console\n"
        "fi\n"
        f"set timeout={MENU_SECONDS}\n"
        "set default=0\n"
        f"search --no-floppy --fs-uuid --set=root {plan.root}\n"
    )
    if plan.data.entries is BootEntries.BLS:
        return head + (
            "set boot=$root\n"
            f"load_env -f ($root)/{plan.data.grub_directory}/grubenv\n"
            "set blsdir=/boot/loader/entries\n"
            "insmod blscfg\n"
            "blscfg\n"
        )
    entry = (
        "menuentry '{title}' --class os {{\n"
        "  linux /vmlinuz{suffix} {arguments}\n"
        "  initrd /initrd.img{suffix}\n"
        "}}\n"
    )
    # The links follow the newest kernel and the one before it.
    return head + "".join(
        entry.format(title=title, suffix=suffix, arguments=plan.command_line)
        for title, suffix in ((plan.title, ""), (f"{plan.title}, previous kernel", ".old"))
    )


def _defaults(plan: BootPlan) -> str:
    blscfg = "GRUB_ENABLE_BLSCFG=true\n" if plan.data.entries is BootEntries.BLS else ""
    return (
        f"GRUB_DEFAULT=0\nGRUB_TIMEOUT={MENU_SECONDS}\nGRUB_DISTRIBUTOR='{plan.title}'\n"
        f'GRUB_CMDLINE_LINUX="{" ".join(plan.arguments)}"\nGRUB_CMDLINE_LINUX_DEFAULT=""\n'
        'GRUB_TERMINAL="serial console"\nGRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"\n'
        f"GRUB_DISABLE_OS_PROBER=true\n{blscfg}"
    )


def _loader_entry(plan: BootPlan, release: str) -> str:
    # Boot Loader Specification, type 1; grubby rewrites the options of all entries through kernelopts.
    return (
        f"title {plan.title} ({release})\nversion {release}\nlinux /boot/vmlinuz-{release}\n"
        f"initrd /boot/initramfs-{release}.img\noptions $kernelopts\n"
        f"id centralino-{release}\ngrub_users $grub_users\ngrub_arg --unrestricted\ngrub_class kernel\n"
    )


def core_image(plan: BootPlan, root: Path, root_number: int, output: Path, *, log: Path | None) -> bytes:
    """BIOS core.img made by the tree's own grub-mkimage, so that it fits the tree's modules.

    The program runs through the tree's own loader and libraries: the tree stays untouched, nothing is
    mounted. `root_number` is the partition that holds GRUB's directory.
    """
    libraries = ":".join(str(root / path) for path in ("usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib"))
    loader = _inside(root, "lib64/ld-linux-x86-64.so.2")
    run(
        [
            loader, "--library-path", libraries, root / plan.data.grub_mkimage, "-O", "i386-pc",
            "-d", root / plan.data.grub_modules, "-p", f"(,gpt{root_number})/{plan.data.grub_directory}",
            "-o", output, *CORE_MODULES,
        ],
        log=log,
        remedy="the root tree must hold the platform's GRUB for BIOS",
    )  # fmt: skip
    return output.read_bytes()


def _inside(root: Path, name: str, depth: int = 8) -> Path:
    """A path of the tree with the tree's symbolic links followed inside the tree, not on this host."""
    place = root
    for part in Path(name).parts:
        place = place / part
        while place.is_symlink() and depth:
            target = place.readlink()
            place = (
                _inside(root, str(target).lstrip("/"), depth - 1)
                if target.is_absolute()
                else place.parent / target
            )
            depth -= 1
    if not place.is_file():
        raise InputError(f"{root} lacks {name}", "give a whole root tree of the variant `disk`")
    return place


def install_bios(stream: BinaryIO, boot_image: bytes, core: bytes, partition: Partition) -> None:
    """Write boot.img into the MBR (partition entries are kept) and core.img into its partition."""
    if len(core) > partition.size:
        raise BuildError(f"GRUB's core image has {len(core)} bytes, its partition {partition.size}")
    first = partition.start // SECTOR
    boot = bytearray(boot_image[:BOOT_CODE_BYTES])
    boot[KERNEL_SECTOR_AT : KERNEL_SECTOR_AT + 8] = struct.pack("<Q", first)
    # On a hard disk the drive number that the BIOS passes is trusted, as grub-bios-setup does.
    boot[DRIVE_CHECK_AT : DRIVE_CHECK_AT + 2] = NO_OPERATION_TWICE
    patched = bytearray(core)
    patched[BLOCK_LIST_AT : BLOCK_LIST_AT + 8] = struct.pack("<Q", first + 1)
    stream.seek(0)
    stream.write(boot)
    stream.seek(partition.start)
    stream.write(patched)
    stream.flush()
