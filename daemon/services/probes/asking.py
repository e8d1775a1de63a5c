"""What every probe shares: a deadline, and one place that turns what sockets raise into an Outcome."""

from __future__ import annotations

import time
from collections.abc import Callable

from daemon.services.model import Finding, Outcome

# A wait that overran its limit by this much was held up together with the prober: the machine stood still.
STALL_SECONDS = 0.5
SHORTEST_WAIT = 0.001


class ProbeError(Exception):
    """The service answered, but not as it should; `finding` says how that counts."""

    def __init__(self, finding: Finding, detail: str) -> None:
        super().__init__(detail)
        self.finding = finding


class Deadline:
    """A moment in monotonic time, `limit_seconds` from now."""

    def __init__(self, limit_seconds: float) -> None:
        self.begun = time.monotonic()
        self.ends = self.begun + limit_seconds

    def left(self) -> float:
        """Seconds left, for `settimeout`; raises TimeoutError when there are none."""
        left = self.ends - time.monotonic()
        if left < SHORTEST_WAIT:
            raise TimeoutError
        return left

    def used(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begun


def asked(subject: str, limit_seconds: float, question: Callable[[Deadline], Outcome]) -> Outcome:
    """Ask, and never raise: `subject` names what was asked in the sentences (`SIP OPTIONS`)."""
    deadline = Deadline(limit_seconds)
    try:
        return question(deadline)
    except ProbeError as error:
        return Outcome(error.finding, f"{subject}: {error}", deadline.used())
    except TimeoutError:
        used = deadline.used()
        if used > limit_seconds + STALL_SECONDS:
            detail = f"{subject}: the prober was held up for {used:.1f} s, so nothing is known"
            return Outcome(Finding.UNSURE, detail, used)
        return Outcome(Finding.SILENT, f"{subject}: no answer within {limit_seconds:g} s", used)
    except (ConnectionError, FileNotFoundError, EOFError) as error:
        reason = "connection refused" if _never_listened(error) else "connection closed without an answer"
        return Outcome(Finding.REFUSED, f"{subject}: {reason}", deadline.used())
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Outcome(Finding.FAULTY, f"{subject}: cannot be asked ({reason})", deadline.used())


def _never_listened(error: Exception) -> bool:
    return isinstance(error, ConnectionRefusedError | FileNotFoundError)
