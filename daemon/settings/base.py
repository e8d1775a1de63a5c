"""What every settings section shares: strictness, scope, and the bounded types of the field's values.

Strings are bounded and typed here once, so that no value of a settings document can carry a control
character, a path trick or an unbounded amount of text into a file, a command or a log.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TYPE_CHECKING, Annotated, ClassVar

from daemon.errors import Problem
from daemon.settings.words import BaseModel, ConfigDict, Field, StringConstraints

if TYPE_CHECKING:
    from pydantic.config import JsonDict

DNS_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


class Scope(StrEnum):
    """Whose settings these are: of one node, or of the pair (the slave receives them from the master)."""

    NODE = "node"
    CLUSTER = "cluster"


class Part(BaseModel):
    """A part of the document: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=False)

    def problems(self) -> Iterator[Problem]:
        """What is wrong between fields that are each valid; paths are relative to this part."""
        yield from ()


class Section(Part):
    """A section at the top of the document. Fields may override `scope` by `in_scope(...)`."""

    scope: ClassVar[Scope]


def in_scope(scope: Scope) -> JsonDict:
    """For `Field(json_schema_extra=...)`: this field has another scope than its section."""
    return {"x-scope": scope.value}


Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
InterfaceAddress = IPv4Interface | IPv6Interface

# pydantic searches patterns with Rust's engine, whose `$` matches at the very end only (no trailing newline).
HostName = Annotated[str, StringConstraints(pattern=rf"^{DNS_LABEL}$", max_length=63)]
DomainName = Annotated[str, StringConstraints(pattern=rf"^{DNS_LABEL}(\.{DNS_LABEL})*$", max_length=253)]
QualifiedDomainName = Annotated[
    str, StringConstraints(pattern=rf"^{DNS_LABEL}(\.{DNS_LABEL})+$", max_length=253)
]
InterfaceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$")]
ServiceName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
SecretName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
TimeZone = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9][A-Za-z0-9_+-]*){0,2}$", max_length=64),
]
MailAddress = Annotated[
    str,
    StringConstraints(
        pattern=rf"^[A-Za-z0-9!#%&'*+/=?^_{{|}}~.-]{{1,64}}@{DNS_LABEL}(\.{DNS_LABEL})*$", max_length=254
    ),
]
WebAddress = Annotated[
    str, StringConstraints(pattern=r"^https://[A-Za-z0-9][A-Za-z0-9.:\[\]/_~%?&=+,@-]*$", max_length=512)
]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Line = Annotated[str, StringConstraints(max_length=200)]
Port = Annotated[int, Field(ge=1, le=65535)]
HighPort = Annotated[int, Field(ge=1024, le=65535)]
Seconds = Annotated[int, Field(ge=0, le=86400)]
TimeOfDay = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]

MAXIMUM_ITEMS = 1000
