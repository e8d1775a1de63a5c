"""Which mirror a build uses: command line, profile, this host; else one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import MirrorError
from appliance.mirror import AptEntry, Source, apt_entries, probe, resolve_sources, yum_addresses
from appliance.platform_data import load_platform
from appliance.profile import parse_profile

DEB822 = """\
Types: deb
# a comment inside
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/x.gpg

Types: deb deb-src
URIs: http://security.test/debian-security/
Suites: bookworm-security
Components: main
 contrib

Enabled: no
Types: deb
URIs: http://off.test/
Suites: trixie
"""
ONE_LINE = """\
# deb http://commented.test/ bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian bookworm main contrib # why
deb-src http://sources.test/ bookworm main
"""
HOST = [AptEntry("http://host.test/debian", ("bookworm",), ("main",))]


def profile(**platform: object):  # type: ignore[no-untyped-def]
    product = {"name": "pbx", "title": "PBX", "version": "1"}
    return parse_profile({"product": product, "platform": {"name": "debian12", **platform}}, "test")


def test_apt_is_read_in_both_its_forms(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/notes.txt").write_text("deb http://no.test/ bookworm main")
    assert apt_entries(tmp_path) == [
        AptEntry("http://mirror.test/debian", ("bookworm",), ("main", "contrib")),
        AptEntry("http://mirror.test/debian", ("bookworm", "bookworm-updates"), ("main",)),
        AptEntry("http://security.test/debian-security", ("bookworm-security",), ("main", "contrib")),
    ]


def test_dnf_is_read_and_a_mirror_list_gives_no_address(tmp_path: Path) -> None:
    (tmp_path / "alma.repo").write_text(
        "[baseos]\nname=B\nbaseurl=https://m.test/almalinux/8.10/BaseOS/x86_64/os/\nenabled=1\n"
        "[appstream]\nmirrorlist=https://m.test/list\n[off]\nbaseurl=https://off.test/\nenabled=0\n"
    )
    found = yum_addresses(tmp_path)
    assert found == {"baseos": "https://m.test/almalinux/8.10/BaseOS/x86_64/os"}


def test_a_dnf_host_gives_the_mirror_above_its_repository() -> None:
    yum = {
        "baseos": "https://m.test/almalinux/$releasever/BaseOS/$basearch/os",
        "epel": "https://m.test/epel/8/Everything/x86_64",
    }
    product = {"name": "pbx", "title": "PBX", "version": "1"}
    alma = parse_profile({"product": product, "platform": {"name": "almalinux8", "release": "8.9"}}, "test")
    sources = resolve_sources(alma, load_platform("almalinux8"), apt=[], yum=yum)
    assert [source.url for source in sources] == [
        "https://m.test/almalinux/8.9/BaseOS/x86_64/os",
        "https://m.test/almalinux/8.9/AppStream/x86_64/os",
        "https://m.test/almalinux/8.9/PowerTools/x86_64/os",
        "https://m.test/almalinux/8.9/extras/x86_64/os",
        "https://m.test/epel/8/Everything/x86_64",
    ]


def test_the_command_line_beats_the_profile_beats_the_host() -> None:
    data = load_platform("debian12")
    named = profile(mirror="http://profile.test/debian")
    words = ("http://line.test/debian",)
    assert resolve_sources(named, data, words, apt=HOST, yum={})[0].url == "http://line.test/debian"
    assert resolve_sources(named, data, apt=HOST, yum={})[0].url == "http://profile.test/debian"
    assert resolve_sources(profile(), data, apt=HOST, yum={})[0].url == "http://host.test/debian"


def test_only_mirrors_that_the_profile_names_stay_in_the_image() -> None:
    data = load_platform("debian12")
    own = [{"name": "own", "url": "https://own.test/"}]
    sources = resolve_sources(profile(repositories=own), data, apt=HOST, yum={})
    assert {source.name for source in sources if source.keep_in_image} == {"own"}


def test_an_optional_mirror_of_this_host_is_not_mixed_with_a_named_one() -> None:
    host = [*HOST, AptEntry("http://host.test/security", ("bookworm-security",), ("main",))]
    data = load_platform("debian12")
    mixed = resolve_sources(profile(), data, ("http://line.test/debian",), apt=host, yum={})
    assert "bookworm-security" not in {source.name for source in mixed}
    whole = resolve_sources(profile(), data, apt=host, yum={})
    assert "bookworm-security" in {source.name for source in whole}


def test_a_repository_of_the_profile_replaces_the_platforms_asterisk() -> None:
    document = {
        "product": {"name": "pbx", "title": "PBX", "version": "1"},
        "platform": {"name": "debian12"},
        "packages": {"asterisk_repository": {"name": "voice", "url": "https://voice.test/deb"}},
    }
    sources = resolve_sources(parse_profile(document, "test"), load_platform("debian12"), apt=HOST, yum={})
    names = [source.name for source in sources]
    assert "bullseye" not in names
    assert names[-1] == "voice"


def test_every_unknown_mirror_is_named_in_one_error() -> None:
    with pytest.raises(MirrorError, match="main, epel") as caught:
        product = {"name": "pbx", "title": "PBX", "version": "1"}
        alma = parse_profile({"product": product, "platform": {"name": "almalinux8"}}, "test")
        resolve_sources(alma, load_platform("almalinux8"), apt=HOST, yum={})
    assert "--mirror main=URL --mirror epel=URL" in caught.value.remedy


@pytest.mark.parametrize("word", ["moon=http://x.test", "ftp://x.test", "--evil", "main=; rm"])
def test_senseless_mirrors_are_refused(word: str) -> None:
    with pytest.raises(MirrorError):
        resolve_sources(profile(), load_platform("debian12"), (word,), apt=HOST, yum={})


def test_a_mirror_that_does_not_answer_is_one_error(tmp_path: Path) -> None:
    suite = tmp_path / "dists/bookworm"
    suite.mkdir(parents=True)
    (suite / "Release").write_text("Suite: bookworm\n")
    good = Source("good", f"file://{tmp_path}", "bookworm")
    probe([good])
    with pytest.raises(MirrorError, match="repository bad at"):
        probe([good, Source("bad", f"file://{tmp_path}", "trixie"), Source("worse", "file:///nonexistent")])
