"""Is an artefact what its manifest says, whole, and made of parts that agree? Every defect is named.

The digest decides; what else is looked at tells where the damage is, or that something was already wrong
when the artefact was made. One trusted key is enough: it vouches for the manifest, the manifest for the rest.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from appliance.cache import digest_tree
from appliance.errors import BuildError, CommandFailedError, InputError, VerificationError
from appliance.file_list import list_files, read_file_list
from appliance.formats_contract import INSTALLER_FORMATS, OutputFormat
from appliance.gpt import read_table
from appliance.manifest import (
    CHUNK_BYTES,
    FILES_SUFFIX,
    MANIFEST_SUFFIX,
    JsonObject,
    beside,
    digests,
    read_manifest,
)
from appliance.ova import check_ova
from appliance.qcow2 import read_qcow2
from appliance.run import find_program, run
from appliance.signing import check_signature, signature_of
from appliance.sparse import content_digest, raw_content_digest, sha256_of
from appliance.tree_entries import walk
from appliance.vhd import check_vhd
from appliance.vhdx import disk_size, read_vhdx
from appliance.vmdk import capacity_of, read_stream_vmdk

# No time of a file is compared.
LATEST = 1 << 62


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `part` names it (a file, a partition, a record), `message` says what."""

    part: str
    message: str

    def sentence(self) -> str:
        """`part: message`."""
        return f"{self.part}: {self.message}"


@dataclass
class Report:
    """What `verify` found; `checked` names what was looked at, `signer` who vouches (empty: nobody asked)."""

    artefact: Path
    checked: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    signer: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def as_json(self) -> dict[str, object]:
        """Keys `artefact`, `ok`, `signer`, `checked`, `findings` (each `part` and `message`)."""
        return {
            "artefact": str(self.artefact),
            "ok": self.good,
            "signer": self.signer,
            "checked": self.checked,
            "findings": [{"part": each.part, "message": each.message} for each in self.findings],
        }


def verify(artefact: Path, *, key: Path | None = None, keyring: Path | None = None) -> Report:
    """Check an artefact against the manifest beside it, and all its parts against each other.

    With `key` (a public key of minisign or GPG) the manifest must be signed by it; `keyring` is for the
    hash lists inside of an installer. Raises InputError if the artefact or its manifest cannot be read.
    """
    if not artefact.exists():
        raise InputError(f"{artefact}: does not exist", "name an artefact that has a manifest beside it")
    manifest_file = beside(artefact, MANIFEST_SUFFIX)
    manifest = read_manifest(manifest_file)
    report = Report(artefact)
    _signature(report, manifest_file, key)
    try:
        _contents(report, artefact, manifest, keyring)
    except (KeyError, TypeError) as error:
        # Its outer form was checked when it was read; what misses inside was changed afterwards.
        raise InputError(
            f"{manifest_file}: is damaged: {error} is missing or odd", "fetch it again"
        ) from error
    return report


def _contents(report: Report, artefact: Path, manifest: JsonObject, keyring: Path | None) -> None:
    described = cast(JsonObject, manifest["artefact"])
    try:
        form = OutputFormat(str(described["format"]))
    except ValueError as error:
        raise InputError(
            f"{beside(artefact, MANIFEST_SUFFIX)}: is damaged: {error}", "fetch it again"
        ) from error
    if artefact.is_dir():
        _directory(report, artefact, form, manifest)
        _companions(report, artefact, manifest)
        return
    if form in INSTALLER_FORMATS:
        # A medium is gigabytes: it is hashed as a whole while its parts are looked at.
        with ThreadPoolExecutor(max_workers=1) as pool:
            inside = pool.submit(_installer, artefact, keyring)
            _digest(report, artefact, described, manifest)
            _companions(report, artefact, manifest)
            report.checked.append(
                "boot records, menus, kickstarts, repositories, payload, implanted checksum"
            )
            report.findings.extend(inside.result())
        return
    _digest(report, artefact, described, manifest)
    _companions(report, artefact, manifest)
    for check in _CHECKS.get(form, ()):
        name = check.__name__.strip("_").replace("_", " ")
        program = _NEEDS.get(check)
        if program is not None and find_program(program) is None:
            report.checked.append(f"{name} not checked: this host lacks {program}")
            continue
        report.checked.append(name)
        try:
            report.findings.extend(check(artefact, cast(JsonObject, manifest["facts"])))
        except (BuildError, CommandFailedError) as error:
            report.findings.append(Finding(artefact.name, error.message))


def _signature(report: Report, manifest: Path, key: Path | None) -> None:
    if key is None:
        if signature_of(manifest) is not None:
            report.checked.append("signature not checked: no key given")
        return
    report.checked.append("signature")
    try:
        report.signer = check_signature(manifest, key)
    except VerificationError as error:
        report.findings.append(Finding(manifest.name, error.message))


def _digest(report: Report, artefact: Path, described: JsonObject, manifest: JsonObject) -> None:
    report.checked.append("size and SHA-256")
    size = artefact.stat().st_size
    if size != described["size"]:
        report.findings.append(
            Finding(artefact.name, f"has {size} bytes, the manifest says {described['size']}")
        )
    if sha256_of(artefact) == described["sha256"]:
        return
    whole, chunks = digests(artefact)
    listed = cast(list[str], described["chunks"])
    bad = [
        number
        for number in range(max(len(chunks), len(listed)))
        if chunks[number : number + 1] != listed[number : number + 1]
    ]
    for first, last in _runs(bad):
        start, end = (
            first * CHUNK_BYTES,
            min((last + 1) * CHUNK_BYTES, max(size, cast(int, described["size"]))),
        )
        where = _partition_at(manifest, described, start, end)
        report.findings.append(
            Finding(artefact.name, f"bytes {start} to {end - 1}{where} are not what was built")
        )
    if not bad:
        report.findings.append(
            Finding(artefact.name, f"its SHA-256 is {whole}, the manifest says {described['sha256']}")
        )


def _directory(report: Report, artefact: Path, form: OutputFormat, manifest: JsonObject) -> None:
    """A directory as a whole, and what differs file by file where there is a list of them."""
    described = cast(JsonObject, manifest["artefact"])
    report.checked.append("size and SHA-256 of all files")
    if form is OutputFormat.PXE:
        report.checked.append("hash list, kickstarts, repositories")
        # The installer's package builds upon this one; only here the other way round.
        from iso.inspect_tree import inspect_tree

        report.findings.extend(Finding(each.part, each.message) for each in inspect_tree(artefact))
    else:
        report.checked.append("every file's kind, mode, owner and SHA-256")
        report.findings.extend(_listed_files(artefact))
    if not report.findings and digest_tree(artefact) != described["sha256"]:
        report.findings.append(Finding(artefact.name, "is not what was built"))


def _listed_files(artefact: Path) -> Iterator[Finding]:
    """What the file list beside a root tree says of each file, against the file."""
    listed = read_file_list(beside(artefact, FILES_SUFFIX))
    found = {each.path: each for each in list_files(walk(artefact, latest=LATEST))}
    for path in sorted(listed.keys() - found.keys()):
        yield Finding(path, "is missing")
    for path in sorted(found.keys() - listed.keys()):
        yield Finding(path, "was added")
    for path in sorted(found.keys() & listed.keys()):
        if found[path] != listed[path]:
            yield Finding(path, "is not what was built")


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as (first, last)."""
    for position, number in enumerate(numbers):
        if position == 0 or numbers[position - 1] != number - 1:
            last = position
            while last + 1 < len(numbers) and numbers[last + 1] == numbers[last] + 1:
                last += 1
            yield number, numbers[last]


def _partition_at(manifest: JsonObject, described: JsonObject, start: int, end: int) -> str:
    """` (partition x)` for formats in which a place in the file is a place on the disk."""
    if str(described["format"]) not in ("raw", "xen", "ami", "vhd", "azure"):
        return ""
    facts = cast(JsonObject, manifest["facts"])
    names = [
        str(each["name"])
        for each in cast(list[JsonObject], facts.get("partitions", []))
        if cast(int, each["start"]) < end and cast(int, each["start"]) + cast(int, each["size"]) > start
    ]
    return f" (partition {', '.join(names)})" if names else " (partition tables)"


def _companions(report: Report, artefact: Path, manifest: JsonObject) -> None:
    report.checked.append("bills of materials and file list")
    for companion in cast(dict[str, JsonObject], manifest["companions"]).values():
        file = artefact.with_name(str(companion["name"]))
        if not file.is_file():
            report.findings.append(Finding(file.name, "is missing"))
        elif hashlib.sha256(file.read_bytes()).hexdigest() != companion["sha256"]:
            report.findings.append(Finding(file.name, "is not what the manifest says"))
        elif file.name.endswith((".cdx.json", ".spdx.json")):
            report.findings.extend(_bill(file, manifest))


def _bill(file: Path, manifest: JsonObject) -> Iterator[Finding]:
    """The bill of materials and the package list must name the same things."""
    document = json.loads(file.read_text(encoding="utf-8"))
    if "components" in document:
        named = sorted((each["name"], each["version"]) for each in document["components"])
    else:
        named = sorted(
            (each["name"], each["versionInfo"])
            for each in document["packages"]
            if each["SPDXID"] != "SPDXRef-Appliance"
        )
    packages = cast(list[JsonObject], manifest["packages"])
    if named != sorted((str(each["name"]), str(each["version"])) for each in packages):
        yield Finding(file.name, "names other packages than the manifest")


def _installer(artefact: Path, keyring: Path | None) -> list[Finding]:
    # The installer's package builds upon this one; only here the other way round.
    from iso.inspect import inspect_iso

    return [Finding(each.part, each.message) for each in inspect_iso(artefact, keyring=keyring)]


def _live_medium(artefact: Path, facts: JsonObject) -> Iterator[Finding]:
    from iso.inspect_live import inspect_live

    for each in inspect_live(artefact, str(facts["label"])):
        yield Finding(each.part, each.message)


def _partition_table(artefact: Path, facts: JsonObject) -> Iterator[Finding]:
    table = read_table(artefact)
    found = [
        {"name": each.name, "uuid": str(each.uuid), "start": each.start, "size": each.size}
        for each in table.partitions
    ]
    if found != facts["partitions"] or str(table.disk) != facts["disk"]:
        yield Finding("partition table", "is not the one that was built")


def _root_file_system(artefact: Path, facts: JsonObject) -> Iterator[Finding]:
    start = next(
        cast(int, each["start"])
        for each in cast(list[JsonObject], facts["partitions"])
        if str(each["name"]).endswith("-root")
    )
    done = run(["e2fsck", "-f", "-n", f"{artefact.absolute()}?offset={start}"], check=False)
    if done.status:
        lines = [line for line in done.output.splitlines() if line and not line.startswith("Pass ")]
        yield Finding("root file system", f"e2fsck: {lines[0] if lines else done.errors.strip()}")


def _content(found: str, facts: JsonObject) -> Iterator[Finding]:
    if found != facts["content"]:
        yield Finding("disk", "what the file holds is not the disk that was built")


def _vmdk_grains(artefact: Path, facts: JsonObject) -> Iterator[Finding]:
    capacity = capacity_of(artefact)
    if capacity != facts["disk_bytes"]:
        yield Finding("VMDK header", f"a disk of {capacity} bytes, not {facts['disk_bytes']}")
    yield from _content(content_digest(capacity, read_stream_vmdk(artefact)), facts)


def _vhd_footer(artefact: Path, facts: JsonObject) -> Iterator[Finding]:
    size = check_vhd(artefact)
    yield from _content(raw_content_digest(artefact, size), facts)


def _vhdx_blocks(artefact: Path, facts: JsonObject) -> Iterator[Finding]:
    yield from _content(content_digest(disk_size(artefact), read_vhdx(artefact, str(facts["seed"]))), facts)


def _ova_members(artefact: Path, facts: JsonObject) -> Iterator[Finding]:
    check_ova(artefact)
    yield from ()


def _qcow2_clusters(artefact: Path, facts: JsonObject) -> Iterator[Finding]:
    size, clusters = read_qcow2(artefact)
    if size != facts["disk_bytes"]:
        yield Finding("qcow2 header", f"a disk of {size} bytes, not {facts['disk_bytes']}")
    yield from _content(content_digest(size, clusters), facts)


def _qcow2_structure(artefact: Path, facts: JsonObject) -> Iterator[Finding]:
    done = run(["qemu-img", "check", "-f", "qcow2", artefact], check=False)
    if done.status:
        yield Finding("qcow2 structure", (done.errors.strip() or done.output.strip()).splitlines()[-1])


def _gcp_archive(artefact: Path, facts: JsonObject) -> Iterator[Finding]:
    try:
        with gzip.open(artefact) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            members = [(member.name, member.size) for member in archive]
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        yield Finding(artefact.name, f"the archive is damaged: {error}")
        return
    if members != [("disk.raw", facts["disk_bytes"])]:
        yield Finding(artefact.name, f"holds {members}, not disk.raw of {facts['disk_bytes']} bytes")


def _ami_description(artefact: Path, facts: JsonObject) -> Iterator[Finding]:
    file = artefact.with_suffix(".json")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield Finding(file.name, f"cannot be read: {error}")
        return
    if (document.get("size"), document.get("file")) != (artefact.stat().st_size, artefact.name):
        yield Finding(file.name, "describes another disk")


Check = Callable[[Path, JsonObject], Iterator[Finding]]
_NEEDS: dict[Check, str] = {_root_file_system: "e2fsck", _qcow2_structure: "qemu-img"}
_RAW: tuple[Check, ...] = (_partition_table, _root_file_system)
_CHECKS: dict[OutputFormat, tuple[Check, ...]] = {
    OutputFormat.RAW: _RAW,
    OutputFormat.XEN: _RAW,
    OutputFormat.AMI: (*_RAW, _ami_description),
    OutputFormat.QCOW2: (_qcow2_structure, _qcow2_clusters),
    OutputFormat.VMDK: (_vmdk_grains,),
    OutputFormat.OVA: (_ova_members,),
    OutputFormat.VHD: (_vhd_footer,),
    OutputFormat.AZURE: (_vhd_footer,),
    OutputFormat.VHDX: (_vhdx_blocks,),
    OutputFormat.GCP: (_gcp_archive,),
    OutputFormat.LIVE: (_live_medium,),
}
