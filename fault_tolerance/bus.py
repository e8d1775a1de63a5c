"""Short calls of centralinod from the helpers of the pairing, by `busctl`: they need no bus library."""

from __future__ import annotations

import json

from daemon.errors import UnavailableError
from daemon.run import run

LIMIT_SECONDS = 60.0


def call(method: str, argument: str) -> str:
    """The string that `org.centralino.FaultTolerance1.METHOD` answers to one string without secrets."""
    target = ["org.centralino", "/org/centralino", "org.centralino.FaultTolerance1"]
    done = run(
        ["busctl", "--system", "call", *target, method, "s", argument],
        limit_seconds=LIMIT_SECONDS,
        check=False,
    )
    if done.status != 0:
        text = done.errors.strip().removeprefix("Call failed: ")
        raise UnavailableError(text or "centralinod does not answer", "see: journalctl -u centralinod")
    # `s "..."`, quoted as C does; every character beyond ASCII is escaped in JSON already.
    kind, _, quoted = done.output.strip().partition(" ")
    return str(json.loads(quoted)) if kind == "s" else ""
