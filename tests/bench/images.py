"""How long an image takes: a disk from a finished tree, all again with nothing changed, the payload."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from appliance.cache import Cache, disk_usage
from appliance.disk import DiskPlan, assemble
from appliance.formats_contract import Variant
from appliance.image import build_root
from appliance.lab_host import execute
from appliance.platform_data import load_platform
from appliance.profile import load_profile
from appliance.progress import Progress
from appliance.stages import build_context
from tests.bench.build import CHANGED, copy_tree
from tests.bench.rows import NO_PEER, Row, median

GIB = 1 << 30
TREE_BYTES = 2 * 10**9
ASSEMBLY_SECONDS = 30.0
WARM_SECONDS = 5.0
PAYLOAD_SECONDS = 20.0
BUILD_LIMIT_SECONDS = 3600.0
FORMATS = ("raw", "qcow2", "vmdk", "ova", "vhdx")


def builder(tree: Path, words: list[str], cache: Path) -> float:
    """Run `centralino-build` from a source tree; seconds."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "CENTRALINO_CACHE": str(cache)}
    command = ["env", f"--chdir={tree}", sys.executable, "-m", "appliance.cli", *words]
    return execute(command, environment=environment, limit_seconds=BUILD_LIMIT_SECONDS).seconds


def assembly(place: Path, runs: int) -> tuple[list[float], float]:
    """Seconds to assemble the reference disk, each time anew, and the bytes of its tree."""
    profile, platform = load_profile(Path("pbx-debian12")), load_platform("debian12")
    with build_context("bench", epoch=profile.source_date_epoch, progress=Progress(silent=True)) as context:
        root = build_root(profile, platform, context, Variant.DISK)
    filled = place / "tree"
    shutil.copytree(root, filled, symlinks=True)
    with (filled / "filler").open("wb") as stream:
        # What does not compress and is no hole, so that the tree is as large as the figure says.
        for _ in range(max(0, TREE_BYTES - disk_usage(filled)) >> 20):
            stream.write(os.urandom(1 << 20))
    plan = DiskPlan(
        root=filled,
        size=6 * GIB,
        seed="bench",
        epoch=profile.source_date_epoch,
        data=platform.disk,
        title="Bench",
        arguments=platform.disk.arguments,
    )
    seconds = []
    for _ in range(runs):
        started = time.monotonic()
        assemble(plan, place / "disk.raw")
        seconds.append(time.monotonic() - started)
        (place / "disk.raw").unlink()
    return seconds, disk_usage(filled)


def warm(place: Path, runs: int) -> list[float]:
    """Seconds of a build of several formats of which nothing changed, from the host's own cache."""
    tree = place / "sources"
    copy_tree(tree)
    words = ["image", "--platform", "debian12", "--output", str(place / "out")]
    words += [word for form in FORMATS for word in ("--format", form)]
    cache = Cache().directory
    builder(tree, words, cache)
    return [builder(tree, words, cache) for _ in range(runs)]


def payload(place: Path, runs: int) -> list[float]:
    """Seconds of a payload after one changed line of our code."""
    tree, cache = place / "sources", place / "cache"
    copy_tree(tree)
    words = ["payload", "--platform", "debian12", "--output", str(place / "out")]
    builder(tree, words, cache)
    seconds = []
    for number in range(runs):
        with (tree / CHANGED).open("a") as file:
            file.write(f"# line {number}\n")
        seconds.append(builder(tree, words, cache))
    return seconds


def measure(runs: int = 3) -> list[Row]:
    """All figures of images; needs root and about 12 GiB below /var/tmp."""
    found = {}
    for name, function in (("payload", payload), ("warm", warm)):
        with tempfile.TemporaryDirectory(prefix="centralino-bench-", dir="/var/tmp") as folder:
            found[name] = median(function(Path(folder), runs))
    with tempfile.TemporaryDirectory(prefix="centralino-bench-", dir="/var/tmp") as folder:
        seconds, size = assembly(Path(folder), runs)
    return [
        Row(
            "image: disk from a tree of 2 GB",
            median(seconds),
            None,
            NO_PEER,
            "s",
            runs,
            ASSEMBLY_SECONDS,
            "issue",
            f"the reference tree, filled up to {size / 1e9:.2f} GB; 6 GiB virtual",
        ),
        Row(
            "image: build again with nothing changed",
            found["warm"],
            None,
            NO_PEER,
            "s",
            runs,
            WARM_SECONDS,
            "issue",
            f"the whole command, formats {', '.join(FORMATS)}",
        ),
        Row(
            "image: payload after a one-line change",
            found["payload"],
            None,
            NO_PEER,
            "s",
            runs,
            PAYLOAD_SECONDS,
            "issue",
            "the whole command",
        ),
    ]
