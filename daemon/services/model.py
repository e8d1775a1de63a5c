"""The words of supervision: what systemd says of a unit, what a probe found, how a service is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What this node is now; `fault_tolerance` decides it, a box without a peer is standalone."""

    STANDALONE = "standalone"
    MASTER = "master"
    SLAVE = "slave"
    OFF = "off"


class ActiveState(StrEnum):
    """systemd's ActiveState of a unit (org.freedesktop.systemd1(5)); `unknown` before its first answer."""

    ACTIVE = "active"
    RELOADING = "reloading"
    INACTIVE = "inactive"
    FAILED = "failed"
    ACTIVATING = "activating"
    DEACTIVATING = "deactivating"
    MAINTENANCE = "maintenance"
    UNKNOWN = "unknown"


class LoadState(StrEnum):
    """systemd's LoadState, as far as it matters here."""

    LOADED = "loaded"
    NOT_FOUND = "not-found"
    MASKED = "masked"
    OTHER = "other"


@dataclass(frozen=True)
class UnitState:
    """What systemd says of one unit.

    `job` is the number of a queued or running systemd job, 0 if none. `condition` is false if the unit's own
    conditions kept it from starting. `result` is systemd's word for the end of the last run. `run` tells one
    run from the next (microseconds, monotonic, when it left the inactive state); `up_since` is when it became
    active (monotonic seconds, None before).
    """

    active: ActiveState = ActiveState.UNKNOWN
    sub: str = ""
    load: LoadState = LoadState.LOADED
    job: int = 0
    condition: bool = True
    result: str = "success"
    run: int = 0
    up_since: float | None = None

    @property
    def waits_for_restart(self) -> bool:
        """Dead, and systemd's own restart timer runs: systemd calls that `activating (auto-restart)`."""
        return self.active is ActiveState.ACTIVATING and self.sub.startswith("auto-restart")

    @property
    def dead(self) -> bool:
        """No process of it runs and none is being started."""
        return self.active in (ActiveState.INACTIVE, ActiveState.FAILED) or self.waits_for_restart

    @property
    def running(self) -> bool:
        """It claims to do its work."""
        return self.active in (ActiveState.ACTIVE, ActiveState.RELOADING)


class Finding(StrEnum):
    """What one probe found.

    SILENT and REFUSED are evidence for a replacement. DENIED (a wrong password) and FAULTY (a certificate
    that does not match, an HTTP 502) come from a service that lives: a restart would not help. UNSURE says
    nothing of the service, because the prober itself was held up.
    """

    ALIVE = "alive"
    SILENT = "silent"
    REFUSED = "refused"
    DENIED = "denied"
    FAULTY = "faulty"
    UNSURE = "unsure"

    @property
    def failed(self) -> bool:
        """The service does not answer."""
        return self in (Finding.SILENT, Finding.REFUSED)


@dataclass(frozen=True)
class Outcome:
    """The result of one probe: `detail` is a clause for people, `seconds` how long the answer took.

    `live_calls` comes with the probes that can count them.
    """

    finding: Finding
    detail: str
    seconds: float = 0.0
    live_calls: int | None = None


class Health(StrEnum):
    """How a service is, in one word that CLI, alarms and log share."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    STARTING = "starting"
    WAITING = "waiting"
    DOWN = "down"
    HUNG = "hung"
    DEGRADED = "degraded"
    STOPPED = "stopped"
    OFF = "off"
    IDLE = "idle"
    ABSENT = "absent"
    UNKNOWN = "unknown"

    @property
    def good(self) -> bool:
        """Nothing is wrong: it works, or it rightly does not run."""
        return self in (Health.HEALTHY, Health.SUSPECT, Health.OFF, Health.IDLE)


class Action(StrEnum):
    """What the executor does. REPLACE kills a hung service; once systemd reports it dead, START follows."""

    NONE = "none"
    START = "start"
    REPLACE = "replace"
    STOP = "stop"
