"""Every failure that a person may see: one root, one class per meaning.

The D-Bus error name and the process exit code derive from the class, so that bus, CLI and log agree.
"""

from __future__ import annotations

from typing import NamedTuple

BUS_ERROR_PREFIX = "org.centralino.Error."


class Problem(NamedTuple):
    """One thing that is wrong with a settings document or with the box.

    `path` is the dotted path of the field (`network.interfaces.eth0.gateway`), `message` says what is
    wrong with it and `remedy` what to do; warnings (`fatal=False`) are shown but do not refuse.
    """

    path: str
    message: str
    remedy: str = ""
    fatal: bool = True

    def sentence(self) -> str:
        """`path: message; remedy`, for one line of output."""
        return f"{self.path}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")

    def as_json(self) -> dict[str, object]:
        """Keys `path`, `message`, `remedy`, `fatal`."""
        return self._asdict()


class CentralinoError(Exception):
    """Root of all errors that this program raises on purpose; `remedy` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    @classmethod
    def bus_name(cls) -> str:
        """The D-Bus error name, e.g. `org.centralino.Error.InvalidSettings`."""
        return BUS_ERROR_PREFIX + cls.__name__.removesuffix("Error")

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class InvalidSettingsError(CentralinoError):
    """A settings document is refused; `problems` names every field at once."""

    exit_code = 3

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(problem.sentence() for problem in problems))
        self.problems = problems


class NotAuthorizedError(CentralinoError):
    """The caller may not do this."""

    exit_code = 4


class NotFoundError(CentralinoError):
    """No such revision, service, job or section."""

    exit_code = 5


class ConflictError(CentralinoError):
    """Somebody else changed the settings in between, or a change is still unconfirmed."""

    exit_code = 6


class ApplyFailedError(CentralinoError):
    """A change could not be applied; the old state was put back."""

    exit_code = 7


class StorageError(CentralinoError):
    """The disk refused: full, read-only or damaged; nothing was changed."""

    exit_code = 8


class UnavailableError(CentralinoError):
    """Something that must answer does not: the daemon, the bus, a service."""

    exit_code = 9


class CommandFailedError(CentralinoError):
    """An external command failed or overran its time limit."""

    exit_code = 10


class CancelledError(CentralinoError):
    """A job was cancelled at the wish of an admin; what it had begun was put back."""

    exit_code = 12
