"""Arbitrary documents: accepted and round-trip, or refused with every error named, and nothing in between."""

from __future__ import annotations

import copy
import json

from hypothesis import given, settings, strategies

from daemon.errors import InvalidSettingsError
from daemon.settings import SCHEMA, Settings, dump, parse, parse_document, sections

hostile = strategies.sampled_from(
    [
        "$(reboot)",
        "`id`",
        "; rm -rf /",
        "| nc",
        "&& x",
        "\n",
        "\x00",
        "../../etc/passwd",
        "-rf",
        "%s%n",
        "'",
        '"',
        "\\",
        "\u202e",
    ]
)
text = strategies.one_of(hostile, strategies.text(max_size=30), strategies.text(min_size=5000, max_size=5001))
scalars = strategies.one_of(
    strategies.none(),
    strategies.booleans(),
    strategies.integers(),
    strategies.floats(allow_nan=False, allow_infinity=False),
    text,
)
anything = strategies.recursive(
    scalars,
    lambda inner: strategies.one_of(
        strategies.lists(inner, max_size=4), strategies.dictionaries(text, inner, max_size=4)
    ),
    max_leaves=12,
)


def places(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every table entry of a document, as keys from the top."""
    found: list[tuple[str, ...]] = []
    if isinstance(value, dict):
        for key, item in value.items():
            found += [(*path, key), *places(item, (*path, key))]
    return found


PLACES = places(dump(Settings()))


def replaced(document: dict[str, object], path: tuple[str, ...], value: object) -> dict[str, object]:
    changed = copy.deepcopy(document)
    here: object = changed
    for key in path[:-1]:
        assert isinstance(here, dict)
        here = here[key]
    assert isinstance(here, dict)
    here[path[-1]] = value
    return changed


def accepted_or_refused(text: str) -> Settings | None:
    try:
        accepted = parse(text)
    except InvalidSettingsError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.message
            assert problem.path.isprintable()
            assert len(problem.path) < 2000
            assert problem.remedy
        return None
    assert parse_document(json.loads(json.dumps(dump(accepted)))) == accepted
    return accepted


@given(anything)
@settings(max_examples=80, deadline=None)
def test_any_json_is_accepted_or_refused(value: object) -> None:
    accepted_or_refused(json.dumps(value))


@given(strategies.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_is_accepted_or_refused(value: str) -> None:
    accepted_or_refused(value)


@given(strategies.sampled_from(PLACES), anything)
@settings(max_examples=200, deadline=None)
def test_any_value_at_any_place_is_accepted_or_named(path: tuple[str, ...], value: object) -> None:
    document = replaced(dump(Settings()), path, value)
    try:
        accepted = parse(json.dumps(document))
    except InvalidSettingsError as error:
        # Whatever is named lies at, above or below the place that was changed, or in a field it contradicts.
        assert any(problem.path.split(".")[0] == path[0] for problem in error.problems) or path[0] in (
            "mode",
            "certificates",
            "network",
        )
        return
    assert parse_document(dump(accepted)) == accepted


@given(
    strategies.sampled_from(list(sections())),
    strategies.text(min_size=1, max_size=40).filter(str.isprintable),
)
@settings(max_examples=200, deadline=None)
def test_unknown_keys_are_refused_in_every_section(section: str, key: str) -> None:
    known = set(sections()[section].model_fields)
    if key in known:
        return
    try:
        parse_document({section: {key: 1}})
    except InvalidSettingsError as error:
        assert any(problem.path.startswith(f"{section}.") for problem in error.problems)
    else:
        raise AssertionError(f"{section}.{key} was accepted")


@given(strategies.integers(min_value=SCHEMA + 1))
@settings(max_examples=20, deadline=None)
def test_every_newer_schema_is_refused(number: int) -> None:
    if number > 10**4000:
        return
    assert accepted_or_refused(json.dumps({"schema": number})) is None


@given(strategies.lists(strategies.tuples(strategies.sampled_from(PLACES), scalars), min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_several_broken_places_at_once(changes: list[tuple[tuple[str, ...], object]]) -> None:
    document = dump(Settings())
    for path, value in changes:
        try:
            document = replaced(document, path, value)
        except (AssertionError, KeyError):
            continue
    accepted_or_refused(json.dumps(document))
