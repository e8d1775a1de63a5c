"""JSON as it comes over the bus, with accessors that never raise on an unexpected shape."""

from __future__ import annotations

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
JsonObject = dict[str, JsonValue]


def as_object(value: object) -> JsonObject:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[JsonValue]:
    """The value if it is a JSON list, else an empty one."""
    return value if isinstance(value, list) else []


def text_of(entry: JsonObject, key: str, default: str = "") -> str:
    """The entry's text; numbers and booleans as JSON writes them, `default` for null and absence."""
    value = entry.get(key)
    if value is None:
        return default
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


def whole_of(entry: JsonObject, key: str) -> int:
    """The entry's whole number, 0 where there is none."""
    value = entry.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def texts_of(entry: JsonObject, key: str) -> list[str]:
    """The entry's list of texts."""
    return [item if isinstance(item, str) else str(item) for item in as_list(entry.get(key))]


def objects_of(entry: JsonObject, key: str) -> list[JsonObject]:
    """The entry's list of objects."""
    return [item for item in as_list(entry.get(key)) if isinstance(item, dict)]
