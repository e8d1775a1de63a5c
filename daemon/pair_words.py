"""What the role runtime and the rest of the daemon tell each other, in each one's own words."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Container, Iterable, Mapping
from typing import TYPE_CHECKING

from daemon.alarms import Alarms
from daemon.engine import Engine
from daemon.jobs import JobHandle, Jobs
from daemon.pair import FaultToleranceSubsystem
from daemon.pair_link import PairLink
from daemon.pair_secrets import PairSecrets
from daemon.places import Places
from daemon.services.api import ServiceManager
from daemon.services.model import Health
from daemon.subsystem import JsonObject

if TYPE_CHECKING:
    from daemon.pair_jobs import PairJobs

CORE_SERVICES = ("asterisk", "mariadb")
LANE = "settings"
WHO = "the master"

log = logging.getLogger(__name__)


def core_failed(rows: Iterable[Mapping[str, object]], standing: Container[str]) -> bool:
    """Whether the PBX core cannot run here: one of its services has an alarm among the `standing` ones and is
    not well. `rows` are those of `Services1.List`.

    One that starts, or that this daemon has not asked yet, is neither: after a restart of the daemon an alarm
    may stand for what is long over.
    """
    return any(
        row.get("name") in CORE_SERVICES
        and f"service.{row.get('name')}" in standing
        and row.get("healthy") is not True
        and row.get("health") not in (Health.UNKNOWN, Health.STARTING)
        for row in rows
    )


class PairWords:
    """The parts are asked for when they are needed: some do not exist yet when this does."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        services: Callable[[], ServiceManager | None],
        alarms: Alarms,
        jobs: Callable[[], Jobs],
        secrets: Callable[[], PairSecrets],
    ) -> None:
        self._engine = engine
        self._services = services
        self._alarms = alarms
        self._jobs = jobs
        self._secrets = secrets
        self._cluster: tuple[int, str, JsonObject] | None = None

    def paired(self) -> bool:
        """Whether the settings in force make this node one of a pair."""
        return self._engine().settings.fault_tolerance.enabled

    def core(self) -> JsonObject:
        """What the runtime must know: see `core` in fault_tolerance.service."""
        digest, document = self._cluster_part()
        calls, unit = None, "asterisk.service"
        standing = {alarm.identifier for alarm in self._alarms.standing()}
        services = self._services()
        rows = [] if services is None else services.list()
        for row in rows:
            name = str(row.get("name"))
            if name == "asterisk":
                unit = str(row.get("unit"))
                found = row.get("live_calls")
                calls = found if isinstance(found, int) else None
        secrets = self._secrets()
        return {
            "failed": core_failed(rows, standing),
            "calls": calls,
            "unit": unit,
            "digest": digest,
            "document": document,
            "secrets": secrets.digest(),
            "secret_names": secrets.names(),
        }

    def take_settings(self, document: JsonObject) -> None:
        """The master's settings of cluster scope: applied like any change, node scope stays."""

        def work(handle: JobHandle) -> object:
            from daemon.settings import dump
            from daemon.settings.scopes import with_cluster_part

            engine = self._engine()
            settings = with_cluster_part(engine.settings, document)
            applied = engine.apply(
                json.dumps(dump(settings)),
                comment="settings of the master",
                who=WHO,
                confirm_seconds=0,
                progress=handle.progress,
            )
            return {"revision": applied.revision}

        self._jobs().submit("receive", WHO, work, lane=LANE)

    def manager(
        self,
        places: Places,
        subsystem: FaultToleranceSubsystem,
        link: PairLink,
    ) -> Callable[[], PairJobs]:
        """Makes the jobs' module when it is first used: a box without a pair never loads it."""

        def make() -> PairJobs:
            from daemon.pair_jobs import PairJobs

            return PairJobs(places, self._engine(), subsystem, link)

        return make

    def _cluster_part(self) -> tuple[str, JsonObject]:
        engine = self._engine()
        if self._cluster is None or self._cluster[0] != engine.revision:
            from daemon.settings.scopes import cluster_part

            document: JsonObject = dict(cluster_part(engine.settings))
            text = json.dumps(document, sort_keys=True)
            self._cluster = engine.revision, hashlib.sha256(text.encode()).hexdigest()[:16], document
        return self._cluster[1], self._cluster[2]
