"""What the builder agrees on with the makers of output formats.

`appliance.kiwi` makes the root tree and the formats that are the tree itself (`root`, `oci`, `tbz`).
`appliance.formats.make` makes every disk format from a tree of the variant `disk`, `appliance.live` the
live medium from one of the variant `live`; `iso.cli` and the `pxe` command make the installer. The tree
that a maker gets is in the cache: READ ONLY. A maker that must change something works on a copy or an
overlay.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from appliance.platform_data import PlatformData
    from appliance.profile import Profile
    from appliance.stages import BuildContext


class OutputFormat(StrEnum):
    """Everything that `centralino-build` can make of one profile."""

    ROOT = "root"
    OCI = "oci"
    TBZ = "tbz"
    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    OVA = "ova"
    VHDX = "vhdx"
    VHD = "vhd"
    XEN = "xen"
    AMI = "ami"
    AZURE = "azure"
    GCP = "gcp"
    ISO = "iso"
    PXE = "pxe"
    LIVE = "live"


class Variant(StrEnum):
    """The root trees of a profile: without kernel; with kernel, boot loader and guest agents; the live one.

    The live tree is the disk's with dracut in place of the platform's own initramfs, and rescue tools.
    """

    CONTAINER = "container"
    DISK = "disk"
    LIVE = "live"


TREE_FORMATS = frozenset({OutputFormat.ROOT, OutputFormat.OCI, OutputFormat.TBZ})
INSTALLER_FORMATS = frozenset({OutputFormat.ISO, OutputFormat.PXE})
LIVE_FORMATS = frozenset({OutputFormat.LIVE})
DISK_FORMATS = frozenset(OutputFormat) - TREE_FORMATS - INSTALLER_FORMATS - LIVE_FORMATS

SUFFIXES = {
    OutputFormat.ROOT: ".root",
    OutputFormat.OCI: ".oci.tar",
    OutputFormat.TBZ: ".tar",
    OutputFormat.RAW: ".raw",
    OutputFormat.QCOW2: ".qcow2",
    OutputFormat.VMDK: ".vmdk",
    OutputFormat.OVA: ".ova",
    OutputFormat.VHDX: ".vhdx",
    OutputFormat.VHD: ".vhd",
    OutputFormat.XEN: ".xen.raw",
    OutputFormat.AMI: ".ami.raw",
    OutputFormat.AZURE: ".azure.vhd",
    OutputFormat.GCP: ".gcp.tar.gz",
    OutputFormat.ISO: ".iso",
    OutputFormat.PXE: ".pxe",
    OutputFormat.LIVE: ".live.iso",
}
COMPRESSION_SUFFIXES = {"zstd": ".zst", "xz": ".xz", "none": ""}


def artefact_stem(profile: Profile) -> str:
    """The common part of every result's name: `NAME-VERSION-PLATFORM`."""
    return f"{profile.product.name}-{profile.product.version}-{profile.platform.name}"


def artefact_name(profile: Profile, form: OutputFormat) -> str:
    """The file or directory name of an output: `NAME-VERSION-PLATFORM.SUFFIX`."""
    compressed = COMPRESSION_SUFFIXES[profile.output.compression] if form is OutputFormat.TBZ else ""
    return f"{artefact_stem(profile)}{SUFFIXES[form]}{compressed}"


class FormatMaker(Protocol):
    """`appliance.formats.make`: make one disk format from a root tree.

    `root` is a tree of the variant `disk`, read only. `output` is the final path (its directory exists):
    write it through `stages.replacing`, log through `context.log`, use `context.epoch` for every time
    stamp, `context.build(Stage(...))` for parts worth caching (the raw disk). Returns the path made.
    """

    def __call__(
        self,
        form: OutputFormat,
        root: Path,
        profile: Profile,
        platform: PlatformData,
        output: Path,
        context: BuildContext,
    ) -> Path:
        """Make `output` or raise a BuildError; see the class."""
        ...
