"""Which services a person stopped: kept on disk, so that a restart of the daemon starts none of them.

Like `systemctl stop`, such a stop holds until the service is started again or the box boots: what shall never
run is disabled in the settings.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from daemon.later import LaterWriter
from daemon.services.decision import Stop

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0


class Intents:
    """The stops of this boot; owned by the supervisor's thread, written by a thread of its own."""

    def __init__(self, file: Path, boot: str) -> None:
        self._boot = boot
        self._writer = LaterWriter(file)
        self._stops = _read(file, boot)

    @property
    def stops(self) -> Mapping[str, Stop]:
        """By service name."""
        return self._stops

    def record(self, name: str, stop: Stop | None) -> None:
        """Note that a person stopped the service, or (None) started it again."""
        if self._stops.get(name) == stop:
            return
        stops = {other: known for other, known in self._stops.items() if other != name}
        if stop is not None:
            stops[name] = stop
        self._stops = stops
        document = {"boot": self._boot, "stops": {other: asdict(known) for other, known in stops.items()}}
        self._writer.put(json.dumps(document, indent=1) + "\n")

    def flush(self) -> bool:
        """Wait until the disk has it; false if the disk does not take it."""
        return self._writer.flush(FLUSH_SECONDS)


def _read(file: Path, boot: str) -> dict[str, Stop]:
    try:
        document = json.loads(file.read_text())
        if not boot or document["boot"] != boot:
            return {}
        return {name: Stop(**stop) for name, stop in document["stops"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is unreadable (%s); no service counts as stopped by a person", file, error)
        return {}
