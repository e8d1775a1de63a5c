"""What the bus asks of supervision; `daemon.services` implements it, `daemon.main` connects the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from daemon.subsystem import JsonObject, Subsystem

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
