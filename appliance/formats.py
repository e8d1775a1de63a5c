"""From one root tree to every disk format; `make` is the entry that `appliance.image` calls.

The raw disk is a stage of its own, made once and shared; formats for a cloud have a disk of their own, since
they differ in kernel arguments and in how they are told who they are.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.ami import registration
from appliance.cache import Entry as CacheEntry
from appliance.cache import JsonValue, digest_json
from appliance.clouds import CLOUDS, agent_remark, cloud_additions
from appliance.disk import DiskPlan, assemble
from appliance.disk_identity import derived_uuid
from appliance.errors import InputError
from appliance.file_list import list_files, write_file_list
from appliance.formats_contract import OutputFormat
from appliance.gpt import move_backup, read_table
from appliance.manifest import Contents, write_manifest
from appliance.ova import Machine, OvfVersion, Property, write_ova
from appliance.platform_data import PlatformData
from appliance.profile import Profile
from appliance.run import require, run
from appliance.sbom import components_of
from appliance.sparse import raw_content_digest, sha256_of, sparse_copy
from appliance.stages import BuildContext, Stage, replacing
from appliance.standing import described
from appliance.tree_entries import Entry, walk
from appliance.vhd import write_vhd
from appliance.vhdx import write_vhdx
from appliance.vmdk import DiskHardware, write_stream_vmdk

GIB = 1 << 30
# Kept by content; a change of what `assemble` does needs a new number.
DISK_REVISION = 4
DISK_FILE, FILES_FILE = "disk.raw", "files.json.gz"


@dataclass(frozen=True)
class Job:
    """One format to be made from the raw disk `raw` into `target`."""

    form: OutputFormat
    raw: Path
    target: Path
    profile: Profile
    platform: PlatformData
    context: BuildContext

    @property
    def seed(self) -> str:
        """What identifiers derive from."""
        return seed_of(self.profile)


def seed_of(profile: Profile) -> str:
    """Product, version, platform and everything else in the profile."""
    return digest_json(profile.model_dump(mode="json", by_alias=True))


def make(
    form: OutputFormat,
    root: Path,
    profile: Profile,
    platform: PlatformData,
    output: Path,
    context: BuildContext,
) -> Path:
    """Make one disk format from the root tree `root` (read only); returns its path. Raises BuildError."""
    maker = MAKERS.get(form)
    if maker is None:
        raise InputError(f"{form} is no disk format", f"use one of {', '.join(sorted(MAKERS))}")
    if remark := agent_remark(form, profile, platform):
        context.progress.note(f"{form} {remark}")
    stage = raw_disk(form, root, profile, platform, context)
    raw = stage.output / DISK_FILE
    with replacing(output) as target, context.step(f"write {output.name}"):
        facts = maker(Job(form, raw, target, profile, platform, context))
    if form is OutputFormat.AMI:
        with described(output):
            _describe_ami(output, profile, platform)
    with context.step(f"describe {output.name}"):
        components = components_of(root)
        write_manifest(
            output,
            form,
            profile,
            platform,
            context.epoch,
            Contents(
                inputs={"disk stage": stage.key},
                components=components,
                files=stage.output / FILES_FILE,
                facts=facts,
            ),
        )
    return output


def disk_facts(raw: Path, seed: str) -> dict[str, JsonValue]:
    """What `verify` compares a disk with: a digest of what it holds, its partitions, the seed."""
    table = read_table(raw)
    return {
        "content": raw_content_digest(raw),
        "disk_bytes": table.disk_bytes,
        "seed": seed,
        "disk": str(table.disk),
        "partitions": [
            {"name": each.name, "uuid": str(each.uuid), "start": each.start, "size": each.size}
            for each in table.partitions
        ],
    }


def raw_disk(
    form: OutputFormat, root: Path, profile: Profile, platform: PlatformData, context: BuildContext
) -> CacheEntry:
    """The stage with the raw disk that a format is made from, in the cache: READ ONLY."""
    arguments = (
        *platform.disk.arguments,
        *platform.disk.format_arguments.get(str(form), ()),
        *profile.boot.arguments,
    )
    additions = cloud_additions(form, root, platform)
    plan = DiskPlan(
        root=root,
        size=profile.disk.image_gib * GIB,
        seed=seed_of(profile),
        epoch=context.epoch,
        data=platform.disk,
        title=f"{profile.product.title} {profile.product.version}",
        arguments=arguments,
        additions=additions,
    )
    inputs: JsonValue = {
        "revision": DISK_REVISION,
        "tree": tree_digest(walk(root, latest=context.epoch)),
        "size": plan.size,
        "seed": plan.seed,
        "epoch": plan.epoch,
        "title": plan.title,
        "arguments": list(arguments),
        "boot": platform.disk.model_dump(mode="json"),
        "additions": {
            name: each.target or hashlib.sha256(each.content or b"").hexdigest()
            for name, each in additions.items()
        },
    }

    def action(directory: Path, inner: BuildContext) -> None:
        entries = assemble(plan, directory / DISK_FILE, log=inner.log)
        write_file_list(list_files(entries), directory / FILES_FILE)

    return context.build(
        Stage(
            name="disk",
            title="assemble the disk" + (f" for {form}" if form in CLOUDS else ""),
            inputs=inputs,
            action=action,
            needs_bytes=3 * GIB,
        )
    )


def tree_digest(entries: list[Entry]) -> str:
    """SHA-256 over names, kinds, owners, modes, sizes, links and whole times of a tree, not its contents.

    Trees in the cache never change once made, so this tells two of them apart without reading gigabytes.
    """
    digest = hashlib.sha256()
    for entry in entries:
        exact = entry.source.lstat().st_mtime_ns if entry.source is not None else 0
        numbers = struct.pack("<6Q", entry.mode, entry.uid, entry.gid, exact, entry.size, entry.links)
        digest.update(entry.path + b"\0" + entry.kind.encode() + entry.target + b"\0" + numbers)
    return digest.hexdigest()


def _copy(job: Job) -> dict[str, JsonValue]:
    sparse_copy(job.raw, job.target)
    return disk_facts(job.raw, job.seed)


def _qcow2(job: Job) -> dict[str, JsonValue]:
    require({"qemu-img": "qemu-utils or qemu-img"})
    # One coroutine: with several, blocks land in the order in which they happen to be compressed.
    run(
        [
            "qemu-img",
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-c",
            "-m",
            "1",
            "-o",
            "compat=1.1",
            job.raw,
            job.target,
        ],
        log=job.context.log,
        limit_seconds=3600,
    )
    return disk_facts(job.raw, job.seed)


def _vmdk(job: Job) -> dict[str, JsonValue]:
    write_stream_vmdk(job.raw, job.target, _hardware(job.profile))
    return disk_facts(job.raw, job.seed)


def _hardware(profile: Profile) -> DiskHardware:
    return DiskHardware(version=int(profile.output.ova.hardware.removeprefix("vmx-")))


def _ova(job: Job) -> dict[str, JsonValue]:
    sizes = job.profile.disk.tier.sizes
    name = job.target.parent / f".{job.target.name}.disk"
    grown = name.with_suffix(".raw")
    try:
        # The disk of the tier from the start: the descriptor's capacity must be the disk's own size.
        size = max(sizes.disk_gib * GIB, job.raw.stat().st_size)
        sparse_copy(job.raw, grown)
        move_backup(grown, size)
        write_stream_vmdk(grown, name, _hardware(job.profile))
        write_ova(
            job.target,
            f"{job.profile.product.name}-{job.profile.product.version}",
            machine_of(job.profile, job.platform, size),
            name,
            job.context.epoch,
            OvfVersion(job.profile.output.ova.descriptor),
        )
        return disk_facts(grown, job.seed)
    finally:
        grown.unlink(missing_ok=True)
        name.unlink(missing_ok=True)


def machine_of(profile: Profile, platform: PlatformData, disk_bytes: int) -> Machine:
    """The virtual machine that fits the profile's tier [S-SZ-01]."""
    sizes, options = profile.disk.tier.sizes, profile.output.ova
    return Machine(
        name=profile.product.name,
        title=profile.product.title,
        version=profile.product.version,
        publisher=profile.product.publisher,
        summary=profile.product.summary,
        system=platform.disk.ovf_system,
        vmware_guest=platform.disk.vmware_guest,
        cpus=sizes.cpus,
        memory_mib=sizes.memory_gib * 1024,
        disk_bytes=disk_bytes,
        hardware=options.hardware,
        firmware=options.firmware,
        disk_controller=options.disk_controller,
        network_adapter=options.network_adapter,
        properties=_properties(profile),
    )


def _properties(profile: Profile) -> tuple[Property, ...]:
    """What is asked at deployment; read once, at the first start, by `daemon.guest_properties`."""
    network = profile.network
    return (
        Property("hostname", "Host name", "Full name of the appliance", network.hostname),
        Property(
            "address",
            "Address",
            "With prefix length, as in 192.0.2.10/24; empty: DHCP",
            str(network.address or ""),
        ),
        Property("gateway", "Gateway", "Empty with DHCP", str(network.gateway or "")),
        Property(
            "dns", "DNS servers", "Separated by commas; empty with DHCP", ",".join(map(str, network.dns))
        ),
        Property("ssh_key", "SSH public key", "Who may log in as admin without a password", ""),
    )


def _vhd(job: Job) -> dict[str, JsonValue]:
    write_vhd(job.raw, job.target, derived_uuid(job.seed, f"vhd {job.form}"), job.context.epoch)
    return disk_facts(job.raw, job.seed)


def _vhdx(job: Job) -> dict[str, JsonValue]:
    write_vhdx(job.raw, job.target, job.seed)
    return disk_facts(job.raw, job.seed)


def _gcp(job: Job) -> dict[str, JsonValue]:
    require({"tar": "tar"})
    staging = job.target.parent / f".{job.target.name}.staging"
    archive = staging / "archive.tar"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        # The importer wants the member disk.raw in the old GNU format; holes found by content, not by the
        # host's allocation, keep the archive the same wherever it is made.
        sparse_copy(job.raw, staging / "disk.raw")
        run(
            [
                "tar", "--format=oldgnu", "--sparse", "--hole-detection=raw", "--owner=0", "--group=0",
                "--numeric-owner", "--mode=0644", f"--mtime=@{job.context.epoch}", "-C", staging,
                "-c", "-f", archive, "disk.raw",
            ],
            log=job.context.log,
            limit_seconds=3600,
        )  # fmt: skip
        with (
            archive.open("rb") as source,
            job.target.open("wb") as stream,
            gzip.GzipFile("", "wb", 6, stream, mtime=0) as packed,
        ):
            shutil.copyfileobj(source, packed, 1 << 20)
        return disk_facts(job.raw, job.seed)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _describe_ami(output: Path, profile: Profile, platform: PlatformData) -> None:
    document = registration(profile, platform, output.name, sha256_of(output), output.stat().st_size)
    with replacing(output.with_suffix(".json")) as target:
        target.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        target.chmod(0o644)


MAKERS: dict[OutputFormat, Callable[[Job], dict[str, JsonValue]]] = {
    OutputFormat.RAW: _copy,
    OutputFormat.XEN: _copy,
    OutputFormat.AMI: _copy,
    OutputFormat.QCOW2: _qcow2,
    OutputFormat.VMDK: _vmdk,
    OutputFormat.OVA: _ova,
    OutputFormat.VHD: _vhd,
    OutputFormat.AZURE: _vhd,
    OutputFormat.VHDX: _vhdx,
    OutputFormat.GCP: _gcp,
}
