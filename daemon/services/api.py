"""What the bus asks of supervision; `daemon.services` implements it, `daemon.main` connects the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from daemon.errors import ConflictError, NotFoundError
from daemon.platform import Platform
from daemon.run import run
from daemon.subsystem import JsonObject, Subsystem

RESTART_LIMIT_SECONDS = 60.0

Progress = Callable[[float | None, str], None]


class Verb(StrEnum):
    """What an admin can ask of a service."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"


@dataclass(frozen=True)
class ActOptions:
    """`drain_seconds` None means the service's own drain; `comment` and `who` are kept with a stop."""

    drain_seconds: int | None = None
    comment: str = ""
    who: str = "an admin"


class ServiceManager(Subsystem, Protocol):
    """Supervision as a subsystem (settings section `services`) and as the answerer of Services1."""

    def start(self) -> None:
        """Begin to watch, on threads of its own; returns at once."""
        ...

    def stop(self) -> None:
        """Stop watching; the services themselves go on."""
        ...

    def refresh(self) -> None:
        """Judge by the settings and the role of now; call it after a change of role."""
        ...

    def list(self) -> Sequence[JsonObject]:
        """One object a service, as documented for Services1.List; from memory, without asking anybody."""
        ...

    def plan_act(self, name: str, verb: Verb, options: ActOptions) -> JsonObject:
        """The dry run: `sentence`, `drops_calls`, `notes`. Raises NotFoundError, ConflictError."""
        ...

    def act(self, name: str, verb: Verb, options: ActOptions, progress: Progress) -> JsonObject:
        """Do it and wait for the end; runs as a job. `progress` may raise: then stop waiting and re-raise."""
        ...

    def logs(self, name: str, lines: int, cursor: str) -> JsonObject:
        """As documented for Services1.Logs. Raises NotFoundError, UnavailableError."""
        ...

    def drain(self, seconds: int, progress: Progress) -> None:
        """Wait until no call is live, at most so long; before a reboot."""
        ...


def restart_service(manager: ServiceManager | None, platform: Platform, name: str) -> None:
    """Restart a service because its configuration changed, and wait until it works again.

    One that does not run, or that supervision does not know yet, is left to systemd, which restarts only what
    runs. Raises UnavailableError if it does not come back.
    """
    if manager is not None:
        try:
            options = ActOptions(drain_seconds=0, comment="its settings changed", who="a change of settings")
            manager.act(name, Verb.RESTART, options, lambda _fraction, _message: None)
            return
        except (ConflictError, NotFoundError):
            pass
    run(["systemctl", "try-restart", platform.units[name]], limit_seconds=RESTART_LIMIT_SECONDS)
