"""How long a build takes: everything from an empty cache, and after one changed line; beside bare kiwi-ng.

Both see the same mirrors. Ours runs from a copy of the tree, in which one line of the daemon is then changed.
Bare kiwi-ng installs the same package list by the same description, without payload and roles.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from appliance.cli_common import chosen_profile
from appliance.formats_contract import Variant
from appliance.kiwi import render_description, signing_keys
from appliance.lab_host import execute
from appliance.mirror import resolve_sources
from tests.bench.rows import Row, median

TREE = Path(__file__).parents[2]
REBUILD_LIMIT_SECONDS = 90.0
BUILD_LIMIT_SECONDS = 3600.0
CHANGED = Path("daemon/__init__.py")


def copy_tree(target: Path) -> None:
    """The source tree without what builds and tools left in it."""
    leave = shutil.ignore_patterns(".git", "out", "*.egg-info", "__pycache__", ".*_cache", ".nox")
    shutil.copytree(TREE, target, symlinks=True, ignore=leave)


def build_ours(tree: Path, cache: Path) -> float:
    """Build the reference root as `centralino-build` would, with a cache of its own; seconds."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "CENTRALINO_CACHE": str(cache)}
    arguments = [sys.executable, "-m", "appliance.cli", "image", "--platform", "debian12", "--format", "root"]
    command = ["env", f"--chdir={tree}", *arguments]
    return execute(command, environment=environment, limit_seconds=BUILD_LIMIT_SECONDS).seconds


def build_bare(description: Path, root: Path, downloads: Path, keys: list[Path]) -> float:
    """`kiwi-ng system prepare` and nothing else, in mount and process namespaces of its own; seconds."""
    kiwi = [sys.executable, "-c", "from kiwi.kiwi import main; main()", "--shared-cache-dir", str(downloads)]
    prepare = ["system", "prepare", "--description", str(description), "--root", str(root)]
    keyring = [word for key in keys for word in ("--signing-key", str(key))]
    contained = [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    environment = {
        **os.environ,
        "GNUPGHOME": str(downloads.parent / "gnupg"),
        "DEBIAN_FRONTEND": "noninteractive",
    }
    command = [*contained, "--", *kiwi, *prepare, *keyring]
    return execute(command, environment=environment, limit_seconds=BUILD_LIMIT_SECONDS).seconds


def one_round(place: Path) -> tuple[float, float, float, float]:
    """Seconds of: our full build, our rebuild, a bare build, a bare build with its downloads cached."""
    profile, platform = chosen_profile(None, "debian12")
    keys = signing_keys(profile, platform)
    (place / "gnupg").mkdir(mode=0o700)
    description = place / "description"
    description.mkdir()
    sources = resolve_sources(profile, platform, ())
    text = render_description(profile, platform, Variant.CONTAINER, sources, signed=bool(keys))
    (description / "config.xml").write_text(text)
    bare = build_bare(description, place / "bare", place / "kiwi", keys)
    shutil.rmtree(place / "bare")
    again = build_bare(description, place / "bare", place / "kiwi", keys)
    shutil.rmtree(place / "bare")
    tree, cache = place / "tree", place / "cache"
    copy_tree(tree)
    full = build_ours(tree, cache)
    with (tree / CHANGED).open("a") as file:
        file.write("# one more line\n")
    return full, build_ours(tree, cache), bare, again


def measure(runs: int = 1) -> list[Row]:
    """Full builds from empty caches, and builds after one changed line."""
    rounds = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="centralino-bench-", dir="/var/tmp") as folder:
            rounds.append(one_round(Path(folder)))
    full, changed, bare, again = (median(figures) for figures in zip(*rounds, strict=True))
    peer = "bare `kiwi-ng system prepare`"
    return [
        Row(
            "full reference build, nothing cached",
            full,
            bare,
            peer,
            "s",
            runs,
            note="ours also makes the payload, installs it without a network and runs the roles",
        ),
        Row(
            "reference build after a one-line change",
            changed,
            again,
            peer,
            "s",
            runs,
            REBUILD_LIMIT_SECONDS,
            note="the peer has its downloads cached",
        ),
    ]
