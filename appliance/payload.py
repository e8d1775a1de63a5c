"""The offline payload: everything that turns a plain system into the box, without a network.

    install             the one script (from roles/install): makes the virtual environment, runs the roles
    version             the product's version, one line
    profile.json        what of the profile the roles use; no secrets
    platform.toml       the platform's `[box]` table, becomes /etc/centralino/platform.toml
    requirements.txt    every third-party wheel with its digest
    wheels/             those wheels, for the box's Python
    application/        our own wheel, exactly one
    roles/              the roles and site.yml
    manifest.json       {"files": {name: sha256}, ...} of all of the above

The same bytes go into every output; same inputs, same bytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.archive import write_tar
from appliance.cache import Entry, JsonValue, digest_file, digest_tree
from appliance.errors import InputError
from appliance.formats_contract import artefact_stem
from appliance.platform_data import PlatformData, box_text
from appliance.profile import Profile
from appliance.progress import Progress
from appliance.stages import BuildContext, Stage, build_context, replacing
from appliance.tree import TREE, files_below
from appliance.wheels import application_stage, third_party_stage

MANIFEST_SCHEMA = 1


@dataclass(frozen=True)
class Payload:
    """A built payload: `directory` in the cache (read only), `key` what it was made from.

    `dependencies` is the part that changes only with the lock, the roles or the platform, not with our own
    code: a payload for `install --phase dependencies`.
    """

    directory: Path
    key: str
    dependencies: Path
    dependencies_key: str


def build_payload(profile: Profile, platform: PlatformData, context: BuildContext) -> Payload:
    """Build the payload or find it in the cache. Raises BuildError."""
    roles = TREE / "roles"
    if not (roles / "install").is_file():
        raise InputError(f"{roles / 'install'} is missing", "build from a complete checkout of the sources")
    wheels = context.build(third_party_stage(platform, context.wheel_directories))
    application = context.build(application_stage(context.epoch))
    dependencies = context.build(_dependencies_stage(profile, platform, wheels, context.epoch))
    whole = context.build(_whole_stage(dependencies, application, platform, context.epoch))
    return Payload(whole.output / "payload", whole.key, dependencies.output / "payload", dependencies.key)


def _dependencies_stage(profile: Profile, platform: PlatformData, wheels: Entry, epoch: int) -> Stage:
    """Everything but our own wheel; already installable with `--phase dependencies`."""
    roles = TREE / "roles"
    inputs: dict[str, JsonValue] = {
        "wheels": wheels.key,
        "roles": digest_tree(roles, files_below(roles)),
        "box": box_text(platform),
        "profile": profile_for_roles(profile),
        "epoch": epoch,
    }

    def assemble(output: Path, context: BuildContext) -> None:
        payload = output / "payload"
        (payload / "wheels").mkdir(parents=True)
        lines = []
        for wheel in sorted(wheels.output.glob("*.whl")):
            _place(wheel, payload / "wheels" / wheel.name)
            lines.append(_requirement(wheel))
        for source in files_below(roles):
            if source != roles / "install":
                _place(source, payload / "roles" / source.relative_to(roles), copy=True)
        _place(roles / "install", payload / "install", copy=True)
        (payload / "install").chmod(0o755)
        (payload / "requirements.txt").write_text("\n".join(lines) + "\n")
        (payload / "platform.toml").write_text(box_text(platform))
        (payload / "version").write_text(f"{profile.product.version}\n")
        (payload / "profile.json").write_text(_json(profile_for_roles(profile)))
        _write_manifest(payload, platform, epoch)

    return Stage(f"dependencies-{platform.name}", "gather wheels and roles", inputs, assemble)


def _whole_stage(dependencies: Entry, application: Entry, platform: PlatformData, epoch: int) -> Stage:
    inputs = {"dependencies": dependencies.key, "application": application.key}

    def assemble(output: Path, context: BuildContext) -> None:
        payload = output / "payload"
        source = dependencies.output / "payload"
        for file in files_below(source):
            _place(file, payload / file.relative_to(source))
        for wheel in application.output.glob("*.whl"):
            _place(wheel, payload / "application" / wheel.name)
        (payload / "manifest.json").unlink()
        _write_manifest(payload, platform, epoch)

    return Stage(f"payload-{platform.name}", "make the payload", inputs, assemble)


def profile_for_roles(profile: Profile) -> dict[str, JsonValue]:
    """What the roles may read of the profile (`profile.json`)."""
    return {
        "product": profile.product.model_dump(mode="json"),
        "regional": profile.regional.model_dump(mode="json"),
        "network": profile.network.model_dump(mode="json"),
        "ssh_keys": list(profile.access.ssh_keys),
        "playbook": profile.site.playbook,
        "skip_tags": list(profile.site.skip_tags),
    }


def _requirement(wheel: Path) -> str:
    name, version = wheel.name.split("-")[:2]
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version} --hash=sha256:{digest_file(wheel)}"


def _place(source: Path, target: Path, *, copy: bool = False) -> None:
    """Put a file into the payload; a hard link where the cache allows, as both sides are read only."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(source, target)
        except OSError:
            pass
        else:
            return
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)


def _write_manifest(payload: Path, platform: PlatformData, epoch: int) -> None:
    files = {path.relative_to(payload).as_posix(): digest_file(path) for path in files_below(payload)}
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "platform": platform.name,
        "python": platform.python.version,
        "source_date_epoch": epoch,
        "files": files,
    }
    (payload / "manifest.json").write_text(_json(manifest))


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def write_payload_tar(payload: Payload, output: Path, epoch: int) -> Path:
    """The payload as one deterministic tar with the single top directory `payload/`."""
    with replacing(output) as partial, partial.open("wb") as stream:
        write_tar(stream, payload.directory, epoch, prefix="payload/", mode=plain_mode)
    return output


def plain_mode(member: tarfile.TarInfo) -> int:
    """Readable by all, executable where the owner may execute; nothing of the builder's umask."""
    return 0o755 if member.isdir() or member.mode & 0o100 else 0o644


def build_payload_command(
    profile: Profile,
    platform: PlatformData,
    output: Path | None,
    wheel_directories: Sequence[Path],
    *,
    silent: bool,
) -> dict[str, object]:
    """`centralino-build payload`: keys `path`, `digest` (of the tar with `--output`), `files`, `log`."""
    with build_context(
        f"payload-{platform.name}",
        epoch=profile.source_date_epoch,
        wheel_directories=tuple(wheel_directories),
        progress=Progress(silent=silent),
    ) as context:
        payload = build_payload(profile, platform, context)
        path, digest = payload.directory, None
        if output is not None:
            path = output / f"{artefact_stem(profile)}.payload.tar"
            write_payload_tar(payload, path, context.epoch)
            digest = digest_file(path)
        count = len(json.loads((payload.directory / "manifest.json").read_text())["files"])
    return {"path": str(path), "digest": digest, "files": count, "log": str(context.log)}
