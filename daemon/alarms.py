"""The alarms that stand now: raised and cleared by any subsystem, kept across restarts, shown by `status`.

An alarm has an identifier, `FAMILY.SUBJECT` (`service.asterisk`), and one sentence that says what happened,
to what, and what to do next. Raising a standing alarm again only replaces its sentence.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from daemon.later import LaterWriter
from daemon.settings.messages import Severity

ALARM_FILE = Path("/var/lib/centralino/alarms.json")
LONGEST_SENTENCE = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alarm:
    """One standing alarm; `since` is wall-clock time (ISO 8601, UTC) and is for people only."""

    identifier: str
    sentence: str
    severity: Severity
    since: str

    @property
    def family(self) -> str:
        """What stands before the first dot: recipients subscribe to families (S-AL-04)."""
        return self.identifier.partition(".")[0]

    def as_json(self) -> dict[str, object]:
        """Keys `id`, `family`, `sentence`, `severity`, `since`."""
        return {
            "id": self.identifier,
            "family": self.family,
            "sentence": self.sentence,
            "severity": self.severity.value,
            "since": self.since,
        }


Listener = Callable[[Alarm, bool], None]


class Alarms:
    """The board of standing alarms; safe to use from every thread.

    The file is written by a thread of its own, so that a stalled disk does not hold up whoever sees trouble,
    and a full one loses no alarm. A damaged file starts an empty board: what still is wrong raises it again.
    """

    def __init__(self, file: Path = ALARM_FILE) -> None:
        self._writer = LaterWriter(file)
        self._lock = threading.Lock()
        self._standing: dict[str, Alarm] = _read(file)
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call `listener(alarm, raised)` after every new or cleared alarm, from the thread that caused it."""
        self._listeners.append(listener)

    def raise_alarm(self, identifier: str, sentence: str, severity: Severity = Severity.CRITICAL) -> None:
        """Put an alarm on the board, or renew the sentence of a standing one."""
        sentence = sentence[:LONGEST_SENTENCE]
        with self._lock:
            standing = self._standing.get(identifier)
            if standing is not None and (standing.sentence, standing.severity) == (sentence, severity):
                return
            if standing is None:
                since = datetime.now(UTC).isoformat(timespec="seconds")
                alarm = Alarm(identifier, sentence, severity, since)
            else:
                alarm = replace(standing, sentence=sentence, severity=severity)
            self._standing[identifier] = alarm
            self._write()
        if standing is None:
            log.warning("alarm %s: %s", identifier, sentence)
            self._tell(alarm, True)

    def clear_alarm(self, identifier: str) -> None:
        """Take an alarm off the board; one that does not stand is no error."""
        with self._lock:
            alarm = self._standing.pop(identifier, None)
            if alarm is None:
                return
            self._write()
        log.warning("alarm %s is over", identifier)
        self._tell(alarm, False)

    def standing(self) -> tuple[Alarm, ...]:
        """All standing alarms, oldest first."""
        with self._lock:
            return tuple(sorted(self._standing.values(), key=lambda alarm: (alarm.since, alarm.identifier)))

    def _tell(self, alarm: Alarm, raised: bool) -> None:
        for listener in self._listeners:
            listener(alarm, raised)

    def flush(self, limit_seconds: float = 2.0) -> bool:
        """Wait until the file holds the board, before the program ends; false if the disk did not take it."""
        return self._writer.flush(limit_seconds)

    def _write(self) -> None:
        self._writer.put(json.dumps([alarm.as_json() for alarm in self._standing.values()], indent=1) + "\n")


def _read(file: Path) -> dict[str, Alarm]:
    try:
        rows = json.loads(file.read_text())
        alarms = [Alarm(row["id"], row["sentence"], Severity(row["severity"]), row["since"]) for row in rows]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is unreadable (%s); the board of alarms starts empty", file, error)
        return {}
    return {alarm.identifier: alarm for alarm in alarms}
