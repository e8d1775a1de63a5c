"""The kiwi description: golden for both platforms, valid by kiwi's own schema, honest about what it keeps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lxml import etree

from appliance.errors import BuildError, HostError
from appliance.formats_contract import Variant
from appliance.kiwi import (
    KIWI_VERSION,
    SCHEMA_VERSION,
    kiwi_version,
    module_streams,
    render_description,
    signing_keys,
    validate_description,
)
from appliance.mirror import Source, resolve_sources
from appliance.platform_data import load_platform, platform_names
from appliance.profile import Profile, load_profile, parse_profile

GOLDEN = Path(__file__).parent / "golden_kiwi"
MIRRORS = {
    "debian12": ("http://mirror.test/debian", "security=http://mirror.test/debian-security"),
    "almalinux8": ("http://mirror.test/almalinux", "epel=http://mirror.test/epel"),
}


def sources_of(profile: Profile) -> list[Source]:
    name = profile.platform.name
    return resolve_sources(profile, load_platform(name), MIRRORS[name], apt=[], yum={})


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("name", platform_names())
def test_the_description_is_golden_and_valid(name: str, variant: Variant, tmp_path: Path) -> None:
    """Renew with UPDATE_GOLDEN=1 and review the difference."""
    profile = load_profile(Path(f"pbx-{name}"))
    text = render_description(profile, load_platform(name), variant, sources_of(profile), signed=True)
    golden = GOLDEN / f"{name}-{variant}.xml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()
    (tmp_path / "config.xml").write_text(text)
    validate_description(tmp_path)


def test_a_description_that_kiwi_would_refuse_is_refused_before_it_runs(tmp_path: Path) -> None:
    profile = load_profile(Path("pbx-debian12"))
    text = render_description(
        profile, load_platform("debian12"), Variant.CONTAINER, sources_of(profile), signed=True
    )
    (tmp_path / "config.xml").write_text(text.replace("<packagemanager>apt", "<packagemanager>portage"))
    with pytest.raises(BuildError, match=r"line \d+: .*(packagemanager|preferences)"):
        validate_description(tmp_path)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    profile = load_profile(Path("pbx-debian12"))
    product = profile.product.model_copy(update={"title": 'A & B <type image="x"/> "quoted"'})
    profile = profile.model_copy(update={"product": product})
    text = render_description(
        profile, load_platform("debian12"), Variant.CONTAINER, sources_of(profile), signed=True
    )
    root = etree.fromstring(text.encode())
    assert root.get("displayname") == product.title
    assert len(root.findall(".//type")) == 1


def test_only_the_profiles_own_repositories_stay_in_the_image() -> None:
    """The build host's mirror is nobody else's business."""
    document = {
        "product": {"name": "pbx", "title": "PBX", "version": "1"},
        "platform": {"name": "debian12", "repositories": [{"name": "own", "url": "http://own.test/deb"}]},
    }
    profile = parse_profile(document, "test")
    text = render_description(
        profile, load_platform("debian12"), Variant.CONTAINER, sources_of(profile), signed=True
    )
    kept = etree.fromstring(text.encode()).findall("repository[@imageinclude='true']")
    assert [repository.get("alias") for repository in kept] == ["own"]


def test_streams_of_the_profile_beat_the_platforms() -> None:
    document = {
        "product": {"name": "pbx", "title": "PBX", "version": "1"},
        "platform": {"name": "almalinux8"},
        "packages": {"modules": ["mariadb:10.5", "redis:6"]},
    }
    streams = module_streams(parse_profile(document, "test"), load_platform("almalinux8"))
    assert streams == ["mariadb:10.5", "nginx:1.24", "redis:6"]


@pytest.mark.parametrize(
    ("version", "numbers"), [("1", "1.0.0"), ("1.4rc1", "1.41.0"), ("0.1.0", "0.1.0"), ("1.2.3.4", "1.2.3")]
)
def test_kiwi_gets_three_numbers(version: str, numbers: str) -> None:
    assert kiwi_version(version) == numbers


def test_without_a_key_no_unchecked_package_is_installed() -> None:
    platform = load_platform("debian12")
    keys = platform.keys.model_copy(update={"files": (Path("/nonexistent.gpg"),)})
    with pytest.raises(HostError, match="could not be checked"):
        signing_keys(load_profile(Path("pbx-debian12")), platform.model_copy(update={"keys": keys}))


def test_the_pinned_kiwi_knows_the_schema_and_calls_no_unknown_option() -> None:
    """10.2.9 to 11.1.6 call `setfiles -T0`, which AlmaLinux 8 refuses."""
    import kiwi
    from kiwi.version import __version__

    assert __version__ == KIWI_VERSION
    package = Path(kiwi.__path__[0])
    assert f"<value>{SCHEMA_VERSION}</value>" in (package / "schema/kiwi.rng").read_text()
    assert "-T0" not in (package / "system/setup.py").read_text()
