"""Checks the signature of every RPM when it is packed: EL8's Anaconda checks none when it installs.

rpmkeys does the work, with a database of its own that knows the given keys and no others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance.cache import digest_file
from appliance.errors import CommandFailedError, InputError, LockError
from appliance.run import require, run
from appliance.scratch import Scratch
from appliance.stages import replacing

BATCH = 100
_SIGNATURE = re.compile(r"Signature, key ID ([0-9a-fA-F]+): (\S+)")
_DIGEST = re.compile(r"digest: (?!OK)(\S+)")


def check_signatures(
    packages: Mapping[str, Path],
    keys: Sequence[Path],
    memory: Path | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Check RPM files, given by their SHA-256; returns the id of the key that signed each.

    `memory` is a directory in which good results are kept: the same bytes under the same keys need no
    second check. `names` says what to call a package by its digest. Raises LockError naming every package
    that is unsigned, signed by another key or damaged.
    """
    require({"rpmkeys": "rpm"})
    if not keys:
        raise InputError(
            "no key is known to check the packages with",
            "name the vendor's public key with --gpg-key, or give --no-gpgcheck (it is recorded)",
        )
    record = (
        None if memory is None else memory / f"{'-'.join(sorted(digest_file(key)[:16] for key in keys))}.json"
    )
    known: dict[str, str] = json.loads(record.read_text()) if record is not None and record.is_file() else {}
    found = {digest: known[digest] for digest in packages if digest in known}
    new = [digest for digest in packages if digest not in found]
    refused: list[str] = []
    if new:
        with Scratch(prefix="rpmkeys-") as database:
            _import(keys, Path(database))
            for start in range(0, len(new), BATCH):
                batch = {str(packages[digest]): digest for digest in new[start : start + BATCH]}
                _check(batch, Path(database), names or {}, found, refused)
    if refused:
        lines = "\n".join(f"  {line}" for line in sorted(refused))
        raise LockError(
            f"packages are refused:\n{lines}",
            "get them from a trusted mirror, or name the key that signs them with --gpg-key",
        )
    if record is not None and new:
        record.parent.mkdir(parents=True, exist_ok=True)
        with replacing(record) as partial:
            partial.write_text(json.dumps({**known, **found}, sort_keys=True))
    return found


def _import(keys: Sequence[Path], database: Path) -> None:
    for key in keys:
        try:
            run(["rpmkeys", "--dbpath", database, "--import", key], limit_seconds=60)
        except CommandFailedError as error:
            raise InputError(
                f"{key} is no public key that rpm reads: {error}", "name an ASCII-armoured key"
            ) from error


def _check(
    batch: Mapping[str, str],
    database: Path,
    names: Mapping[str, str],
    found: dict[str, str],
    refused: list[str],
) -> None:
    done = run(["rpmkeys", "--dbpath", database, "-Kv", *batch], check=False, limit_seconds=600)
    blocks: dict[str, list[str]] = {}
    current = ""
    for line in done.output.splitlines():
        if line.rstrip().removesuffix(":") in batch:
            current = line.rstrip().removesuffix(":")
            blocks[current] = []
        elif current:
            blocks[current].append(line.strip())
    for path, digest in batch.items():
        text = "\n".join(blocks.get(path, []))
        name = names.get(digest, Path(path).name)
        signatures = _SIGNATURE.findall(text)
        wrong = [state for _, state in signatures if state not in ("OK",)]
        if path not in blocks:
            refused.append(f"{name}: rpm cannot read it")
        elif _DIGEST.search(text):
            refused.append(f"{name}: damaged, its own digest is wrong")
        elif not signatures:
            refused.append(f"{name}: not signed")
        elif "BAD" in wrong:
            refused.append(f"{name}: bad signature of key {signatures[0][0]}")
        elif wrong:
            refused.append(f"{name}: signed by the unknown key {signatures[0][0]}")
        else:
            found[digest] = signatures[0][0].lower()
