"""The manifest beside each artefact: what it is, from what it was made, what is in it, and digests of all.

    X                     the artefact
    X.manifest.json       this; .minisig or .asc beside it if the profile signs
    X.cdx.json            CycloneDX 1.5
    X.spdx.json           SPDX 2.3
    X.files.json.gz       every file inside, where the artefact is made from a root tree

Only the manifest is signed: it holds the digests of all the others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from appliance.cache import JsonValue, digest_json, digest_tree
from appliance.errors import InputError
from appliance.formats_contract import OutputFormat
from appliance.platform_data import PlatformData
from appliance.profile import Profile
from appliance.sbom import Component, Subject, cyclonedx, spdx
from appliance.signing import sign
from appliance.sparse import data_ranges
from appliance.stages import replacing
from appliance.standing import described

SCHEMA = 1
CHUNK_BYTES = 4 << 20
MANIFEST_SUFFIX = ".manifest.json"
CYCLONEDX_SUFFIX = ".cdx.json"
SPDX_SUFFIX = ".spdx.json"
FILES_SUFFIX = ".files.json.gz"
JsonObject = dict[str, JsonValue]


@dataclass(frozen=True)
class Contents:
    """What is known of an artefact.

    `inputs` maps what went in to its SHA-256; `components` is the bill of materials; `files` an already
    written file list to be copied beside; `facts` what else `verify` and people should know.
    """

    inputs: Mapping[str, str]
    components: Sequence[Component]
    files: Path | None = None
    facts: Mapping[str, JsonValue] = field(default_factory=dict)


def beside(artefact: Path, suffix: str) -> Path:
    """A companion of an artefact."""
    return artefact.with_name(artefact.name + suffix)


def write_manifest(
    artefact: Path,
    form: OutputFormat,
    profile: Profile,
    platform: PlatformData,
    epoch: int,
    contents: Contents,
) -> Path:
    """Write manifest, bills of materials, file list and signature beside a finished artefact.

    Returns the manifest's path. The same artefact and contents give the same bytes. An artefact may be a
    directory: its digest is that of `appliance.cache.digest_tree`, its size that of all its files. On any
    failure or interruption the artefact goes as well.
    """
    with described(artefact):
        return _write_manifest(artefact, form, profile, platform, epoch, contents)


def _write_manifest(
    artefact: Path,
    form: OutputFormat,
    profile: Profile,
    platform: PlatformData,
    epoch: int,
    contents: Contents,
) -> Path:
    if artefact.is_dir():
        size, sha256, chunks = tree_size(artefact), digest_tree(artefact), list[str]()
    else:
        size = artefact.stat().st_size
        sha256, chunks = digests(artefact)
    subject = Subject(
        profile.product.name, profile.product.version, profile.product.publisher, epoch,
        digest_json([sha256, [component.purl for component in contents.components]]),
    )  # fmt: skip
    components = sorted(contents.components)
    companions: JsonObject = {
        "cyclonedx": _companion(artefact, CYCLONEDX_SUFFIX, _json(cyclonedx(subject, components))),
        "spdx": _companion(artefact, SPDX_SUFFIX, _json(spdx(subject, components))),
    }
    if contents.files is not None:
        companions["files"] = _companion(artefact, FILES_SUFFIX, contents.files.read_bytes())
    document: JsonObject = {
        "schema": SCHEMA,
        "artefact": {
            "name": artefact.name,
            "format": str(form),
            "size": size,
            "sha256": sha256,
            "chunk_bytes": CHUNK_BYTES,
            "chunks": chunks,
        },
        "product": {
            "name": profile.product.name,
            "title": profile.product.title,
            "version": profile.product.version,
            "publisher": profile.product.publisher,
        },
        "platform": {"name": platform.name, "release": profile.platform.release or platform.release},
        "source_date_epoch": epoch,
        "inputs": {
            "profile": digest_json(profile.model_dump(mode="json", by_alias=True)),
            **dict(sorted(contents.inputs.items())),
        },
        "packages": [cast(JsonValue, component.as_json()) for component in components],
        "companions": companions,
        "facts": dict(contents.facts),
    }
    target = beside(artefact, MANIFEST_SUFFIX)
    with replacing(target) as partial:
        partial.write_bytes(_json(document))
    for old in (".minisig", ".asc"):
        beside(target, old).unlink(missing_ok=True)
    if profile.signing is not None:
        sign(target, profile.signing, epoch)
    return target


def tree_size(directory: Path) -> int:
    """Bytes of all files below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _companion(artefact: Path, suffix: str, content: bytes) -> JsonObject:
    target = beside(artefact, suffix)
    with replacing(target) as partial:
        partial.write_bytes(content)
    return {"name": target.name, "sha256": hashlib.sha256(content).hexdigest()}


def read_manifest(path: Path) -> JsonObject:
    """Read a manifest; raises InputError unless it is one of a known schema."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no manifest", "keep X.manifest.json beside X, or name it"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged: {error}", "fetch it again") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f"{path}: is no manifest of this builder", "use the builder of that version")
    missing = [
        key for key in ("artefact", "inputs", "packages", "companions", "facts") if key not in document
    ]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}", "fetch it again")
    return cast(JsonObject, document)


def digests(path: Path) -> tuple[str, list[str]]:
    """SHA-256 of a file and of each of its 4 MiB chunks, in one reading; holes are not read."""
    whole = hashlib.sha256()
    chunks: list[str] = []
    zeros = bytes(CHUNK_BYTES)
    zero_digest = hashlib.sha256(zeros).hexdigest()
    with path.open("rb") as stream, ThreadPoolExecutor(1) as pool:
        size = os.fstat(stream.fileno()).st_size
        ranges = iter([*data_ranges(stream), (size, size)])
        start, end = next(ranges)
        for position in range(0, size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, size - position)
            while end <= position and start < size:
                start, end = next(ranges)
            if start >= position + length and length == CHUNK_BYTES:
                whole.update(zeros)
                chunks.append(zero_digest)
                continue
            content = os.pread(stream.fileno(), length, position)
            # hashlib lets go of Python's lock: both digests run at once.
            chunk = pool.submit(hashlib.sha256, content)
            whole.update(content)
            chunks.append(chunk.result().hexdigest())
    return whole.hexdigest(), chunks
