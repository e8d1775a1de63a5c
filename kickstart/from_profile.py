"""What a build profile and a platform say about an installation."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import Problem, ProfileError
from appliance.formats_contract import Variant
from appliance.platform_data import InstallerTable, PlatformData
from appliance.profile import Profile
from kickstart.model import (
    Disk,
    Finish,
    Installation,
    Locale,
    Network,
    PayloadSource,
    Source,
    User,
    Volume,
)

GB = 10**9
GIB = 2**30
# What a root volume that takes the rest needs at least: the system with its payload.
ROOT_MIB = 12288
ADMIN = "admin"
MEDIUM = Source()


@dataclass(frozen=True)
class MediumFacts:
    """What the profile cannot know: where packages and payload are when the installer runs."""

    payload: PayloadSource
    source: Source = MEDIUM
    label: str = ""
    hash_list_sha256: str = ""
    signing_key: str = ""


def installer_table(platform: PlatformData) -> InstallerTable:
    """The platform's installer; raises ProfileError if there is none to remaster."""
    if platform.installer is None:
        raise ProfileError(
            "the profile",
            [
                Problem(
                    "platform.name",
                    f"{platform.title} has no installer that this builder remasters",
                    "use almalinux8, or build a disk image with `centralino-build image`",
                )
            ],
        )
    return platform.installer


def wanted_packages(profile: Profile, platform: PlatformData) -> tuple[str, ...]:
    """Every package of an installed box, groups left out; sorted."""
    table = installer_table(platform)
    names = {*platform.package_names(Variant.DISK), *platform.packages["bootstrap"], *table.packages}
    return tuple(sorted({*names, *profile.packages.extra}))


def wanted_modules(profile: Profile, platform: PlatformData) -> tuple[str, ...]:
    """`name:stream`, the profile's word over the platform's for the same module; sorted."""
    chosen = dict(stream.split(":", 1) for stream in (*platform.modules.streams, *profile.packages.modules))
    return tuple(f"{name}:{stream}" for name, stream in sorted(chosen.items()))


def installation(
    profile: Profile, platform: PlatformData, medium: MediumFacts, *, unattended: bool = True
) -> Installation:
    """The installation of a profile, checked; raises ProfileError naming every field at once."""
    table = installer_table(platform)
    made = Installation(
        product=profile.product.title,
        version=profile.product.version,
        disk=_disk(profile, platform),
        packages=(*(f"@{name}" for name in table.groups), *wanted_packages(profile, platform)),
        excluded_packages=table.excluded,
        payload=medium.payload,
        source=medium.source,
        networks=(_network(profile),),
        root_password_hash=profile.access.root_password_hash or "",
        users=(User(ADMIN, ("wheel",)),) if profile.access.ssh_keys else (),
        ssh_keys=tuple((ADMIN, key) for key in profile.access.ssh_keys),
        modules=tuple(
            (name, stream)
            for name, _, stream in (entry.partition(":") for entry in wanted_modules(profile, platform))
        ),
        enabled_services=table.enabled_services,
        disabled_services=table.disabled_services,
        time_servers=profile.regional.ntp,
        locale=Locale(profile.regional.language, profile.regional.keyboard, _timezone(profile)),
        kernel_arguments=" ".join(profile.boot.arguments),
        finish=Finish.REBOOT if profile.boot.after_install == "reboot" else Finish.POWER_OFF,
        medium_label=medium.label,
        hash_list_sha256=medium.hash_list_sha256,
        signing_key=medium.signing_key,
        unattended=unattended,
    )
    made.check("the profile")
    return made


def _timezone(profile: Profile) -> str:
    # Anaconda knows the area Etc, and warns of a zone without one.
    return "Etc/UTC" if profile.regional.timezone == "UTC" else profile.regional.timezone


def _disk(profile: Profile, platform: PlatformData) -> Disk:
    chosen = profile.disk
    sizes = chosen.volumes
    filesystem = chosen.filesystem
    volumes = [
        Volume("root", "/", filesystem, sizes.root_gib * 1024 or ROOT_MIB, grow=sizes.root_gib == 0),
    ]
    for name, mount, gib in (
        ("log", "/var/log", sizes.log_gib),
        ("database", platform.box.paths["mariadb_data"], sizes.database_gib),
    ):
        if gib:
            volumes.append(Volume(name, mount, filesystem, gib * 1024))
    if sizes.swap_gib:
        volumes.append(Volume("swap", "", "swap", sizes.swap_gib * 1024))
    named = chosen.devices or ((chosen.device,) if chosen.device != "auto" else ())
    return Disk(
        # Sizing tables and disk labels both count in powers of ten.
        minimum_bytes=chosen.smallest_gib * GB,
        volumes=tuple(volumes),
        names=named,
        raid1=chosen.raid == "1",
        erase_used=chosen.wipe,
        boot_filesystem=filesystem,
    )


def _network(profile: Profile) -> Network:
    chosen = profile.network
    return Network(
        device=chosen.interface or "link",
        address=chosen.address if chosen.method == "static" else None,
        gateway=chosen.gateway,
        name_servers=chosen.dns,
        hostname=chosen.hostname,
    )
