"""Lock files of Python packages: exact versions with the digests of every file of the index.

`box-PLATFORM.txt` is what a box gets, resolved for its Python and C library; `dev.txt` is what a developer's
or build host's environment gets. uv resolves; it asks the index that pip is configured with.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.cache import digest_json
from appliance.errors import HostError, LockError
from appliance.platform_data import PlatformData, load_platform, platform_names
from appliance.run import run
from appliance.scratch import Scratch
from appliance.stages import replacing
from appliance.tree import requirements

LOCKS = Path(__file__).parent / "locks"
# Compiled here or in the target's tree; its metadata cannot be had without compiling, so it is stated.
COMPILED = {"pygobject": "3.44.2"}
DEVELOPER_PYTHON = "3.11"
LOCKED_LINE = re.compile(
    r"^([A-Za-z0-9._-]+)==([^\s;]+)(?:\s*;\s*([^-]*?))?((?:\s+--hash=sha256:[0-9a-f]{64})+)$"
)
# What compiles COMPILED: a setuptools that AlmaLinux 8 has as well.
COMPILER = ("setuptools==68.2.2", "wheel==0.42.0")
INPUTS_LINE = "# inputs: "
HEADER = """\
# Made by `centralino-build lock`; renew it, do not edit it.
"""


@dataclass(frozen=True)
class Locked:
    """One package of a lock file: normalized name, version, SHA-256 digests of the files allowed."""

    name: str
    version: str
    digests: tuple[str, ...]
    marker: str = ""

    def line(self) -> str:
        """As pip reads it with --require-hashes."""
        marker = f" ; {self.marker}" if self.marker else ""
        return f"{self.name}=={self.version}{marker} " + " ".join(f"--hash=sha256:{d}" for d in self.digests)


def lock_path(platform: PlatformData) -> Path:
    """The lock file of a platform's boxes."""
    return LOCKS / f"box-{platform.name}.txt"


def read_lock(path: Path) -> list[Locked]:
    """The packages of a lock file, sorted by name; raises LockError if it is missing or has a bad line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LockError(f"{path} cannot be read: {error.strerror}", "run `centralino-build lock`") from error
    return sorted(_parse(text, path), key=lambda locked: locked.name)


def _parse(text: str, path: Path) -> Iterator[Locked]:
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.match(
            r"^([A-Za-z0-9._-]+)==([^\s;]+)(?:\s*;\s*([^-]*?))?((?:\s+--hash=sha256:[0-9a-f]{64})+)$", line
        )
        if match is None:
            raise LockError(
                f"{path} has a line without version and digest: {line[:80]}", "run `centralino-build lock`"
            )
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        digests = tuple(sorted(re.findall(r"sha256:([0-9a-f]{64})", match[4])))
        yield Locked(name, match[2], digests, (match[3] or "").strip())


@dataclass(frozen=True)
class LockFile:
    """A lock file to be: its path, direct requirements and the arguments that steer uv."""

    path: Path
    wanted: tuple[str, ...]
    arguments: tuple[str, ...]

    @property
    def inputs(self) -> str:
        """The digest that the file's header carries, to tell whether it is up to date."""
        return digest_json([list(self.wanted), list(self.arguments), COMPILED])

    @property
    def current(self) -> bool:
        """Whether the file on disk was made from these inputs."""
        return self.path.is_file() and f"{INPUTS_LINE}{self.inputs}\n" in self.path.read_text(
            encoding="utf-8"
        )


def lock_files() -> list[LockFile]:
    """Every lock file of the project."""
    files = []
    for name in platform_names():
        platform = load_platform(name)
        arguments = (
            *("--python-version", platform.python.version),
            *("--python-platform", f"x86_64-manylinux_{platform.python.manylinux}"),
            *("--only-binary", ":all:"),
            *(word for package in COMPILED for word in ("--no-binary", package)),
        )
        files.append(LockFile(lock_path(platform), tuple(requirements("box")), arguments))
    developer = tuple(requirements("box", "build", "dev"))
    universal = ("--universal", "--python-version", DEVELOPER_PYTHON)
    files.append(LockFile(LOCKS / "dev.txt", developer, universal))
    files.append(LockFile(LOCKS / "compile.txt", COMPILER, universal))
    return files


def renew_locks(*, check: bool) -> dict[str, str]:
    """Renew every lock file; returns file name to what happened.

    With `check` nothing is written or asked from a network, and LockError names the files that are older
    than the requirements in pyproject.toml.
    """
    files = lock_files()
    if check:
        if stale := [file.path.name for file in files if not file.current]:
            raise LockError(f"{', '.join(stale)} do not match pyproject.toml", "run `centralino-build lock`")
        return {file.path.name: "up to date" for file in files}
    if importlib.util.find_spec("uv") is None:
        raise HostError("renewing locks needs uv", "pip install uv")
    return {file.path.name: _renew(file) for file in files}


def _renew(file: LockFile) -> str:
    before = file.path.read_text(encoding="utf-8") if file.path.exists() else ""
    with Scratch() as name:
        work = Path(name)
        (work / "requirements.in").write_text("\n".join(file.wanted) + "\n")
        metadata = [
            f'[[dependency-metadata]]\nname = "{package}"\nversion = "{version}"\nrequires-dist = []\n'
            for package, version in COMPILED.items()
        ]
        (work / "uv.toml").write_text("\n".join(metadata))
        run(
            [
                *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes"),
                *("--no-header", "--no-annotate", "--no-emit-index-url"),
                *("--config-file", str(work / "uv.toml")),
                *("--output-file", str(work / "lock.txt"), *file.arguments, str(work / "requirements.in")),
            ],
            environment=index_environment(),
            cwd=work,
            remedy="check that pip's index is reachable and that the requirements in pyproject.toml agree",
        )
        text = f"{HEADER}{INPUTS_LINE}{file.inputs}\n{(work / 'lock.txt').read_text(encoding='utf-8')}"
    list(_parse(text, file.path))
    with replacing(file.path) as partial:
        partial.write_text(text, encoding="utf-8")
    return "unchanged" if text == before else "renewed"


def index_environment() -> dict[str, str]:
    """What uv must know of the host's pip configuration: the index and its further ones."""
    listed = run([sys.executable, "-m", "pip", "config", "list"], limit_seconds=60).output
    settings = dict(re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", listed, flags=re.MULTILINE))
    environment = {}
    if index := settings.get("index-url"):
        environment["UV_DEFAULT_INDEX"] = index
    if certificates := settings.get("cert"):
        environment["SSL_CERT_FILE"] = certificates
    return environment
