"""Platforms as data: whole, alike, and without a host name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from appliance.errors import ProfileError
from appliance.formats_contract import Variant
from appliance.platform_data import PLATFORMS, box_text, load_platform, platform_names
from daemon.platform import platform as read_box

NAMES = platform_names()


def test_all_platforms_answer_the_same_questions() -> None:
    first, *others = (load_platform(name) for name in NAMES)
    for other in others:
        assert set(other.box.units) == set(first.box.units)
        assert set(other.box.paths) == set(first.box.paths)
        assert set(other.box.users) == set(first.box.users)
        assert set(other.packages) == set(first.packages)
        assert set(other.packages_disk) == set(first.packages_disk)


@pytest.mark.parametrize("name", NAMES)
def test_the_daemon_reads_what_the_image_carries(name: str, tmp_path: Path) -> None:
    data = load_platform(name)
    file = tmp_path / "platform.toml"
    file.write_text(box_text(data))
    box = read_box(file)
    assert (box.name, box.version) == (data.box.name, data.box.version)
    assert box.units == data.box.units
    assert {key: str(path) for key, path in box.paths.items()} == data.box.paths


@pytest.mark.parametrize("name", NAMES)
def test_no_platform_names_a_mirror(name: str) -> None:
    assert not re.search(r"https?://|file://", (PLATFORMS / f"{name}.toml").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_holds_all_that_a_container_holds_and_a_kernel(name: str) -> None:
    data = load_platform(name)
    container, disk = set(data.package_names(Variant.CONTAINER)), set(data.package_names(Variant.DISK))
    assert container < disk
    assert any("kernel" in package or "linux-image" in package for package in disk - container)


def test_almalinux8_targets_what_lives() -> None:
    """Python 3.12 (3.11 is retired there), glibc 2.28, and the streams that need enabling."""
    data = load_platform("almalinux8")
    assert data.python.executable == "/usr/bin/python3.12"
    assert data.python.manylinux == "2_28"
    assert data.modules.streams == ("mariadb:10.11", "nginx:1.24")


def test_an_unknown_platform_names_the_known_ones() -> None:
    with pytest.raises(ProfileError, match="almalinux8, debian12"):
        load_platform("plan9")


@pytest.mark.parametrize("name", NAMES)
def test_a_key_of_the_box_stands_once(name: str) -> None:
    tomllib.loads((PLATFORMS / f"{name}.toml").read_text())  # refuses doubles
