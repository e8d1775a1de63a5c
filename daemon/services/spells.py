"""How often services were restarted lately: kept below /run, so that a restart of the daemon forgets none.

Otherwise a daemon that restarts itself would begin every pause anew, and start what cannot start without
end. The times are monotonic, so they end with the boot, as the file does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from daemon.later import LaterWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spell:
    """Of one service: restarts in this bad spell and when the last was made (monotonic seconds), restarts in
    all, and when those of the last hour were made."""

    restarts: int = 0
    last_restart: float | None = None
    in_all: int = 0
    recent: tuple[float, ...] = ()


class Spells:
    """Owned by the supervisor's thread, written by a thread of its own; without a file nothing is kept."""

    def __init__(self, file: Path | None = None, boot: str = "") -> None:
        self._boot = boot
        self._writer = None if file is None else LaterWriter(file)
        self._known = {} if file is None else _read(file, boot)

    def of(self, name: str) -> Spell:
        """What is remembered of the service."""
        return self._known.get(name, Spell())

    def keep(self, spells: Mapping[str, Spell]) -> None:
        """Write them if they are others than before."""
        known = {name: spell for name, spell in spells.items() if spell != Spell()}
        if known == self._known or self._writer is None:
            return
        self._known = known
        document = {"boot": self._boot, "spells": {name: asdict(spell) for name, spell in known.items()}}
        self._writer.put(json.dumps(document) + "\n")

    def flush(self, limit_seconds: float = 2.0) -> bool:
        """Wait until the file has them; false if it does not take them."""
        return self._writer is None or self._writer.flush(limit_seconds)


def _read(file: Path, boot: str) -> dict[str, Spell]:
    try:
        document = json.loads(file.read_text())
        if not boot or document["boot"] != boot:
            return {}
        return {
            name: Spell(**{**spell, "recent": tuple(spell["recent"])})
            for name, spell in document["spells"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is unreadable (%s); restarts are counted from none", file, error)
        return {}
