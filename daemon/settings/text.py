"""Settings as text for people: one line a value, and the unified difference of two documents."""

from __future__ import annotations

import json
from collections.abc import Iterator

from daemon.settings.migrations import Document


def as_lines(value: object, indent: int = 0) -> Iterator[str]:
    """YAML-like lines, two spaces a level; scalars are written as JSON writes them."""
    blank = "  " * indent
    if isinstance(value, dict) and value:
        for key, item in value.items():
            if isinstance(item, dict | list) and item:
                yield f"{blank}{key}:"
                yield from as_lines(item, indent + 1)
            else:
                yield f"{blank}{key}: {_scalar(item)}"
    elif isinstance(value, list) and value:
        for item in value:
            if isinstance(item, dict | list) and item:
                first, *rest = as_lines(item, indent + 1)
                yield f"{blank}- {first.lstrip()}"
                yield from rest
            else:
                yield f"{blank}- {_scalar(item)}"
    else:
        yield f"{blank}{_scalar(value)}"


def difference(older: Document, newer: Document, older_name: str, newer_name: str) -> str:
    """A unified diff of the two documents, empty if they are equal."""
    import difflib  # half a megabyte that only a plan needs

    return "".join(
        difflib.unified_diff(
            [line + "\n" for line in as_lines(older)],
            [line + "\n" for line in as_lines(newer)],
            older_name,
            newer_name,
        )
    )


def _scalar(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
