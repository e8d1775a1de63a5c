"""How each supervised service is watched, restarted and stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from daemon.errors import Problem
from daemon.settings.base import Part, Scope, Seconds, Section, ServiceName
from daemon.settings.words import Field

Interval = Annotated[float, Field(ge=0.1, le=3600, allow_inf_nan=False)]


class ServicePolicy(Part):
    """Changes to one service's declared policy; an unset field keeps the service's own value."""

    enabled: bool = Field(
        default=True, description="Whether the service runs on a node whose role allows it."
    )
    probe_interval_seconds: Interval | None = Field(default=None, description="Seconds between two probes.")
    probe_limit_seconds: Interval | None = Field(
        default=None, description="Seconds after which a probe has failed."
    )
    failures_before_restart: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None, description="Failed probes in a row before the service is replaced."
    )
    start_limit_seconds: Seconds | None = Field(default=None, description="Seconds that a start may take.")
    drain_seconds: Seconds | None = Field(
        default=None, description="Seconds that a graceful stop waits for work in progress, calls above all."
    )
    stop_limit_seconds: Seconds | None = Field(
        default=None, description="Seconds after which a stop becomes firm."
    )
    backoff_first_seconds: Interval | None = Field(
        default=None, description="Pause before the second restart."
    )
    backoff_longest_seconds: Interval | None = Field(
        default=None, description="Longest pause between two restarts."
    )
    restarts_before_alarm: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None,
        description="Restarts in a row before an alarm is raised; the daemon never stops trying.",
    )

    def problems(self) -> Iterator[Problem]:
        """Pauses grow."""
        first, longest = self.backoff_first_seconds, self.backoff_longest_seconds
        if first is not None and longest is not None and longest < first:
            yield Problem("backoff_longest_seconds", "is shorter than the first pause", "raise it")


class Services(Section):
    """Supervision of the services."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    supervision: bool = Field(
        default=True, description="Whether failed services are restarted; probes run in any case."
    )
    policies: dict[ServiceName, ServicePolicy] = Field(
        default_factory=dict, max_length=64, description="Changes to the policy of a service, by its name."
    )

    def policy(self, name: str) -> ServicePolicy:
        """What the admin set for the service, or the empty policy."""
        return self.policies.get(name, ServicePolicy())
