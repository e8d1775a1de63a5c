"""Which package mirrors a build uses: named on the command line, in the profile, or by this host itself.

No host name stands in this project. A mirror that is needed and unknown is one clear error.
"""

from __future__ import annotations

import configparser
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import MirrorError
from appliance.platform_data import MirrorTable, PlatformData, RepositoryTable
from appliance.profile import Profile

APT = Path("/etc/apt")
YUM = Path("/etc/yum.repos.d")
PROBE_SECONDS = 20.0


@dataclass(frozen=True)
class Source:
    """A repository with its address: apt by `suite` and `components`, dnf (and flat apt) by `url` alone."""

    name: str
    url: str
    suite: str | None = None
    components: tuple[str, ...] = ()
    priority: int | None = None
    keep_in_image: bool = False

    @property
    def probe_url(self) -> str:
        """The one file that a reachable repository surely has."""
        if self.suite:
            return f"{self.url}/dists/{self.suite}/Release"
        return f"{self.url}/repodata/repomd.xml"


@dataclass(frozen=True)
class AptEntry:
    """One address of the host's apt configuration with its suites."""

    url: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def apt_entries(directory: Path = APT) -> list[AptEntry]:
    """What apt on this host is configured with: one-line and deb822 files, enabled entries only."""
    entries: list[AptEntry] = []
    for file in (directory / "sources.list", *sorted((directory / "sources.list.d").glob("*"))):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        entries += (
            _deb822(text) if file.suffix == ".sources" else _one_line(text) if file.suffix == ".list" else []
        )
    return entries


def _one_line(text: str) -> Iterable[AptEntry]:
    for line in text.splitlines():
        match = re.match(r"^\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)((?:\s+[^#\s]+)*)", line)
        if match:
            yield AptEntry(match[1].rstrip("/"), (match[2],), tuple(match[3].split()))


def _deb822(text: str) -> Iterable[AptEntry]:
    for stanza in re.split(r"\n\s*\n", "\n".join(line for line in text.splitlines() if line[:1] != "#")):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in (
            "no",
            "false",
        ):
            continue
        for url in fields.get("uris", "").split():
            yield AptEntry(
                url.rstrip("/"),
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
            )


def yum_addresses(directory: Path = YUM) -> dict[str, str]:
    """Repository name to base address of what dnf on this host is configured with; mirror lists have none."""
    addresses: dict[str, str] = {}
    for file in sorted(directory.glob("*.repo")):
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        for section in parser.sections():
            if parser.get(section, "enabled", fallback="1") == "1" and parser.has_option(section, "baseurl"):
                addresses[section.lower()] = parser.get(section, "baseurl").split()[0].rstrip("/")
    return addresses


def parse_mirrors(words: Sequence[str], platform: PlatformData) -> dict[str, str]:
    """`[NAME=]URL` words to name -> address; raises MirrorError for an unknown name or no address."""
    mirrors = {}
    for word in words:
        name, _, url = word.rpartition("=") if re.match(r"^[a-z]+=", word) else ("main", "=", word)
        if name not in platform.mirrors:
            raise MirrorError(
                f"{platform.title} has no mirror named {name!r}", f"use one of {', '.join(platform.mirrors)}"
            )
        if not re.match(r"^(https?|file)://\S+$", url):
            raise MirrorError(f"{url!r} is no address of a mirror", "give http://, https:// or file://")
        mirrors[name] = url.rstrip("/")
    return mirrors


def find_mirror(name: str, table: MirrorTable, apt: Sequence[AptEntry], yum: dict[str, str]) -> str | None:
    """What this host's own configuration says about a mirror, or None."""
    if table.find_suite:
        return next((entry.url for entry in apt if table.find_suite in entry.suites), None)
    for repository, url in yum.items():
        if repository == table.find_repository:
            # `.../8.10/BaseOS/x86_64/os` or `.../$releasever/BaseOS/...`: the mirror is what stands before.
            pattern = re.escape(table.cut_after or "").replace(re.escape("{release}"), r"[^/]+")
            return re.split(pattern, url, maxsplit=1)[0] if pattern else url
    return None


def resolve_sources(
    profile: Profile,
    platform: PlatformData,
    words: Sequence[str] = (),
    *,
    apt: Sequence[AptEntry] | None = None,
    yum: dict[str, str] | None = None,
) -> list[Source]:
    """Every repository of a build with its address, in the platform's order, the profile's own last.

    A mirror of the command line beats the profile's, which beats this host's configuration. With a main
    mirror of the command line or profile, an optional mirror that is not named is left out: this host's own
    one might not fit it. Raises MirrorError naming every mirror that is needed and unknown.
    """
    named = parse_mirrors(words, platform)
    kept = set()
    if profile.platform.mirror is not None and "main" not in named:
        named["main"] = profile.platform.mirror.rstrip("/")
        kept.add("main")
    chosen_by_name = "main" in named
    host_apt = apt_entries() if apt is None else apt
    host_yum = yum_addresses() if yum is None else yum
    missing = []
    for name, table in platform.mirrors.items():
        if name in named or (table.optional and chosen_by_name):
            continue
        if found := find_mirror(name, table, host_apt, host_yum):
            named[name] = found
        elif not table.optional:
            missing.append(name)
    if missing:
        options = " ".join(f"--mirror {name}=URL" for name in missing)
        raise MirrorError(
            f"no mirror of {platform.title} is known ({', '.join(missing)}): this host's own package "
            "configuration names none",
            f"give {options}, or platform.mirror in the profile",
        )
    release = profile.platform.release or platform.release
    sources = [
        _source(table, named[table.mirror], release, keep=table.mirror in kept)
        for table in platform.repositories
        if table.mirror in named
        and not (table.purpose == "asterisk" and profile.packages.asterisk_repository)
    ]
    own = list(profile.platform.repositories)
    if profile.packages.asterisk_repository is not None:
        own.append(profile.packages.asterisk_repository)
    return sources + [
        Source(one.name, one.url.rstrip("/"), one.suite, one.components, one.priority, keep_in_image=True)
        for one in own
    ]


def _source(table: RepositoryTable, mirror: str, release: str, *, keep: bool) -> Source:
    path = table.path.format(release=release)
    url = f"{mirror}/{path}" if path else mirror
    return Source(table.name, url, table.suite, table.components, table.priority, keep_in_image=keep)


def probe(sources: Sequence[Source], *, seconds: float = PROBE_SECONDS) -> None:
    """Check that every repository answers; raises MirrorError naming the first that does not."""
    for source in sources:
        try:
            request = urllib.request.Request(source.probe_url, method="GET")  # noqa: S310 - scheme is checked
            with urllib.request.urlopen(request, timeout=seconds):  # noqa: S310
                pass
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise MirrorError(
                f"repository {source.name} at {source.url} does not answer: {reason}",
                "check the address, the network and the proxy, or name another with --mirror",
            ) from error
