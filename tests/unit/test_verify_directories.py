"""A root tree that was written out is verified file by file, like every other artefact."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cache import Cache
from appliance.errors import InputError
from appliance.formats_contract import OutputFormat
from appliance.image import _make
from appliance.platform_data import load_platform
from appliance.profile import load_profile
from appliance.progress import Progress
from appliance.stages import build_context
from appliance.verify import verify


@pytest.fixture
def written(tmp_path: Path) -> Path:
    root = tmp_path / "stages/root/0123/output/root"
    (root / "etc/cron.d").mkdir(parents=True)
    (root / "etc/name").write_text("box")
    (root / "etc/shadow").write_text("root:*:1::::::\n")
    (root / "etc/shadow").chmod(0o640)
    (root / "etc/link").symlink_to("name")
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text("")
    profile, platform = load_profile(Path("pbx-debian12")), load_platform("debian12")
    with build_context(
        "test", epoch=0, cache=Cache(tmp_path / "cache"), progress=Progress(silent=True)
    ) as context:
        return _make(OutputFormat.ROOT, root, profile, platform, tmp_path / "out", context, None)


def test_a_tree_as_it_was_written_is_good(written: Path) -> None:
    report = verify(written)
    assert report.findings == []
    assert "every file's kind, mode, owner and SHA-256" in report.checked


def flip(tree: Path) -> None:
    (tree / "etc/name").write_text("bow")


def widen(tree: Path) -> None:
    (tree / "etc/shadow").chmod(0o644)


def add(tree: Path) -> None:
    (tree / "etc/cron.d/new").write_text("* * * * * root true\n")


def remove(tree: Path) -> None:
    (tree / "etc/name").unlink()


def turn(tree: Path) -> None:
    (tree / "etc/link").unlink()
    (tree / "etc/link").symlink_to("shadow")


def give(tree: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(tree / "etc/shadow", 1, 1)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flip, "etc/name: is not what was built"),
        (widen, "etc/shadow: is not what was built"),
        (add, "etc/cron.d/new: was added"),
        (remove, "etc/name: is missing"),
        (turn, "etc/link: is not what was built"),
        (give, "etc/shadow: is not what was built"),
    ],
)
def test_every_change_is_named(damage: Callable[[Path], None], sentence: str, written: Path) -> None:
    damage(written)
    assert [each.sentence() for each in verify(written).findings] == [sentence]


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no manifest"):
        verify(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        verify(tmp_path / "nowhere")
