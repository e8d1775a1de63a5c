"""Settings as YAML text that a person edits: written with the schema's descriptions, read strictly.

Read by the core schema of YAML 1.2 only (https://yaml.org/spec/1.2.2/#103-core-schema): `no`, `on` and
`12:30` are text. Doubled keys and aliases are refused.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import yaml

from daemon.cli.json_types import JsonObject, JsonValue, text_of
from daemon.cli.schema import Schema, split_path
from daemon.errors import InvalidSettingsError, NotFoundError, Problem

WIDTH = 100
MARK = "#! "
DEEPEST = 32

_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq"))
_PLAIN = re.compile(r"[A-Za-z/_][A-Za-z0-9_./@+-]*")
_RESERVED = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")


@dataclass
class Text:
    """A document read from text: its `value`, and the line (from 0) on which each path begins."""

    value: JsonValue
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)

    def line_of(self, path: str) -> int:
        """The line of a path, else of its nearest ancestor that the text holds, else 0."""
        try:
            keys = tuple(split_path(path))
        except NotFoundError:
            return 0
        matches = [found for found in self._spellings(keys) if found in self.lines]
        return self.lines[max(matches, key=len)] if matches else 0

    def _spellings(self, keys: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The path and its ancestors; a name with dots may have been split."""
        text = ".".join(keys)
        for known in self.lines:
            joined = ".".join(known)
            if text == joined or text.startswith(joined + "."):
                yield known


def write(value: JsonValue, schema: Schema | None = None, keys: Sequence[str] = ()) -> str:
    """The value as YAML; with a schema, every setting below it carries its description."""
    node = (schema.node(keys) if keys else schema.document) if schema else None
    return "\n".join(_lines(value, schema, node, 0)) + "\n"


def _lines(value: JsonValue, schema: Schema | None, node: JsonObject | None, indent: int) -> Iterator[str]:
    pad = " " * indent
    if isinstance(value, dict) and value:
        for key, below in value.items():
            child = schema.child(node, key) if schema and node else None
            if schema and child:
                if indent == 0:
                    yield ""
                yield from _comment(schema, child, pad)
            yield from _entry(f"{pad}{_scalar(key)}:", below, schema, child, indent + 2)
    elif isinstance(value, list) and value:
        for number, below in enumerate(value):
            child = schema.child(node, str(number)) if schema and node else None
            if isinstance(below, dict | list) and below:
                inner = list(_lines(below, None, None, indent + 2))
                yield f"{pad}- {inner[0].lstrip()}"
                yield from inner[1:]
            else:
                yield from _entry(f"{pad}-", below, schema, child, indent + 2)
    else:
        yield pad + _scalar(value)


def _entry(
    start: str, value: JsonValue, schema: Schema | None, node: JsonObject | None, indent: int
) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        yield start
        yield from _lines(value, schema, node, indent)
    else:
        yield f"{start} {_scalar(value)}"


def _comment(schema: Schema, node: JsonObject, pad: str) -> Iterator[str]:
    described = text_of(schema.resolve(node), "description").rstrip(".")
    kind = schema.kind(node)
    takes = "" if schema.names(node) else f"Takes {kind}"
    text = ". ".join(part for part in (described, takes) if part)
    if text:
        yield from textwrap.wrap(
            f"{text}.", WIDTH, initial_indent=f"{pad}# ", subsequent_indent=f"{pad}# ", break_on_hyphens=False
        )


def _scalar(value: JsonValue) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
            return value
        return '"' + "".join(map(_escaped, value)) + '"'
    return "[]" if isinstance(value, list) else "{}"


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def read(text: str) -> Text:
    """YAML text as a value with line numbers; raises InvalidSettingsError naming the line.

    The problem's path is `line N`, N counted from 1.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InvalidSettingsError(
            [Problem(f"line {mark.line + 1 if mark else 1}", f"is no YAML: {error.problem or error.context}")]
        ) from None
    except yaml.YAMLError as error:
        raise InvalidSettingsError([Problem("line 1", f"is no YAML: {error}")]) from None
    except RecursionError:
        raise InvalidSettingsError([Problem("line 1", "is nested too deeply")]) from None
    result = Text(None)
    if root is not None:
        result.value = _built(root, (), result.lines, {})
    return result


class _Loader(yaml.SafeLoader):
    """Composes nodes; values are built by `_built`, so none of YAML 1.1's implicit types apply."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the base class declares it so


def _refused(node: yaml.Node, message: str) -> InvalidSettingsError:
    return InvalidSettingsError([Problem(f"line {node.start_mark.line + 1}", message)])


def _built(
    node: yaml.Node, keys: tuple[str, ...], lines: dict[tuple[str, ...], int], seen: dict[int, bool]
) -> JsonValue:
    if len(keys) > DEEPEST:
        raise _refused(node, "is nested too deeply")
    if id(node) in seen:
        raise _refused(node, "uses an alias (*name); write the value out")
    seen[id(node)] = True
    if node.tag not in _TAGS:
        raise _refused(node, f"has the tag {node.tag}; settings need none")
    lines.setdefault(keys, node.start_mark.line)
    if isinstance(node, yaml.MappingNode):
        mapping: JsonObject = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refused(key_node, "has a key that is no text")
            key = key_node.value
            if key in mapping:
                raise _refused(key_node, f"has {key} a second time")
            lines[(*keys, key)] = key_node.start_mark.line
            mapping[key] = _built(value_node, (*keys, key), lines, seen)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_built(entry, (*keys, str(number)), lines, seen) for number, entry in enumerate(node.value)]
    return _plain(node) if isinstance(node, yaml.ScalarNode) else None


def _plain(node: yaml.ScalarNode) -> JsonValue:
    text: str = node.value
    if node.style is not None:  # quoted or block: text, whatever it looks like
        return text
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def marked(text: str, problems: Sequence[Problem], source: Text | None) -> str:
    """The text with every problem as a `#!` line above the line that it speaks of."""
    lines = unmarked(text).splitlines()
    notes: dict[int, list[str]] = {}
    for problem in problems:
        found = re.fullmatch(r"line (\d+)", problem.path)
        number = int(found[1]) - 1 if found else source.line_of(problem.path) if source else 0
        shown = problem.sentence() if not found else problem.message
        notes.setdefault(min(number, len(lines)), []).append(" ".join(shown.split()))
    marked_lines: list[str] = []
    for number in range(len(lines) + 1):
        current = lines[number] if number < len(lines) else ""
        pad = current[: len(current) - len(current.lstrip())]
        marked_lines += [f"{pad}{MARK}{note}" for note in notes.get(number, [])]
        if number < len(lines):
            marked_lines.append(current)
    return "\n".join(marked_lines) + "\n"


def unmarked(text: str) -> str:
    """The text without the `#!` lines of an earlier round."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.lstrip().startswith(MARK.rstrip()))
