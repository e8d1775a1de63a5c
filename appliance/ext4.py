"""Write a root tree into an ext4 file system inside a disk image: no mount, no loop device, same bytes.

`mkfs.ext4 -d` takes files in the order of the host's directories and copies change times, so its result
depends on the host. Here mke2fs makes the empty file system and debugfs fills it from a sorted script, with
the library's clock held still (E2FSPROGS_FAKE_TIME, e2fsprogs(5) builds it in).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from appliance.errors import BuildError, HostError
from appliance.run import run
from appliance.scratch import Scratch
from appliance.tree_entries import Entry, Kind

BLOCK_BYTES = 4096
# Named one by one: defaults differ between e2fsprogs releases, and AlmaLinux 8 (kernel 4.18, e2fsprogs
# 1.45, GRUB 2.02) refuses orphan_file and metadata_csum_seed, which newer mke2fs would set.
FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,"
    "huge_file,dir_nlink,extra_isize,metadata_csum"
)
FILL_LIMIT_SECONDS = 1800.0
_TYPE_BITS = {
    Kind.DIRECTORY: 0o040000,
    Kind.FILE: 0o100000,
    Kind.SYMLINK: 0o120000,
    Kind.CHARACTER_DEVICE: 0o020000,
    Kind.BLOCK_DEVICE: 0o060000,
    Kind.FIFO: 0o010000,
}


@dataclass(frozen=True)
class Ext4:
    """Where the file system lies in the image (bytes) and what makes it unique; `epoch` in seconds."""

    image: Path
    offset: int
    size: int
    uuid: UUID
    hash_seed: UUID
    label: str
    epoch: int

    @property
    def device(self) -> str:
        """The image as e2fsprogs name a file system that starts inside a file."""
        return f"{self.image}?offset={self.offset}"


def bytes_needed(entries: Sequence[Entry]) -> int:
    """A file system size that holds the entries with room to boot: data, inodes, journal and a fifth more."""
    data = sum(-(-entry.size // BLOCK_BYTES) * BLOCK_BYTES for entry in entries if entry.same_as is None)
    return int((data + len(entries) * 512 + (96 << 20)) * 1.2)


def write_ext4(filesystem: Ext4, entries: Sequence[Entry], *, log: Path | None = None) -> None:
    """Make the file system and fill it with `entries` (first the root, parents before children).

    Raises BuildError if the entries do not fit or any of them could not be written.
    """
    needed = bytes_needed(entries) * 5 // 6
    if needed > filesystem.size:
        raise BuildError(
            f"the root tree needs {needed >> 20} MiB, its partition holds {filesystem.size >> 20} MiB",
            "raise `disk.size` in the profile",
        )
    _make(filesystem, log)
    with Scratch(prefix="centralino-ext4-") as name:
        staging = Path(name)
        script = staging / "script"
        with script.open("wb") as stream:
            for line in _commands(entries, staging):
                stream.write(line + b"\n")
        done = run(
            ["debugfs", "-w", "-f", script, filesystem.device],
            limit_seconds=FILL_LIMIT_SECONDS,
            environment={"E2FSPROGS_FAKE_TIME": str(filesystem.epoch)},
        )
    # debugfs ends with status 0 whatever happened; everything but its banner on stderr is a failure.
    complaints = [line for line in done.errors.splitlines() if line and not line.startswith("debugfs 1.")]
    if complaints:
        raise BuildError(
            f"debugfs could not fill the root file system of {filesystem.image}: {complaints[0]}",
            "the disk may be full; look at the remaining space and at `disk.size` of the profile",
        )
    check(filesystem, log=log)


def check(filesystem: Ext4, *, log: Path | None = None) -> None:
    """Raise CommandFailedError unless e2fsck finds the file system clean."""
    run(
        ["e2fsck", "-f", "-n", filesystem.device],
        log=log,
        remedy="this is a defect of the builder, please report it",
    )


def _make(filesystem: Ext4, log: Path | None) -> None:
    if filesystem.offset % 1024:
        raise HostError(f"offset {filesystem.offset} is not a multiple of 1024")
    run(
        [
            "mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES), "-I", "256", "-m", "1", "-i", "16384",
            "-O", FEATURES, "-L", filesystem.label, "-U", str(filesystem.uuid), "-J", "size=64",
            "-E", f"offset={filesystem.offset},nodiscard,lazy_itable_init=0,lazy_journal_init=1,"
            f"hash_seed={filesystem.hash_seed},root_owner=0:0,resize={_grown_blocks(filesystem.size)}",
            filesystem.image, str(filesystem.size // BLOCK_BYTES),
        ],
        log=log,
        # Without this file's defaults nothing of the host's /etc/mke2fs.conf decides.
        environment={"E2FSPROGS_FAKE_TIME": str(filesystem.epoch), "MKE2FS_CONFIG": "/dev/null"},
    )  # fmt: skip


def _grown_blocks(size: int) -> int:
    """Room in the group descriptors for growth to 2 TiB, so that the first boot moves nothing."""
    return max(size * 4, 2 << 40) // BLOCK_BYTES


def _quoted(name: bytes) -> bytes:
    return b'"' + name.replace(b'"', b'""') + b'"'


def _commands(entries: Sequence[Entry], staging: Path) -> Iterator[bytes]:
    """The debugfs script; names are relative to the directory last entered, which keeps look-ups short."""
    children: dict[bytes, list[Entry]] = {}
    for entry in entries:
        if entry.path:
            children.setdefault(entry.path.rpartition(b"/")[0], []).append(entry)
    counter = 0
    for directory in (entry for entry in entries if entry.kind is Kind.DIRECTORY):
        yield b"cd " + _quoted(b"/" + directory.path)
        if not directory.path:
            yield from _fields(b".", directory)
        for entry in children.get(directory.path, ()):
            name = entry.path.rpartition(b"/")[2]
            if not directory.path and name == b"lost+found":
                continue
            if entry.same_as is not None:
                yield b"ln " + _quoted(b"/" + entry.same_as) + b" " + _quoted(name)
                continue
            if entry.kind is Kind.DIRECTORY:
                yield b"mkdir " + _quoted(name)
            elif entry.kind is Kind.SYMLINK:
                yield b"symlink " + _quoted(name) + b" " + _quoted(entry.target)
            elif entry.kind is Kind.FILE:
                source = entry.source
                if entry.content is not None or source is None:
                    counter += 1
                    source = staging / f"content-{counter}"
                    source.write_bytes(entry.content or b"")
                yield b"write " + _quoted(os.fsencode(source)) + b" " + _quoted(name)
            else:
                letter = {Kind.CHARACTER_DEVICE: b"c", Kind.BLOCK_DEVICE: b"b", Kind.FIFO: b"p"}[entry.kind]
                numbers = b"" if entry.kind is Kind.FIFO else b" %d %d" % entry.device
                yield b"mknod " + _quoted(name) + b" " + letter + numbers
            yield from _fields(_quoted(name), entry)
            for number, (attribute, value) in enumerate(entry.attributes):
                counter += 1
                holder = staging / f"attribute-{counter}-{number}"
                holder.write_bytes(value)
                yield (
                    b"ea_set -f "
                    + _quoted(os.fsencode(holder))
                    + b" "
                    + _quoted(name)
                    + b" "
                    + attribute.encode()
                )


def _fields(name: bytes, entry: Entry) -> Iterator[bytes]:
    def field(key: bytes, value: bytes) -> bytes:
        return b"sif " + name + b" " + key + b" " + value

    # A file takes its permissions from the source; everything else has defaults of debugfs.
    if entry.kind is not Kind.SYMLINK:
        yield field(b"mode", b"0%o" % (_TYPE_BITS[entry.kind] | entry.mode))
    if entry.uid:
        yield field(b"uid", b"%d" % entry.uid)
    if entry.gid:
        yield field(b"gid", b"%d" % entry.gid)
    yield field(b"mtime", b"@%d" % entry.mtime)
    if entry.links > 1:
        yield field(b"links_count", b"%d" % entry.links)
