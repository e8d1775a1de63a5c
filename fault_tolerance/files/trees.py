"""Which trees are kept equal, and the marker by which a tree is told from an empty mount point."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from daemon.errors import CentralinoError, StorageError
from daemon.files import ensure_directory, read_text, write_file

DECLARED = Path(__file__).with_name("trees.toml")
# Everything of ours in a tree begins so; none of it is ever sent.
OURS = ".centralino-"
MARKER = f"{OURS}tree"
PARTIAL = f"{OURS}partial"
REMOVED = f"{OURS}removed"
KNOWN_FILE = "marked-trees.json"


class SourceLostError(CentralinoError):
    """A tree is not what it was: nothing is sent from it, so that the other copy stays."""


@dataclass(frozen=True)
class Tree:
    """One declared tree; `urgent` ones go before the others."""

    name: str
    path: Path
    urgent: bool


def read(file: Path = DECLARED, paths: Mapping[str, Path] | None = None) -> tuple[Tree, ...]:
    """The declared trees, with the platform's `paths` filled in. Raises StorageError."""
    known = {name: str(path) for name, path in (paths or {}).items()}
    try:
        rows = tomllib.loads(file.read_text())["tree"]
        return tuple(
            Tree(str(row["name"]), Path(str(row["path"]).format(**known)), row["urgent"] is True)
            for row in rows
        )
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise StorageError(
            f"the declared trees in {file} cannot be read: {error}", "reinstall the payload"
        ) from error


class Markers:
    """Which trees have been marked on this node: a marker that is missing later means another disk."""

    def __init__(self, state: Path) -> None:
        ensure_directory(state, 0o700)
        self._file = state / KNOWN_FILE
        text = read_text(self._file)
        try:
            self._known: set[str] = set(json.loads(text)) if text else set()
        except ValueError:
            self._known = set()

    def check(self, tree: Tree) -> None:
        """Mark a tree the first time; raises SourceLostError when it lost its marker since."""
        marker = tree.path / MARKER
        if marker.is_file():
            self._remember(tree)
            return
        if tree.name in self._known:
            raise SourceLostError(
                f"{tree.path} is not the {tree.name} tree that it was: its marker is missing",
                f"mount the right disk there; if the tree is new on purpose: touch {marker}",
            )
        if not tree.path.is_dir():
            raise SourceLostError(f"{tree.path} is not there", "")
        write_file(marker, f"{tree.name}\n", mode=0o644)
        self._remember(tree)

    def is_present(self, tree: Tree) -> bool:
        """Whether there is anything to send or to receive into."""
        return tree.path.is_dir() or tree.name in self._known

    def _remember(self, tree: Tree) -> None:
        if tree.name not in self._known:
            self._known.add(tree.name)
            write_file(self._file, json.dumps(sorted(self._known)) + "\n", mode=0o600)


def files_below(path: Path) -> Iterator[tuple[str, bool]]:
    """Each entry below a directory, relative to it, and whether it is a directory; ours are left out."""
    pending = [""]
    while pending:
        inside = pending.pop()
        try:
            with os.scandir(path / inside) as entries:
                found = [(f"{inside}/{entry.name}".lstrip("/"), entry) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name, entry in found:
            if entry.name.startswith(OURS):
                continue
            directory = entry.is_dir(follow_symlinks=False)
            yield name, directory
            if directory:
                pending.append(name)
