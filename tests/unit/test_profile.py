"""Build profiles: accepted whole, or refused with every field named; never a secret inside."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ProfileError
from appliance.platform_data import load_platform
from appliance.profile import (
    PROFILES,
    Profile,
    Tier,
    check_against_platform,
    load_profile,
    parse_profile,
    profile_schema,
)

SHIPPED = sorted(path.stem for path in PROFILES.glob("*.toml"))
MINIMAL: dict[str, object] = {
    "schema": 1,
    "product": {"name": "pbx", "title": "PBX", "version": "1.2.3"},
    "platform": {"name": "debian12"},
}


def with_value(path: str, value: object) -> dict[str, object]:
    document = copy.deepcopy(MINIMAL)
    table: dict[str, object] = document
    *parents, last = path.split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        assert isinstance(inner, dict)
        table = inner
    table[last] = value
    return document


def refused(document: dict[str, object]) -> dict[str, str]:
    """Path to message of each problem."""
    with pytest.raises(ProfileError) as caught:
        parse_profile(document, "test")
    return {problem.path: problem.sentence() for problem in caught.value.problems}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_fit_their_platform(name: str) -> None:
    profile = load_profile(Path(name))
    check_against_platform(profile, load_platform(profile.platform.name), name)
    assert profile.output.formats


@pytest.mark.parametrize("name", SHIPPED)
def test_schema_accepts_what_the_parser_accepts(name: str) -> None:
    schema = profile_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tomllib.loads((PROFILES / f"{name}.toml").read_text()), schema)


def test_every_error_is_told_at_once_with_its_field() -> None:
    problems = refused(
        {
            "product": {"name": "Has Spaces", "title": "x", "version": "one"},
            "bogus": 1,
            "network": {"method": "static", "address": "192.0.2.300/24", "hostname": "-"},
            "disk": {"tier": "huge"},
            "access": {"root_password_hash": "not a hash"},
            "boot": {"iso_label": "L" * 33},
            "output": {"formats": ["qcow2", "floppy"]},
        }
    )
    assert set(problems) == {
        "product.name",
        "product.version",
        "platform",
        "bogus",
        "network.address",
        "network.hostname",
        "disk.tier",
        "access.root_password_hash",
        "boot.iso_label",
        "output.formats.1",
    }
    assert all(";" in sentence for sentence in problems.values()), "each has a remedy"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("access.root_password", "hunter2"),
        ("access.passphrase", "hunter2"),
        ("output.ami.secret_access_key", "x"),
        ("signing", {"tool": "gpg", "key_file": "-----BEGIN PGP PRIVATE KEY BLOCK-----"}),
        ("access.ssh_keys", ["-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA"]),
        ("platform.mirror", "https://user:hunter2@mirror.example/debian"),
    ],
)
def test_secrets_are_refused_without_being_repeated(path: str, value: object) -> None:
    with pytest.raises(ProfileError) as caught:
        parse_profile(with_value(path, value), "test")
    assert len(caught.value.problems) == 1
    assert "no" in str(caught.value) and "secret" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_bad_hash_is_not_repeated_either() -> None:
    [sentence] = refused(with_value("access.root_password_hash", "hunter2")).values()
    assert "hunter2" not in sentence
    assert "openssl passwd -6" in sentence


@pytest.mark.parametrize(
    "disk",
    [
        {"raid": "1", "device": "/dev/sda"},
        {"raid": "1", "devices": ["/dev/sda"]},
        {"raid": "1", "devices": ["/dev/sda", "/dev/sda"]},
        {"devices": ["/dev/sda", "/dev/sdb"]},
        {"minimum_gib": 20, "volumes": {"log_gib": 30}},
    ],
)
def test_impossible_disks_are_refused(disk: dict[str, object]) -> None:
    assert list(refused(with_value("disk", disk))) == ["disk"]


@pytest.mark.parametrize(
    "network",
    [
        {"method": "static"},
        {"method": "dhcp", "address": "192.0.2.10/24"},
        {"method": "static", "address": "192.0.2.10/24", "gateway": "198.51.100.1"},
        {"method": "static", "address": "192.0.2.10/24", "gateway": "2001:db8::1"},
    ],
)
def test_half_networks_are_refused(network: dict[str, object]) -> None:
    assert list(refused(with_value("network", network))) == ["network"]


def test_platform_decides_about_releases_streams_and_suites() -> None:
    document = with_value("platform", {"name": "debian12", "release": "8.10"})
    document["packages"] = {
        "modules": ["nginx:1.24"],
        "asterisk_repository": {"name": "own", "url": "https://packages.example/", "key": "/nonexistent.gpg"},
    }
    profile = parse_profile(document, "test")
    with pytest.raises(ProfileError) as caught:
        check_against_platform(profile, load_platform("debian12"), "test")
    assert [problem.path for problem in caught.value.problems] == [
        "platform.release",
        "packages.modules",
        "packages.asterisk_repository.key",
    ]


def test_label_is_safe_in_kernel_arguments_and_grub() -> None:
    document = with_value("product", {"name": "a" * 31, "title": "x", "version": "1.2.3~rc1+4"})
    label = parse_profile(document, "test").iso_label
    assert len(label) == 32
    assert set(label) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@pytest.mark.parametrize(
    ("tier", "sizes"),
    [  # S-SZ-01 and, for 25 and 100 users, S-SZ-05
        (Tier.USERS_25, (2, 6, 70)),
        (Tier.USERS_75, (4, 8, 150)),
        (Tier.USERS_100, (4, 8, 70)),
        (Tier.USERS_250, (6, 8, 150)),
        (Tier.USERS_1000, (8, 12, 200)),
        (Tier.USERS_1500, (10, 16, 200)),
        (Tier.USERS_2000, (12, 16, 200)),
    ],
)
def test_tiers_are_those_of_the_requirements(tier: Tier, sizes: tuple[int, int, int]) -> None:
    assert (tier.sizes.cpus, tier.sizes.memory_gib, tier.sizes.disk_gib) == sizes


def test_missing_and_broken_files_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="pbx-almalinux8"):
        load_profile(tmp_path / "nothing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[product\n")
    with pytest.raises(ProfileError, match="not TOML"):
        load_profile(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match="not TOML"):
        load_profile(broken)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@given(section=st.sampled_from([*Profile.model_fields, "schema", "strange"]), value=JSON)
def test_any_document_is_accepted_or_refused_with_its_field(section: str, value: object) -> None:
    document = with_value(section, value)
    try:
        profile = parse_profile(document, "test")
    except ProfileError as error:
        assert error.problems
        assert all(problem.path.split(".")[0] == section for problem in error.problems)
    else:
        assert parse_profile(profile.model_dump(mode="json", by_alias=True), "again") == profile
