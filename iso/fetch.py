"""Packages by content: fetched once, kept in the cache under their SHA-256, checked before every use."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from appliance.cache import digest_file, free_bytes
from appliance.errors import HostError, LockError, MirrorError
from iso.lock import LockedPackage

TRIES = 3
PARALLEL = 4
TIMEOUT_SECONDS = 60.0
# createrepo_c writes a package's time into its metadata: one time for all, 1980-01-01.
FILE_TIME = 315532800
_CHUNK = 1 << 20


class PackageCache:
    """RPM files below `directory/rpm/AB/ABCD....rpm`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "rpm"

    def path(self, digest: str) -> Path:
        """Where the file with this SHA-256 is or would be."""
        return self.directory / digest[:2] / f"{digest}.rpm"

    def fetch(
        self,
        packages: Sequence[LockedPackage],
        repositories: Mapping[str, str],
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Path]:
        """Make sure that every package is in the cache and is what the lock says; returns digest to path.

        `repositories` gives the address of each repository by name. Raises LockError if the bytes of a
        package differ from the lock, MirrorError if one cannot be had, HostError if the disk is full.
        """
        missing = sum(package.size for package in packages if not self.path(package.sha256).is_file())
        if missing > (free := free_bytes(self.directory)):
            raise HostError(
                f"{missing >> 20} MiB of packages are to be fetched, {self.directory} has {free >> 20} MiB",
                "free some, or point CENTRALINO_CACHE to a larger disk",
            )
        found: dict[str, Path] = {}
        done, whole = 0, sum(package.size for package in packages)
        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            jobs = {pool.submit(self._one, package, repositories): package for package in packages}
            try:
                for job in as_completed(jobs):
                    package = jobs[job]
                    found[package.sha256] = job.result()
                    done += package.size
                    on_progress(done, whole)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return found

    def _one(self, package: LockedPackage, repositories: Mapping[str, str]) -> Path:
        path = self.path(package.sha256)
        if path.is_file():
            if digest_file(path) == package.sha256:
                return path
            # Somebody or the disk changed it: fetch it again.
            path.unlink()
        if package.repository not in repositories:
            raise MirrorError(
                f"{package.nevra} comes from {package.repository}, which this build does not know",
                "name its mirror, or renew the lock with --update-lock",
            )
        url = f"{repositories[package.repository].rstrip('/')}/{package.location}"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            digest, size = _download(url, partial, package)
            if digest != package.sha256:
                raise LockError(
                    f"{package.nevra} from {package.repository} is not what the lock says: SHA-256 {digest} "
                    f"({size} bytes) instead of {package.sha256} ({package.size} bytes)",
                    "the mirror is damaged or the package was replaced: find out which before --update-lock",
                )
            os.utime(partial, (FILE_TIME, FILE_TIME))
            partial.chmod(0o644)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path


def _download(url: str, target: Path, package: LockedPackage) -> tuple[str, int]:
    """Fetch a file; returns its SHA-256 and size. Tries again when the network fails."""
    for attempt in range(1, TRIES + 1):
        digest, size = hashlib.sha256(), 0
        try:
            request = urllib.request.Request(url)  # noqa: S310 - addresses come from checked mirrors
            with (
                urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer,  # noqa: S310
                target.open("wb") as stream,
            ):
                while chunk := answer.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    stream.write(chunk)
            return digest.hexdigest(), size
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == TRIES:
                raise _unavailable(package, f"HTTP status {error.code}") from error
        except (urllib.error.URLError, OSError, ValueError) as error:
            if attempt == TRIES or url.startswith("file:"):
                raise _unavailable(package, str(getattr(error, "reason", None) or error)) from error
        time.sleep(attempt)
    raise AssertionError("unreachable")


def _unavailable(package: LockedPackage, reason: str) -> MirrorError:
    return MirrorError(
        f"{package.nevra} cannot be fetched from {package.repository}: {reason}",
        "check the mirror; if it no longer holds this version, renew the lock with --update-lock",
    )


def place(source: Path, target: Path) -> None:
    """Put a cached file into a tree: a hard link where the filesystem allows, else a copy with its time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
