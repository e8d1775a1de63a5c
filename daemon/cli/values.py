"""From what a person types to a value of the settings document, and the document with that value in it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence

from daemon.cli.json_types import JsonObject, JsonValue, as_object
from daemon.cli.schema import Schema, join_path
from daemon.errors import InvalidSettingsError, NotFoundError, Problem

_TRUE = frozenset({"true", "yes", "on"})
_FALSE = frozenset({"false", "no", "off"})
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def value_at(document: JsonValue, keys: Sequence[str]) -> JsonValue:
    """The value at the keys; raises NotFoundError when the document holds none."""
    found = document
    for number, key in enumerate(keys):
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise NotFoundError(f"there is no {join_path(keys[: number + 1])} in the settings")
    return found


def with_value(document: JsonObject, keys: Sequence[str], value: JsonValue) -> JsonObject:
    """A copy of the document with the value at the keys; missing objects on the way are made.

    A list index one past the end appends. Raises NotFoundError for an index further out.
    """
    if not keys:
        return as_object(value)
    changed = copy.deepcopy(document)
    place: JsonValue = changed
    for number, key in enumerate(keys):
        last = number == len(keys) - 1
        if isinstance(place, list):
            index = int(key) if key.isdigit() else -1
            if not 0 <= index <= len(place):
                raise NotFoundError(
                    f"{join_path(keys[:number])} has {len(place)} entries, there is no {key}",
                    f"the next one is {len(place)}",
                )
            if index == len(place):
                place.append({})
            if last:
                place[index] = value
            elif not isinstance(place[index], dict | list):
                place[index] = {}
            place = place[index]
        elif isinstance(place, dict):
            if last:
                place[key] = value
            elif not isinstance(place.get(key), dict | list):
                place[key] = {}
            place = place[key]
    return changed


def without(document: JsonObject, keys: Sequence[str]) -> JsonObject:
    """A copy of the document without what is at the keys: fields fall back to their default."""
    value_at(document, keys)
    changed = copy.deepcopy(document)
    place = value_at(changed, keys[:-1])
    if isinstance(place, list):
        del place[int(keys[-1])]
    elif isinstance(place, dict):
        del place[keys[-1]]
    return changed


def typed(schema: Schema, keys: Sequence[str], texts: Sequence[str]) -> JsonValue:
    """What the person means for the setting at the keys.

    Text stays text where the schema wants text. Lists take several words, or one JSON list; objects take
    JSON. What does not fit is passed on as text: the daemon refuses it and says what it expects.
    """
    node = schema.node(keys) or {}
    arrays = [option for option in schema.options(node) if option.get("type") == "array"]
    if arrays and not (len(texts) == 1 and texts[0].lstrip().startswith("[")):
        if len(texts) == 1 and texts[0] == "null" and schema.nullable(node):
            return None
        items = as_object(arrays[0].get("items"))
        return [scalar(schema, items, text, keys) for text in texts]
    if len(texts) != 1:
        raise InvalidSettingsError(
            [Problem(join_path(keys), f"takes one value, not {len(texts)}", "quote a value that has spaces")]
        )
    return scalar(schema, node, texts[0], keys)


def scalar(schema: Schema, node: JsonObject, text: str, keys: Sequence[str]) -> JsonValue:
    """One word as the value that the schema node wants."""
    options = schema.options(node)
    kinds = {str(option.get("type", "string")) for option in options}
    if text == "null" and schema.nullable(node):
        return None
    if "boolean" in kinds and text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    if "integer" in kinds and _WHOLE.fullmatch(text):
        return int(text)
    if "number" in kinds:
        try:
            return float(text) if not _WHOLE.fullmatch(text) else int(text)
        except ValueError:
            return text
    if "object" in kinds or "array" in kinds:
        if text.lstrip().startswith(("{", "[")):
            return from_json(text, join_path(keys))
        if "string" not in kinds:
            example = '{"name": "value"}' if "object" in kinds else '["value"]'
            raise InvalidSettingsError([Problem(join_path(keys), "takes JSON", f"write it like '{example}'")])
    return text


def from_json(text: str, where: str) -> JsonValue:
    """JSON text as a value; raises InvalidSettingsError with line and column, also for a doubled key."""
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InvalidSettingsError(
            [Problem(where, f"is no JSON: {error.msg} in line {error.lineno}, column {error.colno}")]
        ) from None
    except (_DoubledKeyError, RecursionError) as error:
        raise InvalidSettingsError([Problem(where, str(error))]) from None
    return value


class _DoubledKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    found: JsonObject = {}
    for key, value in pairs:
        if key in found:
            raise _DoubledKeyError(f"has the key {key} twice")
        found[key] = value
    return found


def _no_constant(word: str) -> JsonValue:
    raise _DoubledKeyError(f"has {word}, which is no number of JSON")
