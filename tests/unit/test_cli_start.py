"""What the command line does to start quickly, and that it changes nothing else."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from daemon.cli import start
from daemon.cli.main import cli, run

REPOSITORY = Path(__file__).resolve().parents[2]
LOADED = """
import sys
from daemon import connections
from daemon.cli import start
connections.leave = lambda code: print(code, *sys.modules)
start.main()
"""


@pytest.mark.parametrize(
    "words", [["network", "set", "eth0", "--mtu", "1400", "--yes"], ["status", "--json"]]
)
def test_a_usual_command_loads_neither_inspect_nor_glib(words: list[str]) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", LOADED, "--bus", "unix:path=/nowhere/bus", *words],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=REPOSITORY,
        check=True,
    )
    code, *modules = answer.stdout.split()
    assert code == "9", answer.stderr
    assert not {"ast", "dataclasses", "dis", "gi", "rich", "subprocess", "textwrap"} & set(modules)


def test_what_else_is_asked_of_a_late_module_is_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    late = start.Late("inspect", cleandoc=start._cleandoc)
    monkeypatch.setitem(sys.modules, "inspect", late)
    assert importlib.import_module("inspect") is late
    assert late.signature.__module__ == "inspect"
    assert isinstance(sys.modules["inspect"], type(sys)) and sys.modules["inspect"] is not late
    with pytest.raises(AttributeError):
        late.nothing_of_this_name  # noqa: B018


def _commands(group: click.Command) -> Iterator[click.Command]:
    yield group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from _commands(command)


def test_help_is_cleaned_as_by_inspect() -> None:
    texts = [option.help for command in _commands(cli) for option in command.params if option.help]
    assert len(texts) > 100
    for text in [*texts, "  one line", "two\n    lines\n", "\ttab"]:
        assert start._cleandoc(text) == inspect.cleandoc(text)


@pytest.mark.parametrize(
    "address", ["nonsense", "tcp:host=192.0.2.1,port=1", "unix:path=/nowhere/bus", "unix:"]
)
def test_a_bus_that_cannot_be_reached_is_told_as_such(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--bus", address, "status", "--json"]) == 9
    assert "the system bus cannot be reached" in capsys.readouterr().err
