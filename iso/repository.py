"""The repositories of the medium: BaseOS and AppStream as the vendor lays them out, made from a lock."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance.errors import BuildError, InputError
from appliance.run import require, run
from appliance.scratch import Scratch
from iso.fetch import place
from iso.lock import Lock, LockedPackage
from iso.module_metadata import streams_in

# Anaconda takes its base repository by this name; everything else is in the second.
BASE = "BaseOS"
OTHERS = "AppStream"
_REPO = "{http://linux.duke.edu/metadata/repo}"


def variant_of(package: LockedPackage) -> str:
    """The directory that a package belongs into."""
    return BASE if package.repository.lower() == BASE.lower() else OTHERS


def build_repositories(
    lock: Lock, files: Mapping[str, Path], tree: Path, *, epoch: int, cache: Path
) -> dict[str, str]:
    """Fill `tree/BaseOS` and `tree/AppStream`; returns the SHA-256 of every package by its path in `tree`.

    Equal locks give equal bytes. Raises InputError if a modular package has no module metadata.
    """
    require({"createrepo_c": "createrepo-c (Debian) or createrepo_c (AlmaLinux)"})
    streams = streams_in(lock.modules) if lock.modules else set()
    if lost := sorted({package.module for package in lock.packages if package.module} - streams):
        raise InputError(
            f"packages of the module stream {', '.join(lost)} have no module metadata: dnf would refuse them",
            "renew the lock with --update-lock",
        )
    digests: dict[str, str] = {}
    for variant in (BASE, OTHERS):
        members = [package for package in lock.packages if variant_of(package) == variant]
        directory = tree / variant
        (directory / "Packages").mkdir(parents=True)
        for package in members:
            target = directory / "Packages" / package.file_name
            place(files[package.sha256], target)
            digests[target.relative_to(tree).as_posix()] = package.sha256
        modules = lock.modules if variant == OTHERS else ""
        # Groups must be in every repository that is asked for them.
        _createrepo(directory, members, modules, lock.comps, epoch, cache)
    return digests


def _createrepo(
    directory: Path, members: Sequence[LockedPackage], modules: str, comps: str, epoch: int, cache: Path
) -> None:
    with Scratch(prefix="repodata-") as name:
        scratch = Path(name)
        words: list[str | Path] = ["createrepo_c", "--quiet", "--no-database", "--checksum", "sha256"]
        words += ["--revision", str(epoch), "--set-timestamp-to-revision", "--simple-md-filenames"]
        words += ["--general-compress-type", "gz", "--workers", "2", "--cachedir", cache / "createrepo"]
        if comps:
            (scratch / "comps.xml").write_text(comps)
            words += ["--groupfile", scratch / "comps.xml"]
        listed = scratch / "packages"
        listed.write_text("".join(f"Packages/{entry.file_name}\n" for entry in sorted(members, key=_by_file)))
        words += ["--pkglist", listed]
        if modules:
            # createrepo_c takes module metadata that lies in the tree.
            (directory / "modules.yaml").write_text(modules)
        run([*words, directory], limit_seconds=1800)
        (directory / "modules.yaml").unlink(missing_ok=True)
        if modules and "modules" not in metadata_types(directory):
            (scratch / "modules.yaml").write_text(modules)
            run(["modifyrepo_c", "--mdtype=modules", scratch / "modules.yaml", directory / "repodata"])
    index = directory / "repodata/repomd.xml"
    # Module metadata gets the time of its making, whatever --set-timestamp-to-revision says.
    index.write_text(
        re.sub(r"<timestamp>\d+</timestamp>", f"<timestamp>{epoch}</timestamp>", index.read_text())
    )
    if modules and "modules" not in metadata_types(directory):
        raise BuildError(
            "createrepo_c of this host drops module metadata, without which dnf refuses modular packages",
            "install createrepo_c 0.17 or newer",
        )


def _by_file(package: LockedPackage) -> str:
    return package.file_name


def metadata_types(directory: Path) -> dict[str, str]:
    """Kind to file name of everything that `repodata/repomd.xml` lists."""
    return {
        entry.get("type", ""): location.get("href", "")
        for entry in ElementTree.parse(directory / "repodata/repomd.xml").getroot().iter(f"{_REPO}data")  # noqa: S314
        if (location := entry.find(f"{_REPO}location")) is not None
    }
