"""From a base ISO and a staged tree to the product's medium: one xorriso run, the same bytes every time.

The base is read in place (nothing of it is unpacked but small files); its package repositories give way to
ours, its three boot menus, `.treeinfo`, `.discinfo` and `media.repo` are written anew, and the boot records
are rebuilt: El Torito for BIOS and UEFI, hybrid MBR and GPT so that the raw image boots from a stick.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from appliance.cache import digest_file, free_bytes
from appliance.errors import CommandFailedError, HostError, InputError
from appliance.run import require, run
from appliance.stages import replacing
from iso import boot_menus, efi_image, hash_list, metadata
from iso.base import (
    DISC_INFO,
    EFI_IMAGE,
    GRUB_MENU,
    ISOLINUX,
    ISOLINUX_MENU,
    MEDIA_REPO,
    TREE_INFO,
    BaseFacts,
)
from iso.iso9660 import Iso
from iso.label import check_label
from iso.media_checksum import MediaChecksum

PROGRAMS = {"xorriso": "xorriso", **efi_image.PROGRAMS}
HYBRID_MBR = (
    Path("/usr/lib/ISOLINUX/isohdpfx.bin"),
    Path("/usr/share/syslinux/isohdpfx.bin"),
    Path("/usr/lib/syslinux/bios/isohdpfx.bin"),
)
VARIANTS = ("BaseOS", "AppStream")
# What the vendor adds for people and for other tools, and what would be wrong on our medium.
DROPPED = ("extra_files.json", "TRANS.TBL", "EFI/BOOT/TRANS.TBL", "media.repo", "CHECKSUM", "SHA256SUMS")
LIMIT_SECONDS = 3600.0


@dataclass(frozen=True)
class Medium:
    """What is written beside the base's own files.

    `staging` is a directory laid out as the medium (repositories, payload); it is completed in place.
    `digests` are SHA-256 sums of staged files that are known already. `kickstarts` makes the two kickstart
    texts from the digest of the hash list and the path of the signing key (empty without one).
    """

    title: str
    version: str
    label: str
    staging: Path
    menu: boot_menus.Menu
    kickstarts: Callable[[str, str], Mapping[str, str]]
    digests: Mapping[str, str] = field(default_factory=dict)
    variants: Sequence[str] = VARIANTS
    signing_key: Path | None = None


@dataclass(frozen=True)
class Remastered:
    """The finished medium."""

    path: Path
    size: int
    files: Mapping[str, str]
    seconds: Mapping[str, float]


def hybrid_mbr() -> Path:
    """isolinux' hybrid MBR of this host; raises HostError naming the package."""
    for path in HYBRID_MBR:
        if path.is_file():
            return path
    raise HostError(
        "isohdpfx.bin was not found on this host", "install isolinux (Debian) or syslinux (AlmaLinux)"
    )


def remaster(
    base: Iso,
    facts: BaseFacts,
    medium: Medium,
    output: Path,
    *,
    epoch: int,
    log: Path | None = None,
    digest_cache: Path | None = None,
) -> Remastered:
    """Write the medium to `output`; it appears there whole or not at all.

    `digest_cache` keeps the digests of the base's files from one build to the next. Raises InputError,
    HostError (missing programs, full disk) or CommandFailedError.
    """
    require(PROGRAMS)
    check_label(medium.label)
    started = time.monotonic()
    seconds: dict[str, float] = {}
    staging = medium.staging
    dropped = [*facts.repositories, *DROPPED]
    kept = [path for path in base.files if not _below(path, dropped)]
    space = sum(base.files[path].size for path in kept) + _size(staging) + (64 << 20)
    if (free := free_bytes(output.parent)) < space:
        raise HostError(
            f"{output.parent} has {free >> 20} MiB left, the image needs {space >> 20} MiB",
            "free some, or write to another disk with --output",
        )
    _write_menus(base, medium, staging, epoch)
    with ThreadPoolExecutor(max_workers=2) as pool:
        staged = pool.submit(_staged_digests, staging, medium.digests)
        inherited = _base_digests(base, kept, digest_cache)
        digests = {**inherited, **staged.result()}
    _write_metadata(base, facts, medium, staging, digests, epoch)
    seconds["digests"] = time.monotonic() - started
    _write_hash_lists(medium, staging, digests, epoch)
    started = time.monotonic()
    with replacing(output) as partial:
        checksum = MediaChecksum(partial)
        with checksum.following():
            _write_image(base, medium, dropped, partial, epoch, log)
        seconds["write"] = time.monotonic() - started
        started = time.monotonic()
        # Last of all: whatever is changed after this makes the medium fail its own check.
        checksum.implant()
        seconds["media checksum"] = time.monotonic() - started
        size = partial.stat().st_size
    return Remastered(output, size, digests, seconds)


def _below(path: str, directories: Sequence[str]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _write_menus(base: Iso, medium: Medium, staging: Path, epoch: int) -> None:
    """All three menus: what boots from a disc, from UEFI, and from UEFI on a stick."""
    # The loader's boot information table is filled in only for files that are new to the image.
    base.extract(ISOLINUX, staging / ISOLINUX)
    with (staging / ISOLINUX).open("r+b") as loader:
        loader.seek(8)
        loader.write(bytes(56))
    write_text(staging / ISOLINUX_MENU, boot_menus.isolinux(base.read(ISOLINUX_MENU).decode(), medium.menu))
    grub: dict[str, str] = {}
    for name in (GRUB_MENU, "EFI/BOOT/BOOT.conf"):
        if name in base.files:
            grub[name] = boot_menus.grub(base.read(name).decode(), medium.menu, name)
            write_text(staging / name, grub[name])
    image = staging / EFI_IMAGE
    vendor = image.with_name("efiboot.vendor")
    base.extract(EFI_IMAGE, vendor)
    try:
        efi_image.rebuild(vendor, grub, image, epoch=epoch, serial=_serial(medium))
    finally:
        vendor.unlink()


def _serial(medium: Medium) -> str:
    return hashlib.sha256(f"{medium.label} {medium.version}".encode()).hexdigest()[:8]


def write_text(path: Path, text: str) -> None:
    """Write a file of the staged tree, its directories included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _staged_digests(staging: Path, known: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            name = path.relative_to(staging).as_posix()
            found[name] = known.get(name) or digest_file(path)
    return found


def _base_digests(base: Iso, kept: Sequence[str], cache: Path | None) -> dict[str, str]:
    """SHA-256 of the base's files that stay; remembered by the identity of the base file."""
    status = base.path.stat()
    identity = f"{base.path.absolute()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    record = None
    if cache is not None:
        record = cache / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"
        if record.is_file():
            known = json.loads(record.read_text())
            if set(kept) <= set(known):
                return {path: known[path] for path in kept}
    found = {path: base.sha256(path) for path in kept if not base.files[path].target}
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        with replacing(record) as partial:
            partial.write_text(json.dumps(found, sort_keys=True))
    return found


def _write_metadata(
    base: Iso, facts: BaseFacts, medium: Medium, staging: Path, digests: dict[str, str], epoch: int
) -> None:
    texts = {
        TREE_INFO: metadata.treeinfo(
            base.read(TREE_INFO).decode(), medium.variants, digests, epoch=epoch, name=base.path.name
        ),
        DISC_INFO: metadata.discinfo(epoch, facts.version, facts.architecture),
        MEDIA_REPO: metadata.media_repo(medium.title, medium.version, epoch),
    }
    for name, text in texts.items():
        write_text(staging / name, text)
        digests[name] = hash_list.digest_text(text)


def _write_hash_lists(medium: Medium, staging: Path, digests: dict[str, str], epoch: int) -> None:
    """The list, the kickstarts that pin it, the list of those; with a key, signatures of both lists."""
    with ExitStack() as stack:
        signer = None
        keyring = ""
        if medium.signing_key is not None:
            signer = stack.enter_context(hash_list.Signer(medium.signing_key, time=epoch))
            keyring = hash_list.SIGNING_KEY
            (staging / keyring).parent.mkdir(parents=True, exist_ok=True)
            signer.export(staging / keyring)
            digests[keyring] = digest_file(staging / keyring)
        text = hash_list.hash_list(digests)
        write_text(staging / hash_list.HASH_LIST, text)
        kickstarts = medium.kickstarts(hash_list.digest_text(text), keyring)
        own = {name: hash_list.digest_text(content) for name, content in kickstarts.items()}
        for name, content in kickstarts.items():
            write_text(staging / name, content)
        own[hash_list.HASH_LIST] = hash_list.digest_text(text)
        write_text(
            staging / hash_list.KICKSTART_LIST, "".join(f"{own[name]}  ./{name}\n" for name in sorted(own))
        )
        if signer is not None:
            signer.sign(staging / hash_list.HASH_LIST)
            signer.sign(staging / hash_list.KICKSTART_LIST)


def _write_image(
    base: Iso, medium: Medium, dropped: Sequence[str], output: Path, epoch: int, log: Path | None
) -> None:
    present = sorted({entry for entry in dropped if any(_below(path, [entry]) for path in base.files)})
    date = f"={epoch}"
    words: list[str | Path] = ["xorriso", "-report_about", "WARNING", "-abort_on", "FAILURE", "-no_rc"]
    # Without no_emul_toc the volume would begin at block 32, and isolinux be told so.
    rules = "no_emul_toc:iso_9660_level=3:joliet_long_names:joliet_long_paths"
    words += ["-compliance", rules, "-indev", base.path, "-outdev", output]
    # Else it waits for the disk after every 16 MiB; an image is whole or not there either way.
    words += ["-stdio_sync", "off"]
    words += [
        "-boot_image",
        "any",
        "discard",
        "-volid",
        medium.label,
        "-publisher",
        "",
        "-application_id",
        "",
    ]
    words += ["-system_id", "", "-volset_id", medium.label, "-preparer_id", "centralino-build"]
    if present:
        words += ["-rm_r", *(f"/{entry}" for entry in present), "--"]
    words += ["-joliet", "on"]
    words += ["-uid", "0", "-gid", "0", "-map", medium.staging, "/"]
    words += ["-find", "/", "-type", "d", "-exec", "chmod", "0555", "--"]
    words += ["-find", "/", "-type", "f", "-exec", "chmod", "0444", "--"]
    words += ["-find", "/", "-exec", "chown", "0", "--", "-find", "/", "-exec", "chgrp", "0", "--"]
    words += _boot_records()
    words += ["-volume_date", "all_file_dates", date, "-volume_date", "c", date, "-volume_date", "m", date]
    words += ["-volume_date", "uuid", time.strftime("%Y%m%d%H%M%S00", time.gmtime(epoch))]
    # GUIDs come from that date, and not from the clock.
    words += ["-boot_image", "any", "gpt_disk_guid=volume_date_uuid", "-end"]
    try:
        run(
            words,
            limit_seconds=LIMIT_SECONDS,
            log=log,
            environment={"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"},
        )
    except CommandFailedError as error:
        if free_bytes(output.parent) < 16 << 20:
            raise HostError(
                f"{output.parent} is full", "free some, or write to another disk with --output"
            ) from error
        raise
    if output.stat().st_size < 1 << 20:
        raise InputError("xorriso wrote no image", "read the build log")


def _boot_records() -> list[str | Path]:
    """BIOS and UEFI from a disc (El Torito), and both from a stick (hybrid MBR, GPT)."""
    words: list[str | Path] = []
    for kind, setting in (
        ("isolinux", "bin_path=/isolinux/isolinux.bin"),
        ("isolinux", "cat_path=/isolinux/boot.cat"),
        ("any", "load_size=2048"),
        ("any", "boot_info_table=on"),
        ("any", "emul_type=none"),
        ("any", "next"),
        ("any", f"efi_path=/{EFI_IMAGE}"),
        ("any", "emul_type=none"),
        ("isolinux", "partition_entry=gpt_basdat"),
        ("isolinux", f"system_area={hybrid_mbr()}"),
        ("isolinux", "partition_table=on"),
    ):
        words += ["-boot_image", kind, setting]
    return words
