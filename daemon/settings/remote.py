"""`parse` and its like for the resident daemon: asked of a helper process, answered in light records.

Raises what `validation` raises, and UnavailableError when the helper could not do its work: that says
nothing about the settings, and must never be taken for a refusal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

from daemon.errors import CommandFailedError, InvalidSettingsError, Problem, UnavailableError
from daemon.run import Conversation
from daemon.settings.document import Settings
from daemon.settings.migrations import Document

HELPER = "daemon.settings.worker"
LIMIT_SECONDS = 30.0
ATTEMPTS = 2
# A change is often followed by the next one, and a start of the helper takes longer than the change itself.
KEPT_SECONDS = 20.0
# pydantic would search every installed package for plugins.
ENVIRONMENT = {"PYDANTIC_DISABLE_PLUGINS": "__all__"}
LONGEST_REMEMBERED = 100_000

log = logging.getLogger(__name__)


class _Memory:
    """Answers that stay true, so that a person at the command line waits for the helper once, not thrice."""

    accepted: tuple[bytes, Settings] | None = None
    schema: str | None = None


_helper = Conversation(
    [sys.executable, "-P", "-m", HELPER], idle_seconds=KEPT_SECONDS, environment=ENVIRONMENT
)


class RefusedValuesError(ValueError):
    """Values that one class of the schema refuses; `errors()` as pydantic's."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, row['loc']))}: {row['msg']}" for row in rows))
        self._rows = rows

    def errors(self) -> list[dict[str, Any]]:
        """`loc`, `msg`, `type` of each."""
        return self._rows


def parse(text: str) -> Settings:
    """See daemon.settings.validation.parse. The same text again, a proposal that is applied, asks nobody."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    if (known := _Memory.accepted) is not None and known[0] == digest:
        return known[1]
    settings = _settings(_ask({"do": "text", "text": text}))
    if len(text) <= LONGEST_REMEMBERED:
        _Memory.accepted = (digest, settings)
    return settings


def parse_document(raw: object) -> Settings:
    """See daemon.settings.validation.parse_document."""
    return _settings(_ask({"do": "document", "document": raw}))


def restore(document: Document) -> Settings:
    """From what `dump` gave, unchecked. Raises UnavailableError if another release's `dump` gave it."""
    try:
        return Settings.restore(document)  # type: ignore[attr-defined,no-any-return]  # a Record here
    except (TypeError, ValueError, AttributeError) as error:
        log.exception("a document that was checked does not fit")
        raise UnavailableError(
            f"the installed program is another one than the one that runs ({error})",
            "run `systemctl restart centralinod`",
        ) from error


def dump(settings: Settings) -> Document:
    """See daemon.settings.validation.dump."""
    return settings.model_dump(mode="json")


def json_schema() -> Document:
    """The JSON Schema of the document; the same for as long as this program runs."""
    if _Memory.schema is None:
        _Memory.schema = json.dumps(_table(_ask({"do": "schema"})["schema"]))
    return _table(json.loads(_Memory.schema))


def checked_part(name: str, values: Mapping[str, object]) -> Document:
    """The values of the class `name`, with defaults. Raises RefusedValuesError."""
    answer = _ask({"do": "part", "name": name, "values": values})
    if "errors" in answer:
        raise RefusedValuesError(answer["errors"])
    return _table(answer["document"])


def _settings(answer: Mapping[str, Any]) -> Settings:
    if "problems" in answer:
        raise InvalidSettingsError([Problem(**problem) for problem in answer["problems"]])
    return restore(_table(answer["document"]))


def _ask(request: Mapping[str, object]) -> Mapping[str, Any]:
    try:
        text = json.dumps(request)
    except RecursionError:
        problem = Problem("document", "is nested too deeply", "correct the document")
        raise InvalidSettingsError([problem]) from None
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _table(json.loads(_helper.ask(text, LIMIT_SECONDS)))
        except (CommandFailedError, ValueError, RecursionError) as error:
            log.warning("attempt %d to check settings failed: %s", attempt, error)
            trouble = error
    raise UnavailableError(f"the settings could not be checked: {trouble}", "try again; see the journal")


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("the helper's answer is not a table")
    return value
