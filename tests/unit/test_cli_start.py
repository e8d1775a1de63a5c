"""What the command line does to start quickly, and that it changes nothing else."""

from __future__ import annotations

import gettext
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from daemon.cli import start
from daemon.cli.main import cli, run
from tests.support.command_line import Box, running_box

REPOSITORY = Path(__file__).resolve().parents[2]
UNNEEDED = {
    *("ast", "dataclasses", "datetime", "dis", "gettext", "gi", "inspect", "locale", "pathlib", "platform"),
    *("rich", "site", "string", "subprocess", "textwrap", "threading", "tokenize", "uuid"),
}
# Without `site`, as the launcher starts it: what that loads is not ours.
LOADED = """
import os, sys
sys.path[:] = {path!r}
from daemon import connections
from daemon.cli import start
def leave(code):
    sys.stdout.flush()
    loaded = [name for name, module in sys.modules.items() if not isinstance(module, start.Late)]
    print(code, *loaded, file=sys.stderr)
    os._exit(0)
connections.leave = leave
start.main()
"""
# What click can do with these, and what it does when somebody asks for it.
ASKED_OF_CLICK = """
import sys
from daemon.cli import start
with start.standing_in(start.late_modules_of_click()):
    import click
assert not {"datetime", "gettext", "locale", "threading", "uuid"} & set(sys.modules)
late_class, late_module = click.types.datetime, click.types.uuid
assert isinstance(late_class, start.LateClass) and isinstance(late_module, start.Late)

day = click.DateTime().convert("2026-11-30", None, None)
import datetime, uuid
assert type(day) is datetime.datetime and click.DateTime().convert(day, None, None) is day
assert isinstance(day, late_class) and not isinstance("day", late_class)
assert late_class(2026, 11, 30) == day and late_class.fromisoformat("2026-11-30") == day
class Moment(late_class):
    pass
assert Moment.__bases__ == (datetime.datetime,) and issubclass(Moment, late_class)
try:
    late_class.nothing_of_this_name
except AttributeError as error:
    assert "datetime.datetime" in str(error)
else:
    raise AssertionError

number = click.UUID.convert("12345678123456781234567812345678", None, None)
assert type(number) is uuid.UUID and click.UUID.convert(number, None, None) is number
assert late_module.uuid4().version == 4 and late_module.NAMESPACE_DNS is uuid.NAMESPACE_DNS

import gettext, threading
assert isinstance(threading.local(), click.globals._local.__class__)
for module in (datetime, gettext, threading, uuid):
    assert type(module) is type(sys) and sys.modules[module.__name__] is module
"""
# Every command's help, with and without the stand-ins.
HELP = """
import sys
from daemon.cli import start
if {late}:
    for module in start.late_modules():
        sys.modules.setdefault(module.__name__, module)
    with start.standing_in(start.late_modules_of_click()):
        import click
import click
from daemon.cli.main import cli, run
def show(command, words):
    assert run([*words, "--help"]) == 0
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            show(command.get_command(context, name), [*words, name])
show(cli, [])
"""


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with running_box() as running:
        yield running


def python(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-IS", "-c", script, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


PATH = [*sys.path, str(REPOSITORY)]
ON_PATH = f"import sys; sys.path[:] = {PATH!r}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["network", "set", "eth0", "--mtu", "1400", "--yes", "--json"],
        ["network", "show", "--json"],
        ["status", "--json"],
    ],
)
def test_a_usual_command_loads_nothing_that_it_does_not_need(box: Box, words: list[str]) -> None:
    answer = python(LOADED.format(path=PATH), "--bus", box.address, *words)
    code, *modules = answer.stderr.splitlines()[-1].split()
    assert code == "0", answer.stderr
    assert isinstance(json.loads(answer.stdout), dict)
    assert not UNNEEDED & set(modules)


def test_without_a_bus_no_more_is_loaded() -> None:
    answer = python(LOADED.format(path=PATH), "--bus", "unix:path=/nowhere/bus", "status")
    code, *modules = answer.stderr.splitlines()[-1].split()
    assert code == "9", answer.stderr
    assert not UNNEEDED & set(modules)


def test_what_click_can_do_with_late_modules_it_still_does() -> None:
    python(ON_PATH + ASKED_OF_CLICK)


def test_the_help_of_every_command_is_the_same_with_late_modules() -> None:
    shown = python(ON_PATH + HELP.format(late=True)).stdout
    assert shown.count("Usage: centralino ") > 60
    assert shown == python(ON_PATH + HELP.format(late=False)).stdout


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


def test_stand_ins_answer_as_the_modules_do() -> None:
    for late in [*start.late_modules(), *start.late_modules_of_click()]:
        real = importlib.import_module(late.__name__)
        for name, known in vars(late).items():
            if name.startswith("__") or callable(known):
                continue
            assert known == getattr(real, name)
    assert start._untranslated("a text") == gettext.gettext("a text")
    for number in (0, 1, 2):
        assert start._plural("one", "many", number) == gettext.ngettext("one", "many", number)


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
