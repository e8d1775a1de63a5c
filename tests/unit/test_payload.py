"""The payload: right wheels for the box's Python, digests of all, same inputs same bytes."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from appliance import payload as payload_module
from appliance.archive import write_tar
from appliance.cache import Cache, Entry, digest_file
from appliance.errors import InputError, LockError
from appliance.lock_files import COMPILED, LOCKS, lock_files, lock_path, read_lock
from appliance.payload import Payload, write_payload_tar
from appliance.platform_data import load_platform, platform_names
from appliance.profile import load_profile
from appliance.progress import Progress
from appliance.stages import BuildContext, build_context
from appliance.tree import TREE, application_sources
from appliance.wheels import application_stage, fits, third_party_stage

ALMA = load_platform("almalinux8")
DEBIAN = load_platform("debian12")


@pytest.mark.parametrize(
    ("wheel", "alma", "debian"),
    [
        ("click-8.5.1-py3-none-any.whl", True, True),
        ("pydbus-0.6.0-py2.py3-none-any.whl", True, True),
        ("psutil-7.2.2-cp36-abi3-manylinux2010_x86_64.manylinux_2_12_x86_64.whl", True, True),
        ("cryptography-50.0.2-cp311-abi3-manylinux_2_28_x86_64.whl", True, True),
        ("cryptography-50.0.2-cp311-abi3-manylinux_2_34_x86_64.whl", False, True),
        ("cffi-2.1.1-cp312-cp312-manylinux_2_17_x86_64.whl", True, False),
        ("cffi-2.1.1-cp311-cp311-manylinux_2_17_x86_64.whl", False, True),
        ("cffi-2.1.1-cp311-cp311-manylinux_2_17_aarch64.whl", False, False),
        ("cffi-2.1.1-cp311-cp311-musllinux_1_2_x86_64.whl", False, False),
        ("PyGObject-3.44.2-cp311-cp311-linux_x86_64.whl", False, True),
        ("thing-1-cp313-abi3-manylinux_2_17_x86_64.whl", False, False),
        ("thing-1-py27-none-any.whl", False, False),
        ("not a wheel", False, False),
    ],
)
def test_wheel_tags_up_to_the_boxes_c_library(wheel: str, alma: bool, debian: bool) -> None:
    assert (fits(Path(wheel), ALMA), fits(Path(wheel), DEBIAN)) == (alma, debian)


@pytest.mark.parametrize("name", platform_names())
def test_locks_hold_what_the_box_needs_with_digests(name: str) -> None:
    locked = {package.name: package for package in read_lock(lock_path(load_platform(name)))}
    assert locked["pygobject"].version == "3.44.2"
    assert locked["pydbus"].version == "0.6.0"
    assert locked["ansible-core"].version.startswith("2.16.")
    assert "kiwi" not in locked
    assert all(package.digests for package in locked.values())


def test_locks_are_those_of_the_requirements() -> None:
    assert [file.path.name for file in lock_files() if not file.current] == []


def test_no_lock_names_a_host() -> None:
    for path in LOCKS.glob("*.txt"):
        assert "://" not in path.read_text(), path


def test_a_lock_line_without_digest_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lock.txt"
    file.write_text("click==8.5.1\n")
    with pytest.raises(LockError, match="click"):
        read_lock(file)
    with pytest.raises(LockError, match="cannot be read"):
        read_lock(tmp_path / "absent.txt")


def test_a_package_that_cannot_be_compiled_here_is_one_error_with_its_remedy(tmp_path: Path) -> None:
    """A box whose C library is older than any build host's."""
    python = ALMA.python.model_copy(update={"manylinux": "2_5"})
    old = ALMA.model_copy(update={"python": python})
    with pytest.raises(InputError, match=r"pygobject 3\.44\.2 has no wheel for AlmaLinux 8") as caught:
        third_party_stage(old)
    assert "--wheel-dir" in caught.value.remedy
    wheel = tmp_path / "PyGObject-3.44.2-cp312-cp312-linux_x86_64.whl"
    wheel.write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        third_party_stage(old, [tmp_path])
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("gi/__init__.py", "")
    assert third_party_stage(old, [tmp_path]).inputs != {}


def test_a_ready_wheel_of_another_python_or_version_does_not_count(tmp_path: Path) -> None:
    python = ALMA.python.model_copy(update={"manylinux": "2_5"})
    old = ALMA.model_copy(update={"python": python})
    for name in (
        "PyGObject-3.44.2-cp311-cp311-linux_x86_64.whl",
        "PyGObject-3.42.0-cp312-cp312-linux_x86_64.whl",
    ):
        (tmp_path / name).write_bytes(b"wheel")
    with pytest.raises(InputError):
        third_party_stage(old, [tmp_path])


def test_compiled_packages_are_pinned_once() -> None:
    for file in lock_files():
        for line in file.wanted:
            name, _, version = line.partition("==")
            if name.lower() in COMPILED:
                assert version == COMPILED[name.lower()]


def copy_of_the_sources(target: Path) -> Path:
    for source in application_sources():
        copy = target / source.relative_to(TREE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return target


def quiet_context(cache: Path):  # type: ignore[no-untyped-def]
    return build_context("test", epoch=1767225600, cache=Cache(cache), progress=Progress(silent=True))


def test_our_own_wheel_is_the_same_bytes_from_two_places(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        sources = copy_of_the_sources(tmp_path / name)
        with quiet_context(tmp_path / f"cache-{name}") as context:
            entry = context.build(application_stage(1767225600, sources))
        [wheel] = entry.output.glob("*.whl")
        digests.append(digest_file(wheel))
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        assert "daemon/org.centralino.xml" in names
        assert any(item.endswith("entry_points.txt") for item in names)
        assert not any("/tests/" in item or item.endswith(".pyc") for item in names)
    assert digests[0] == digests[1]


def small_payload(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Payload, BuildContext]:
    """A payload of two made-up wheels and a tree with one role; no network."""
    tree = tmp_path / f"tree-{name}"
    (tree / "roles/base/tasks").mkdir(parents=True)
    (tree / "roles/install").write_text("#!/bin/sh\n")
    (tree / "roles/site.yml").write_text("---\n")
    (tree / "roles/base/tasks/main.yml").write_text("---\n")
    monkeypatch.setattr(payload_module, "TREE", tree)
    wheels = tmp_path / f"wheels-{name}"
    wheels.mkdir()
    (wheels / "click-8.5.1-py3-none-any.whl").write_bytes(b"click")
    (wheels / "PyYAML-6.0-cp311-cp311-linux_x86_64.whl").write_bytes(b"yaml")
    own = tmp_path / f"own-{name}"
    own.mkdir()
    (own / "centralino-0.1.0-py3-none-any.whl").write_bytes(b"own")
    profile = load_profile(Path("pbx-debian12"))
    with quiet_context(tmp_path / f"cache-{name}") as context:
        dependencies = context.build(
            payload_module._dependencies_stage(profile, DEBIAN, Entry("w", "w", wheels, 0), context.epoch)
        )
        whole = context.build(
            payload_module._whole_stage(dependencies, Entry("a", "a", own, 0), DEBIAN, context.epoch)
        )
    result = Payload(whole.output / "payload", whole.key, dependencies.output / "payload", dependencies.key)
    return result, context


def test_the_manifest_names_every_file_with_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload, _ = small_payload(tmp_path, "one", monkeypatch)
    for directory in (payload.directory, payload.dependencies):
        files = json.loads((directory / "manifest.json").read_text())["files"]
        there = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
        assert set(files) == there - {"manifest.json"}
        assert all(digest_file(directory / name) == digest for name, digest in files.items())
    assert (payload.directory / "install").stat().st_mode & 0o111
    assert "pyyaml==6.0 --hash=sha256:" in (payload.directory / "requirements.txt").read_text()
    assert not (payload.dependencies / "application").exists()
    assert [path.name for path in (payload.directory / "application").iterdir()] == [
        "centralino-0.1.0-py3-none-any.whl"
    ]


def test_a_payload_is_the_same_bytes_from_two_places_at_two_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for name, umask in (("one", 0o022), ("two", 0o077)):
        before = os.umask(umask)
        try:
            payload, context = small_payload(tmp_path, name, monkeypatch)
            digests.append(digest_file(write_payload_tar(payload, tmp_path / f"{name}.tar", context.epoch)))
        finally:
            os.umask(before)
    assert digests[0] == digests[1]


def test_a_tar_keeps_links_and_forgets_times(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "b").mkdir(parents=True)
    (tree / "b/file").write_text("x")
    os.link(tree / "b/file", tree / "a")
    (tree / "link").symlink_to("b/file")
    streams = []
    for moment in (1, 2_000_000_000):
        for path in tree.rglob("*"):
            os.utime(path, (moment, moment), follow_symlinks=False)
        stream = io.BytesIO()
        write_tar(stream, tree, 1767225600)
        streams.append(stream.getvalue())
    assert streams[0] == streams[1]
    with tarfile.open(fileobj=io.BytesIO(streams[0])) as archive:
        kinds = {member.name: (member.isreg(), member.islnk(), member.issym()) for member in archive}
        assert {member.mtime for member in archive} == {1767225600}
    assert kinds["a"] == (True, False, False)
    assert kinds["b/file"] == (False, True, False)
    assert kinds["link"] == (False, False, True)
