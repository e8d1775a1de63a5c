"""What a kickstart is made of: everything that the template needs, already decided and checked.

The model knows neither build profiles nor platforms; `kickstart.profile` makes it from those.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address

from appliance.errors import Problem, ProfileError

# crypt(5): SHA-256, SHA-512; what EL8's libxcrypt makes and what no one reads back.
PASSWORD_HASH = re.compile(r"\$[56]\$(rounds=\d+\$)?[./A-Za-z0-9]{1,16}\$[./A-Za-z0-9]{43,86}")
SSH_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp\d+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]+( [^\"\n]*)?")
DISK_NAME = re.compile(r"(/dev/)?[A-Za-z0-9._:+/-]+")
# Letters for which the label and its escaped form in kernel arguments are equal; ISO 9660 holds 32.
MEDIUM_LABEL = re.compile(r"[A-Za-z0-9_-]{1,32}")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Finish(StrEnum):
    """What the machine does when the installation is over."""

    REBOOT = "reboot --eject"
    POWER_OFF = "poweroff"
    HALT = "halt"


@dataclass(frozen=True)
class Volume:
    """A logical volume; `size_mib` is the least size, `grow` gives it what is left."""

    name: str
    mount: str
    filesystem: str
    size_mib: int
    grow: bool = False

    def __str__(self) -> str:
        grow = "grow" if self.grow else "-"
        return f"{self.name} {self.mount or '-'} {self.filesystem} {self.size_mib} {grow}"


@dataclass(frozen=True)
class Disk:
    """Where to install. `names` are kernel names or paths below /dev; none means: find a suitable one.

    With `erase_used` off, a disk that holds data is never installed on.
    """

    minimum_bytes: int
    volumes: tuple[Volume, ...]
    names: tuple[str, ...] = ()
    raid1: bool = False
    allow_several_used_disks: bool = False
    erase_used: bool = True
    volume_group: str = "system"
    boot_mib: int = 1024
    boot_filesystem: str = "xfs"


@dataclass(frozen=True)
class Network:
    """One interface: automatic addressing unless `address` is given. `device` as Anaconda names it."""

    device: str = "link"
    address: IPv4Interface | IPv6Interface | None = None
    gateway: IPv4Address | IPv6Address | None = None
    name_servers: tuple[IPv4Address | IPv6Address, ...] = ()
    hostname: str = ""

    def __str__(self) -> str:
        words = ["network", f"--device={self.device}", "--activate", "--onboot=yes"]
        match self.address:
            case None:
                words.append("--bootproto=dhcp")
            case IPv4Interface() as address:
                words += [
                    "--bootproto=static",
                    f"--ip={address.ip}",
                    f"--netmask={address.netmask}",
                    "--noipv6",
                ]
                words += [f"--gateway={self.gateway}"] if self.gateway else []
            case IPv6Interface() as address:
                words += ["--noipv4", f"--ipv6={address}"]
                words += [f"--ipv6gateway={self.gateway}"] if self.gateway else []
        if self.name_servers:
            words.append(f"--nameserver={','.join(str(server) for server in self.name_servers)}")
        if self.hostname:
            words.append(f"--hostname={self.hostname}")
        return " ".join(words)


@dataclass(frozen=True)
class User:
    """A login of the new system; without a hash the password is locked and only keys open it."""

    name: str
    groups: tuple[str, ...] = ()
    password_hash: str = ""


@dataclass(frozen=True)
class Source:
    """Where packages come from: the medium, or a boot server's tree with further repositories (name, URL)."""

    url: str = ""
    extra: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class PayloadSource:
    """The payload as one tar archive, on the medium (`path`) or on a boot server (`url`), and how it is run.

    The archive's one top directory becomes `directory`.
    """

    sha256: str
    path: str = ""
    url: str = ""
    directory: str = "/opt/centralino/payload"
    arguments: tuple[str, ...] = ()
    log: str = "/var/log/centralino/kickstart-post.log"
    relabel_paths: tuple[str, ...] = ("/opt", "/usr", "/home")


@dataclass(frozen=True)
class Locale:
    """Language, console keyboard and time zone of the new system."""

    language: str = "en_US.UTF-8"
    keyboard: str = "us"
    timezone: str = "Etc/UTC"


@dataclass(frozen=True)
class Installation:
    """All that one kickstart says."""

    product: str
    version: str
    disk: Disk
    packages: tuple[str, ...]
    payload: PayloadSource
    excluded_packages: tuple[str, ...] = ()
    source: Source = Source()
    networks: tuple[Network, ...] = (Network(),)
    root_password_hash: str = ""
    users: tuple[User, ...] = ()
    ssh_keys: tuple[tuple[str, str], ...] = ()
    modules: tuple[tuple[str, str], ...] = ()
    enabled_services: tuple[str, ...] = ()
    disabled_services: tuple[str, ...] = ("kdump",)
    time_servers: tuple[str, ...] = ()
    locale: Locale = Locale()
    kernel_arguments: str = ""
    finish: Finish = Finish.REBOOT
    medium_label: str = ""
    hash_list_sha256: str = ""
    signing_key: str = ""
    unattended: bool = True
    problems: tuple[Problem, ...] = field(default=(), compare=False)

    def check(self, source: str) -> None:
        """Raise ProfileError naming every field of `source` that no kickstart may be made from."""
        found = [*self.problems, *_problems(self)]
        if found:
            raise ProfileError(source, found)


def _problems(installation: Installation) -> list[Problem]:
    disk = installation.disk
    found: list[Problem] = []
    if disk.raid1 and len(disk.names) == 1:
        found.append(
            Problem("disk.raid1", f"RAID 1 needs two disks, but only {disk.names[0]} is named",
                    "name a second disk in disk.names, name none, or turn disk.raid1 off")
        )  # fmt: skip
    found += [
        Problem("disk.names", f"{name!r} is no name of a disk", "write sda, or a path below /dev")
        for name in disk.names
        if not DISK_NAME.fullmatch(name)
    ]
    needed = sum(volume.size_mib for volume in disk.volumes) + disk.boot_mib + 700
    if needed * 2**20 > disk.minimum_bytes:
        found.append(
            Problem("disk.volumes", f"the volumes need {needed} MiB, the smallest allowed disk has "
                    f"{disk.minimum_bytes // 2**20} MiB", "make the volumes smaller or the tier larger")
        )  # fmt: skip
    if not any(volume.mount == "/" for volume in disk.volumes):
        found.append(Problem("disk.volumes", "no volume is mounted at /", "add one"))
    if installation.medium_label and not MEDIUM_LABEL.fullmatch(installation.medium_label):
        found.append(
            Problem("label", f"{installation.medium_label!r} is no label for a medium",
                    "use at most 32 letters, digits, hyphens and underscores")
        )  # fmt: skip
    for user in installation.users:
        if user.password_hash and not PASSWORD_HASH.fullmatch(user.password_hash):
            found.append(_no_secret(f"users.{user.name}.password_hash"))
    if installation.root_password_hash and not PASSWORD_HASH.fullmatch(installation.root_password_hash):
        found.append(_no_secret("root_password_hash"))
    found += [
        Problem(f"ssh_keys.{user}", "this is no public SSH key", "paste the line of a .pub file")
        for user, key in installation.ssh_keys
        if not SSH_KEY.fullmatch(key)
    ]
    found += [
        Problem("modules", f"{name}:{stream} is no module stream", "write it as name:stream")
        for name, stream in installation.modules
        if not NAME.fullmatch(name) or not NAME.fullmatch(stream)
    ]
    for network in installation.networks:
        if network.gateway and network.address and ip_address(network.gateway) not in network.address.network:
            found.append(
                Problem("network.gateway", f"{network.gateway} is not in {network.address.network}",
                        "correct the gateway or the address")
            )  # fmt: skip
    return found


def _no_secret(path: str) -> Problem:
    # The value is not repeated: it may be a password in the clear.
    return Problem(path, "this is no SHA-256 or SHA-512 crypt hash", "make one with `openssl passwd -6`")
