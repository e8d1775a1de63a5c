"""The generated references are those of this tree, and leave nothing out."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest

from daemon.cli.main import cli
from daemon.errors import CentralinoError

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    specification = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_references_are_fresh(generate: ModuleType) -> None:
    stale = [file.name for file, text in generate.documents().items() if file.read_text() != text]
    assert stale == [], "run: nox -s docs"


def commands(
    group: click.Command, words: tuple[str, ...] = ("centralino",)
) -> dict[tuple[str, ...], click.Command]:
    found = {words: group}
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            below = group.get_command(context, name)
            assert below is not None
            found |= commands(below, (*words, name))
    return found


def test_every_command_is_in_the_reference_with_help() -> None:
    text = (DOCS / "cli.md").read_text()
    for words, command in commands(cli).items():
        assert command.help, words
        if len(words) > 1:
            assert re.search(rf"^#+ {' '.join(words)}$", text, re.MULTILINE), words


def test_every_read_has_json_and_every_write_a_dry_run() -> None:
    neither = {("centralino", "console"), ("centralino", "completion")}
    for words, command in commands(cli).items():
        if isinstance(command, click.Group) or words in neither:
            continue
        options = {name for parameter in command.params for name in parameter.opts}
        assert "--json" in options, words
        if "--yes" in options or "--dry-run" in options:
            assert {"--dry-run", "--comment", "--yes"} <= options, words


def test_exit_codes_mean_one_thing_each(generate: ModuleType) -> None:
    codes = generate.exit_codes()
    assert all(codes.values())
    kinds = [kind for kind in CentralinoError.__subclasses__() if kind.__module__.startswith("daemon.errors")]
    assert {kind.exit_code for kind in kinds} <= set(codes)
    by_code: dict[int, set[str]] = {}
    for kind in CentralinoError.__subclasses__():
        if kind.__module__.startswith(("daemon.errors", "daemon.cli")):
            by_code.setdefault(kind.exit_code, set()).add(kind.__name__)
    assert all(len(names) == 1 for names in by_code.values()), by_code
