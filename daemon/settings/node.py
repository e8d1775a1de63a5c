"""Who this node is: its name and its clock's zone."""

from __future__ import annotations

from typing import ClassVar

from daemon.settings.base import HostName, Scope, Section, TimeZone
from daemon.settings.words import Field


class Node(Section):
    """Who this node is."""

    scope: ClassVar[Scope] = Scope.NODE

    hostname: HostName = Field(
        default="centralino", description="Name of this node, one label without a domain."
    )
    timezone: TimeZone = Field(
        default="UTC", description="Time zone as in the tz database, for example Europe/Rome."
    )
