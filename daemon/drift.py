"""Differences between settings and box, made by other hands: an alarm for each subsystem that sees one.

`status` shows drift whenever somebody looks; this looks when nobody does. Nothing is put back by itself:
whoever changed the box may have had a reason, so a person decides (`centralino config repair`).
"""

from __future__ import annotations

import threading

from daemon.alarms import Alarms
from daemon.engine import Engine
from daemon.settings.messages import Severity

# These watch over their own differences, and have alarms of their own.
OWN_ALARMS = frozenset({"firewall", "services"})
FAMILY = "drift"
# A change that is under way looks like drift for a moment; what stands twice is none of that.
LOOKS = 2


class DriftWatch:
    """`look` is called from time to time; it takes milliseconds, in a thread that ends with it."""

    def __init__(self, engine: Engine, alarms: Alarms) -> None:
        self._engine = engine
        self._alarms = alarms
        self._seen: dict[str, int] = {}
        self._looking = threading.Lock()

    def begin(self) -> None:
        """Look without keeping the caller waiting; nothing if the last look has not ended."""
        if not self._looking.locked():
            threading.Thread(target=self.look, name="drift", daemon=True).start()

    def look(self) -> None:
        """Raise and clear the alarms `drift.SUBSYSTEM`."""
        with self._looking:
            for name, state in self._engine.observe().items():
                if name in OWN_ALARMS:
                    continue
                self._seen[name] = self._seen.get(name, 0) + 1 if state.drift else 0
                if not state.drift:
                    self._alarms.clear_alarm(f"{FAMILY}.{name}")
                elif self._seen[name] >= LOOKS:
                    more = f" (and {len(state.drift) - 1} more)" if len(state.drift) > 1 else ""
                    sentence = (
                        f"{name}: {state.drift[0]}{more}; look who changed it, then run:"
                        " centralino config repair"
                    )
                    self._alarms.raise_alarm(f"{FAMILY}.{name}", sentence, Severity.WARNING)
