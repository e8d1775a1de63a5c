"""Is an installer ISO whole, and do all its parts agree? What `centralino-build verify` asks of an ISO.

Every check adds findings instead of stopping at the first, so that one run names everything. Nothing here
needs root, a mount or the build's inputs.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import struct
import tarfile
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.errors import BuildError, CommandFailedError
from appliance.run import find_program, require, run
from appliance.scratch import Scratch
from iso import boot_menus, efi_image, hash_list
from iso.base import DISC_INFO, EFI_IMAGE, GRUB_MENU, ISOLINUX, ISOLINUX_MENU, TREE_INFO, read_treeinfo
from iso.iso9660 import Iso
from kickstart.validate import validate

BIOS, UEFI = 0, 0xEF
_COMMON = "{http://linux.duke.edu/metadata/common}"
_REPO = "{http://linux.duke.edu/metadata/repo}"
LIMIT_SECONDS = 3600.0


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `part` names the file or record, `message` what is wrong with it."""

    part: str
    message: str

    def sentence(self) -> str:
        """`part: message`."""
        return f"{self.part}: {self.message}"


def inspect_iso(path: Path, *, keyring: Path | None = None, media_checksum: bool = True) -> list[Finding]:
    """Everything that is wrong with an installer ISO; empty if it is good.

    `keyring` is a trusted public keyring in gpg's binary form: with it the signatures are checked too.
    `media_checksum` off leaves out the implanted checksum, which reads the whole image once more.
    """
    try:
        with Iso(path) as iso, ThreadPoolExecutor(max_workers=1) as pool:
            # checkisomd5 reads the image in a process of its own meanwhile.
            implanted = pool.submit(implanted_checksum, path) if media_checksum else None
            findings: list[Finding] = []
            checks: tuple[Callable[[Iso], Iterator[Finding]], ...] = (
                boot_records, labels, kickstarts, digests, _medium_repositories, payload
            )  # fmt: skip
            for check in checks:
                findings += _guarded(check, iso)
            if keyring is not None:
                findings += _guarded(lambda image: signatures(image, keyring), iso)
            if implanted is not None:
                findings += implanted.result()
            return findings
    except BuildError as error:
        return [Finding(path.name, error.message)]


def _guarded(check: Callable[[Iso], Iterator[Finding]], iso: Iso) -> list[Finding]:
    return guarded(lambda: check(iso), iso.path.name)


def guarded(check: Callable[[], Iterator[Finding]], name: str) -> list[Finding]:
    """A damaged file may break a check at any place: that is a finding, not a crash."""
    try:
        return list(check())
    except BuildError as error:
        return [Finding(name, error.message)]
    except (ValueError, KeyError, struct.error, ElementTree.ParseError, OSError, EOFError, zlib.error,
            tarfile.TarError) as error:  # fmt: skip
        return [Finding(name, f"cannot be read: {error}")]


def implanted_checksum(path: Path) -> list[Finding]:
    """What checkisomd5 says of an image; a host without it is a finding too."""
    if find_program("checkisomd5") is None:
        return [Finding("implanted checksum", "not checked: this host lacks checkisomd5 (package isomd5sum)")]
    done = run(["checkisomd5", path], check=False, limit_seconds=LIMIT_SECONDS)
    if done.status == 0:
        return []
    text = done.output + done.errors
    missing = "No checksum" in text or "NA" in text
    return [Finding("implanted checksum", "there is none" if missing else "does not fit the image")]


def boot_records(iso: Iso) -> Iterator[Finding]:
    """El Torito, the boot information table, hybrid MBR and GPT."""
    loader, image = iso.files[ISOLINUX], iso.files[EFI_IMAGE]
    entries = {entry.platform: entry for entry in iso.boot_entries() if entry.bootable}
    for platform, name, file in ((BIOS, "BIOS", loader), (UEFI, "UEFI", image)):
        if platform not in entries:
            yield Finding("El Torito", f"there is no entry for {name}")
        elif entries[platform].lba != file.extents[0][0]:
            yield Finding("El Torito", f"the {name} entry does not point at {file.path}")
    if UEFI in entries and entries[UEFI].sectors * 512 < image.size:
        yield Finding("El Torito", f"the UEFI entry loads only a part of {EFI_IMAGE}")
    yield from _boot_table(iso)
    record = iso.read_at(0, 512)
    if record[510:] != b"\x55\xaa":
        yield Finding("MBR", "there is none: the image does not boot from a stick")
        return
    partitions = [struct.unpack_from("<B3xB3xII", record, 446 + 16 * number) for number in range(4)]
    if not any(status == 0x80 and start == 0 for status, _, start, count in partitions if count):
        yield Finding("MBR", "no active partition covers the image")
    if not any(kind == 0xEF and start == image.extents[0][0] * 4 for _, kind, start, _ in partitions):
        yield Finding("MBR", f"no partition shows {EFI_IMAGE} to the firmware")
    # isohybrid MBR: the place of isolinux.bin, in sectors of 512 bytes.
    if struct.unpack_from("<I", record, 432)[0] != loader.extents[0][0] * 4:
        yield Finding("MBR", f"its boot code does not point at {ISOLINUX}")
    yield from _partition_table(iso, image.extents[0][0] * 4)


def _boot_table(iso: Iso) -> Iterator[Finding]:
    """The table that xorriso writes into isolinux.bin, and the loader behind it (mkisofs(8), BOOT INFO)."""
    content = iso.read(ISOLINUX)
    place, sector, length, checksum = struct.unpack_from("<4I", content, 8)
    padded = content[64:] + bytes(-len(content) % 4)
    found = sum(struct.unpack(f"<{len(padded) // 4}I", padded)) & 0xFFFFFFFF
    if (place, sector, length) != (16, iso.files[ISOLINUX].extents[0][0], len(content)):
        yield Finding(ISOLINUX, "its boot information table is wrong")
    if found != checksum:
        yield Finding(ISOLINUX, "is damaged: the checksum in its boot information table differs")


def _partition_table(iso: Iso, efi_start: int) -> Iterator[Finding]:
    header = bytearray(iso.read_at(512, 92))
    if header[:8] != b"EFI PART":
        yield Finding("GPT", "there is none: UEFI finds no system partition on a stick")
        return
    (checksum,) = struct.unpack_from("<I", header, 16)
    header[16:20] = bytes(4)
    if zlib.crc32(header) != checksum:
        yield Finding("GPT", "the header's checksum is wrong")
    start, count, size, entries_checksum = struct.unpack_from("<QIII", header, 72)
    if count > 1024 or size > 4096:
        yield Finding("GPT", "the header is damaged")
        return
    table = iso.read_at(start * 512, count * size)
    if zlib.crc32(table) != entries_checksum:
        yield Finding("GPT", "the checksum of its entries is wrong")
    starts = [struct.unpack_from("<Q", table, number * size + 32)[0] for number in range(count)]
    if efi_start not in starts:
        yield Finding("GPT", f"no partition shows {EFI_IMAGE} to the firmware")


def menus(iso: Iso) -> dict[str, str]:
    """The text of every boot menu by where it is; those inside of the EFI image as `IMAGE:PATH`."""
    require({"mcopy": "mtools"})
    found = {name: iso.read(name).decode() for name in (ISOLINUX_MENU, GRUB_MENU)}
    if "EFI/BOOT/BOOT.conf" in iso.files:
        found["EFI/BOOT/BOOT.conf"] = iso.read("EFI/BOOT/BOOT.conf").decode()
    with Scratch(prefix="efi-") as scratch:
        image = Path(scratch) / "efiboot.img"
        iso.extract(EFI_IMAGE, image)
        tree = Path(scratch) / "tree"
        efi_image.read_tree(image, tree)
        for name in (GRUB_MENU, "EFI/BOOT/BOOT.conf"):
            if path := efi_image.find(tree, name):
                found[f"{EFI_IMAGE}:{name}"] = path.read_text()
    return found


def labels(iso: Iso) -> Iterator[Finding]:
    """All menus name this volume and kickstarts that are on it."""
    found = menus(iso)
    if f"{EFI_IMAGE}:{GRUB_MENU}" not in found:
        yield Finding(EFI_IMAGE, f"holds no {GRUB_MENU}: UEFI does not boot from a stick")
    for name, text in found.items():
        named = boot_menus.labels_in(text)
        if named != {iso.label}:
            others = ", ".join(sorted(repr(label) for label in named - {iso.label})) or "nothing"
            yield Finding(name, f"names {others}, the volume is {iso.label!r}")
        for kickstart in set(re.findall(r"inst\.ks=hd:LABEL=[^:\s']+:/([^\s']+)", text)):
            if kickstart not in iso.files:
                yield Finding(name, f"starts with {kickstart}, which is not on the medium")
        if boot_menus.UNATTENDED_KICKSTART not in text:
            yield Finding(name, "has no unattended entry")


def kickstarts(iso: Iso) -> Iterator[Finding]:
    """Both kickstarts are valid and pin the hash list and the payload."""
    pinned = {
        "hash_list_sha256": hash_list.HASH_LIST,
        "payload_sha256": "centralino/payload.tar",
    }
    own = hash_list.parse_hash_list(iso.read(hash_list.KICKSTART_LIST).decode(), hash_list.KICKSTART_LIST)
    for name in (*hash_list.KICKSTARTS, hash_list.HASH_LIST):
        if name not in own:
            yield Finding(hash_list.KICKSTART_LIST, f"does not name {name}")
        elif iso.sha256(name) != own[name]:
            yield Finding(name, f"differs from {hash_list.KICKSTART_LIST}")
    for name in hash_list.KICKSTARTS:
        text = iso.read(name).decode()
        try:
            validate(text, name)
        except BuildError as error:
            yield Finding(name, error.message)
        for variable, target in pinned.items():
            values = set(re.findall(rf"^{variable}=([0-9a-f]{{64}})$", text, re.M))
            if values != {iso.sha256(target)}:
                yield Finding(name, f"does not pin {target}")


def digests(iso: Iso) -> Iterator[Finding]:
    """Every file is in the hash list and is what the list says."""
    listed = hash_list.parse_hash_list(iso.read(hash_list.HASH_LIST).decode())
    present = {path for path, file in iso.files.items() if not file.target} - hash_list.UNLISTED
    for path in sorted(listed.keys() - present):
        yield Finding(path, "is missing")
    for path in sorted(present - listed.keys()):
        yield Finding(path, f"is not named in {hash_list.HASH_LIST}")
    for path in sorted(present & listed.keys()):
        if iso.sha256(path) != listed[path]:
            yield Finding(path, f"differs from {hash_list.HASH_LIST}")


class Medium(Protocol):
    """What holds repositories: an ISO, or the directory of a boot server."""

    path: Path

    @property
    def files(self) -> Container[str]:
        """All files by path."""
        ...

    def read(self, path: str) -> bytes:
        """The content of a file."""
        ...

    def sha256(self, path: str) -> str:
        """The digest of a file."""
        ...

    def below(self, directory: str) -> list[str]:
        """All files below a directory."""
        ...


def _medium_repositories(iso: Iso) -> Iterator[Finding]:
    yield from repositories(iso, hash_list.parse_hash_list(iso.read(hash_list.HASH_LIST).decode()))


def repositories(iso: Medium, listed: dict[str, str]) -> Iterator[Finding]:
    """`.treeinfo` and `.discinfo` lead to repositories whose metadata fits their packages.

    `listed` maps paths to digests that were compared with the bytes already.
    """
    info = read_treeinfo(iso.read(TREE_INFO).decode(), iso.path.name)
    lines = iso.read(DISC_INFO).decode().splitlines()
    if len(lines) < 3 or lines[2] != info.get("tree", "arch", fallback=""):
        yield Finding(DISC_INFO, "its third line is not the architecture: Anaconda passes over the medium")
    for path, value in info["checksums"].items() if info.has_section("checksums") else ():
        if path in iso.files and value != f"sha256:{iso.sha256(path)}":
            yield Finding(TREE_INFO, f"has another checksum for {path}")
    variants = [name for name in info.get("tree", "variants", fallback="").split(",") if name]
    if not variants:
        yield Finding(TREE_INFO, "names no repository")
    for variant in variants:
        directory = info.get(f"variant-{variant}", "repository", fallback=variant)
        yield from _repository(iso, directory, listed)


def _repository(iso: Medium, directory: str, listed: dict[str, str]) -> Iterator[Finding]:
    index = f"{directory}/repodata/repomd.xml"
    if index not in iso.files:
        yield Finding(index, "is missing")
        return
    packages: dict[str, str] = {}
    for data in ElementTree.fromstring(iso.read(index)).iter(f"{_REPO}data"):  # noqa: S314
        place, checksum = data.find(f"{_REPO}location"), data.findtext(f"{_REPO}checksum")
        path = f"{directory}/{place.get('href') if place is not None else ''}"
        if path not in iso.files:
            yield Finding(path, "is missing")
            continue
        content = iso.read(path)
        if hashlib.sha256(content).hexdigest() != checksum:
            yield Finding(path, f"differs from {index}")
        elif data.get("type") == "primary":
            packages = _packages(content)
    for name, checksum in sorted(packages.items()):
        path = f"{directory}/{name}"
        if path not in iso.files:
            yield Finding(path, "is missing")
        elif listed.get(path) != checksum:
            # The hash list was compared with the bytes already.
            yield Finding(path, "differs from the repository's metadata")
    for path in iso.below(f"{directory}/Packages"):
        if path.removeprefix(f"{directory}/") not in packages:
            yield Finding(path, "is not in the repository's metadata")


def _packages(primary: bytes) -> dict[str, str]:
    found = {}
    for package in ElementTree.fromstring(gzip.decompress(primary)).iter(f"{_COMMON}package"):  # noqa: S314
        place = package.find(f"{_COMMON}location")
        if place is not None:
            found[place.get("href", "")] = package.findtext(f"{_COMMON}checksum", "")
    return found


def payload(iso: Iso) -> Iterator[Finding]:
    """The payload's own manifest fits what is in the archive."""
    name = "centralino/payload.tar"
    with Scratch(prefix="payload-") as scratch:
        copy = Path(scratch) / "payload.tar"
        iso.extract(name, copy)
        manifest, found = _payload_digests(copy)
    if manifest is None:
        yield Finding(name, "has no manifest.json")
        return
    for path in sorted(manifest.keys() | found.keys()):
        if manifest.get(path) != found.get(path):
            yield Finding(f"{name}:{path}", "differs from the payload's manifest")


def _payload_digests(archive_file: Path) -> tuple[dict[str, str] | None, dict[str, str]]:
    """What the archive's manifest says of its files, and what they are."""
    with tarfile.open(archive_file) as archive:
        found: dict[str, str] = {}
        manifest: dict[str, str] | None = None
        for member in archive:
            stream = archive.extractfile(member)
            if stream is None:
                continue
            content = stream.read()
            path = member.name.partition("/")[2]
            if path == "manifest.json":
                manifest = json.loads(content)["files"]
            else:
                found[path] = hashlib.sha256(content).hexdigest()
    return manifest, found


def signatures(iso: Iso, keyring: Path) -> Iterator[Finding]:
    """Both lists are signed by a key of the trusted keyring."""
    require({"gpgv": "gpgv"})
    with Scratch(prefix="gpgv-") as scratch:
        for name in (hash_list.HASH_LIST, hash_list.KICKSTART_LIST):
            signature = name + hash_list.SIGNATURE_SUFFIX
            if signature not in iso.files:
                yield Finding(signature, "is missing: the medium is not signed")
                continue
            for part in (name, signature):
                iso.extract(part, Path(scratch) / part)
            try:
                run(
                    ["gpgv", "--keyring", keyring.absolute(), Path(scratch) / signature, Path(scratch) / name]
                )
            except CommandFailedError as error:
                yield Finding(
                    signature, f"is not valid: {error.last_lines[-1] if error.last_lines else error}"
                )
