"""What stands is not written again; what was touched, replaced or made from something else is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cache import Cache
from appliance.formats_contract import OutputFormat, artefact_name
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
    target, cache = tmp_path / "out/box.ami.raw", Cache(tmp_path / "cache")
    target.parent.mkdir()
    target.write_bytes(b"disk")
    for suffix in (".manifest.json", ".cdx.json"):
        (target.parent / f"box.ami.raw{suffix}").write_text("{}")
    (target.parent / "box.ami.json").write_text("{}")
    for name in ("box.ami.rawhide", "box.json"):
        (target.parent / name).write_text("somebody else's")
    remember(target, KEY, cache)
    return target, cache


def test_what_nobody_touched_stands(written: tuple[Path, Cache]) -> None:
    target, cache = written
    assert [path.name for path in companions(target)] == [
        "box.ami.json", "box.ami.raw", "box.ami.raw.cdx.json", "box.ami.raw.manifest.json",
    ]  # fmt: skip
    raw = target.with_name("box.raw")
    raw.touch()
    assert companions(raw) == [raw]
    (target.parent / "box.ami.rawhide").unlink()
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


@pytest.mark.parametrize("name", ["box.ami.raw", "box.ami.raw.manifest.json", "box.ami.json"])
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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "stages/root/0123/output/root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/name").write_text("box")
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text("")
    return root


def test_an_interruption_while_it_is_described_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artefact was complete, but nobody could have verified it; nor with the manifest of an older one."""

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    for older in ("manifest.json", "cdx.json"):
        target = tmp_path / "out" / artefact_name(PROFILE, OutputFormat.TBZ)
        target.with_name(f"{target.name}.{older}").write_text("{}")
    monkeypatch.setattr("appliance.manifest.spdx", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        build_context(
            "test", epoch=0, cache=Cache(tmp_path / "cache"), progress=Progress(silent=True)
        ) as context,
    ):
        _make(OutputFormat.TBZ, root, PROFILE, PLATFORM, tmp_path / "out", context, None)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_second_build_writes_nothing(root: Path, tmp_path: Path) -> None:
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
