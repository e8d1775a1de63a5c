"""Python wheels for a box: what its lock file names, fetched by digest; what has no wheel, compiled.

The third-party wheels and our own are cached apart, so that a change in our code fetches nothing.
"""

from __future__ import annotations

import os
import platform as host_platform
import re
import shutil
import sys
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from appliance.cache import JsonValue, digest_file, digest_json, digest_tree
from appliance.errors import InputError, LockError
from appliance.lock_files import COMPILED, LOCKS, Locked, lock_path, read_lock
from appliance.platform_data import PlatformData
from appliance.run import find_program, run
from appliance.scratch import Scratch
from appliance.stages import BuildContext, Stage
from appliance.tree import TREE, application_sources

ARCHITECTURE = "x86_64"
# glibc's manylinux tags begin with 2.5; the three aliases are older spellings of 2_5, 2_12 and 2_17.
MANYLINUX_ALIASES = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


def wheel_platforms(platform: PlatformData) -> list[str]:
    """Every platform tag that the box runs, newest first: manylinux up to its C library, then plain."""
    tags = []
    for minor in range(platform.python.glibc_minor, 4, -1):
        tags.append(f"manylinux_2_{minor}_{ARCHITECTURE}")
        if alias := MANYLINUX_ALIASES.get(minor):
            tags.append(f"{alias}_{ARCHITECTURE}")
    return [*tags, f"linux_{ARCHITECTURE}"]


def fits(wheel: Path, platform: PlatformData) -> bool:
    """Whether the tags in a wheel's name allow it on the platform's Python."""
    match = re.fullmatch(r"(.+?)-([^-]+)(?:-\d[^-]*)?-([^-]+)-([^-]+)-([^-]+)\.whl", wheel.name)
    if match is None:
        return False
    interpreters, abis, systems = match[3].split("."), match[4].split("."), match[5].split(".")
    minor = int(platform.python.version.partition(".")[2])
    stable = {f"cp3{number}" for number in range(2, minor + 1)}
    pure = {"py3", f"py3{minor}", "py2.py3"} | {f"py3{number}" for number in range(minor + 1)}
    if not any(system == "any" or system in wheel_platforms(platform) for system in systems):
        return False
    if platform.python.abi in interpreters and {platform.python.abi, "abi3", "none"}.intersection(abis):
        return True
    if "abi3" in abis and stable.intersection(interpreters):
        return True
    return "none" in abis and bool(pure.intersection(interpreters))


def third_party_stage(platform: PlatformData, wheel_directories: Sequence[Path] = ()) -> Stage:
    """The wheels of the platform's lock file, each one checked against its digests.

    Raises InputError at once if a package has no wheel, none is in `wheel_directories` and this host's
    Python cannot compile it for the box.
    """
    locked = read_lock(lock_path(platform))
    ready = {package: _ready_wheel(package, platform, wheel_directories) for package in COMPILED}
    compilers = {
        package: None if wheel else _matching_python(package, platform) for package, wheel in ready.items()
    }
    inputs: dict[str, JsonValue] = {
        "lock": [package.line() for package in locked],
        "python": platform.python.model_dump(mode="json"),
        "ready": {package: digest_file(wheel) if wheel else None for package, wheel in ready.items()},
        "compiler": digest_file(LOCKS / "compile.txt"),
    }

    def fetch(output: Path, context: BuildContext) -> None:
        for package, wheel in ready.items():
            if wheel is not None:
                shutil.copyfile(wheel, output / wheel.name)
            elif (python := compilers[package]) is not None:
                entry = context.build(_compile_stage(_locked(locked, package), python, platform))
                for made in entry.output.glob("*.whl"):
                    shutil.copyfile(made, output / made.name)
        _download([one for one in locked if one.name not in COMPILED], platform, output, context)

    return Stage(f"wheels-{platform.name}", "fetch the Python packages of the box", inputs, fetch)


def _locked(packages: Sequence[Locked], name: str) -> Locked:
    for package in packages:
        if package.name == name:
            return package
    raise LockError(f"the lock file names no {name}", "run `centralino-build lock`")


def _ready_wheel(package: str, platform: PlatformData, directories: Sequence[Path]) -> Path | None:
    version = COMPILED[package]
    for directory in directories:
        for wheel in sorted(directory.glob("*.whl")):
            name, found = (re.sub(r"[-_.]+", "-", part).lower() for part in wheel.name.split("-")[:2])
            if name == package and found == re.sub(r"[-_.]+", "-", version) and fits(wheel, platform):
                if not zipfile.is_zipfile(wheel):
                    raise InputError(f"{wheel} is no wheel, or a damaged one", "build or copy it again")
                return wheel
    return None


def _matching_python(package: str, platform: PlatformData) -> str:
    """A Python of this host whose compiled modules the box runs; raises InputError if there is none."""
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    library, _, minor = host_platform.libc_ver()[1].partition(".")
    runs_there = host_platform.machine() == ARCHITECTURE and library == "2" and minor.isdigit()
    if runs_there and int(minor) <= platform.python.glibc_minor:
        if own == platform.python.abi:
            return sys.executable
        if found := find_program(Path(platform.python.executable).name):
            return str(found)
    version = COMPILED[package]
    raise InputError(
        f"{package} {version} has no wheel for {platform.title} and cannot be compiled for it on this host "
        f"(that takes Python {platform.python.version} and at most glibc 2.{platform.python.glibc_minor})",
        f"run `centralino-build package {package} --platform {platform.name}`, which compiles it in that "
        f"platform's own tree, then name its directory with --wheel-dir",
    )


def _compile_stage(package: Locked, python: str, platform: PlatformData) -> Stage:
    compiler = LOCKS / "compile.txt"
    inputs = {
        "package": package.line(),
        "compiler": digest_file(compiler),
        "python": platform.python.abi,
        "libc": host_platform.libc_ver()[1],
    }

    def compile_wheel(output: Path, context: BuildContext) -> None:
        with Scratch() as name:
            work = Path(name)
            run([python, "-m", "venv", work / "venv"], log=context.log)
            tool = work / "venv/bin/python"
            pip = [str(tool), "-m", "pip", "--disable-pip-version-check"]
            run([*pip, "install", "--require-hashes", "-r", compiler], log=context.log)
            (work / "wanted.txt").write_text(package.line() + "\n")
            run(
                [
                    *(*pip, "wheel", "--no-deps", "--no-build-isolation", "--require-hashes"),
                    *(
                        "--no-binary",
                        package.name,
                        "--wheel-dir",
                        str(output),
                        "-r",
                        str(work / "wanted.txt"),
                    ),
                ],
                log=context.log,
                # No debugging information: it names the temporary directory, so no two builds would agree.
                environment={
                    "PYGOBJECT_WITHOUT_PYCAIRO": "1",
                    "CFLAGS": "-g0",
                    "SOURCE_DATE_EPOCH": str(context.epoch),
                    "PIP_CACHE_DIR": str(work / "cache"),
                },
                remedy="it needs a C compiler, pkg-config and the development files of Python, "
                "gobject-introspection and libffi",
            )

    return Stage(
        f"compiled-{platform.name}", f"compile {package.name} {package.version}", inputs, compile_wheel
    )


def _download(
    packages: Sequence[Locked], platform: PlatformData, output: Path, context: BuildContext
) -> None:
    with Scratch() as name:
        wanted = Path(name) / "wanted.txt"
        wanted.write_text("\n".join(package.line() for package in packages) + "\n")
        finders = [
            word for directory in context.wheel_directories for word in ("--find-links", str(directory))
        ]
        systems = [word for tag in wheel_platforms(platform) for word in ("--platform", tag)]
        abis = [word for abi in (platform.python.abi, "abi3", "none") for word in ("--abi", abi)]
        run(
            [
                *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download"),
                *("--no-deps", "--require-hashes", "--only-binary", ":all:", "--progress-bar", "off"),
                *("--implementation", "cp", "--python-version", platform.python.version),
                *(*systems, *abis, *finders, "--dest", str(output), "-r", str(wanted)),
            ],
            log=context.log,
            environment={"PIP_CACHE_DIR": str(context.cache.directory / "pip")},
            limit_seconds=1800,
            remedy="check that pip's index (`pip config list`) is reachable, or name wheels with --wheel-dir",
        )
    names = {re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower() for wheel in output.glob("*.whl")}
    if missing := {package.name for package in packages} - names:
        raise LockError(f"no wheel came for {', '.join(sorted(missing))}", "run `centralino-build lock`")


def application_stage(epoch: int, tree: Path = TREE) -> Stage:
    """Our own wheel, built from a clean copy of the sources: same sources, same bytes."""
    sources = application_sources(tree)
    inputs: dict[str, JsonValue] = {
        "sources": digest_tree(tree, sources),
        "epoch": epoch,
        "tools": _tool_versions(),
    }

    def build(output: Path, context: BuildContext) -> None:
        with Scratch() as name:
            copy = Path(name) / "sources"
            for source in sources:
                target = copy / source.relative_to(tree)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                target.chmod(0o644)
                os.utime(target, (epoch, epoch))
            if digest_tree(tree, sources) != inputs["sources"]:
                raise InputError("the sources changed while they were packed", "repeat the build")
            script = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
            run(
                [sys.executable, "-c", script, output],
                cwd=copy,
                log=context.log,
                environment={"SOURCE_DATE_EPOCH": str(epoch), "PYTHONPATH": ""},
                remedy="pip install setuptools wheel",
            )
        if len(list(output.glob("*.whl"))) != 1:
            raise InputError("the sources made no wheel", f"see {context.log}")

    return Stage("application", "build our own wheel", inputs, build)


def _tool_versions() -> str:
    return digest_json([metadata.version("setuptools"), sys.version_info[:2] >= (3, 12)])
