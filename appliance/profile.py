"""The build profile: one TOML file that says what is built, for which platform, in which formats.

Every error of a document is reported at once, each with the path of its field and a remedy. A profile holds
no secrets: only hashed passwords, public keys and the paths of key files.
"""

from __future__ import annotations

import re
import tomllib
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from appliance.errors import Problem, ProfileError
from appliance.formats_contract import OutputFormat
from appliance.profile_problems import problems_of, secrets_in

if TYPE_CHECKING:
    from appliance.platform_data import PlatformData

PROFILES = Path(__file__).parent / "profiles"
# 2026-01-01: any fixed time does; a release sets its own.
DEFAULT_EPOCH = 1767225600

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+){0,3}([a-z0-9.+~]{0,20})$")]
PackageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9@][A-Za-z0-9+._:@-]{0,99}$")]
ModuleStream = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+:[A-Za-z0-9._-]+$")]
HttpAddress = Annotated[str, StringConstraints(pattern=r"^(https?|file)://[^\s\"'<>&]+$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
# pydantic's engine has no look-ahead, so the length of a host name is stated apart from its shape.
HostName = Annotated[
    str,
    StringConstraints(
        max_length=253,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$",
    ),
]
PublicKey = Annotated[
    str,
    StringConstraints(
        pattern=r"^(ssh-(rsa|ed25519)|ecdsa-sha2-nistp(256|384|521)|sk-[a-z0-9@.-]+)"
        r" [A-Za-z0-9+/=]+( [^\x00-\x1f]*)?$"
    ),
]
# SHA-512 and SHA-256 crypt: the newest that every platform's C library checks.
PasswordHash = Annotated[
    str, StringConstraints(pattern=r"^\$[56]\$(rounds=[0-9]+\$)?[./A-Za-z0-9]{1,16}\$[./A-Za-z0-9]{43,86}$")
]
DevicePath = Annotated[str, StringConstraints(pattern=r"^(auto|/dev/[A-Za-z0-9/_.:-]+)$")]
BootArgument = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+(=[A-Za-z0-9._,:/=@+-]*)?$")]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tier(StrEnum):
    """Sizing tiers by number of users [S-SZ-01, S-SZ-05]."""

    USERS_25 = "users-25"
    USERS_75 = "users-75"
    USERS_100 = "users-100"
    USERS_250 = "users-250"
    USERS_1000 = "users-1000"
    USERS_1500 = "users-1500"
    USERS_2000 = "users-2000"

    @property
    def sizes(self) -> TierSizes:
        """What a machine of this tier needs."""
        return TIER_SIZES[self]


class TierSizes(Section):
    """Processors, memory and disk that a tier needs at least; GiB are read as the table's GB."""

    cpus: int
    memory_gib: int
    disk_gib: int
    network_mbit: int


TIER_SIZES = {
    # Certified minimum [S-SZ-05]; its table names no bandwidth, so the lowest of S-SZ-01 stands.
    Tier.USERS_25: TierSizes(cpus=2, memory_gib=6, disk_gib=70, network_mbit=10),
    Tier.USERS_100: TierSizes(cpus=4, memory_gib=8, disk_gib=70, network_mbit=10),
    # Sizing by users and channels [S-SZ-01].
    Tier.USERS_75: TierSizes(cpus=4, memory_gib=8, disk_gib=150, network_mbit=10),
    Tier.USERS_250: TierSizes(cpus=6, memory_gib=8, disk_gib=150, network_mbit=30),
    Tier.USERS_1000: TierSizes(cpus=8, memory_gib=12, disk_gib=200, network_mbit=100),
    Tier.USERS_1500: TierSizes(cpus=10, memory_gib=16, disk_gib=200, network_mbit=150),
    Tier.USERS_2000: TierSizes(cpus=12, memory_gib=16, disk_gib=200, network_mbit=200),
}


class Product(Section):
    """What the result is called."""

    name: Name = Field(description="file names and identifiers: lower case, digits, hyphens")
    title: Line = Field(description="what menus and descriptors show")
    version: Version
    publisher: Line = "Centralino"
    summary: Line = "Telephony appliance"


class Repository(Section):
    """A package repository beyond the platform's own."""

    name: Name
    url: HttpAddress = Field(description="apt: base of dists/; dnf: base of repodata/")
    suite: str | None = Field(
        default=None, pattern=r"^[a-z0-9./-]+$", description="apt only; absent: flat repository"
    )
    components: tuple[Name, ...] = ("main",)
    key: Path | None = Field(default=None, description="public key file that signs it")
    priority: int | None = Field(default=None, ge=1, le=1000, description="apt pin priority or dnf priority")


class PlatformChoice(Section):
    """Which operating system the box runs."""

    name: Name = Field(description="a file of appliance/platforms: almalinux8, debian12")
    release: str | None = Field(
        default=None, pattern=r"^[0-9]+(\.[0-9]+)?$", description="absent: the platform's default"
    )
    mirror: HttpAddress | None = Field(default=None, description="absent: --mirror or what this host uses")
    repositories: tuple[Repository, ...] = ()


class Volumes(Section):
    """Logical volumes on an installed disk, GiB; `root_gib` 0 takes what is left."""

    root_gib: int = Field(default=0, ge=0, le=65536)
    swap_gib: int = Field(default=4, ge=0, le=1024)
    log_gib: int = Field(default=10, ge=0, le=65536)
    database_gib: int = Field(
        default=0, ge=0, le=65536, description="0: the database lies on the root volume"
    )


class Disk(Section):
    """Where an installation goes and how large an image is."""

    device: DevicePath = Field(default="auto", description="auto: the first suitable disk; or /dev/...")
    devices: tuple[DevicePath, ...] = Field(
        default=(), max_length=2, description="both of a RAID 1; absent: auto"
    )
    tier: Tier = Tier.USERS_75
    minimum_gib: int | None = Field(default=None, ge=8, le=65536, description="absent: what the tier needs")
    image_gib: int = Field(default=8, ge=4, le=2048, description="of disk images; root grows at first boot")
    raid: Literal["none", "1"] = "none"
    wipe: bool = Field(default=True, description="false: refuse disks that hold data")
    filesystem: Literal["ext4", "xfs"] = "ext4"
    volumes: Volumes = Volumes()

    @property
    def smallest_gib(self) -> int:
        """The smallest disk that the installer accepts."""
        return self.tier.sizes.disk_gib if self.minimum_gib is None else self.minimum_gib

    @model_validator(mode="after")
    def _raid_needs_two(self) -> Disk:
        if self.raid == "1" and (len(self.devices) == 1 or (self.device != "auto" and not self.devices)):
            raise ValueError("RAID 1 needs two disks; name both in devices, or leave device on auto")
        if self.raid == "none" and self.devices:
            raise ValueError('devices names the disks of a RAID; set raid = "1" or use device')
        if len(set(self.devices)) != len(self.devices):
            raise ValueError("devices names the same disk twice; RAID 1 needs two")
        named = (
            self.volumes.root_gib + self.volumes.swap_gib + self.volumes.log_gib + self.volumes.database_gib
        )
        if named > self.smallest_gib - 2:
            raise ValueError(
                f"volumes take {named} GiB, but the smallest accepted disk has {self.smallest_gib} GiB "
                "(2 of them for booting); make volumes smaller or minimum_gib larger"
            )
        return self


class Network(Section):
    """The first interface's addresses until the box is configured."""

    method: Literal["dhcp", "static"] = "dhcp"
    interface: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9._-]{1,15}$", description="absent: first with a link"
    )
    address: IPv4Interface | IPv6Interface | None = Field(
        default=None, description="with prefix: 192.0.2.10/24"
    )
    gateway: IPv4Address | IPv6Address | None = None
    dns: tuple[IPv4Address | IPv6Address, ...] = ()
    hostname: HostName = "centralino"

    @model_validator(mode="after")
    def _whole(self) -> Network:
        if self.method == "static" and self.address is None:
            raise ValueError("a static network needs address; give it with its prefix, as in 192.0.2.10/24")
        if self.method == "dhcp" and (self.address or self.gateway):
            raise ValueError('address and gateway need method = "static"')
        if self.address and self.gateway:
            if self.gateway.version != self.address.version:
                raise ValueError("gateway and address are of different IP versions")
            if self.gateway not in self.address.network:
                raise ValueError(f"gateway {self.gateway} is outside of {self.address.network}")
        return self


class Access(Section):
    """Who may log in before the first-boot password is changed."""

    root_password_hash: PasswordHash | None = Field(
        default=None, description="absent: root is locked; made with `openssl passwd -6`"
    )
    ssh_keys: tuple[PublicKey, ...] = Field(default=(), description="of the user admin")


class Regional(Section):
    """Language, keyboard and time."""

    language: str = Field(default="en_US.UTF-8", pattern=r"^([a-z]{2,3}_[A-Z]{2}|C)\.UTF-8$")
    keyboard: str = Field(default="us", pattern=r"^[a-z0-9_-]{1,30}$")
    timezone: str = Field(default="UTC", pattern=r"^[A-Za-z0-9_+/-]{1,60}$")
    ntp: tuple[HostName, ...] = Field(default=(), description="absent: the platform's default servers")


class Packages(Section):
    """Operating system packages beyond those of the roles."""

    extra: tuple[PackageName, ...] = ()
    modules: tuple[ModuleStream, ...] = Field(
        default=(), description="dnf module streams, beside or instead of ours"
    )
    asterisk_repository: Repository | None = Field(
        default=None, description="absent: the platform's own source"
    )


class Site(Section):
    """Which roles make the box."""

    playbook: str = Field(
        default="site.yml", pattern=r"^[A-Za-z0-9_.-]+\.yml$", description="a file of roles/"
    )
    skip_tags: tuple[Name, ...] = ()


class Boot(Section):
    """How the box and its installer start."""

    arguments: tuple[BootArgument, ...] = Field(
        default=(), description="kernel arguments of the installed box"
    )
    installer_arguments: tuple[BootArgument, ...] = ()
    iso_label: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{1,32}$",
        description="volume name; absent: from product and version",
    )
    menu_seconds: int = Field(default=5, ge=0, le=600)
    after_install: Literal["reboot", "poweroff"] = "reboot"


class OvaOptions(Section):
    """Open virtual appliance."""

    hardware: Literal["vmx-13", "vmx-15", "vmx-17", "vmx-19", "vmx-20", "vmx-21"] = "vmx-15"
    # 1.1 is for hosts that refuse 2.0.
    descriptor: Literal["2.0", "1.1"] = "2.0"
    firmware: Literal["efi", "bios"] = "efi"
    disk_controller: Literal["pvscsi", "lsilogic", "virtio"] = "pvscsi"
    network_adapter: Literal["vmxnet3", "e1000", "virtio"] = "vmxnet3"


class AmiOptions(Section):
    """Amazon machine image and its registration."""

    region: str | None = Field(default=None, pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]$")
    bucket: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    volume_gib: int | None = Field(default=None, ge=8, le=16384, description="absent: what the tier needs")
    volume_type: Literal["gp3", "gp2"] = "gp3"


class AzureOptions(Section):
    """Fixed VHD for Azure."""

    generation: Literal[1, 2] = 2


class GcpOptions(Section):
    """Disk archive for Google Cloud."""

    guest_os_features: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_]+$")], ...] = (
        "UEFI_COMPATIBLE",
        "VIRTIO_SCSI_MULTIQUEUE",
        "GVNIC",
    )


class OciOptions(Section):
    """Container archive."""

    reference: str | None = Field(
        default=None, pattern=r"^[a-z0-9./_-]+:[A-Za-z0-9._-]+$", description="name:tag"
    )


class Output(Section):
    """What is made."""

    formats: tuple[OutputFormat, ...] = (OutputFormat.ROOT,)
    compression: Literal["zstd", "xz", "none"] = "zstd"
    ova: OvaOptions = OvaOptions()
    ami: AmiOptions = AmiOptions()
    azure: AzureOptions = AzureOptions()
    gcp: GcpOptions = GcpOptions()
    oci: OciOptions = OciOptions()


class Signing(Section):
    """Who vouches for the results; the key itself stays in its file."""

    tool: Literal["minisign", "gpg"] = "minisign"
    key_file: Path


class Profile(Section):
    """A whole build profile."""

    schema_number: Literal[1] = Field(default=1, alias="schema")
    product: Product
    platform: PlatformChoice
    disk: Disk = Disk()
    network: Network = Network()
    access: Access = Access()
    regional: Regional = Regional()
    packages: Packages = Packages()
    site: Site = Site()
    boot: Boot = Boot()
    output: Output = Output()
    signing: Signing | None = None
    source_date_epoch: int = Field(
        default=DEFAULT_EPOCH, ge=315532800, le=4102444800, description="Unix time"
    )

    @property
    def iso_label(self) -> str:
        """The volume name of the installer: letters, digits, `_` and `-`, at most 32."""
        made = f"{self.product.name}-{self.product.version}"
        return self.boot.iso_label or re.sub(r"[^A-Za-z0-9_-]", "_", made).upper()[:32]

    def with_platform(self, name: str) -> Profile:
        """The same profile for another platform; release, mirror and repositories fall back to its own."""
        if name == self.platform.name:
            return self
        return self.model_copy(update={"platform": PlatformChoice(name=name)})


def parse_profile(document: dict[str, object], source: str) -> Profile:
    """A profile from a TOML document; raises ProfileError with every problem at once."""
    if secrets := secrets_in(document):
        raise ProfileError(source, secrets)
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        raise ProfileError(source, problems_of(error)) from None


def load_profile(file: Path) -> Profile:
    """Read a profile file, or a shipped profile by its name; raises ProfileError."""
    shipped = PROFILES / f"{file}.toml"
    if not file.exists() and shipped.is_file() and file.name == str(file):
        file = shipped
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(sorted(path.stem for path in PROFILES.glob("*.toml")))
        raise ProfileError(
            str(file), [Problem("(file)", error.strerror or "unreadable", f"name a file, or one of {names}")]
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(
            str(file), [Problem("(file)", f"is not TOML: {error}", "correct that line")]
        ) from error
    return parse_profile(document, str(file))


def profile_schema() -> dict[str, object]:
    """The JSON Schema of the profile (draft 2020-12)."""
    schema = Profile.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def check_against_platform(profile: Profile, platform: PlatformData, source: str) -> None:
    """Refuse what this platform cannot do; raises ProfileError with every problem at once."""
    problems = []
    release = profile.platform.release
    if release is not None and release not in platform.releases:
        problems.append(
            Problem(
                "platform.release", f"{release} is no {platform.title}", f"use {', '.join(platform.releases)}"
            )
        )
    if profile.packages.modules and not platform.modules.streams:
        problems.append(Problem("packages.modules", f"{platform.title} has no module streams", "remove it"))
    asterisk = [profile.packages.asterisk_repository] if profile.packages.asterisk_repository else []
    for place, repositories in (
        ("platform.repositories", profile.platform.repositories),
        ("packages.asterisk_repository", tuple(asterisk)),
    ):
        for position, repository in enumerate(repositories):
            path = f"{place}.{position}" if place.endswith("ies") else place
            if repository.suite is not None and platform.kiwi.package_manager != "apt":
                problems.append(Problem(f"{path}.suite", "only apt has suites", "remove it"))
            if repository.key is not None and not repository.key.is_file():
                problems.append(
                    Problem(f"{path}.key", f"there is no file {repository.key}", "correct the path")
                )
    if profile.signing is not None and not profile.signing.key_file.is_file():
        problems.append(
            Problem("signing.key_file", f"no file {profile.signing.key_file}", "correct the path")
        )
    if problems:
        raise ProfileError(source, problems)
