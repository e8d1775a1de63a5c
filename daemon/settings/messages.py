"""Mail and alarms: how the appliance tells people."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, ClassVar

from daemon.errors import Problem
from daemon.settings.base import (
    Address,
    DomainName,
    Identifier,
    Line,
    MailAddress,
    Part,
    Port,
    Scope,
    SecretName,
    Section,
)
from daemon.settings.words import Field


class MailSecurity(StrEnum):
    """How the connection to the mail server is protected."""

    NONE = "none"
    STARTTLS = "starttls"
    TLS = "tls"


class Mail(Section):
    """The system mailbox (S-SM-01)."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    server: DomainName | Address | None = Field(
        default=None, description="SMTP server; unset: no mail is sent."
    )
    port: Port = Field(default=587, description="Port of the server: 25, 465 or 587.")
    security: MailSecurity = Field(default=MailSecurity.STARTTLS, description="none, starttls or tls.")
    username: Line | None = Field(default=None, description="Login name at the server; unset: no login.")
    password_secret: SecretName = Field(
        default="mail", description="Name of the secret that holds the password."
    )
    sender: MailAddress | None = Field(default=None, description="Address in the From line.")
    timeout_seconds: Annotated[int, Field(ge=1, le=300)] = Field(
        default=30, description="Limit for one delivery."
    )

    def problems(self) -> Iterator[Problem]:
        """A server needs a sender; passwords never travel in the clear."""
        if self.server is not None and self.sender is None:
            yield Problem("sender", "is needed when a server is set", "set the From address")
        if self.username is not None and self.security is MailSecurity.NONE:
            yield Problem("security", "a password would travel in the clear", "use starttls or tls")


class Severity(StrEnum):
    """How bad an alarm is."""

    INFORMATION = "information"
    WARNING = "warning"
    CRITICAL = "critical"


class Recipients(Part):
    """A list of people and what they are told about (S-AL-04)."""

    description: Line = Field(default="", description="Who these people are.")
    addresses: tuple[MailAddress, ...] = Field(min_length=1, max_length=100, description="Their addresses.")
    families: tuple[Identifier, ...] = Field(
        default=(), max_length=64, description="Alarm families they receive; empty: all."
    )
    alarms: tuple[Identifier, ...] = Field(
        default=(), max_length=256, description="Single alarms they receive besides."
    )


class AlarmRule(Part):
    """Changes to one alarm of the catalogue (S-AL-02)."""

    enabled: bool = Field(default=True, description="Whether the alarm is raised.")
    severity: Severity | None = Field(default=None, description="Other severity than the catalogue's.")
    repeat_minutes: Annotated[int, Field(ge=0, le=10_080)] = Field(
        default=0, description="Minutes until a standing alarm is sent again; 0 is never."
    )


class Alarms(Section):
    """Who is told what (S-AL-01..04)."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    recipients: dict[Identifier, Recipients] = Field(
        default_factory=dict, max_length=100, description="Recipient lists by name."
    )
    rules: dict[Identifier, AlarmRule] = Field(
        default_factory=dict, max_length=500, description="Changes to alarms of the catalogue, by alarm."
    )
    minimum_severity: Severity = Field(
        default=Severity.WARNING, description="Lesser alarms are recorded, not sent."
    )
    history_days: Annotated[int, Field(ge=1, le=3650)] = Field(
        default=365, description="How long alarms are kept."
    )
