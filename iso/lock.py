"""The lock of the embedded repository: exactly which packages, from where, signed by whom.

One TOML file that is meant to be reviewed and committed. It holds all that a build needs besides the
packages: the pruned module metadata and the groups too. No address stands in it, only the names of
repositories and paths below them.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from appliance.cache import digest_json
from appliance.errors import LockError
from appliance.stages import replacing

SCHEMA = 1
UNSIGNED = "not checked"


@dataclass(frozen=True)
class Request:
    """What the closure must satisfy. Its digest in the lock tells whether the lock is still the right one."""

    platform: str
    platform_id: str
    release: str
    architecture: str
    packages: tuple[str, ...]
    groups: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over everything above, order ignored."""
        return digest_json(
            {key: sorted(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        )


@dataclass(frozen=True)
class LockedPackage:
    """One RPM. `location` is its path below the repository, `signer` the key's id, `module` name:stream."""

    name: str
    epoch: int
    version: str
    release: str
    arch: str
    sha256: str
    size: int
    repository: str
    location: str
    license: str = ""
    signer: str = UNSIGNED
    module: str = ""

    @property
    def nevra(self) -> str:
        """`name-[epoch:]version-release.arch`."""
        epoch = f"{self.epoch}:" if self.epoch else ""
        return f"{self.name}-{epoch}{self.version}-{self.release}.{self.arch}"

    @property
    def file_name(self) -> str:
        """The name of the RPM file."""
        return self.location.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Lock:
    """A whole lock; `request` is the digest of what it was made for."""

    request: str
    platform: str
    release: str
    packages: tuple[LockedPackage, ...]
    modules: str = ""
    comps: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 over the content."""
        return digest_json(json.loads(json.dumps(asdict(self))))

    @property
    def size(self) -> int:
        """Bytes of all packages."""
        return sum(package.size for package in self.packages)


def write_lock(lock: Lock, path: Path) -> None:
    """Write the lock; equal locks give equal bytes."""
    lines = [
        "# Made by centralino-build; --update-lock renews it. Review the difference before you commit.",
        f"schema = {SCHEMA}",
        f"request = {_quoted(lock.request)}",
        f"platform = {_quoted(lock.platform)}",
        f"release = {_quoted(lock.release)}",
        f"comps = {_text(lock.comps)}",
        f"modules = {_text(lock.modules)}",
    ]
    for package in lock.packages:
        lines += ["", "[[package]]"]
        lines += [f"{key} = {_quoted(value)}" for key, value in asdict(package).items() if value != ""]
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _quoted(value: object) -> str:
    """A TOML value: JSON's spelling is TOML's, but for two things about strings."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _text(value: str) -> str:
    # Literal strings keep the text readable; TOML drops the line break after the opening quotes.
    if "'''" in value or value.endswith("'") or re.search(r"[\x00-\x08\x0b-\x1f\x7f]", value):
        return _quoted(value)
    return f"'''\n{value}'''"


def read_lock(path: Path) -> Lock:
    """Read a lock; raises LockError naming what is wrong with it."""
    remedy = "make it anew with --update-lock"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LockError(f"the lock {path} cannot be read: {error}", remedy) from error
    if document.get("schema") != SCHEMA:
        raise LockError(f"the lock {path} is of schema {document.get('schema')}, not {SCHEMA}", remedy)
    known = {field.name: field.type for field in fields(LockedPackage)}
    packages = []
    for number, entry in enumerate(document.get("package", []), 1):
        try:
            if unknown := set(entry) - set(known):
                raise ValueError(f"unknown keys {sorted(unknown)}")
            for key, value in entry.items():
                if type(value).__name__ != known[key]:
                    raise ValueError(f"{key} is no {known[key]}")
            package = LockedPackage(**entry)
            if (
                "/" in package.file_name
                or package.location.startswith("/")
                or ".." in package.location.split("/")
            ):
                raise ValueError(f"location {package.location!r} leads out of the repository")
            packages.append(package)
        except (TypeError, ValueError) as error:
            raise LockError(f"package {number} of the lock {path} is wrong: {error}", remedy) from error
    try:
        return Lock(
            request=str(document["request"]),
            platform=str(document["platform"]),
            release=str(document["release"]),
            packages=tuple(packages),
            modules=str(document["modules"]),
            comps=str(document["comps"]),
        )
    except KeyError as error:
        raise LockError(f"the lock {path} has no {error}", remedy) from error


def check_lock(lock: Lock, request: Request, path: Path) -> None:
    """Refuse a lock that was made for something else; raises LockError."""
    if lock.request != request.digest:
        raise LockError(
            f"the lock {path} was made for other packages, groups, module streams or repositories",
            "renew it with --update-lock",
        )


def differences(old: Lock, new: Lock) -> list[str]:
    """One line per package that was added, removed or changed, for people."""
    before = {(package.name, package.arch): package for package in old.packages}
    after = {(package.name, package.arch): package for package in new.packages}
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key not in before:
            lines.append(f"+ {after[key].nevra}")
        elif key not in after:
            lines.append(f"- {before[key].nevra}")
        elif before[key].sha256 != after[key].sha256:
            lines.append(f"~ {before[key].nevra} -> {after[key].nevra}")
    return lines


def total(packages: Sequence[LockedPackage]) -> str:
    """`N packages, M MiB`."""
    return f"{len(packages)} packages, {sum(package.size for package in packages) >> 20} MiB"
