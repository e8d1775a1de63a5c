"""The OVA: members, digests, a descriptor that follows the structure of DSP8023."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from lxml import etree

from appliance.errors import BuildError, VerificationError
from appliance.formats import machine_of
from appliance.ova import LARGEST_MEMBER, Machine, OvfVersion, Property, check_ova, descriptor, write_ova
from appliance.platform_data import load_platform
from appliance.profile import load_profile

EPOCH = 1767225600
CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2"
MACHINE = Machine(
    name="centralino",
    title="Centralino <PBX> & more",
    version="1.2",
    publisher="Centralino",
    summary='A "summary"',
    system=80,
    vmware_guest="rhel8_64Guest",
    cpus=4,
    memory_mib=8192,
    disk_bytes=150 << 30,
    properties=(
        Property("hostname", "Host name", "Full name", 'a"b<c'),
        Property("address", "Address", "CIDR"),
    ),
)
# DSP8023: the order of an envelope's, a virtual system's and a hardware section's children.
ENVELOPE = ["References", "DiskSection", "NetworkSection", "VirtualSystem"]
SYSTEM = ["Info", "Name", "OperatingSystemSection", "VirtualHardwareSection", "ProductSection"]


def tree(version: OvfVersion, machine: Machine = MACHINE) -> etree._Element:
    return etree.fromstring(descriptor(machine, "x-disk1.vmdk", 1234, version).encode())


def names(element: etree._Element) -> list[str]:
    return [etree.QName(child).localname for child in element if isinstance(child.tag, str)]


@pytest.mark.parametrize("version", list(OvfVersion))
def test_structure(version: OvfVersion) -> None:
    root = tree(version)
    assert etree.QName(root).namespace == version.namespace
    assert names(root) == ENVELOPE
    system = root[3]
    assert names(system) == SYSTEM
    # DSP8023 2.0.1, VirtualHardwareSection_Type: items, network cards, storage, then foreign elements.
    cards, storage = ("Item", "Item") if version is OvfVersion.V1 else ("EthernetPortItem", "StorageItem")
    hardware = system[3]
    assert names(hardware) == [
        "Info",
        "System",
        "Item",
        "Item",
        "Item",
        cards,
        storage,
        "Config",
        "Config",
        "Config",
    ]


@pytest.mark.parametrize("version", list(OvfVersion))
def test_items_are_whole_and_in_the_schemas_order(version: OvfVersion) -> None:
    hardware = tree(version)[3][3]
    items = [child for child in hardware if etree.QName(child).localname.endswith("Item")]
    identifiers = []
    for item in items:
        fields = names(item)
        assert fields == sorted(fields)
        assert {"ElementName", "InstanceID", "ResourceType"} <= set(fields)
        identifiers.append(item.findtext("{*}InstanceID"))
    assert identifiers == ["1", "2", "3", "4", "5"]
    parents = {item.findtext("{*}Parent") for item in items} - {None}
    assert parents <= set(identifiers)


@pytest.mark.parametrize("version", list(OvfVersion))
def test_every_item_is_in_the_namespace_where_readers_look_for_it(version: OvfVersion) -> None:
    """DSP0243 2.0, table of prefixes: the two classes that came with 2.0 end in `.xsd`, the older do not.

    VirtualBox and COT look nowhere else: without it they see items without an identity.
    """
    wanted = {
        "System": f"{CIM}/CIM_VirtualSystemSettingData",
        "Item": f"{CIM}/CIM_ResourceAllocationSettingData",
        "StorageItem": f"{CIM}/CIM_StorageAllocationSettingData.xsd",
        "EthernetPortItem": f"{CIM}/CIM_EthernetPortAllocationSettingData.xsd",
    }
    for element in tree(version)[3][3]:
        name = etree.QName(element).localname
        if name in wanted:
            assert {etree.QName(field).namespace for field in element} == {wanted[name]}, name


@pytest.mark.parametrize("version", list(OvfVersion))
def test_nothing_is_missing_that_the_schema_demands(version: OvfVersion) -> None:
    """DSP8023: required attributes, and the first child of every section."""
    root = tree(version)
    ovf = f"{{{version.namespace}}}"
    required = {
        "File": ("id", "href"),
        "Disk": ("diskId", "capacity"),
        "Network": ("name",),
        "VirtualSystem": ("id",),
        "OperatingSystemSection": ("id",),
        "Property": ("key", "type"),
    }
    seen = set()
    for element in root.iter(f"{ovf}*"):
        name = etree.QName(element).localname
        for attribute in required.get(name, ()):
            seen.add(name)
            assert element.get(ovf + attribute), f"{name} lacks {attribute}"
        if name.endswith("Section") or name == "VirtualSystem":
            assert names(element)[0] == "Info", name
    assert seen == set(required)
    identifiers = [value for element in root.iter(f"{ovf}*") if (value := element.get(f"{ovf}id"))]
    assert len(identifiers) == len(set(identifiers))


def test_references_resolve() -> None:
    root = tree(OvfVersion.V2)
    ovf = f"{{{OvfVersion.V2.namespace}}}"
    file, disk = root[0][0], root[1][1]
    assert disk.get(f"{ovf}fileRef") == file.get(f"{ovf}id")
    assert disk.get(f"{ovf}capacity") == str(150 << 30)
    assert root.findtext(".//{*}HostResource") == f"ovf:/disk/{disk.get(f'{ovf}diskId')}"
    network = root[2][1].get(f"{ovf}name")
    assert root.findtext(".//{*}Connection") == network


def test_text_is_escaped() -> None:
    root = tree(OvfVersion.V2)
    assert root.findtext(".//{*}Name") == "Centralino <PBX> & more"
    values = [each.get(f"{{{OvfVersion.V2.namespace}}}value") for each in root.iter("{*}Property")]
    assert values == ['a"b<c', ""]


def test_secure_boot_only_with_efi() -> None:
    def option(machine: Machine) -> object:
        found = [
            each.get("{http://www.vmware.com/schema/ovf}value")
            for each in tree(OvfVersion.V2, machine).iter("{*}Config")
            if each.get("{http://www.vmware.com/schema/ovf}key") == "bootOptions.efiSecureBootEnabled"
        ]
        return found[0]

    assert option(MACHINE) == "true"
    assert option(replace(MACHINE, firmware="bios")) == "false"


@pytest.mark.parametrize("name", ["debian12", "almalinux8"])
def test_sizes_are_those_of_the_tier(name: str) -> None:
    # S-SZ-01, 75 users: 4 processors, 8 GB, 150 GB.
    profile = load_profile(Path("pbx-debian12")).with_platform(name)
    machine = machine_of(profile, load_platform(name), profile.disk.tier.sizes.disk_gib << 30)
    assert (machine.cpus, machine.memory_mib, machine.disk_bytes) == (4, 8192, 150 << 30)
    assert [each.key for each in machine.properties] == ["hostname", "address", "gateway", "dns", "ssh_key"]


def make(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "disk").write_bytes(b"KDMV" + bytes(5000))
    write_ova(directory / "x.ova", "x", MACHINE, directory / "disk", EPOCH, OvfVersion.V2)
    return directory / "x.ova"


def test_members_in_the_order_that_vmware_wants(tmp_path: Path) -> None:
    path = make(tmp_path)
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["x.ovf", "x.mf", "x-disk1.vmdk"]
        text = archive.extractfile("x.mf").read().decode()  # type: ignore[union-attr]
    assert all(line.startswith("SHA256(x") and ")= " in line for line in text.splitlines())
    assert path.read_bytes()[257:263] == b"ustar\0"
    assert set(check_ova(path)) == {"x.ovf", "x-disk1.vmdk"}


def test_same_bytes_in_another_directory(tmp_path: Path) -> None:
    assert make(tmp_path / "a").read_bytes() == make(tmp_path / "b").read_bytes()


def test_a_changed_member_is_named(tmp_path: Path) -> None:
    path = make(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(b"KDMV") + 10] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match=r"x-disk1\.vmdk is not what the manifest inside says"):
        check_ova(path)


def test_too_large_for_the_archive(tmp_path: Path) -> None:
    with (tmp_path / "disk").open("wb") as stream:
        stream.truncate(LARGEST_MEMBER)
    with pytest.raises(BuildError, match="8192 MiB"):
        write_ova(tmp_path / "x.ova", "x", MACHINE, tmp_path / "disk", EPOCH, OvfVersion.V2)
    assert not (tmp_path / "x.ova").exists()
