"""The JSON Schema of the settings document, as the command line needs it: paths, types, descriptions.

Only the part of JSON Schema that the daemon's schema uses is understood: `$ref` into `$defs`, `properties`,
`patternProperties` or `additionalProperties` (mappings), `items`, `anyOf`, `enum`, `const`, bounds.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from daemon.cli.json_types import JsonObject, JsonValue, as_list, as_object, text_of
from daemon.errors import NotFoundError

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_PART = re.compile(r'"([^"]*)"|\[([^\]]*)\]|([^.\["]+)')
_DEFAULT_SHOWN = 40


def _below(value: JsonValue, key: str) -> JsonValue:
    """What the value holds below the key; None when it holds nothing there."""
    if isinstance(value, list):
        return value[int(key)] if key.isdigit() and int(key) < len(value) else None
    return as_object(value).get(key)


@dataclass(frozen=True)
class Field:
    """One line of the reference: `path` with `NAME` and `N` for what the admin chooses."""

    path: str
    kind: str
    default: str
    description: str


def split_path(path: str) -> list[str]:
    """`a.b.0`, `a."eth0.100".b` or `a[eth0.100].b` as its parts; raises NotFoundError when it is no path."""
    parts: list[str] = []
    position = 0
    while position < len(path):
        found = _PART.match(path, position)
        if found is None:
            raise NotFoundError(f"{path!r} is not a path of the settings", "write it like node.hostname")
        parts.append(next(group for group in found.groups() if group is not None))
        position = found.end()
        if position < len(path) and path[position] == ".":
            position += 1
            if position == len(path):
                raise NotFoundError(f"{path!r} ends with a dot", "leave the dot out")
    return parts


def join_path(keys: Sequence[str]) -> str:
    """The keys as a path that `split_path` takes apart again."""
    return ".".join(key if _BARE_KEY.fullmatch(key) else f'"{key}"' for key in keys)


class Schema:
    """The schema with its `$defs`."""

    def __init__(self, document: JsonObject) -> None:
        self.document = document
        self._definitions = as_object(document.get("$defs"))

    def resolve(self, node: JsonObject) -> JsonObject:
        """The node with its `$ref` followed; what stands beside the reference wins."""
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return node
        target = self.resolve(as_object(self._definitions.get(reference.rpartition("/")[2])))
        return {**target, **{key: value for key, value in node.items() if key != "$ref"}}

    def options(self, node: JsonObject) -> list[JsonObject]:
        """The alternatives of a node, flat and resolved; null is left out."""
        resolved = self.resolve(node)
        branches = as_list(resolved.get("anyOf")) or as_list(resolved.get("oneOf"))
        if not branches:
            return [] if resolved.get("type") == "null" else [resolved]
        return [option for branch in branches for option in self.options(as_object(branch))]

    def nullable(self, node: JsonObject) -> bool:
        """Whether null is allowed."""
        resolved = self.resolve(node)
        branches = [as_object(branch) for branch in as_list(resolved.get("anyOf"))]
        return resolved.get("type") == "null" or any(self.nullable(branch) for branch in branches)

    def child(self, node: JsonObject, key: str) -> JsonObject | None:
        """The node below `key`, or None when there can be none."""
        for option in self.options(node):
            properties = as_object(option.get("properties"))
            if key in properties:
                return as_object(properties[key])
            for values in self._mapping_values(option):
                return values
            if option.get("type") == "array" and key.isdigit():
                return as_object(option.get("items"))
        return None

    def _mapping_values(self, option: JsonObject) -> Iterator[JsonObject]:
        for values in as_object(option.get("patternProperties")).values():
            yield as_object(values)
        if isinstance(option.get("additionalProperties"), dict):
            yield as_object(option["additionalProperties"])

    def is_mapping(self, node: JsonObject) -> bool:
        """Whether the keys below are the admin's own, such as names of interfaces."""
        return any(True for option in self.options(node) for _ in self._mapping_values(option))

    def node(self, keys: Sequence[str]) -> JsonObject | None:
        """The node at the keys, or None."""
        found: JsonObject | None = self.document
        for key in keys:
            if found is None:
                return None
            found = self.child(found, key)
        return found

    def keys_of(self, path: str, value: JsonValue = None) -> list[str]:
        """The keys that a path means; raises NotFoundError that names the part that is unknown.

        Names that an admin chose may hold dots (`eth0.100`): existing ones in `value` are preferred, then
        the shortest name that leaves a path which exists.
        """
        parts = split_path(path)
        keys = self._match(self.document, parts, value)
        if keys is not None:
            return keys
        raise self._unknown(path, parts)

    def _match(self, node: JsonObject, parts: Sequence[str], value: JsonValue) -> list[str] | None:
        if not parts:
            return []
        here = as_object(value)
        lengths: list[int] = [1]
        if self.is_mapping(node):
            joined = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
            existing = [name.count(".") + 1 for name in joined if name in here]
            lengths = list(dict.fromkeys([*existing, *range(1, len(parts) + 1)]))
        for length in lengths:
            key = ".".join(parts[:length])
            child = self.child(node, key)
            if child is None:
                continue
            rest = self._match(child, parts[length:], _below(value, key))
            if rest is not None:
                return [key, *rest]
        return None

    def _unknown(self, path: str, parts: Sequence[str]) -> NotFoundError:
        node: JsonObject = self.document
        for number, part in enumerate(parts):
            child = self.child(node, part)
            if child is None:
                names = self.names(node)
                near = difflib.get_close_matches(part, names, n=3, cutoff=0.5)
                where = f"in {join_path(parts[:number])}" if number else "at the top"
                remedy = f"did you mean {', '.join(near)}?" if near else f"there is: {', '.join(names)}"
                return NotFoundError(f"there is no setting {part} {where}", remedy if names else "")
            node = child
        return NotFoundError(f"there is no setting {path}")

    def names(self, node: JsonObject) -> list[str]:
        """The fixed names below a node."""
        return [name for option in self.options(node) for name in as_object(option.get("properties"))]

    def children(self, typed: str, value: JsonValue) -> list[tuple[str, str]]:
        """Paths one level below the finished parts of `typed`, each with its description."""
        finished, _, _ = typed.rpartition(".")
        try:
            keys = self.keys_of(finished, value) if finished else []
        except NotFoundError:
            return []
        node, here = self.document, value
        for key in keys:
            node = self.child(node, key) or {}
            here = _below(here, key)
        names = self.names(node)
        if self.is_mapping(node):
            names += list(as_object(here))
        if isinstance(here, list):
            names += [str(number) for number in range(len(here))]
        found = []
        for name in names:
            child = self.child(node, name) or {}
            found.append((join_path([*keys, name]), text_of(self.resolve(child), "description")))
        return found

    def kind(self, node: JsonObject) -> str:
        """The type in words: `text`, `whole number 1-65535`, `a, b or c`, `list of IPv4 addresses`."""
        kinds = list(dict.fromkeys(self._kind(option) for option in self.options(node)))
        return " or ".join(kinds) + (" or null" if self.nullable(node) else "")

    def _kind(self, option: JsonObject) -> str:
        choices = [str(choice) for choice in as_list(option.get("enum"))]
        if "const" in option:
            choices = [str(option["const"])]
        if choices:
            return f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]
        kind = option.get("type")
        if kind == "array":
            return f"list of {self.kind(as_object(option.get('items')))}"
        if kind == "object":
            if self.is_mapping(option):
                return "mapping of names to " + self.kind(next(self._mapping_values(option)))
            return text_of(option, "title", "object")
        if kind in ("integer", "number"):
            word = "whole number" if kind == "integer" else "number"
            low, high = option.get("minimum"), option.get("maximum")
            if low is not None and high is not None:
                return f"{word} {low}-{high}"
            if low is not None:
                return f"{word} from {low}"
            return word + (f" up to {high}" if high is not None else "")
        if kind == "string":
            return _FORMATS.get(text_of(option, "format"), "text")
        return "true or false" if kind == "boolean" else "any"

    def fields(self, keys: Sequence[str] = (), *, deep: bool = True) -> Iterator[Field]:
        """The settings below the keys, parents before children, in the schema's order."""
        node = self.node(keys) if keys else self.document
        if node is None:
            return
        properties = self._named(node)
        if not properties:
            yield self._field(keys, node)
        for name, child in properties:
            below = [*keys, name]
            yield self._field(below, child)
            if deep and self._named(child):
                yield from self.fields(below)

    def _named(self, node: JsonObject) -> list[tuple[str, JsonObject]]:
        found = []
        for option in self.options(node):
            found += [(name, as_object(child)) for name, child in as_object(option.get("properties")).items()]
            found += [("NAME", values) for values in self._mapping_values(option)]
            if option.get("type") == "array" and self._named(as_object(option.get("items"))):
                found.append(("0", as_object(option.get("items"))))
        return found

    def _field(self, keys: Sequence[str], node: JsonObject) -> Field:
        resolved = self.resolve(node)
        default = json.dumps(resolved["default"]) if "default" in resolved else ""
        if len(default) > _DEFAULT_SHOWN and isinstance(resolved.get("default"), dict):
            default = "see below"
        return Field(join_path(keys), self.kind(node), default, text_of(resolved, "description"))


_FORMATS = {
    "ipv4": "IPv4 address",
    "ipv6": "IPv6 address",
    "ipv4interface": "IPv4 address/prefix",
    "ipv6interface": "IPv6 address/prefix",
    "ipv4network": "IPv4 network",
    "ipv6network": "IPv6 network",
    "date-time": "date and time",
}
