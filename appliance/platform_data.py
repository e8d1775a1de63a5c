"""A platform as data: packages by purpose, repositories, Python, and the `[box]` table that images carry."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from appliance.disk_data import DiskTable
from appliance.errors import Problem, ProfileError
from appliance.formats_contract import Variant
from appliance.profile_problems import problems_of

PLATFORMS = Path(__file__).parent / "platforms"

AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9._/+-]+$")]
UnitName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9@._-]+\.(service|socket|timer|target)$")]


class Table(BaseModel):
    """Base of all tables of a platform file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PythonTable(Table):
    """The Python of the box; `manylinux` is the newest tag that its C library runs, as `2_28`."""

    executable: AbsolutePath
    version: str
    abi: str
    manylinux: str
    module_interpreter: AbsolutePath

    @property
    def glibc_minor(self) -> int:
        """28 of `2_28`."""
        return int(self.manylinux.partition("_")[2])


class MirrorTable(Table):
    """How the build host's own configuration names this mirror."""

    find_suite: str | None = None
    find_repository: str | None = None
    cut_after: str | None = None
    optional: bool = False


class RepositoryTable(Table):
    """One repository below a mirror: by `suite` (apt) or by `path` (dnf)."""

    name: str
    mirror: str
    suite: str | None = None
    components: tuple[str, ...] = ()
    path: str = ""
    priority: int | None = None
    purpose: str | None = None


class KeysTable(Table):
    """Where the build host keeps the keys that sign the repositories."""

    files: tuple[Path, ...]
    package: str
    optional: bool = False


class ModulesTable(Table):
    """dnf module streams, `name:stream`."""

    streams: tuple[str, ...] = ()


class KiwiTable(Table):
    """What kiwi calls this platform's package manager, and what it needs on the host."""

    package_manager: Literal["apt", "dnf4"]
    repository_type: Literal["apt-deb", "rpm-md"]
    host_programs: dict[str, str]


class InstallerTable(Table):
    """The vendor's installer: what it needs on the medium beyond the packages of the box.

    `kickstart_handler` is pykickstart's, `module_platform` what dnf must be told on other hosts.
    """

    kickstart_handler: str
    module_platform: str
    groups: tuple[str, ...]
    packages: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    enabled_services: tuple[str, ...] = ()
    disabled_services: tuple[str, ...] = ()


class LiveTable(Table):
    """The live medium: what its tree has beside the disk's packages, what not, and its kernel's arguments.

    `initramfs_compression` is dracut's `compress`, a program with or without arguments.
    """

    packages: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    initramfs_compression: Annotated[str, StringConstraints(pattern=r"^(gzip|xz|zstd)( -[A-Za-z0-9=-]+)*$")]


class CloudTable(Table):
    """The cloud's own agent: packages, the units that its disks start, those that no disk starts.

    With `repository` the packages are in none of the platform's own: a profile must name one so called.
    """

    packages: tuple[str, ...] = ()
    units: tuple[UnitName, ...] = ()
    unwanted_units: tuple[UnitName, ...] = ()
    repository: str | None = None


class BoxTable(Table):
    """What the image ships as /etc/centralino/platform.toml; read by `daemon.platform`."""

    name: str
    version: str
    units: dict[str, UnitName]
    users: dict[str, str]
    paths: dict[str, AbsolutePath]


class PlatformData(Table):
    """A whole platform file."""

    name: str
    title: str
    family: Literal["debian", "redhat"]
    release: str
    releases: tuple[str, ...]
    architecture: Literal["x86_64"]
    python: PythonTable
    mirrors: dict[str, MirrorTable]
    repositories: tuple[RepositoryTable, ...]
    keys: KeysTable
    packages: dict[str, tuple[str, ...]]
    packages_disk: dict[str, tuple[str, ...]]
    packages_build: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    clouds: dict[str, CloudTable] = Field(default_factory=dict)
    modules: ModulesTable = Field(default_factory=ModulesTable)
    kiwi: KiwiTable
    disk: DiskTable
    live: LiveTable
    installer: InstallerTable | None = None
    box: BoxTable

    @model_validator(mode="after")
    def _consistent(self) -> PlatformData:
        if "bootstrap" not in self.packages:
            raise ValueError("packages has no bootstrap list; kiwi begins with it")
        for repository in self.repositories:
            if repository.mirror not in self.mirrors:
                raise ValueError(f"repository {repository.name} names the unknown mirror {repository.mirror}")
        return self

    def package_names(self, variant: Variant) -> list[str]:
        """The packages of a root tree beyond its bootstrap, sorted, without doubles."""
        lists = [names for purpose, names in self.packages.items() if purpose != "bootstrap"]
        if variant is not Variant.CONTAINER:
            lists += self.packages_disk.values()
        if variant is not Variant.LIVE:
            return sorted({name for names in lists for name in names})
        lists.append(self.live.packages)
        return sorted({name for names in lists for name in names} - {*self.live.left_out})


def platform_names() -> list[str]:
    """The platforms that this builder knows."""
    return sorted(path.stem for path in PLATFORMS.glob("*.toml"))


@cache
def load_platform(name: str) -> PlatformData:
    """Read a platform file by its name; raises ProfileError naming every bad field, or the known names."""
    if name not in platform_names():
        raise ProfileError(
            "the profile",
            [Problem("platform.name", f"{name!r} is unknown", f"use one of {', '.join(platform_names())}")],
        )
    file = PLATFORMS / f"{name}.toml"
    try:
        return PlatformData.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ProfileError(str(file), problems_of(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(str(file), [Problem("(file)", f"is not TOML: {error}")]) from error


def box_text(platform: PlatformData) -> str:
    """The text of /etc/centralino/platform.toml: the `[box]` table at top level, sorted."""
    box = platform.box
    lines = [f'name = "{box.name}"', f'version = "{box.version}"']
    for title, table in (("units", box.units), ("users", box.users), ("paths", box.paths)):
        lines += ["", f"[{title}]", *(f'{key} = "{value}"' for key, value in sorted(table.items()))]
    return "\n".join(lines) + "\n"
