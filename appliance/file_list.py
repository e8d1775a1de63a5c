"""The list of every file in an artefact, beside it: what `diff` compares without opening two disks."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import InputError
from appliance.tree_entries import Entry, Kind


@dataclass(frozen=True)
class ListedFile:
    """One name: `kind` as in `tree_entries.Kind`, `digest` the SHA-256 of a file or the target of a link."""

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    digest: str


def list_files(entries: Iterable[Entry]) -> list[ListedFile]:
    """The list for the entries of a tree; reads every file."""
    return [
        ListedFile(
            os.fsdecode(entry.path),
            str(entry.kind),
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            _digest(entry),
        )
        for entry in entries
        if entry.path
    ]


def _digest(entry: Entry) -> str:
    if entry.kind is Kind.SYMLINK:
        return os.fsdecode(entry.target)
    if entry.kind is not Kind.FILE:
        return ""
    if entry.source is None:
        return hashlib.sha256(entry.read()).hexdigest()
    with entry.source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_file_list(files: Iterable[ListedFile], target: Path) -> None:
    """One JSON array a line, sorted by path, compressed without a time stamp."""
    lines = "".join(
        json.dumps([each.path, each.kind, f"{each.mode:04o}", each.uid, each.gid, each.size, each.digest])
        + "\n"
        for each in sorted(files, key=lambda each: each.path)
    )
    with target.open("wb") as stream, gzip.GzipFile("", "wb", 9, stream, mtime=0) as packed:
        packed.write(lines.encode("ascii"))


def read_file_list(path: Path) -> dict[str, ListedFile]:
    """Path to entry; raises InputError if the list is damaged."""
    found: dict[str, ListedFile] = {}
    try:
        with gzip.open(path, "rt", encoding="ascii") as stream:
            for line in stream:
                name, kind, mode, uid, gid, size, digest = json.loads(line)
                found[name] = ListedFile(name, kind, int(mode, 8), uid, gid, size, digest)
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise InputError(f"{path}: is no file list: {error}") from error
    return found
