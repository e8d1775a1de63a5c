"""Artefacts that still stand as they were written: nothing is made again that would come out the same.

Not the digest is asked, which would read gigabytes, but what the file system says of each file: any write to
it, any replacement of it, changes its inode or its times of change.

    <cache>/written/<digest of the artefact's path>.json   key, and the marks of the artefact's files
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.cache import Cache, JsonValue, digest_json, digest_tree, remove_tree
from appliance.formats_contract import SUFFIXES, OutputFormat
from appliance.platform_data import PlatformData
from appliance.profile import Profile
from appliance.stages import replacing
from appliance.tree import files_below

BUILDER = Path(__file__).parent


def artefact_key(
    form: OutputFormat, root_key: str, profile: Profile, platform: PlatformData, epoch: int
) -> str:
    """The digest of all that decides an artefact's bytes: tree, profile, platform, key and our own code."""
    signing = profile.signing
    inputs: JsonValue = {
        "form": str(form),
        "root": root_key,
        "profile": profile.model_dump(mode="json", by_alias=True),
        "platform": platform.model_dump(mode="json"),
        "epoch": epoch,
        "builder": digest_tree(BUILDER, files_below(BUILDER)),
        "signed": None if signing is None else hashlib.sha256(signing.key_file.read_bytes()).hexdigest(),
    }
    return digest_json(inputs)


def still_stands(target: Path, key: str, cache: Cache) -> bool:
    """Whether `target` and what lies beside it are as `remember` saw them, made from the same inputs."""
    try:
        record = json.loads(_record(target, cache).read_text(encoding="utf-8"))
        return bool(record["key"] == key and target.name in record["files"]) and all(
            _mark(target.with_name(name)) == mark for name, mark in record["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def remember(target: Path, key: str, cache: Cache) -> None:
    """Keep the marks of an artefact and its companions."""
    files = {path.name: _mark(path) for path in companions(target)}
    record = _record(target, cache)
    record.parent.mkdir(parents=True, exist_ok=True)
    with replacing(record) as partial:
        partial.write_text(json.dumps({"key": key, "files": files}, indent=1, sort_keys=True) + "\n")


@contextmanager
def described(target: Path) -> Iterator[None]:
    """Inside, what lies beside a new artefact is written; on any failure it all goes: who could verify it?"""
    try:
        yield
    except BaseException:
        for path in companions(target):
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        raise


def companions(target: Path) -> list[Path]:
    """The artefact and every file beside it whose name begins with its own."""
    own = {target}
    if target.name.endswith(SUFFIXES[OutputFormat.AMI]):
        # Its description shares the name up to the last suffix.
        own.add(target.with_suffix(".json"))
    return sorted(
        path for path in target.parent.iterdir() if path in own or path.name.startswith(f"{target.name}.")
    )


def _record(target: Path, cache: Cache) -> Path:
    name = hashlib.sha256(os.fsencode(target.absolute())).hexdigest()
    return cache.directory / "written" / f"{name}.json"


def _mark(path: Path) -> list[int | str]:
    """Device, inode, size and times of a file; of a directory the digest of those of all that is in it."""
    status = path.lstat()
    mark: list[int | str] = [status.st_dev, status.st_ino, status.st_size]
    mark += [status.st_mtime_ns, status.st_ctime_ns]
    if not path.is_dir() or path.is_symlink():
        return mark
    digest = hashlib.sha256()
    for parent, directories, names in os.walk(path):
        directories.sort()
        for name in sorted((*directories, *names)):
            inner = os.lstat(os.path.join(parent, name))  # noqa: PTH118 (tens of thousands: strings are faster)
            digest.update(
                f"{name}\0{inner.st_ino} {inner.st_size} {inner.st_ctime_ns}\n".encode(
                    "utf-8", "surrogateescape"
                )
            )
    return [*mark, digest.hexdigest()]
