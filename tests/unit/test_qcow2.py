"""Our reader of qcow2 agrees with QEMU's writer, and names what is damaged."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.errors import VerificationError
from appliance.qcow2 import read_qcow2
from appliance.sparse import content_digest, raw_content_digest

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="this host lacks qemu-img")
MIB = 1 << 20


def write(directory: Path, *options: str, cluster: int = 65536) -> tuple[Path, Path]:
    raw, made = directory / "disk.raw", directory / "disk.qcow2"
    chance = random.Random(5)  # noqa: S311 (no secret)
    with raw.open("wb") as stream:
        stream.truncate(600 * MIB)
        # Some that compresses, some that does not, some in the last cluster, with the second table in use.
        for offset in (0, 65536 * 3 + 7, 40 * MIB, 513 * MIB, 600 * MIB - 4096):
            stream.seek(offset)
            stream.write(chance.randbytes(2048) + b"text " * 400)
    words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", f"compat=1.1,cluster_size={cluster}"]
    subprocess.run([*words, *options, raw, made], check=True)
    return raw, made


@pytest.mark.parametrize("options", [(), ("-c",)])
@pytest.mark.parametrize("cluster", [4096, 65536])
def test_reads_what_qemu_wrote(options: tuple[str, ...], cluster: int, tmp_path: Path) -> None:
    raw, made = write(tmp_path, *options, cluster=cluster)
    size, clusters = read_qcow2(made)
    assert size == raw.stat().st_size
    parts = list(clusters)
    assert [offset for offset, _ in parts] == sorted(offset for offset, _ in parts)
    with raw.open("rb") as stream:
        for offset, content in parts:
            stream.seek(offset)
            assert stream.read(len(content)) == content
    if cluster == 65536:
        assert content_digest(size, parts) == raw_content_digest(raw)


def test_names_what_is_damaged(tmp_path: Path) -> None:
    _, made = write(tmp_path, "-c")
    good = made.read_bytes()
    _, clusters = read_qcow2(made)
    next(clusters)
    for damage, told in (
        (b"\0" + good[1:], "is no qcow2 file"),
        (good[:8] + b"\0\0\0\0\0\0\1\0" + good[16:], "of another kind"),
        (good[: len(good) // 3], "outside of the file|cut short|damaged"),
    ):
        made.write_bytes(damage)
        with pytest.raises(VerificationError, match=told):
            list(read_qcow2(made)[1])
