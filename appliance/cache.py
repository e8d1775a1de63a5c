"""Where finished stages live between builds, keyed by the digest of everything that went into them.

    <cache>/stages/<stage>/<key>/stage.json   inputs, seconds, when; its presence is not needed to read output
    <cache>/stages/<stage>/<key>/output/      what the stage made, read-only by agreement
    <cache>/locks/                            one file a key, locked while it is being made
    <cache>/logs/                             one file a build, the newest ones kept
    <cache>/packages/, <cache>/pip/           downloads of apt, dnf and pip
    <cache>/written/                          marks of artefacts, see `appliance.standing`

An entry appears by one rename, so that it is whole or absent. Two builds that want the same entry wait for
each other; two that want different ones do not.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import HostError

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]
KEPT_LOGS = 50
# Of each kind of large entry (root trees) this many stay; older ones go when unused for an hour.
KEPT_LARGE = 4
LARGE_BYTES = 256 << 20
UNUSED_SECONDS = 3600.0


def cache_directory() -> Path:
    """`$CENTRALINO_CACHE`, else `$XDG_CACHE_HOME/centralino`, else `~/.cache/centralino`."""
    if chosen := os.environ.get("CENTRALINO_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "centralino"


def digest_json(value: JsonValue) -> str:
    """SHA-256 of the canonical JSON text of a value (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_tree(root: Path, files: Iterable[Path] | None = None) -> str:
    """SHA-256 over relative names, modes (executable or not), link targets and contents.

    `files` limits it to these paths below `root`; times and owners do not count.
    """
    total = hashlib.sha256()
    for path in sorted(root.rglob("*") if files is None else files):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            total.update(f"l {name} {path.readlink()}\n".encode())
        elif path.is_file():
            executable = "x" if path.stat().st_mode & 0o111 else "-"
            total.update(f"f {executable} {name} {digest_file(path)}\n".encode())
    return total.hexdigest()


@dataclass(frozen=True)
class Entry:
    """One finished stage in the cache: `output` is its directory, `key` the digest of its inputs."""

    stage: str
    key: str
    output: Path
    seconds: float


@dataclass(frozen=True)
class Record:
    """What making an entry took: seconds, and bytes on disk."""

    seconds: float
    size: int


class Cache:
    """The cache at one directory; made when first written to."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = cache_directory() if directory is None else directory

    def entry_directory(self, stage: str, key: str) -> Path:
        """Where the entry of a stage and key is or would be."""
        return self.directory / "stages" / stage / key

    def find(self, stage: str, key: str) -> Entry | None:
        """The finished entry, or None; finding it marks it as used now."""
        directory = self.entry_directory(stage, key)
        record = directory / "stage.json"
        try:
            seconds = float(json.loads(record.read_text())["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):
            os.utime(record)
        return Entry(stage, key, directory / "output", seconds)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the named lock; waits for the build that holds it. The kernel frees it if we die."""
        path = self.directory / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @contextmanager
    def download_directory(self, name: str) -> Iterator[Path]:
        """A directory of downloads that no other build uses meanwhile: the first free one of its kind.

        Package managers lock theirs, so that two builds sharing one would fail.
        """
        locks = self.directory / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            number = 0
            while True:
                stream = stack.enter_context((locks / f"packages-{name}-{number}.lock").open("w"))
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    number += 1
            directory = self.directory / "packages" / f"{name}-{number}"
            directory.mkdir(parents=True, exist_ok=True)
            yield directory

    @contextmanager
    def making(self, stage: str, key: str) -> Iterator[Path]:
        """A directory to fill, beside where the entry will be; removed unless `keep` took it."""
        parent = self.directory / "stages" / stage
        parent.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned(parent)
        partial = parent / f".partial-{os.getpid()}-{key[:16]}"
        remove_tree(partial)
        (partial / "output").mkdir(parents=True)
        try:
            yield partial / "output"
        finally:
            remove_tree(partial)

    def keep(self, stage: str, key: str, output: Path, inputs: JsonValue, seconds: float) -> Entry:
        """Turn a filled directory into the entry, by one rename."""
        partial = output.parent
        record = {
            "stage": stage,
            "key": key,
            "inputs": inputs,
            "seconds": round(seconds, 3),
            "bytes": disk_usage(output),
        }
        (partial / "stage.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        final = self.entry_directory(stage, key)
        remove_tree(final)
        partial.rename(final)
        return Entry(stage, key, final / "output", seconds)

    def last_record(self, stage: str) -> Record | None:
        """What the newest entry of this stage took; None if there is none."""
        records = sorted((self.directory / "stages" / stage).glob("*/stage.json"), key=_modified)
        for file in reversed(records):
            with suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads(file.read_text())
                return Record(float(record["seconds"]), int(record["bytes"]))
        return None

    def step_seconds(self, title: str) -> float | None:
        """What a step that is no stage took when it last ran to its end; None if it never did."""
        try:
            return float(self._step_record(title).read_text())
        except (OSError, ValueError):
            return None

    def remember_step(self, title: str, seconds: float) -> None:
        """Keep how long a step took."""
        record = self._step_record(title)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(f"{seconds:.1f}\n")

    def _step_record(self, title: str) -> Path:
        return self.directory / "steps" / hashlib.sha256(title.encode()).hexdigest()

    def new_log(self, purpose: str) -> Path:
        """A fresh path for one build's log; all but the newest logs are removed."""
        directory = self.directory / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        for old in sorted(directory.glob("*.log"), key=_modified)[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        return directory / f"{stamp}-{purpose}-{os.getpid()}.log"

    def prune(self, stage: str) -> list[Path]:
        """Remove old large entries of a stage, so that a day of rebuilding does not fill the disk.

        What was used within the last hour or is mounted somewhere (a lab's node) stays.
        """
        entries = [path for path in (self.directory / "stages" / stage).glob("[!.]*") if _is_large(path)]
        entries.sort(key=lambda path: _modified(path / "stage.json"), reverse=True)
        before = time.time() - UNUSED_SECONDS
        old = [path for path in entries[KEPT_LARGE:] if _modified(path / "stage.json") < before]
        return self._remove_unused(stage, old)

    def _remove_unused(self, stage: str, entries: Sequence[Path]) -> list[Path]:
        removed = []
        for entry in entries:
            with self.locked(f"{stage}-{entry.name}"):
                if not is_mounted_somewhere(entry):
                    remove_tree(entry)
                    removed.append(entry)
        return removed

    def clean(self, *, keep_newest: int = 0, downloads: bool = False) -> list[Path]:
        """Remove entries (all but the `keep_newest` last used of each stage), abandoned halves, downloads.

        Returns what was removed. Entries being made by a living process, and trees that are mounted, stay.
        """
        removed: list[Path] = []
        for stage in sorted((self.directory / "stages").glob("*")):
            removed += self._remove_abandoned(stage)
            entries = sorted(
                stage.glob("[!.]*"), key=lambda path: _modified(path / "stage.json"), reverse=True
            )
            removed += self._remove_unused(stage.name, entries[keep_newest:])
        for name in ("written", "steps", "packages", "pip") if downloads else ("written", "steps"):
            if (self.directory / name).exists():
                remove_tree(self.directory / name)
                removed.append(self.directory / name)
        return removed

    @staticmethod
    def _remove_abandoned(parent: Path) -> list[Path]:
        removed = []
        for partial in parent.glob(".partial-*"):
            owner = partial.name.split("-")[1]
            if owner.isdigit() and int(owner) != os.getpid() and not Path("/proc", owner).exists():
                remove_tree(partial)
                removed.append(partial)
        return removed


def _modified(path: Path) -> float:
    """Modification time; 0 for what another build has just removed."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _is_large(entry: Path) -> bool:
    try:
        return int(json.loads((entry / "stage.json").read_text())["bytes"]) > LARGE_BYTES
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_mounted_somewhere(directory: Path) -> bool:
    """Whether any process sees a mount of or over this directory: an overlay's lower layer counts."""
    seen = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            namespace = (process / "ns/mnt").readlink()
            if namespace not in seen:
                seen.add(namespace)
                if str(directory) in (process / "mountinfo").read_text():
                    return True
    return False


def disk_usage(directory: Path) -> int:
    """Bytes that a directory takes on its disk; a file with several names counts once."""
    total = 0
    seen = set()
    for parent, directories, names in os.walk(directory):
        for name in (*directories, *names):
            state = os.lstat(os.path.join(parent, name))  # noqa: PTH118 - sixty thousand times: strings are faster
            if state.st_nlink == 1 or (state.st_dev, state.st_ino) not in seen:
                seen.add((state.st_dev, state.st_ino))
                total += state.st_blocks * 512
    return total


def mounts_below(directory: Path) -> list[Path]:
    """Mount points inside a directory, deepest first, as this process sees them."""
    prefix = f"{directory.absolute()}/"
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split(" ")[4].encode().decode("unicode_escape")
        if point.startswith(prefix):
            found.append(Path(point))
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def remove_tree(directory: Path) -> None:
    """Remove a directory tree if it exists, but never through a mount point.

    Raises HostError if something is mounted inside: removing it would reach into another filesystem.
    """
    if not directory.exists() and not directory.is_symlink():
        return
    if mounted := mounts_below(directory):
        raise HostError(
            f"{directory} is in use: {mounted[0]} is mounted", f"umount {mounted[0]}, then repeat"
        )
    shutil.rmtree(directory)


def free_bytes(directory: Path) -> int:
    """Free space for this user on the filesystem that holds a directory (or its nearest parent)."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free
