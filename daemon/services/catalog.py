"""The services of the appliance, declared as data: who runs them, in which order, how they are watched.

Unit names come from the platform file; the settings' section `services` may change each policy. Nothing else
in supervision knows a service by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from daemon.services.model import Role
from daemon.settings.reach import WorkMode
from daemon.settings.services import ServicePolicy, Services

EVERY_ROLE = frozenset(Role)
WORKING_ROLES = frozenset({Role.STANDALONE, Role.MASTER, Role.SLAVE})
PAIR_ROLES = frozenset({Role.MASTER, Role.SLAVE})
EVERY_MODE = frozenset(WorkMode)


class ProbeKind(StrEnum):
    """The ways to ask a service whether it works; systemd's own word is no probe, it comes by signal."""

    SIP_OPTIONS = "sip-options"
    MANAGER_PING = "manager-ping"
    SQL_PING = "sql-ping"
    HTTPS_REQUEST = "https-request"


@dataclass(frozen=True)
class Probe:
    """One probe: asked each `interval_seconds`, failed without an answer within `limit_seconds`.

    `decisive` failures in a row condemn the service whatever other probes say; see `Policy.agreement`.
    """

    kind: ProbeKind
    interval_seconds: float
    limit_seconds: float
    decisive: int = 4


@dataclass(frozen=True)
class Policy:
    """How a service is judged, restarted and stopped; all times in seconds.

    agreement: this many failures since the last good answer condemn the service, if at least two kinds of
      probe failed; one silent kind alone needs `Probe.decisive` failures.
    start_limit: a service that runs but never answered yet is left alone for this long.
    kill_slow_start: a start that systemd has not ended within `start_limit` hangs and is replaced; not for a
      database, whose recovery takes as long as it takes.
    backoff_first, backoff_longest: no pause before the first restart, then these bounds, doubling.
    stable: good for this long ends a bad spell: pauses start again from none.
    restarts_before_alarm, unhealthy_before_alarm: whichever comes first raises the alarm.
    restarts_an_hour: more restarts than this within an hour raise the alarm even if each succeeds.
    dependency_wait: how long a restart is held back because a service that it needs is not well.
    drain, stop_limit: patience of a graceful stop, and of the firm stop before SIGKILL (`kill`).
    """

    agreement: int = 3
    start_limit: float = 30.0
    backoff_first: float = 1.0
    backoff_longest: float = 60.0
    stable: float = 60.0
    restarts_before_alarm: int = 3
    unhealthy_before_alarm: float = 30.0
    restarts_an_hour: int = 5
    dependency_wait: float = 60.0
    drain: float = 0.0
    stop_limit: float = 30.0
    kill: bool = True
    kill_slow_start: bool = False


@dataclass(frozen=True)
class Service:
    """One service: `name` is the key of its unit in the platform file.

    order: services start from the lowest to the highest and stop in reverse.
    needs: names of services without which this one cannot work.
    drains: live calls can be counted and waited for (Asterisk alone).
    required: its absence or failure makes the box unhealthy.
    locks_out: stopping it would cut the admin off, so a stop is refused (a restart is not).
    """

    name: str
    order: int
    roles: frozenset[Role] = EVERY_ROLE
    modes: frozenset[WorkMode] = EVERY_MODE
    needs: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()
    policy: Policy = Policy()
    drains: bool = False
    required: bool = True
    locks_out: bool = False
    enabled: bool = True

    def runs_in(self, role: Role, mode: WorkMode) -> bool:
        """Whether this node should run it."""
        return self.enabled and role in self.roles and mode in self.modes


CATALOG: tuple[Service, ...] = (
    Service("nftables", order=10, locks_out=True, policy=Policy(backoff_longest=300.0)),
    Service("networkmanager", order=15, locks_out=True),
    Service("chrony", order=20, required=False),
    Service("sshd", order=20, locks_out=True),
    Service(
        "mariadb",
        order=30,
        roles=WORKING_ROLES,
        probes=(Probe(ProbeKind.SQL_PING, interval_seconds=5.0, limit_seconds=2.0, decisive=3),),
        policy=Policy(start_limit=60.0, stop_limit=120.0),
    ),
    Service(
        "nginx",
        order=40,
        probes=(Probe(ProbeKind.HTTPS_REQUEST, interval_seconds=10.0, limit_seconds=3.0, decisive=3),),
    ),
    Service(
        "coturn",
        order=50,
        roles=frozenset({Role.STANDALONE, Role.MASTER}),
        modes=frozenset({WorkMode.CLOUD}),
    ),
    Service(
        "asterisk",
        order=60,
        roles=WORKING_ROLES,
        needs=("mariadb",),
        probes=(
            Probe(ProbeKind.SIP_OPTIONS, interval_seconds=2.0, limit_seconds=1.0),
            Probe(ProbeKind.MANAGER_PING, interval_seconds=2.0, limit_seconds=1.0, decisive=8),
        ),
        policy=Policy(start_limit=30.0, kill_slow_start=True, drain=120.0, stop_limit=20.0),
        drains=True,
    ),
    Service("keepalived", order=70, roles=PAIR_ROLES, modes=frozenset({WorkMode.STANDARD})),
)


def declared(settings: Services, catalog: tuple[Service, ...] = CATALOG) -> dict[str, Service]:
    """The catalogue with the admin's changes, by name and in start order."""
    services = sorted(catalog, key=lambda service: (service.order, service.name))
    return {service.name: _changed(service, settings.policy(service.name)) for service in services}


def start_order(services: Mapping[str, Service]) -> tuple[str, ...]:
    """Names from the first to start to the last; stop in reverse."""
    return tuple(sorted(services, key=lambda name: (services[name].order, name)))


def _changed(service: Service, change: ServicePolicy) -> Service:
    policy, own = service.policy, change
    probes = tuple(
        replace(
            probe,
            interval_seconds=_or(own.probe_interval_seconds, probe.interval_seconds),
            limit_seconds=_or(own.probe_limit_seconds, probe.limit_seconds),
            decisive=int(_or(own.failures_before_restart, probe.decisive)),
        )
        for probe in service.probes
    )
    policy = replace(
        policy,
        agreement=int(_or(own.failures_before_restart, policy.agreement)),
        start_limit=_or(own.start_limit_seconds, policy.start_limit),
        drain=_or(own.drain_seconds, policy.drain),
        stop_limit=_or(own.stop_limit_seconds, policy.stop_limit),
        backoff_first=_or(own.backoff_first_seconds, policy.backoff_first),
        backoff_longest=_or(own.backoff_longest_seconds, policy.backoff_longest),
        restarts_before_alarm=int(_or(own.restarts_before_alarm, policy.restarts_before_alarm)),
    )
    return replace(service, probes=probes, policy=policy, enabled=own.enabled)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
