"""The EFI image of the medium: a FAT filesystem, read and rebuilt by mtools without mounting anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from appliance.errors import InputError
from appliance.run import require, run
from appliance.scratch import Scratch

PROGRAMS = {"mkfs.vfat": "dosfstools", "mcopy": "mtools", "mmd": "mtools"}
VOLUME_NAME = "ANACONDA"
# El Torito counts 512-byte sectors in 16 bits; firmware reads no more than that.
SIZE_LIMIT = 65535 * 512
_MIB = 1 << 20


def read_tree(image: Path, directory: Path) -> list[Path]:
    """Copy all files of a FAT image below `directory`; returns their relative paths, sorted."""
    directory.mkdir(parents=True, exist_ok=True)
    run(
        ["mcopy", "-s", "-Q", "-n", "-i", image, "::*", directory],
        environment={"MTOOLS_SKIP_CHECK": "1"},
        remedy="the EFI image of the base ISO is damaged; get the ISO again",
    )
    return sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())


def find(directory: Path, name: str) -> Path | None:
    """A file by its path, case ignored as FAT does; None if there is none."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and str(path.relative_to(directory)).lower() == name.lower():
            return path
    return None


def rebuild(image: Path, replacements: Mapping[str, str], output: Path, *, epoch: int, serial: str) -> None:
    """Write `output`: the files of `image` with those in `replacements` (path to text) exchanged.

    Only files that are there are exchanged. `serial` is the FAT volume id, eight hexadecimal digits. Equal
    inputs give equal bytes. Raises InputError if the result is larger than firmware can read.
    """
    require(PROGRAMS)
    with Scratch(prefix="efi-", dir=output.parent) as scratch:
        tree = Path(scratch) / "tree"
        read_tree(image, tree)
        for name, text in replacements.items():
            if target := find(tree, name):
                target.write_text(text)
        size = _image_size(tree)
        if size > SIZE_LIMIT:
            raise InputError(f"the EFI image would have {size} bytes; firmware reads {SIZE_LIMIT}")
        with output.open("wb") as stream:
            stream.truncate(size)
        run(["mkfs.vfat", "-n", VOLUME_NAME, "-i", serial, "--invariant", output])
        for path in sorted(tree.rglob("*"), reverse=True):
            os.utime(path, (epoch, epoch))
        # mtools takes directory times from the clock unless told, and writes local time.
        environment = {"TZ": "UTC", "SOURCE_DATE_EPOCH": str(epoch), "MTOOLS_SKIP_CHECK": "1"}
        for path in sorted(tree.rglob("*")):
            inside = f"::/{path.relative_to(tree)}"
            if path.is_dir():
                run(["mmd", "-i", output, inside], environment=environment)
            else:
                run(["mcopy", "-m", "-Q", "-i", output, path, inside], environment=environment)


def _image_size(tree: Path) -> int:
    files = [path.stat().st_size for path in tree.rglob("*") if path.is_file()]
    # One cluster a file is lost at worst; two tables of FAT16 and the root directory fit into the spare MiB.
    content = sum((size + 4095) // 4096 * 4096 for size in files) + 4096 * sum(1 for _ in tree.rglob("*"))
    return (content // _MIB + 2) * _MIB
