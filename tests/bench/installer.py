"""How long an installer ISO takes: remastering beside a plain copy, the locked closure, verification.

The base is 2 GiB of content that does not compress, the closure 500 packages of half a MiB each, as large
as a real one. Everything is made here, once, and measured with a warm cache.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SUPPORT = Path(__file__).parents[1] / "support"
sys.path.insert(0, str(SUPPORT))

from installer_medium import Base  # noqa: E402
from installer_site import Site, make_site  # noqa: E402

from tests.bench.rows import NO_PEER, Row, median  # noqa: E402

BASE_BYTES = 2 << 30
PACKAGES = 500
PACKAGE_BYTES = 512 << 10
# Of the 500, those that the profile wants anyway.
OWN_PACKAGES = 93
REMASTER_RATIO = 1.3
REMASTER_MIB = 300.0
CLOSURE_SECONDS = 10.0
VERIFY_RATIO = 1.5

# Runs one measured thing in a process of its own, because memory's high-water mark never falls.
_PROGRAM = """
import json, resource, sys, time
sys.path[:0] = [{support!r}, {root!r}]
from tests.bench.installer import {function}
started = time.monotonic()
extra = {function}(*json.loads(sys.argv[1]))
seconds = time.monotonic() - started
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([extra if extra is not None else seconds, max(own, children) / 1024]))
"""


def apart(function: Callable[..., float | None], *arguments: str) -> tuple[float, float]:
    """Seconds and MiB of the largest process of one call, made in a fresh interpreter."""
    import json

    program = _PROGRAM.format(
        support=str(SUPPORT), root=str(Path(__file__).parents[2]), function=function.__name__
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory


def remaster_once(directory: str, output: str) -> float:
    """Remaster from a locked, warm closure; seconds of the remastering alone."""
    from appliance.profile import load_profile
    from iso.base import inspect_base
    from iso.boot_menus import installer_menu
    from iso.iso9660 import Iso
    from iso.remaster import Medium, remaster

    site = Path(directory)
    profile = load_profile(site / "pbx.toml")
    menu = installer_menu(profile.product.title, "CENTRALINO-BENCH", 1)
    with Iso(next((site / "base").glob("*.iso"))) as base:
        facts = inspect_base(base, title="AlmaLinux 8", release="8.10", architecture="x86_64")
        staging = site / "staged"
        # Digests of packages come from the lock, as in a build.
        known = dict(line.split("  ", 1)[::-1] for line in (site / "digests").read_text().splitlines())
        medium = Medium(
            title="Bench",
            version="1",
            label="CENTRALINO-BENCH",
            staging=staging,
            menu=menu,
            kickstarts=lambda digest, key: {"ks.cfg": f"# {digest}\n", "ks-questions.cfg": "#\n"},
            digests=known,
        )
        started = time.monotonic()
        remaster(base, facts, medium, Path(output), epoch=1767225600, digest_cache=site / "digest-cache")
        return time.monotonic() - started


def copy_once(tree: str, staging: str, output: str) -> None:
    """What xorriso alone takes for the same trees."""
    from appliance.run import run

    words = [
        "xorriso",
        "-as",
        "mkisofs",
        "-quiet",
        "-iso-level",
        "3",
        "-r",
        "-J",
        "-joliet-long",
        "-o",
        output,
    ]
    run([*words, tree, staging], limit_seconds=3600)


def copy_and_implant_once(tree: str, staging: str, output: str) -> None:
    """The same with the media checksum that every installer of this family carries."""
    from appliance.run import run

    copy_once(tree, staging, output)
    run(["implantisomd5", "--force", output], limit_seconds=3600)


def closure_once(directory: str, cache: str) -> float:
    """A locked closure with a warm cache, repositories included; seconds."""
    from iso.closure import Workshop, fetch_locked
    from iso.lock import read_lock
    from iso.repository import build_repositories

    site = Path(directory)
    lock = read_lock(site / "lock.toml")
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        started = time.monotonic()
        files = fetch_locked(lock, [], Workshop(Path(cache), keys=(site / "vendor.asc",)))
        build_repositories(lock, files, Path(scratch) / "tree", epoch=1767225600, cache=Path(cache))
        return time.monotonic() - started


def verify_once(image: str) -> None:
    """The whole command: the image against its manifest, and all its parts against each other."""
    command = [sys.executable, "-m", "appliance.cli", "verify", image]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2])


def sha256sum_once(image: str) -> None:
    """The digest of the same file by coreutils."""
    subprocess.run(["sha256sum", image], check=True, stdout=subprocess.DEVNULL)


def md5sum_once(image: str) -> None:
    """The media checksum is such a digest: nothing that implants one can be faster."""
    subprocess.run(["md5sum", image], check=True, stdout=subprocess.DEVNULL)


def _prepare(directory: Path) -> tuple[Site, Path, Path]:
    """The site, the built ISO, and the trees that both sides copy."""
    import json

    from iso.iso9660 import Iso
    from iso.lock import read_lock

    site = make_site(
        directory,
        base=Base(filler_bytes=BASE_BYTES),
        filler_packages=PACKAGES - OWN_PACKAGES,
        filler_size=PACKAGE_BYTES,
    )
    words = site.words(site.profile("pbx"), directory / "out", "--json", "--lock", directory / "lock.toml")
    done = site.run("iso", *words)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    image = Path(json.loads(done.stdout)["path"])
    staged, tree = directory / "staged", directory / "plain"
    with Iso(image) as iso:
        for path in iso.files:
            top = path.split("/", 1)[0]
            iso.extract(path, (staged if top in ("BaseOS", "AppStream", "centralino") else tree) / path)
    lock = read_lock(directory / "lock.toml")
    known = {package.file_name: package.sha256 for package in lock.packages}
    lines = [f"{known[path.name]}  {path.relative_to(staged).as_posix()}" for path in staged.rglob("*.rpm")]
    (directory / "digests").write_text("\n".join(lines) + "\n")
    return site, image, tree


def measure(runs: int = 3, directory: Path | None = None) -> list[Row]:
    """All figures of the installer; needs about 12 GiB below `directory` (default: /var/tmp)."""
    with tempfile.TemporaryDirectory(prefix="centralino-bench-", dir=directory or "/var/tmp") as scratch:
        folder = Path(scratch)
        site, image, tree = _prepare(folder)
        output = folder / "made.iso"
        ours, plain, complete, memory = [], [], [], 0.0
        for number in range(runs + 1):
            # Side by side: what else the machine does hits both alike. The first pair warms the caches.
            seconds, used = apart(remaster_once, str(folder), str(output))
            output.unlink()
            peer, _ = apart(copy_once, str(tree), str(folder / "staged"), str(output))
            output.unlink()
            with_checksum, _ = apart(copy_and_implant_once, str(tree), str(folder / "staged"), str(output))
            output.unlink()
            if number:
                ours.append(seconds)
                plain.append(peer)
                complete.append(with_checksum)
                memory = max(memory, used)
        closures = [apart(closure_once, str(folder), str(site.cache))[0] for _ in range(runs)]
        checks, sums, floor = [], [], []
        for _ in range(runs):
            checks.append(apart(verify_once, str(image))[0])
            sums.append(apart(sha256sum_once, str(image))[0])
            floor.append(apart(md5sum_once, str(image))[0])
    copied = median(plain)
    summed = median(sums)
    return [
        Row(
            "installer: remaster 2 GiB and 500 packages",
            median(ours),
            copied,
            "xorriso, same trees",
            "s",
            runs,
            None if copied is None else REMASTER_RATIO * copied,
            "1.3 x a plain xorriso copy",
            "bound by the media checksum, an MD5 of all that only one core can compute; the peer has none",
        ),
        Row(
            "installer: remaster 2 GiB and 500 packages",
            median(ours),
            median(complete),
            "xorriso and implantisomd5, same trees",
            "s",
            runs,
        ),
        Row(
            "installer: remaster 2 GiB and 500 packages",
            median(ours),
            median(floor),
            "`md5sum` of the ISO alone",
            "s",
            runs,
        ),
        Row(
            "installer: remaster, largest process", memory, None, NO_PEER, "MiB", runs, REMASTER_MIB, "issue"
        ),
        Row(
            "installer: closure of 500 packages, locked, warm",
            median(closures),
            None,
            NO_PEER,
            "s",
            runs,
            CLOSURE_SECONDS,
            "issue",
            "every package's SHA-256 and repository metadata made anew",
        ),
        Row(
            "installer: verify that ISO",
            median(checks),
            summed,
            "sha256sum",
            "s",
            runs,
            None if summed is None else VERIFY_RATIO * summed,
            "1.5 x sha256sum",
            "the whole command: SHA-256 of all and of each file, media checksum, repositories",
        ),
    ]


if __name__ == "__main__":
    for row in measure(int(os.environ.get("RUNS", "3"))):
        print(row.as_json())
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10, "MiB in the largest child")
