"""The `[disk]` table of a platform file: where a root tree keeps what a bootable disk is made of."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

TreePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._+-]+(/[A-Za-z0-9._+-]+)*$")]
KernelArgument = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+(=[A-Za-z0-9._,:/=@+-]*)?$")]


class BootEntries(StrEnum):
    """How GRUB finds the kernels: links that follow the newest, or Boot Loader Specification files."""

    LINKS = "links"
    BLS = "bls"


class DiskTable(BaseModel):
    """All paths are relative to the root of the tree; keys of `efi_files` to the EFI system partition.

    `efi_left_out` names files that packages put there and that must not be started; `arguments` are kernel
    arguments of every image, `format_arguments` those of one output format beside them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    entries: BootEntries
    grub_directory: TreePath
    grub_modules: TreePath
    grub_mkimage: TreePath
    efi_vendor: TreePath
    efi_files: dict[TreePath, TreePath]
    efi_left_out: tuple[TreePath, ...] = ()
    ovf_system: int = Field(
        ge=0, le=32767, description="operating system number of CIM_OperatingSystem.OsType"
    )
    vmware_guest: TreePath = Field(
        description="operating system name of VMware's VirtualMachineGuestOsIdentifier"
    )
    arguments: tuple[KernelArgument, ...]
    format_arguments: dict[str, tuple[KernelArgument, ...]] = Field(default_factory=dict)
