"""Every failure of the builder that a person may see: one root, one class and one exit code per meaning.

Exit codes of `centralino-build` (2 is click's own: wrong usage; 130: interrupted):

| code | class |
|---|---|
| 1 | BuildError: anything without a code of its own |
| 3 | ProfileError: the build profile or the platform file is refused |
| 4 | MirrorError: a package mirror is not configured, not reachable or lacks something |
| 5 | HostError: this host lacks a program, a right or disk space |
| 6 | CommandFailedError: a program that the build runs failed or overran its time limit |
| 7 | LockError: lock file and inputs disagree, or a digest differs |
| 8 | InputError: a file handed to the builder (base ISO, wheel, tree) is not what it must be |
| 9 | VerificationError: an artefact is damaged or not what its manifest says |
| 10 | BootTestError: an artefact did not reach a milestone of its boot |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: dotted `path` of the field, `message` what is wrong, `remedy` what to do."""

    path: str
    message: str
    remedy: str = ""

    def sentence(self) -> str:
        """`path: message; remedy`, one line."""
        return f"{self.path}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")

    def as_json(self) -> dict[str, str]:
        """Keys `path`, `message`, `remedy`."""
        return asdict(self)


class BuildError(Exception):
    """Root of all errors that the builder raises on purpose; `remedy` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def as_json(self) -> dict[str, object]:
        """Keys `error` (class), `message`, `remedy`, `exit_code`."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class ProfileError(BuildError):
    """A profile or platform file is refused; `problems` names every field at once."""

    exit_code = 3

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        lines = "\n".join(f"  {problem.sentence()}" for problem in problems)
        super().__init__(f"{source} is refused:\n{lines}")
        self.source = source
        self.problems = tuple(problems)

    def as_json(self) -> dict[str, object]:
        """Adds `source` and the list `problems`."""
        return {
            **super().as_json(),
            "source": self.source,
            "problems": [problem.as_json() for problem in self.problems],
        }


class MirrorError(BuildError):
    """A package mirror is not configured, not reachable, or lacks what the build needs."""

    exit_code = 4


class HostError(BuildError):
    """This host lacks something: a program, root rights, disk space."""

    exit_code = 5


class CommandFailedError(BuildError):
    """A program that the build runs failed or overran its time limit; `log` holds everything it wrote."""

    exit_code = 6

    def __init__(
        self, message: str, remedy: str = "", *, log: Path | None = None, last_lines: Sequence[str] = ()
    ) -> None:
        super().__init__(message, remedy)
        self.log = log
        self.last_lines = tuple(last_lines)

    def as_json(self) -> dict[str, object]:
        """Adds `log` (path or None) and `last_lines`."""
        return {
            **super().as_json(),
            "log": None if self.log is None else str(self.log),
            "last_lines": list(self.last_lines),
        }


class LockError(BuildError):
    """A lock file and the inputs disagree, or the digest of something fetched differs from the lock."""

    exit_code = 7


class InputError(BuildError):
    """A file handed to the builder is not what it must be: base ISO, wheel, root tree, key."""

    exit_code = 8


class VerificationError(BuildError):
    """An artefact is damaged or is not what its manifest says."""

    exit_code = 9


class BootTestError(BuildError):
    """An artefact did not reach a milestone of its boot in time."""

    exit_code = 10
