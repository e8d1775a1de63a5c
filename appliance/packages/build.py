"""Build Asterisk RPMs and the PyGObject wheel inside the platform's own root tree.

The tree is the platform's, with compilers added by the same package manager run that makes every image; what
is compiled runs in an overlay of it, without a network, and leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from appliance.errors import BuildError, InputError
from appliance.formats_contract import Variant
from appliance.kiwi import os_stage
from appliance.lock_files import COMPILED, LOCKS, lock_path, read_lock
from appliance.mirror import resolve_sources
from appliance.platform_data import PlatformData
from appliance.profile import Profile
from appliance.run import isolated, run
from appliance.scratch import Scratch
from appliance.stages import BuildContext, build_context
from appliance.tree import TREE

HERE = Path(__file__).parent
WORKSHOP = "centralino-build"
LIMIT_SECONDS = 2 * 3600.0
# The releases that upstream still mends (20 until 2027-10, 22 until 2029-10).
SUPPORTED_ASTERISK = ("20", "22")
ASTERISK_RELEASE = 1
WHEEL_STEPS = "build_wheel.py"


@dataclass(frozen=True)
class AsteriskSource:
    """What an Asterisk tarball says of itself: its version and the pjproject file that it wants beside it."""

    version: str
    pjproject: str


def inspect_asterisk(source: Path, sha256: str | None) -> AsteriskSource:
    """Look into a source tarball. Raises InputError if it is none, damaged, or of an unsupported release."""
    if sha256 is not None and hashlib.sha256(source.read_bytes()).hexdigest() != sha256.lower():
        raise InputError(f"{source}: its SHA-256 is not the one given", "fetch it again")
    version = pjproject = ""
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                parts = Path(member.name).parts
                if len(parts) == 2 and parts[1] == ".version":
                    version = _text(archive, member).strip()
                elif parts[1:] == ("third-party", "versions.mak"):
                    found = re.search(r"^PJPROJECT_VERSION\s*=\s*(\S+)", _text(archive, member), re.MULTILINE)
                    pjproject = f"pjproject-{found[1]}.tar.bz2" if found else ""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{source}: is no whole tarball: {error}", "fetch it again") from error
    if not version or not pjproject:
        raise InputError(
            f"{source}: is no Asterisk source tarball", "give asterisk-VERSION.tar.gz as released"
        )
    if version.partition(".")[0] not in SUPPORTED_ASTERISK:
        raise InputError(
            f"{source}: holds Asterisk {version}, which is no supported long-term release",
            f"give one of {', '.join(SUPPORTED_ASTERISK)}",
        )
    return AsteriskSource(version, pjproject)


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    stream = archive.extractfile(member)
    return "" if stream is None else stream.read().decode("utf-8", "replace")


def asterisk_spec(found: AsteriskSource, source: str, build_requires: Sequence[str]) -> str:
    """The text of the RPM spec."""
    environment = Environment(  # noqa: S701 (a spec is no HTML)
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    template = environment.from_string((HERE / "asterisk.spec.j2").read_text(encoding="utf-8"))
    return template.render(
        version=found.version,
        release=ASTERISK_RELEASE,
        source=source,
        pjproject=found.pjproject,
        build_requires=build_requires,
    )


def build_asterisk(
    profile: Profile,
    platform: PlatformData,
    source: Path,
    sha256: str | None,
    root: Path | None,
    output: Path,
    mirrors: Sequence[str],
) -> list[Path]:
    """Build the RPMs; returns their paths. pjproject's tarball must lie beside `source`.

    `root` is a ready tree with the build requirements instead of one made here. Raises BuildError.
    """
    if "asterisk" not in platform.packages_build:
        raise BuildError(
            f"{platform.title} has no need of this package", f"its own Asterisk is used on {platform.name}"
        )
    found = inspect_asterisk(source, sha256)
    pjproject = source.with_name(found.pjproject)
    if not pjproject.is_file():
        raise InputError(
            f"{pjproject} is missing: {source.name} is built with exactly this pjproject",
            f"put {found.pjproject} beside it, from the place that third-party/pjproject names",
        )
    spec = asterisk_spec(found, source.name, platform.packages_build["asterisk"])
    with build_context(f"package-asterisk-{platform.name}", epoch=profile.source_date_epoch) as context:
        tree = _tree(profile, platform, "asterisk", root, mirrors, context)
        with _workshop(tree, context) as workshop:
            for name in ("SPECS", "SOURCES"):
                (workshop.inside / name).mkdir()
            (workshop.inside / "SPECS/asterisk.spec").write_text(spec, encoding="utf-8")
            for file in (source, pjproject, HERE / "asterisk.service"):
                shutil.copyfile(file, workshop.inside / "SOURCES" / file.name)
            workshop.run(
                "rpmbuild", "-bb", "--define", f"_topdir /{WORKSHOP}", "--define",
                "use_source_date_epoch_as_buildtime 1", "--define", "_buildhost centralino",
                f"/{WORKSHOP}/SPECS/asterisk.spec",
            )  # fmt: skip
            return _collect(workshop.inside / "RPMS", "*.rpm", output)


def build_pygobject(
    profile: Profile, platform: PlatformData, root: Path | None, output: Path, mirrors: Sequence[str]
) -> Path:
    """Build the wheel with the version and the digests of the platform's lock file; returns its path."""
    name = "pygobject"
    locked = next(one for one in read_lock(lock_path(platform)) if one.name == name)
    with build_context(f"package-{name}-{platform.name}", epoch=profile.source_date_epoch) as context:
        tree = _tree(profile, platform, name, root, mirrors, context)
        with _workshop(tree, context) as workshop, Scratch() as holder:
            downloads = workshop.inside / "downloads"
            wanted = Path(holder) / "wanted.txt"
            wanted.write_text(locked.line() + "\n", encoding="utf-8")
            _download(downloads, wanted, context)
            shutil.copyfile(LOCKS / "compile.txt", workshop.inside / "compile.txt")
            shutil.copyfile(HERE / WHEEL_STEPS, workshop.inside / WHEEL_STEPS)
            workshop.run(
                platform.python.executable, "-I", f"/{WORKSHOP}/{WHEEL_STEPS}", f"/{WORKSHOP}",
                f"{locked.name}=={COMPILED[name]}",
            )  # fmt: skip
            return _collect(workshop.inside / "wheels", "*.whl", output)[0]


def _download(downloads: Path, wanted: Path, context: BuildContext) -> None:
    """Sources and the two pure wheels that compile them, by digest, with this host's pip."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "--no-deps",
        "--require-hashes",
    ]
    # With the compiler's own packages at hand pip asks the source for its name without fetching more.
    run([*pip, "-d", downloads, "-r", LOCKS / "compile.txt"], log=context.log)
    run(
        [*pip, "--no-build-isolation", "--no-binary", ":all:", "-d", downloads, "-r", wanted],
        log=context.log,
        environment={"PYGOBJECT_WITHOUT_PYCAIRO": "1"},
        remedy="this Python needs setuptools and wheel to look into a source archive",
    )


def _tree(
    profile: Profile,
    platform: PlatformData,
    purpose: str,
    root: Path | None,
    mirrors: Sequence[str],
    context: BuildContext,
) -> Path:
    if root is not None:
        return root.absolute()
    extra = tuple(sorted({*profile.packages.extra, *platform.packages_build[purpose]}))
    equipped = profile.model_copy(update={"packages": profile.packages.model_copy(update={"extra": extra})})
    sources = resolve_sources(profile, platform, mirrors)
    stage = os_stage(equipped, platform, Variant.CONTAINER, sources)
    return context.build(stage).output / "root"


@dataclass(frozen=True)
class _Workshop:
    """An overlay of a tree with a directory `inside` at /centralino-build."""

    tree: Path
    upper: Path
    work: Path
    merged: Path
    context: BuildContext

    @property
    def inside(self) -> Path:
        return self.upper / WORKSHOP

    def run(self, *arguments: str) -> None:
        """Run a program in the overlay, without a network."""
        options = f"lowerdir={self.tree},upperdir={self.upper},workdir={self.work}"
        run(
            isolated(
                [sys.executable, "-m", "appliance.chroot", f"--overlay={options}", self.merged, *arguments],
                network=False,
            ),
            cwd=TREE,
            log=self.context.log,
            limit_seconds=LIMIT_SECONDS,
            environment={
                "SOURCE_DATE_EPOCH": str(self.context.epoch),
                "PYGOBJECT_WITHOUT_PYCAIRO": "1",
                # Debugging information would name the directory of the build.
                "CFLAGS": "-g0",
            },
            remedy="read the log from its end; the tree may lack a compiler or development files",
        )


@contextmanager
def _workshop(tree: Path, context: BuildContext) -> Iterator[_Workshop]:
    base = context.cache.directory
    base.mkdir(parents=True, exist_ok=True)
    with Scratch(prefix="workshop-", dir=base) as name:
        upper, work, merged = (Path(name) / part for part in ("upper", "work", "merged"))
        for directory in (upper, work, merged):
            directory.mkdir()
        workshop = _Workshop(tree, upper, work, merged, context)
        workshop.inside.mkdir()
        yield workshop


def _collect(directory: Path, pattern: str, output: Path) -> list[Path]:
    found = sorted(directory.rglob(pattern))
    if not found:
        raise BuildError(f"the build ended without any {pattern}", "read the log")
    output.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(file, output.absolute() / file.name)) for file in found]
