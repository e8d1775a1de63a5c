"""The closure: from a list of wanted packages to a lock, and from a lock to the packages themselves.

dnf resolves, under the Python that has its bindings; weak dependencies stay out. With a lock nothing is
resolved at all: the packages are taken from the cache or the mirror and compared with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel

from appliance.errors import BuildError, HostError, LockError, MirrorError
from appliance.mirror import Source
from appliance.run import find_program, require, run
from appliance.scratch import Scratch
from iso.fetch import PackageCache
from iso.lock import UNSIGNED, Lock, LockedPackage, Request
from iso.module_metadata import prune_comps, prune_modules, read_metadata
from iso.signatures import check_signatures

RESOLVER = Path(__file__).with_name("dnf_resolver.py")
RESOLVE_LIMIT_SECONDS = 1800.0


class UnsatisfiableError(BuildError):
    """The wanted packages do not exist or do not fit together; nothing was made."""

    exit_code = MirrorError.exit_code


class _Found(BaseModel):
    """One package as the resolver tells it."""

    name: str
    epoch: int
    version: str
    release: str
    arch: str
    sha256: str
    size: int
    repository: str
    location: str
    license: str


class _Refusal(BaseModel):
    kind: str
    message: str
    names: list[str]


class _Answer(BaseModel):
    """The resolver's answer; `modules` and `comps` give a metadata file by repository."""

    error: _Refusal | None = None
    packages: list[_Found] = []
    modules: dict[str, Path] = {}
    comps: dict[str, Path] = {}


@dataclass(frozen=True)
class Workshop:
    """Where the closure keeps what it may need again, outside of the sources: the builder's cache.

    `keys` are the public keys that sign packages; none and `check` off: signatures are not looked at.
    """

    cache: Path
    keys: tuple[Path, ...] = ()
    check: bool = True
    log: Path | None = None
    on_progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def packages(self) -> PackageCache:
        """The RPM files."""
        return PackageCache(self.cache / "packages")


def addresses(sources: Sequence[Source]) -> dict[str, str]:
    """Repository name to address."""
    return {source.name: source.url for source in sources}


def resolve(request: Request, sources: Sequence[Source], workshop: Workshop) -> tuple[Lock, dict[str, Path]]:
    """Resolve, fetch, check; returns the lock and the files by digest.

    Raises UnsatisfiableError naming what is missing or in conflict, MirrorError for a repository that does
    not answer, LockError for a refused signature.
    """
    require({"dnf": "dnf", "rpm": "rpm"})
    with Scratch(prefix="closure-") as root:
        answer = _ask(request, sources, workshop, root)
        modules = {name: read_metadata(path) for name, path in sorted(answer.modules.items())}
        comps = {name: read_metadata(path) for name, path in sorted(answer.comps.items())}
    urls = addresses(sources)
    packages = tuple(LockedPackage(**found.model_dump()) for found in answer.packages)
    _no_doubles(packages)
    files = workshop.packages.fetch(packages, urls, on_progress=workshop.on_progress)
    signers = _signers(packages, files, workshop) if workshop.check else {}
    labels = _module_labels(files)
    packages = tuple(
        replace(package, signer=signers.get(package.sha256, UNSIGNED), module=labels.get(package.sha256, ""))
        for package in packages
    )
    streams = sorted({*request.modules, *(package.module for package in packages if package.module)})
    lock = Lock(
        request=request.digest,
        platform=request.platform,
        release=request.release,
        packages=packages,
        modules=prune_modules(modules.values(), streams, [package.file_name for package in packages])
        if streams
        else "",
        comps=prune_comps(comps.values(), request.groups) if request.groups else "",
    )
    return lock, files


def fetch_locked(lock: Lock, sources: Sequence[Source], workshop: Workshop) -> dict[str, Path]:
    """The packages of a lock, without resolving anything; returns files by digest.

    Raises LockError if bytes or signer differ from the lock.
    """
    files = workshop.packages.fetch(lock.packages, addresses(sources), on_progress=workshop.on_progress)
    if workshop.check:
        signers = _signers(lock.packages, files, workshop)
        for package in lock.packages:
            if package.signer not in (UNSIGNED, signers[package.sha256]):
                raise LockError(
                    f"{package.nevra} is signed by {signers[package.sha256]}, the lock says {package.signer}",
                    "find out why before --update-lock",
                )
    return files


def _signers(
    packages: Sequence[LockedPackage], files: Mapping[str, Path], workshop: Workshop
) -> dict[str, str]:
    names = {package.sha256: package.nevra for package in packages}
    return check_signatures(files, workshop.keys, workshop.cache / "signatures", names)


def _ask(request: Request, sources: Sequence[Source], workshop: Workshop, root: str) -> _Answer:
    question = {
        "cache": str(workshop.cache / "dnf"),
        "root": root,
        "release": request.release,
        "architecture": request.architecture,
        "platform_id": request.platform_id,
        "repositories": [
            {"id": source.name, "url": source.url, "priority": source.priority} for source in sources
        ],
        "packages": sorted(request.packages),
        "groups": sorted(request.groups),
        "modules": sorted(request.modules),
        "excluded": sorted(request.excluded),
    }
    done = run(
        [_interpreter(), "-I", RESOLVER],
        input_text=json.dumps(question),
        limit_seconds=RESOLVE_LIMIT_SECONDS,
        remedy="install dnf with its Python bindings (python3-dnf)",
    )
    if workshop.log is not None and done.errors:
        with workshop.log.open("a") as stream:
            stream.write(done.errors)
    answer = _Answer.model_validate_json(done.output)
    if answer.error is not None:
        _refuse(answer.error.kind, answer.error.message, answer.error.names)
    return answer


def _refuse(kind: str, message: str, names: list[str]) -> None:
    match kind:
        case "repository":
            raise MirrorError(
                f"a repository does not answer: {message}", "check the address, or name another with --mirror"
            )
        case "missing":
            raise UnsatisfiableError(
                f"no repository offers {', '.join(names)}",
                "correct the name, or add the repository that holds it to the profile",
            )
        case "module":
            raise UnsatisfiableError(
                f"no repository offers the module stream {', '.join(names)}",
                "correct packages.modules, or use a mirror of a release that has it",
            )
        case "checksum":
            raise MirrorError(message, "use a mirror whose metadata has SHA-256 checksums")
        case _:
            raise UnsatisfiableError(
                f"the packages do not fit together: {' '.join(message.split())}",
                "remove one of those named, or add the repository that holds what is missing",
            )


def _interpreter() -> str:
    """The Python that dnf itself runs under: only that one has dnf's bindings."""
    program = find_program("dnf")
    if program is None:
        raise HostError("this host lacks dnf", "install the package dnf")
    first = program.resolve().read_bytes().split(b"\n", 1)[0].decode(errors="replace")
    if not first.startswith("#!") or "python" not in first:
        raise HostError(f"{program} is not dnf 4: it is no Python program", "install dnf 4 (package dnf)")
    return first[2:].split()[0]


def _no_doubles(packages: Sequence[LockedPackage]) -> None:
    names: dict[str, LockedPackage] = {}
    for package in packages:
        if (other := names.setdefault(package.file_name, package)) is not package:
            raise UnsatisfiableError(
                f"{package.repository} and {other.repository} hold different files {package.file_name}",
                "leave one of the repositories out",
            )


def _module_labels(files: Mapping[str, Path]) -> dict[str, str]:
    """`name:stream` of each modular package, out of its header."""
    by_path = {str(path): digest for digest, path in files.items()}
    labels = {}
    paths = list(by_path)
    for start in range(0, len(paths), 200):
        batch = paths[start : start + 200]
        words = ["rpm", "-qp", "--nosignature", "--nodigest", "--qf", "%{MODULARITYLABEL}\\n", *batch]
        for path, label in zip(batch, run(words).output.splitlines(), strict=True):
            if label and label != "(none)":
                labels[by_path[path]] = ":".join(label.split(":")[:2])
    return labels
