"""What stands is not written again; what was touched, replaced or made from something else is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cache import Cache
from appliance.formats_contract import OutputFormat
from appliance.image import _make
from appliance.platform_data import load_platform
from appliance.profile import load_profile
from appliance.progress import Progress
from appliance.stages import build_context
from appliance.standing import artefact_key, companions, remember, still_stands

PROFILE = load_profile(Path("pbx-debian12"))
PLATFORM = load_platform("debian12")
KEY = artefact_key(OutputFormat.RAW, "a root", PROFILE, PLATFORM, 0)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Cache]:
    target, cache = tmp_path / "out/box.raw", Cache(tmp_path / "cache")
    target.parent.mkdir()
    target.write_bytes(b"disk")
    for suffix in (".manifest.json", ".cdx.json"):
        (target.parent / f"box.raw{suffix}").write_text("{}")
    (target.parent / "box.json").write_text("{}")
    (target.parent / "box.rawhide").write_text("somebody else's")
    remember(target, KEY, cache)
    return target, cache


def test_what_nobody_touched_stands(written: tuple[Path, Cache]) -> None:
    target, cache = written
    assert [path.name for path in companions(target)] == [
        "box.json", "box.raw", "box.raw.cdx.json", "box.raw.manifest.json",
    ]  # fmt: skip
    (target.parent / "box.rawhide").unlink()
    assert still_stands(target, KEY, cache)


def rewritten(path: Path) -> None:
    """Same bytes, same length, and the time of change set back: only its change time tells."""
    status = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize("name", ["box.raw", "box.raw.manifest.json", "box.json"])
@pytest.mark.parametrize("change", [rewritten, replaced, Path.unlink])
def test_what_was_touched_does_not(
    name: str, change: Callable[[Path], None], written: tuple[Path, Cache]
) -> None:
    target, cache = written
    change(target.with_name(name))
    assert not still_stands(target, KEY, cache)


def test_another_input_or_a_damaged_record_is_no_match(written: tuple[Path, Cache]) -> None:
    target, cache = written
    for other in (
        artefact_key(OutputFormat.XEN, "a root", PROFILE, PLATFORM, 0),
        artefact_key(OutputFormat.RAW, "another root", PROFILE, PLATFORM, 0),
        artefact_key(OutputFormat.RAW, "a root", PROFILE, PLATFORM, 1),
    ):
        assert other != KEY
        assert not still_stands(target, other, cache)
    for text in ("", "[]", '{"key": 1}', '{"files": 3}'):
        next((cache.directory / "written").iterdir()).write_text(text)
        assert not still_stands(target, KEY, cache)


def test_a_file_inside_of_a_directory_counts(tmp_path: Path) -> None:
    target, cache = tmp_path / "box.root", Cache(tmp_path / "cache")
    (target / "etc").mkdir(parents=True)
    (target / "etc/name").write_text("a")
    remember(target, KEY, cache)
    assert still_stands(target, KEY, cache)
    (target / "etc/name").write_text("b")
    assert not still_stands(target, KEY, cache)


def test_a_second_build_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "stages/root/0123/output/root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/name").write_text("box")
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text("")

    def build(*, cold: bool = False) -> tuple[int, int]:
        with build_context(
            "test", epoch=0, cache=Cache(tmp_path / "cache"), cold=cold, progress=Progress(silent=True)
        ) as context:
            path = _make(OutputFormat.TBZ, root, PROFILE, PLATFORM, tmp_path / "out", context, None)
        status = path.stat()
        return status.st_ino, status.st_ctime_ns

    first = build()
    assert build() == first
    assert build(cold=True) != first
