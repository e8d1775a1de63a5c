"""From a profile to its images: the root tree once, then every format from it.

`build_root` is what the lab, the disk formats and the installers' tests call.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import BuildError
from appliance.file_list import list_files, write_file_list
from appliance.formats_contract import (
    DISK_FORMATS,
    INSTALLER_FORMATS,
    LIVE_FORMATS,
    TREE_FORMATS,
    FormatMaker,
    OutputFormat,
    Variant,
    artefact_name,
)
from appliance.live import make_live
from appliance.manifest import Contents, write_manifest
from appliance.mirror import resolve_sources
from appliance.platform_data import PlatformData
from appliance.profile import Profile, check_against_platform
from appliance.progress import Progress
from appliance.root_tree import build_root_tree
from appliance.sbom import components_of
from appliance.scratch import Scratch
from appliance.stages import BuildContext, build_context
from appliance.standing import artefact_key, remember, still_stands
from appliance.tree_entries import walk
from appliance.tree_formats import copy_root, write_oci, write_tbz


@dataclass
class Images:
    """What a build made: `paths` by format, `stages` as (name, made anew, seconds)."""

    paths: dict[OutputFormat, Path] = field(default_factory=dict)
    stages: list[tuple[str, bool, float]] = field(default_factory=list)
    log: Path | None = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, object]:
        """Keys `artefacts` (format to path), `stages`, `log`, `seconds`."""
        return {
            "artefacts": {str(form): str(path) for form, path in self.paths.items()},
            "stages": [
                {"name": name, "made": made, "seconds": seconds} for name, made, seconds in self.stages
            ],
            "log": str(self.log),
            "seconds": round(self.seconds, 1),
        }


def build_root(
    profile: Profile, platform: PlatformData, context: BuildContext, variant: Variant = Variant.CONTAINER
) -> Path:
    """The finished root tree of a profile: packages, roles, payload, in the cache: READ ONLY.

    Raises BuildError; on failure nothing half-made stays. Needs root.
    """
    sources = resolve_sources(profile, platform, context.mirrors)
    return build_root_tree(profile, platform, variant, sources, context)


def build_images(
    profile: Profile,
    platform: PlatformData,
    formats: Sequence[OutputFormat],
    *,
    output: Path | None = None,
    mirrors: Sequence[str] = (),
    wheel_directories: Sequence[Path] = (),
    cold: bool = False,
    silent: bool = False,
) -> Images:
    """Build every wanted format into `output` (default: `out/` here); a lone root tree stays in the cache.

    Raises BuildError; artefacts appear whole or not at all.
    """
    check_against_platform(profile, platform, "the profile")
    if installers := INSTALLER_FORMATS.intersection(formats):
        names = ", ".join(sorted(installers))
        raise BuildError(f"{names} is no image", f"use `centralino-build {sorted(installers)[0]}`")
    maker = disk_maker() if DISK_FORMATS.intersection(formats) else None
    result = Images()
    started = time.monotonic()
    with build_context(
        f"image-{platform.name}",
        epoch=profile.source_date_epoch,
        mirrors=tuple(mirrors),
        wheel_directories=tuple(wheel_directories),
        cold=cold,
        progress=Progress(silent=silent),
    ) as context:
        for variant, wanted in (
            (Variant.CONTAINER, [form for form in formats if form in TREE_FORMATS]),
            (Variant.DISK, [form for form in formats if form in DISK_FORMATS]),
            (Variant.LIVE, [form for form in formats if form in LIVE_FORMATS]),
        ):
            if not wanted:
                continue
            root = build_root(profile, platform, context, variant)
            for form in wanted:
                result.paths[form] = _make(form, root, profile, platform, output, context, maker)
        result.log = context.log
        result.stages = context.made
    result.seconds = time.monotonic() - started
    return result


def _make(
    form: OutputFormat,
    root: Path,
    profile: Profile,
    platform: PlatformData,
    output: Path | None,
    context: BuildContext,
    maker: FormatMaker | None,
) -> Path:
    if form is OutputFormat.ROOT and output is None:
        return root
    directory = Path("out") if output is None else output
    target = directory.absolute() / artefact_name(profile, form)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A tree in the cache lies in a directory that is named by the digest of what went into it.
    key = artefact_key(form, root.parent.parent.name, profile, platform, context.epoch)
    if not context.cold and still_stands(target, key, context.cache):
        context.progress.found(f"write {target.name}")
        return target
    _write(form, root, profile, platform, target, context, maker)
    remember(target, key, context.cache)
    return target


def _write(
    form: OutputFormat,
    root: Path,
    profile: Profile,
    platform: PlatformData,
    target: Path,
    context: BuildContext,
    maker: FormatMaker | None,
) -> None:
    if maker is not None and form in DISK_FORMATS:
        maker(form, root, profile, platform, target, context)
        return
    if form in LIVE_FORMATS:
        make_live(root, profile, platform, target, context)
        return
    with context.step(f"write {target.name}"):
        if form is OutputFormat.ROOT:
            copy_root(root, target, context)
        elif form is OutputFormat.OCI:
            write_oci(root, target, profile, platform, context)
        else:
            write_tbz(root, target, profile, context)
    with context.step(f"describe {target.name}"), Scratch() as name:
        files = Path(name) / "files"
        write_file_list(list_files(walk(root, latest=context.epoch)), files)
        contents = Contents({"root stage": root.parent.parent.name}, components_of(root), files)
        write_manifest(target, form, profile, platform, context.epoch, contents)


def disk_maker() -> FormatMaker:
    """`appliance.formats.make`; raises BuildError if this builder has no disk formats."""
    if importlib.util.find_spec("appliance.formats") is None:
        raise BuildError("this builder makes no disks", "use --format root, oci or tbz")
    maker: FormatMaker = importlib.import_module("appliance.formats").make
    return maker
