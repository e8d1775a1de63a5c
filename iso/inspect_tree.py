"""Is a network boot tree whole, and do its parts agree? What `verify` asks of such a directory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from appliance.cache import digest_file
from appliance.errors import BuildError
from iso import hash_list
from iso.inspect import Finding, guarded, repositories
from kickstart.validate import validate

PAYLOAD = "payload.tar"
TREE = "tree"


class DirectoryMedium:
    """A directory that answers what `iso.inspect.repositories` asks of an ISO."""

    def __init__(self, directory: Path, listed: dict[str, str]) -> None:
        self.path = directory
        self._listed = listed
        names = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
        self.files = frozenset(names)

    def read(self, path: str) -> bytes:
        """The content of a file."""
        return (self.path / path).read_bytes()

    def sha256(self, path: str) -> str:
        """Its digest, computed from the bytes unless they were compared with the list already."""
        return self._listed.get(path) or digest_file(self.path / path)

    def below(self, directory: str) -> list[str]:
        """All files below a directory."""
        return [path for path in sorted(self.files) if path.startswith(f"{directory}/")]


def inspect_tree(directory: Path) -> list[Finding]:
    """Everything that is wrong with a network boot tree; empty if it is good."""
    try:
        listed = hash_list.parse_hash_list((directory / hash_list.HASH_LIST).read_text())
    except FileNotFoundError:
        return [Finding(hash_list.HASH_LIST, "is missing")]
    except (BuildError, ValueError) as error:
        return [Finding(hash_list.HASH_LIST, str(error))]
    findings = list(_digests(directory, listed))
    findings += _kickstarts(directory, listed)
    inner = {
        path.removeprefix(f"{TREE}/"): digest for path, digest in listed.items() if path.startswith(TREE)
    }
    medium = DirectoryMedium(directory / TREE, inner)
    findings += guarded(lambda: repositories(medium, inner), directory.name)
    return findings


def _digests(directory: Path, listed: dict[str, str]) -> Iterator[Finding]:
    present = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and path.name != hash_list.HASH_LIST
    }
    for path in sorted(listed.keys() - present):
        yield Finding(path, "is missing")
    for path in sorted(present - listed.keys()):
        yield Finding(path, f"is not named in {hash_list.HASH_LIST}")
    for path in sorted(present & listed.keys()):
        if digest_file(directory / path) != listed[path]:
            yield Finding(path, f"differs from {hash_list.HASH_LIST}")


def _kickstarts(directory: Path, listed: dict[str, str]) -> Iterator[Finding]:
    """Both are valid and pin the payload."""
    for name in hash_list.KICKSTARTS:
        if not (directory / name).is_file():
            continue
        text = (directory / name).read_text(encoding="utf-8", errors="replace")
        try:
            validate(text, name)
        except BuildError as error:
            yield Finding(name, error.message)
        if set(re.findall(r"^payload_sha256=([0-9a-f]{64})$", text, re.M)) != {listed.get(PAYLOAD)}:
            yield Finding(name, f"does not pin {PAYLOAD}")
