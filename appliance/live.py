"""The live and rescue medium: kiwi's type `iso` from the live tree, with the dracut modules of kiwi's sdist.

Distributions package those modules at versions of their own, and a builder with another version's modules
makes media that do not boot (Debian 12's 9.24 ones do not); the sdist of the very builder always fits.
kiwi derives its identities from chance and from the time of day; both are replaced, so that the same tree
gives the same bytes.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

from appliance.cache import JsonValue, digest_json, digest_tree, remove_tree
from appliance.disk import EMPTIED_DIRECTORIES, EMPTIED_FILES, EXCLUDED
from appliance.disk_identity import derived_uuid
from appliance.errors import BuildError, LockError
from appliance.file_list import list_files, write_file_list
from appliance.formats_contract import OutputFormat, Variant
from appliance.kiwi import KIWI_VERSION, LiveMedium, render_description, validate_description
from appliance.lock_files import LOCKS, Locked, read_lock
from appliance.manifest import Contents, write_manifest
from appliance.mirror import Source, resolve_sources
from appliance.personalize import write
from appliance.platform_data import PlatformData
from appliance.profile import Profile
from appliance.run import find_program, isolated, require, run
from appliance.sbom import components_of
from appliance.scratch import Scratch
from appliance.sparse import sparse_copy
from appliance.stages import BuildContext, Stage, replacing
from appliance.tidy import empty
from appliance.tree_entries import walk
from appliance.tree_formats import copy_root

# To be raised when this module makes another medium of the same tree.
REVISION = 2
FILES = Path(__file__).parent / "templates" / "live"
MODULES = "usr/lib/dracut/modules.d"
MEDIUM, LIST = "live.iso", "files.json.gz"
LABEL_LENGTH = 32
NEEDED_BYTES = 6 << 30
CREATE_SECONDS = 3600.0
PROGRAMS = {
    "mkdosfs": "dosfstools",
    "mcopy": "mtools",
    "mksquashfs": "squashfs-tools",
    "qemu-img": "qemu-utils or qemu-img",
    "rsync": "rsync",
    "xorriso": "xorriso",
}
# The medium's identity is drawn by Python's random numbers: begun at a known place they are always the same.
LAUNCHER = "import random, sys; random.seed(sys.argv.pop(1)); from kiwi.kiwi import main; main()"


def make_live(
    root: Path, profile: Profile, platform: PlatformData, target: Path, context: BuildContext
) -> Path:
    """Make the live medium from a tree of the variant `live` (read only); returns its path.

    Raises BuildError; needs root.
    """
    stage = context.build(medium_stage(root, profile, platform, context))
    with replacing(target) as partial, context.step(f"write {target.name}"):
        sparse_copy(stage.output / MEDIUM, partial)
    with context.step(f"describe {target.name}"):
        contents = Contents(
            inputs={"live stage": stage.key},
            components=components_of(root),
            files=stage.output / LIST,
            facts={"label": label_of(profile)},
        )
        write_manifest(target, OutputFormat.LIVE, profile, platform, context.epoch, contents)
    return target


def label_of(profile: Profile) -> str:
    """The volume's label, another one than the installer's: both may be in one machine."""
    return f"{profile.iso_label[: LABEL_LENGTH - 5]}-LIVE"


def medium_of(profile: Profile, platform: PlatformData) -> LiveMedium:
    """Label, identity and kernel arguments, all derived from profile and platform."""
    identity = derived_uuid(digest_json(profile.model_dump(mode="json", by_alias=True)), "live medium").int
    arguments = (*platform.disk.arguments, *platform.live.arguments, *profile.boot.arguments)
    return LiveMedium(label_of(profile), f"0x{identity & 0xFFFFFFFF:08x}", arguments)


def medium_stage(root: Path, profile: Profile, platform: PlatformData, context: BuildContext) -> Stage:
    """The stage that runs kiwi on a copy of the live tree; its output is the medium and its list of files."""
    require(PROGRAMS)
    medium = medium_of(profile, platform)
    # The medium takes nothing from a mirror, and whose mirror it was is nobody's business.
    sources = [_unnamed(source) for source in resolve_sources(profile, platform, context.mirrors)]
    text = render_description(profile, platform, Variant.LIVE, sources, signed=False, live=medium)
    modules = modules_stage()
    inputs: dict[str, JsonValue] = {
        "revision": REVISION,
        # A tree in the cache never changes: the digest of what went into it says which it is.
        "root": root.parent.parent.name,
        "description": text,
        "kiwi": KIWI_VERSION,
        "modules": modules.key,
        "files": digest_tree(FILES),
        "compression": platform.live.initramfs_compression,
        "epoch": context.epoch,
    }

    def create(output: Path, inner: BuildContext) -> None:
        tree, own = output / "tree", inner.build(modules).output
        copy_root(root, tree, inner)
        furnish(tree, platform, own)
        entries = walk(tree, latest=inner.epoch)
        write_file_list(list_files(entries), output / LIST)
        (tree / "image").mkdir()
        (tree / "image/config.xml").write_text(text, encoding="utf-8")
        validate_description(tree / "image")
        _run_create(tree, output, medium, inner)
        remove_tree(tree)

    return Stage(f"live-{platform.name}", "make the live medium", inputs, create, needs_bytes=NEEDED_BYTES)


def _unnamed(source: Source) -> Source:
    return replace(source, url="http://mirror.invalid/")


def modules_stage() -> Stage:
    """kiwi's dracut modules, from the sdist that the lock of the build host names by digest."""
    locked = _locked_kiwi()

    def fetch(output: Path, context: BuildContext) -> None:
        with Scratch() as name:
            (Path(name) / "wanted.txt").write_text(locked.line() + "\n")
            run(
                [
                    *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download"),
                    *("--no-deps", "--require-hashes", "--no-binary", locked.name, "--progress-bar", "off"),
                    *("--dest", name, "-r", f"{name}/wanted.txt"),
                ],
                log=context.log,
                environment={"PIP_CACHE_DIR": str(context.cache.directory / "pip")},
                limit_seconds=600,
                remedy="check that pip's index (`pip config list`) is reachable",
            )
            archive = next(Path(name).glob("*.tar.gz"), None)
            if archive is None:
                raise LockError(f"no source of kiwi {KIWI_VERSION} came", "run `centralino-build lock`")
            _unpack_modules(archive, output)

    return Stage("kiwi-modules", "fetch kiwi's dracut modules", {"sdist": locked.line()}, fetch)


def _locked_kiwi() -> Locked:
    for package in read_lock(LOCKS / "dev.txt"):
        if package.name == "kiwi":
            if package.version != KIWI_VERSION:
                raise LockError(
                    f"the lock names kiwi {package.version}, the builder is made for {KIWI_VERSION}",
                    "run `centralino-build lock`",
                )
            return package
    raise LockError("the lock file of the build host names no kiwi", "run `centralino-build lock`")


def _unpack_modules(archive: Path, output: Path) -> None:
    prefix = f"kiwi-{KIWI_VERSION}/dracut/modules.d/"
    with tarfile.open(archive) as packed:
        for member in packed:
            name = Path(member.name.removeprefix(prefix))
            stream = packed.extractfile(member) if member.isreg() else None
            # Python 3.11.2 has no extraction filters: only plain files below that one directory are taken.
            if stream is None or not member.name.startswith(prefix) or ".." in name.parts:
                continue
            if name.name != "Makefile":
                (output / name).parent.mkdir(parents=True, exist_ok=True)
                (output / name).write_bytes(stream.read())
                (output / name).chmod(0o755 if member.mode & 0o100 else 0o644)
    if not (output / "90kiwi-live/module-setup.sh").is_file():
        raise BuildError(f"{archive.name} holds no dracut module for live media", "another kiwi is needed")


def furnish(tree: Path, platform: PlatformData, modules: Path) -> None:
    """Make a live system of the tree: modules, login without password, rescue tool, nothing of the build."""
    for pattern in EXCLUDED:
        for path in tree.glob(pattern):
            path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)
    for name in EMPTIED_DIRECTORIES:
        empty(tree / name)
    for pattern in EMPTIED_FILES:
        for path in tree.glob(pattern):
            if path.is_file() and not path.is_symlink():
                os.truncate(path, 0)
    shutil.copytree(modules, tree / MODULES, dirs_exist_ok=True)
    settings = f'reproducible="yes"\ncompress="{platform.live.initramfs_compression}"\n'
    write(tree, "etc/dracut.conf.d/90-centralino.conf", settings)
    for unit in ("getty@.service", "serial-getty@.service"):
        name = f"etc/systemd/system/{unit}.d/90-centralino-live.conf"
        write(tree, name, (FILES / "autologin.conf").read_text())
    # udev may take longer from a slow disc than the 90 s after which the serial console would get no login.
    timeout = "[Unit]\nJobRunningTimeoutSec=15min\n"
    write(tree, "etc/systemd/system/dev-ttyS0.device.d/90-centralino-live.conf", timeout)
    write(tree, "etc/motd", (FILES / "motd").read_text())
    write(tree, "usr/sbin/centralino-rescue", (FILES / "centralino-rescue").read_text(), 0o755)
    write(tree, "etc/fstab", "")
    if (tree / "etc/cloud").is_dir():
        write(tree, "etc/cloud/cloud-init.disabled", "")


def _run_create(tree: Path, output: Path, medium: LiveMedium, context: BuildContext) -> None:
    made = output / "kiwi"
    with Scratch(prefix="centralino-kiwi-") as name:
        arguments: list[str | Path] = [sys.executable, "-c", LAUNCHER, medium.identity]
        arguments += ["--debug", "--shared-cache-dir", f"{name}/cache", "--temp-dir", name]
        arguments += ["system", "create", "--root", tree, "--target-dir", made]
        run(
            isolated(arguments, network=False),
            log=context.log,
            limit_seconds=CREATE_SECONDS,
            environment={**_own_programs(medium), "SOURCE_DATE_EPOCH": str(context.epoch), "TZ": "UTC"},
            remedy="read the log from its end",
        )
    image = next(made.glob("*.iso"), None)
    if image is None:
        raise BuildError("kiwi ended without a medium", f"read {context.log}")
    # The installer's package builds upon this one; only here the other way round.
    from iso.media_checksum import MediaChecksum

    image.rename(output / MEDIUM)
    MediaChecksum(output / MEDIUM).implant()
    remove_tree(made)


def _own_programs(medium: LiveMedium) -> dict[str, str]:
    """Environment for kiwi with wrappers of ours for two programs that write times of day."""
    return {
        "PATH": f"{FILES}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
        "CENTRALINO_XORRISO": str(find_program("xorriso")),
        "CENTRALINO_MKDOSFS": str(find_program("mkdosfs")),
        "CENTRALINO_VOLUME": medium.identity.removeprefix("0x"),
    }
