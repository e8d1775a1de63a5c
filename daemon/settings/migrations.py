"""Steps that bring a document of an older schema to the present one, one small function a step.

A step takes the whole document (JSON types) of schema N and returns that of N+1; it may not assume that the
document is valid, because it runs before validation. Steps are never changed once released.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from daemon.errors import InvalidSettingsError, Problem
from daemon.settings.document import SCHEMA

Document = dict[str, object]
Migration = Callable[[Document], Document]

# N -> the function that turns a document of schema N into one of N+1. Schema 1 is the first.
MIGRATIONS: Mapping[int, Migration] = {}


def migrate(
    document: Document, *, target: int = SCHEMA, migrations: Mapping[int, Migration] = MIGRATIONS
) -> Document:
    """The document in schema `target`; one without a `schema` key is taken to be of that schema already.

    Raises InvalidSettingsError for a newer schema (made by a newer release), for one that is not a number
    and for one that no step leads away from.
    """
    number = document.get("schema", target)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InvalidSettingsError(
            [Problem("schema", "is not a schema number", f"write {target} or leave it out")]
        )
    if number > target:
        raise InvalidSettingsError(
            [
                Problem(
                    "schema",
                    f"the document is of schema {number}, this release knows up to {target}",
                    "update this appliance, or export the settings from a release of the same age",
                )
            ]
        )
    moved = dict(document)
    for step in range(number, target):
        if step not in migrations:
            raise InvalidSettingsError(
                [Problem("schema", f"no way leads from schema {step} to {step + 1}", "start from an export")]
            )
        moved = {**migrations[step](moved), "schema": step + 1}
    return moved
