"""Backup, entitlement, updates, logs and the settings' own history."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, ClassVar

from daemon.errors import Problem
from daemon.settings.base import (
    DomainName,
    Identifier,
    MailAddress,
    Part,
    Scope,
    SecretName,
    Section,
    TimeOfDay,
    WebAddress,
)
from daemon.settings.words import Field, StringConstraints

Folder = Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9][A-Za-z0-9._-]*)+$", max_length=255)]
Days = Annotated[int, Field(ge=1, le=3650)]


class Frequency(StrEnum):
    """How often something happens by itself."""

    NEVER = "never"
    DAILY = "daily"
    WEEKLY = "weekly"


class Backup(Section):
    """Scheduled backups (S-BK-01)."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    frequency: Frequency = Field(default=Frequency.NEVER, description="never, daily or weekly.")
    time: TimeOfDay = Field(default="02:30", description="Local time of day, HH:MM.")
    folder: Folder = Field(default="/var/lib/centralino/backups", description="Where backups are kept.")
    keep: Annotated[int, Field(ge=1, le=365)] = Field(default=7, description="How many backups are kept.")
    recordings: bool = Field(default=False, description="Whether call recordings are included.")
    passphrase_secret: SecretName = Field(
        default="backup", description="Name of the secret that encrypts backups."
    )
    remote_host: DomainName | None = Field(
        default=None, description="SSH host that receives a copy; unset: none."
    )
    remote_user: Identifier | None = Field(default=None, description="Login at that host.")
    remote_folder: Folder | None = Field(default=None, description="Folder at that host.")

    def problems(self) -> Iterator[Problem]:
        """A remote host needs a user and a folder."""
        for field in ("remote_user", "remote_folder"):
            if self.remote_host is not None and getattr(self, field) is None:
                yield Problem(field, "is needed when a remote host is set", "set it or remove remote_host")


class Licence(Section):
    """Entitlement (S-LI-01..05)."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    serial_number: Identifier | None = Field(default=None, description="Serial number of the order.")
    contact: MailAddress | None = Field(default=None, description="E-mail address bound to the order.")
    server: WebAddress | None = Field(
        default=None, description="Entitlement server; unset: runs without one."
    )
    check_hours: Annotated[int, Field(ge=1, le=168)] = Field(
        default=12, description="Hours between two checks."
    )
    token_secret: SecretName = Field(
        default="licence", description="Name of the secret that holds the token."
    )


class Channel(StrEnum):
    """Which releases are offered."""

    STABLE = "stable"
    CANDIDATE = "candidate"


class Updates(Section):
    """Software updates (S-UP-01)."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    server: WebAddress | None = Field(
        default=None, description="Update server; unset: updates only from files."
    )
    channel: Channel = Field(default=Channel.STABLE, description="stable or candidate.")
    check: Frequency = Field(default=Frequency.DAILY, description="How often new releases are looked for.")
    install_patches: bool = Field(default=False, description="Install patch releases without being asked.")
    window: TimeOfDay = Field(default="03:30", description="Local time of day at which they are installed.")


class JournalRetention(Part):
    """What systemd's journal keeps."""

    megabytes: Annotated[int, Field(ge=16, le=100_000)] = Field(default=512, description="Most space in MB.")
    days: Days = Field(default=30, description="Longest age in days.")


class Logs(Section):
    """How long logs are kept."""

    scope: ClassVar[Scope] = Scope.NODE

    journal: JournalRetention = Field(default=JournalRetention(), description="What systemd's journal keeps.")
    audit_megabytes: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=16, description="Size of one audit file in MB; five older ones are kept."
    )


class History(Section):
    """The settings' own history."""

    scope: ClassVar[Scope] = Scope.NODE

    keep_revisions: Annotated[int, Field(ge=10, le=100_000)] = Field(
        default=1000, description="How many revisions are kept; older ones are removed."
    )
    confirm_seconds: Annotated[int, Field(ge=10, le=3600)] = Field(
        default=60, description="Seconds to confirm a risky change before the box returns by itself."
    )
