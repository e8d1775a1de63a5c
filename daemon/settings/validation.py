"""From JSON text to a settings document: accepted whole, or refused with every problem named at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from daemon.errors import InvalidSettingsError, Problem
from daemon.settings.base import Part
from daemon.settings.document import Settings, sections
from daemon.settings.migrations import Document, migrate

MAXIMUM_CHARACTERS = 8 * 1024 * 1024
MAXIMUM_DEPTH = 32
MAXIMUM_PROBLEMS = 1000
MAXIMUM_STRING = 4096

WRONG_FORM = "has a form or characters that are not allowed here"
ADDRESS = "is not an IP address"
INTERFACE = "is not an address with prefix length"
NETWORK = "is not a network, or has bits set after its prefix"
SENTENCES = {
    "missing": "is missing",
    "extra_forbidden": "is not a known setting",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "string_pattern_mismatch": WRONG_FORM,
    "value_error": WRONG_FORM,
    "too_long": "has too many entries",
    "too_short": "has too few entries",
    "datetime_from_date_parsing": "is not a time",
    "datetime_parsing": "is not a time",
    "datetime_type": "is not a time",
    "ip_v4_address": ADDRESS,
    "ip_v6_address": ADDRESS,
    "ip_v4_interface": INTERFACE,
    "ip_v6_interface": INTERFACE,
    "ip_v4_network": NETWORK,
    "ip_v6_network": NETWORK,
}


class _RefusedError(ValueError):
    """JSON that is syntactically fine and still refused."""


def parse(text: str) -> Settings:
    """The document in `text` (JSON). Raises InvalidSettingsError with every problem of the document."""
    if len(text) > MAXIMUM_CHARACTERS:
        _refuse(f"is longer than {MAXIMUM_CHARACTERS} characters", "remove lists that do not belong there")
    try:
        raw: object = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except _RefusedError as error:
        _refuse(str(error), "correct the document")
    except RecursionError:
        _refuse("is nested too deeply", f"use at most {MAXIMUM_DEPTH} levels")
    except ValueError as error:
        _refuse(f"is not JSON: {error}", "correct the document")
    return parse_document(raw)


def parse_document(raw: object) -> Settings:
    """Like `parse`, for a document that is already JSON types."""
    if not isinstance(raw, dict):
        _refuse("must be a table of sections", "write { ... }")
    problems: dict[str, Problem] = {}
    document = migrate(cast(Document, _clean(raw, (), problems)))
    settings: Settings | None = None
    broken: set[object] = set()
    try:
        settings = Settings.model_validate_json(json.dumps(document))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True, include_input=False)
        broken = {detail["loc"][0] for detail in details if detail["loc"]}
        for problem in _plain(details, document):
            problems.setdefault(problem.path, problem)
    if settings is not None:
        found = list(cross_problems(settings))
    else:
        found = list(_problems_of_intact_sections(document, broken))
    for problem in found:
        problems.setdefault(problem.path, problem)
    if any(problem.fatal for problem in problems.values()) or settings is None:
        raise InvalidSettingsError(_bounded(list(problems.values())))
    return settings


def cross_problems(part: Part, prefix: str = "") -> Iterator[Problem]:
    """What is wrong between fields that are each valid, for this part and all parts inside it."""
    for problem in part.problems():
        yield Problem(prefix + problem.path, problem.message, problem.remedy, problem.fatal)
    for name in type(part).model_fields:
        for path, inner in _parts(getattr(part, name), f"{prefix}{name}"):
            yield from cross_problems(inner, f"{path}.")


def dump(settings: Settings) -> Document:
    """The document as JSON types, `schema` first, defaults included."""
    return settings.model_dump(mode="json")


def restore(document: Document) -> Settings:
    """From what `dump` gave."""
    return Settings.model_validate_json(json.dumps(document))


def json_schema() -> Document:
    """The JSON Schema of the document."""
    return Settings.model_json_schema()


def _parts(value: object, path: str) -> Iterator[tuple[str, Part]]:
    if isinstance(value, Part):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parts(item, f"{path}.{key}")
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _parts(item, f"{path}.{number}")


def _problems_of_intact_sections(document: Document, broken: set[object]) -> Iterator[Problem]:
    for name, model in sections().items():
        if name in broken or name not in document:
            continue
        try:
            section = model.model_validate_json(json.dumps(document[name]))
        except ValidationError:
            continue
        yield from cross_problems(section, f"{name}.")


def _refuse(message: str, remedy: str) -> NoReturn:
    raise InvalidSettingsError([Problem("document", message, remedy)])


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _RefusedError(f"has {shown(twice)} twice in one table")
    return table


def _no_constant(name: str) -> NoReturn:
    raise _RefusedError(f"holds {name}, which is not JSON")


def _clean(value: object, path: tuple[str, ...], problems: dict[str, Problem]) -> object:
    """A copy without text that no setting may hold; each such place becomes a problem."""
    place = ".".join(path)
    if len(path) > MAXIMUM_DEPTH:
        problems[place] = Problem(place, "is nested too deeply", f"use at most {MAXIMUM_DEPTH} levels")
        return None
    if isinstance(value, dict):
        return {
            (key if key.isprintable() else shown(key)): _clean(item, (*path, shown(key)), problems)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_clean(item, (*path, str(number)), problems) for number, item in enumerate(value)]
    if isinstance(value, str):
        if len(value) > MAXIMUM_STRING:
            problems[place] = Problem(place, f"is longer than {MAXIMUM_STRING} characters", "shorten it")
            return ""
        if not value.isprintable():
            bad = next(character for character in value if not character.isprintable())
            problems[place] = Problem(
                place, f"holds the control or invisible character U+{ord(bad):04X}", "remove it"
            )
            return ""
    if isinstance(value, float) and not math.isfinite(value):
        problems[place] = Problem(place, "is not a finite number", "write a number")
        return 0.0
    return value


def shown(key: str) -> str:
    """A key as it may stand in a message: printable and short."""
    text = key if key.isprintable() else ascii(key)[1:-1]
    return text if len(text) <= 64 else f"{text[:61]}..."


def _plain(details: Sequence[ErrorDetails], document: Document) -> Iterator[Problem]:
    """One problem a path, in the words of the person who wrote the document."""
    messages: dict[str, list[str]] = {}
    remedies: dict[str, str] = {}
    for detail in details:
        location = _real_location(detail, document)
        path = ".".join(shown(str(part)) for part in location) or "document"
        message = SENTENCES.get(detail["type"]) or _lower(detail["msg"])
        if detail["loc"][-1:] == ("[key]",):
            message = f"the name {message}"
        known = messages.setdefault(path, [])
        if message not in known:
            known.append(message)
        remedies[path] = _remedy(detail["type"], location)
    for path, sentences in messages.items():
        yield Problem(path, " and ".join(sentences), remedies[path])


def _real_location(detail: ErrorDetails, document: Document) -> tuple[str | int, ...]:
    """pydantic's location without the names of union members, which are not in the document."""
    here: object = document
    location: list[str | int] = []
    last = len(detail["loc"]) - 1
    for position, part in enumerate(detail["loc"]):
        inside_table = isinstance(here, dict) and part in here
        inside_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if inside_table or inside_list:
            here = cast(dict[str | int, object], here)[part]
            location.append(part)
        elif position == last and detail["type"] == "missing":
            location.append(part)
    return tuple(location)


def _remedy(kind: str, location: tuple[str | int, ...]) -> str:
    if kind == "extra_forbidden":
        return "remove it, or look for its name in `centralino config schema`"
    field = _field_at(location)
    if field is None or not field.description:
        return "see `centralino config schema`"
    return f"expected: {field.description}"


def _field_at(location: tuple[str | int, ...]) -> FieldInfo | None:
    model: type[BaseModel] | None = Settings
    found: FieldInfo | None = None
    for part in location:
        if model is not None and isinstance(part, str):
            field = model.model_fields.get("schema_number" if part == "schema" else part)
            if field is not None:
                found, model = field, _model_in(field.annotation)
    return found


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (model := _model_in(argument)) is not None:
            return model
    return None


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _bounded(problems: list[Problem]) -> list[Problem]:
    if len(problems) <= MAXIMUM_PROBLEMS:
        return problems
    rest = len(problems) - MAXIMUM_PROBLEMS
    return [
        *problems[:MAXIMUM_PROBLEMS],
        Problem("document", f"has {rest} more problems", "correct these first"),
    ]
