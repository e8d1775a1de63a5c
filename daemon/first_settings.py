"""The settings of a box's first start: what the installation already decided is adopted, not overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from daemon.errors import InvalidSettingsError, StorageError
from daemon.files import read_text
from daemon.hostname import current_hostname, current_timezone
from daemon.places import Places
from daemon.settings import Settings, parse_document
from daemon.settings.migrations import Document

PLACEHOLDERS = frozenset({"", "localhost", "(none)"})


def first_settings(places: Places) -> tuple[Settings, str, str | None]:
    """The settings, the comment of revision 1, and what was wrong with the image's settings (or None).

    Host name and time zone are those that the box has; what the image brings in its initial settings file
    comes before them; everything else is the default.
    """
    adopted = _adopted(places)
    try:
        brought = _brought(places.initial_settings)
        settings = parse_document(_merged(adopted, brought))
    except (InvalidSettingsError, StorageError) as error:
        trouble = f"{places.initial_settings} is refused, defaults are used: {error}"
        return parse_document(adopted), "first start", trouble
    return settings, "first start, from the image's settings" if brought else "first start", None


def _adopted(places: Places) -> Document:
    node: Document = {}
    name = current_hostname(places).partition(".")[0]
    if name not in PLACEHOLDERS:
        node["hostname"] = name
    node["timezone"] = current_timezone(places)
    document: Document = {"node": node}
    try:
        parse_document(document)
    except InvalidSettingsError:
        # A name that our schema does not know is not ours to keep.
        return {}
    return document


def _brought(file: Path) -> Document:
    text = read_text(file)
    if text is None:
        return {}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"it is not JSON ({error})", "write it anew") from error
    if not isinstance(document, dict):
        raise StorageError("it is not a table of sections", "write it anew")
    return document


def _merged(adopted: Document, brought: Document) -> Document:
    """The sections of both; within a section the image's fields win."""
    merged = {**adopted, **brought}
    for name, section in adopted.items():
        other = brought.get(name)
        if isinstance(other, dict) and isinstance(section, dict):
            merged[name] = {**cast(Document, section), **cast(Document, other)}
    return merged
