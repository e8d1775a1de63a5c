"""Open virtual appliances: an OVF descriptor (DSP0243), its manifest and a stream-optimized VMDK in one tar.

Members in the order .ovf, .mf, .vmdk, which VMware's tools insist on. Nothing in it is random: no UUID, no
MAC address, no time but the build's epoch.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from jinja2 import Environment, StrictUndefined

from appliance.errors import BuildError, VerificationError
from appliance.sparse import sha256_of

# The size field of a ustar header; DSP0243 allows no other kind of tar.
LARGEST_MEMBER = 8 << 30
PROPERTY_CLASS = "centralino"
CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2"
TEMPLATE = Path(__file__).parent / "templates" / "ova" / "descriptor.ovf.j2"
# Resource types of CIM_ResourceAllocationSettingData.
PROCESSOR, MEMORY, SCSI_CONTROLLER, ETHERNET, DISK = 3, 4, 6, 10, 17
_MANIFEST_LINE = re.compile(r"^SHA256\((?P<name>[^)]+)\)= (?P<digest>[0-9a-f]{64})$")


class OvfVersion(StrEnum):
    """The versions of the descriptor: 1.1 is what every VMware reads, 2.0 what the DMTF publishes now."""

    V1 = "1.1"
    V2 = "2.0"

    @property
    def namespace(self) -> str:
        """The XML namespace of the envelope."""
        return f"http://schemas.dmtf.org/ovf/envelope/{self.value[0]}"


@dataclass(frozen=True)
class Property:
    """A vApp property: what the deploying person is asked; `value` is the default."""

    key: str
    label: str
    description: str
    value: str = ""


@dataclass(frozen=True)
class Machine:
    """The virtual machine that the descriptor asks for. Sizes: MiB for memory, bytes for the disk."""

    name: str
    title: str
    version: str
    publisher: str
    summary: str
    system: int
    vmware_guest: str
    cpus: int
    memory_mib: int
    disk_bytes: int
    hardware: str = "vmx-15"
    firmware: str = "efi"
    disk_controller: str = "pvscsi"
    network_adapter: str = "vmxnet3"
    properties: tuple[Property, ...] = ()


# Profile words to the ResourceSubType of the descriptor.
CONTROLLER_TYPES = {"pvscsi": "VirtualSCSI", "lsilogic": "lsilogic", "virtio": "virtio"}
ADAPTER_TYPES = {"vmxnet3": "VmxNet3", "e1000": "E1000", "virtio": "virtio"}


@dataclass(frozen=True)
class _Item:
    """One hardware item; the schemas want the children in the order of the alphabet."""

    prefix: str
    element: str
    fields: tuple[tuple[str, object], ...]


def _item(kind: tuple[str, str], fields: Mapping[str, object]) -> _Item:
    return _Item(*kind, tuple(sorted(fields.items())))


def _items(machine: Machine, version: OvfVersion) -> list[_Item]:
    general = storage = ethernet = ("rasd", "Item")
    if version is OvfVersion.V2:
        storage, ethernet = ("sasd", "StorageItem"), ("epasd", "EthernetPortItem")
    return [
        _item(general, {
            "AllocationUnits": "hertz * 10^6", "Description": "Number of virtual CPUs", "InstanceID": 1,
            "ElementName": f"{machine.cpus} virtual CPUs", "ResourceType": PROCESSOR,
            "VirtualQuantity": machine.cpus,
        }),
        _item(general, {
            "AllocationUnits": "byte * 2^20", "Description": "Memory", "InstanceID": 2,
            "ElementName": f"{machine.memory_mib} MiB of memory", "ResourceType": MEMORY,
            "VirtualQuantity": machine.memory_mib,
        }),
        _item(general, {
            "Address": 0, "Description": "Disk controller", "InstanceID": 3,
            "ElementName": "Disk controller 0",
            "ResourceSubType": CONTROLLER_TYPES[machine.disk_controller], "ResourceType": SCSI_CONTROLLER,
        }),
        # DSP8023: network cards before storage.
        _item(ethernet, {
            "AddressOnParent": 7, "AutomaticAllocation": "true", "Connection": "lan",
            "Description": "Network adapter", "ElementName": "Network adapter 1", "InstanceID": 4,
            "ResourceSubType": ADAPTER_TYPES[machine.network_adapter], "ResourceType": ETHERNET,
        }),
        _item(storage, {
            "AddressOnParent": 0, "ElementName": "Hard disk 1", "HostResource": "ovf:/disk/disk1",
            "InstanceID": 5, "Parent": 3, "ResourceType": DISK,
        }),
    ]  # fmt: skip


def descriptor(machine: Machine, disk_name: str, file_bytes: int, version: OvfVersion = OvfVersion.V2) -> str:
    """The text of the .ovf file; `file_bytes` is the size of the VMDK file `disk_name`."""
    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        machine=machine,
        disk_name=disk_name,
        file_bytes=file_bytes,
        version=version,
        items=_items(machine, version),
        cim=CIM,
        property_class=PROPERTY_CLASS,
    )


def manifest_text(digests: Mapping[str, str]) -> str:
    """The .mf file: `SHA256(name)= digest`, without a space before the bracket."""
    return "".join(f"SHA256({name})= {digest}\n" for name, digest in digests.items())


def write_ova(output: Path, name: str, machine: Machine, disk: Path, epoch: int, version: OvfVersion) -> None:
    """Pack the descriptor, its manifest and the VMDK file `disk` as `name`.ovf, .mf and -disk1.vmdk.

    Raises BuildError if the disk is too large for the tar format that the standard allows.
    """
    size = disk.stat().st_size
    if size >= LARGEST_MEMBER:
        raise BuildError(
            f"the VMDK has {size >> 20} MiB, an OVA holds files of less than 8192 MiB",
            "make the root tree smaller, or ship the VMDK and the descriptor apart",
        )
    disk_name = f"{name}-disk1.vmdk"
    text = descriptor(machine, disk_name, size, version).encode()
    digests = {f"{name}.ovf": hashlib.sha256(text).hexdigest(), disk_name: sha256_of(disk)}
    with tarfile.open(output, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, content in ((f"{name}.ovf", text), (f"{name}.mf", manifest_text(digests).encode())):
            archive.addfile(_member(member, len(content), epoch), io.BytesIO(content))
        with disk.open("rb") as stream:
            archive.addfile(_member(disk_name, size, epoch), stream)


def _member(name: str, size: int, epoch: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, epoch, 0o644
    return info


def check_ova(path: Path) -> dict[str, str]:
    """Check order, names and digests of the members; returns the digest of each.

    Raises VerificationError naming the member that is wrong.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
            suffixes = [Path(member.name).suffix for member in members]
            if suffixes != [".ovf", ".mf", ".vmdk"]:
                names = ", ".join(member.name for member in members)
                raise VerificationError(f"{path.name}: members are {names}, not .ovf, .mf, .vmdk")
            digests: dict[str, str] = {}
            listed: dict[str, str] = {}
            for member in members:
                stream = archive.extractfile(member)
                assert stream is not None  # noqa: S101 (suffixes above leave plain files only)
                if member.name.endswith(".mf"):
                    listed = _manifest(path.name, stream.read().decode("utf-8", "replace"))
                    continue
                digests[member.name] = _digest(stream)
    except (tarfile.TarError, OSError) as error:
        raise VerificationError(f"{path.name}: the archive is damaged: {error}") from error
    if listed.keys() != digests.keys():
        raise VerificationError(
            f"{path.name}: the manifest lists {', '.join(listed)}, not {', '.join(digests)}"
        )
    for name, digest in digests.items():
        if listed[name] != digest:
            raise VerificationError(f"{path.name}: {name} is not what the manifest inside says")
    return digests


def _digest(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while content := stream.read(1 << 20):
        digest.update(content)
    return digest.hexdigest()


def _manifest(archive: str, text: str) -> dict[str, str]:
    listed: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if (found := _MANIFEST_LINE.match(line)) is None:
            raise VerificationError(
                f"{archive}: line {number} of the manifest inside is damaged: {line[:80]!r}"
            )
        listed[found["name"]] = found["digest"]
    return listed
