"""The installer of a profile: closure, repositories, payload, kickstarts, remaster."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.archive import write_tar
from appliance.cache import digest_file
from appliance.errors import InputError
from appliance.formats_contract import OutputFormat
from appliance.manifest import Contents, write_manifest
from appliance.mirror import Source, resolve_sources
from appliance.payload import build_payload
from appliance.platform_data import PlatformData
from appliance.profile import Profile, check_against_platform
from appliance.sbom import Component
from appliance.sbom import Source as Bom
from appliance.scratch import Scratch
from appliance.stages import BuildContext, replacing
from iso.base import BaseFacts, check_checksum, inspect_base
from iso.boot_menus import QUESTIONS_KICKSTART, UNATTENDED_KICKSTART, installer_menu
from iso.closure import Workshop, fetch_locked, resolve
from iso.iso9660 import Iso
from iso.lock import Lock, Request, check_lock, differences, read_lock, total, write_lock
from iso.remaster import Medium, Remastered, remaster
from iso.repository import build_repositories
from kickstart.from_profile import MediumFacts, installation, installer_table, wanted_modules, wanted_packages
from kickstart.model import PayloadSource
from kickstart.render import render
from kickstart.validate import validate

PAYLOAD_PATH = "centralino/payload.tar"
PAYLOAD_PREFIX = "payload/"


@dataclass(frozen=True)
class Options:
    """What the command line adds to the profile.

    `payload` is a ready payload directory; without it the payload is built. `lock` is read if it exists
    (unless `update_lock`) and written otherwise.
    """

    base_iso: Path
    lock: Path
    checksum_file: Path | None = None
    mirrors: Sequence[str] = ()
    gpg_keys: Sequence[Path] = ()
    check_signatures: bool = True
    update_lock: bool = False
    payload: Path | None = None
    signing_key: Path | None = None


@dataclass
class Prepared:
    """A staged tree with both repositories and the payload, and what it was made from."""

    staging: Path
    lock: Lock
    payload: Path
    payload_sha256: str
    digests: dict[str, str]
    sources: list[Source]
    changes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Installer:
    """A finished installer ISO and what to know about it."""

    image: Remastered
    sha256: str
    manifest: Path
    lock_file: Path
    lock: Lock
    base: BaseFacts
    changes: Sequence[str]
    signatures_checked: bool
    payload_sha256: str

    def as_json(self) -> dict[str, object]:
        """Keys `path`, `size`, `sha256`, `manifest`, `base`, `packages`, `lock`, `changes`, `seconds` ..."""
        return {
            "path": str(self.image.path),
            "size": self.image.size,
            "sha256": self.sha256,
            "manifest": str(self.manifest),
            "base": {"family": self.base.family, "version": self.base.version, "label": self.base.label},
            "packages": len(self.lock.packages),
            "lock": str(self.lock_file),
            "lock_digest": self.lock.digest,
            "payload_sha256": self.payload_sha256,
            "signatures_checked": self.signatures_checked,
            "changes": list(self.changes),
            "seconds": {name: round(value, 3) for name, value in self.image.seconds.items()},
        }


def closure_request(profile: Profile, platform: PlatformData, sources: Sequence[Source]) -> Request:
    """What the embedded repository must hold."""
    table = installer_table(platform)
    return Request(
        platform=platform.name,
        platform_id=table.module_platform,
        release=profile.platform.release or platform.release,
        architecture=platform.architecture,
        packages=wanted_packages(profile, platform),
        groups=table.groups,
        modules=wanted_modules(profile, platform),
        excluded=table.excluded,
        repositories=tuple(source.name for source in sources),
    )


def signing_keys(profile: Profile, platform: PlatformData, given: Sequence[Path]) -> tuple[Path, ...]:
    """Public keys to check packages with: the command line's, the profile's, this host's own."""
    keys = [*given, *(one.key for one in profile.platform.repositories if one.key)]
    if (asterisk := profile.packages.asterisk_repository) and asterisk.key:
        keys.append(asterisk.key)
    keys += [path for path in platform.keys.files if path.is_file()]
    if missing := [path for path in keys if not path.is_file()]:
        raise InputError(f"there is no key file {missing[0]}", "correct the path")
    return tuple(dict.fromkeys(keys))


def build_iso(
    profile: Profile, platform: PlatformData, options: Options, output: Path, context: BuildContext
) -> Installer:
    """Build the installer ISO at `output`; raises BuildError, and then nothing half-made stays."""
    check_against_platform(profile, platform, "the profile")
    with Iso(options.base_iso) as base:
        with context.step("check the base ISO"):
            base_sha256 = remembered_digest(options.base_iso, context.cache.directory / "base-digests")
            if options.checksum_file is not None:
                check_checksum(options.base_iso, options.checksum_file, base_sha256)
            facts = inspect_base(
                base,
                title=platform.title,
                release=profile.platform.release or platform.release,
                architecture=platform.architecture,
            )
        # A profile that gives no valid kickstart fails here, before anything is fetched.
        _kickstarts(profile, platform, "0" * 64, "", "1" * 64)
        output.parent.mkdir(parents=True, exist_ok=True)
        with Scratch(prefix=".iso-", dir=output.parent) as directory:
            prepared = prepare(profile, platform, options, Path(directory) / "medium", context)
            medium = Medium(
                title=profile.product.title,
                version=profile.product.version,
                label=profile.iso_label,
                staging=prepared.staging,
                menu=installer_menu(
                    profile.product.title,
                    profile.iso_label,
                    profile.boot.menu_seconds,
                    profile.boot.installer_arguments,
                ),
                kickstarts=lambda digest, key: _kickstarts(
                    profile, platform, digest, key, prepared.payload_sha256
                ),
                digests=prepared.digests,
                signing_key=options.signing_key or _profile_key(profile),
            )
            with context.step("write the medium"):
                image = remaster(
                    base,
                    facts,
                    medium,
                    output,
                    epoch=context.epoch,
                    log=context.log,
                    digest_cache=context.cache.directory / "base-digests",
                )
    with context.step("write the manifest"):
        contents = Contents(
            inputs={
                "base_iso": base_sha256,
                "lock": prepared.lock.digest,
                "payload": prepared.payload_sha256,
            },
            components=components_of_medium(prepared, facts),
            facts={
                "base_iso": {"name": options.base_iso.name, "family": facts.family, "version": facts.version},
                "label": profile.iso_label,
                "package_signatures": "checked" if options.check_signatures else "not checked",
                "medium_signed": medium.signing_key is not None,
            },
        )
        manifest = write_manifest(output, OutputFormat.ISO, profile, platform, context.epoch, contents)
    return Installer(
        image=image,
        sha256=_artefact_digest(manifest),
        manifest=manifest,
        lock_file=options.lock,
        lock=prepared.lock,
        base=facts,
        changes=prepared.changes,
        signatures_checked=options.check_signatures,
        payload_sha256=prepared.payload_sha256,
    )


def _profile_key(profile: Profile) -> Path | None:
    """The profile's signing key, if it is one that gpgv in the installer can check."""
    return profile.signing.key_file if profile.signing and profile.signing.tool == "gpg" else None


def _artefact_digest(manifest: Path) -> str:
    return str(json.loads(manifest.read_text())["artefact"]["sha256"])


def components_of_medium(prepared: Prepared, facts: BaseFacts) -> list[Component]:
    """The bill of materials: every RPM of the lock, every wheel of the payload."""
    distribution = f"{facts.family.split()[0].lower()}-{facts.version}"
    found = [
        Component(
            Bom.RPM,
            package.name,
            f"{package.epoch}:{package.version}-{package.release}"
            if package.epoch
            else f"{package.version}-{package.release}",
            package.arch,
            package.license,
            package.sha256,
            distribution,
        )
        for package in prepared.lock.packages
    ]
    requirements = prepared.payload / "requirements.txt"
    if requirements.is_file():
        for line in requirements.read_text().splitlines():
            if match := re.match(r"([A-Za-z0-9._-]+)==(\S+) --hash=sha256:([0-9a-f]{64})", line):
                found.append(Component(Bom.PYPI, match[1], match[2], sha256=match[3]))
    return found


def remembered_digest(path: Path, cache: Path) -> str:
    """SHA-256 of a large input file, remembered by its path, size and time; raises InputError."""
    try:
        status = path.stat()
        identity = f"{path.absolute()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
        record = cache / f"{hashlib.sha256(identity.encode()).hexdigest()}.sha256"
        if record.is_file():
            return record.read_text()
        digest = digest_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "name an ISO image") from error
    with replacing(record) as partial:
        partial.write_text(digest)
    return digest


def prepare(
    profile: Profile, platform: PlatformData, options: Options, staging: Path, context: BuildContext
) -> Prepared:
    """Repositories and payload in an empty `staging`; the lock is read or made."""
    staging.mkdir(parents=True)
    sources = resolve_sources(profile, platform, options.mirrors)
    request = closure_request(profile, platform, sources)
    workshop = Workshop(
        context.cache.directory,
        keys=signing_keys(profile, platform, options.gpg_keys) if options.check_signatures else (),
        check=options.check_signatures,
        log=context.log,
    )
    changes: list[str] = []
    old = read_lock(options.lock) if options.lock.is_file() else None
    if old is not None and not options.update_lock:
        check_lock(old, request, options.lock)
        with context.step(f"fetch {total(old.packages)}"):
            lock, files = old, fetch_locked(old, sources, workshop)
    else:
        with context.step("resolve and fetch the packages"):
            lock, files = resolve(request, sources, workshop)
        changes = differences(old, lock) if old is not None else []
        write_lock(lock, options.lock)
    with context.step("make the repositories"):
        digests = build_repositories(lock, files, staging, epoch=context.epoch, cache=context.cache.directory)
    payload = options.payload if options.payload else build_payload(profile, platform, context).directory
    archive = staging / PAYLOAD_PATH
    archive.parent.mkdir(parents=True)
    with archive.open("wb") as stream:
        write_tar(stream, payload, context.epoch, prefix=PAYLOAD_PREFIX)
    digests[PAYLOAD_PATH] = digest_file(archive)
    return Prepared(staging, lock, payload, digests[PAYLOAD_PATH], digests, sources, changes)


def _kickstarts(
    profile: Profile, platform: PlatformData, hash_list: str, signing_key: str, payload_sha256: str
) -> Mapping[str, str]:
    """Both kickstarts of the medium, validated."""
    facts = MediumFacts(
        payload=PayloadSource(sha256=payload_sha256, path=PAYLOAD_PATH),
        label=profile.iso_label,
        hash_list_sha256=hash_list,
        signing_key=signing_key,
    )
    handler = installer_table(platform).kickstart_handler
    made = {}
    for name, unattended in ((UNATTENDED_KICKSTART, True), (QUESTIONS_KICKSTART, False)):
        made[name] = render(installation(profile, platform, facts, unattended=unattended))
        validate(made[name], name, handler)
    return made
