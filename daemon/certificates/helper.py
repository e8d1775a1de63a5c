"""The daemon's side of the helper process: one question, one answer, a time limit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from daemon.errors import CommandFailedError, UnavailableError
from daemon.run import run

MODULE = "daemon.certificates.worker"
DEFAULT_LIMIT_SECONDS = 30.0


class Verb(StrEnum):
    """What the helper can be asked; see `daemon.certificates.worker` for what each takes and gives."""

    DESCRIBE = "describe"
    SELF_SIGNED = "self-signed"
    REQUEST = "request"
    JUDGE = "judge"
    ACME_CONDITIONS = "acme-conditions"
    ACME_ORDER = "acme-order"
    ACME_RENEWAL = "acme-renewal"


Answer = Mapping[str, Any]
Ask = Callable[..., Answer]


def ask_helper(verb: Verb, *, limit_seconds: float = DEFAULT_LIMIT_SECONDS, **values: object) -> Answer:
    """Run the helper for one question. Raises UnavailableError if it gives no answer in time."""
    try:
        done = run(
            [sys.executable, "-P", "-m", MODULE],
            input_text=json.dumps({"verb": verb.value, **values}),
            limit_seconds=limit_seconds,
        )
        answer = json.loads(done.output)
    except (CommandFailedError, ValueError) as error:
        raise UnavailableError(
            f"the helper for certificates failed at `{verb.value}`: {error}",
            "see the journal, then try again",
        ) from error
    if not isinstance(answer, dict):
        raise UnavailableError(
            f"the helper for certificates answered `{verb.value}` with no object", "try again"
        )
    return answer
