"""The whole state in one document: the answer to System1.Status."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

from daemon.alarms import Alarms
from daemon.audit import AuditLog
from daemon.engine import Engine
from daemon.jobs import Jobs
from daemon.platform import Platform
from daemon.services.api import ServiceManager
from daemon.subsystem import JsonObject

ROLE_WITHOUT_PEER = "standalone"


class StatusBoard:
    """Collects from every part; asks nobody who could keep it waiting."""

    def __init__(
        self,
        engine: Engine,
        jobs: Jobs,
        alarms: Alarms,
        audit: AuditLog,
        services: ServiceManager | None,
        platform: Platform | None,
        program: str,
        role: Callable[[], str] = lambda: ROLE_WITHOUT_PEER,
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._alarms = alarms
        self._audit = audit
        self._services = services
        self._platform = platform
        self._program = program
        self._role = role

    def status(self) -> JsonObject:
        """As documented for Status in org.centralino.xml."""
        states = self._engine.observe()
        alarms = [alarm.as_json() for alarm in self._alarms.standing()]
        reasons = self._engine.reasons()
        if self._audit.trouble is not None:
            reasons.append(self._audit.trouble)
        for state in states.values():
            reasons += [reason for reason in state.reasons if not state.healthy and reason not in reasons]
        unhealthy = [name for name, state in states.items() if not state.healthy]
        return {
            "healthy": not reasons and not unhealthy,
            "reasons": reasons,
            "hostname": socket.gethostname(),
            "version": self._program,
            "platform": None
            if self._platform is None
            else {"name": self._platform.name, "version": self._platform.version},
            "revision": self._engine.revision,
            "pending": self._engine.pending(),
            "role": self._role(),
            "services": [] if self._services is None else [*self._services.list()],
            "subsystems": {
                name: {
                    "healthy": state.healthy,
                    "reasons": list(state.reasons),
                    "drift": list(state.drift),
                    "facts": dict(state.facts),
                }
                for name, state in states.items()
            },
            "alarms": alarms,
            "stored_only": self._engine.stored_only(),
            "jobs_running": self._jobs.running(),
        }

    def summary(self) -> str:
        """What StatusChanged tells everybody on the bus: little."""
        return json.dumps({"revision": self._engine.revision, "alarms": len(self._alarms.standing())})
