"""What the command line draws: nothing raw, nothing too wide, colour only where it is wanted."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cli import render
from daemon.cli.client import error_from_bus, problems_from_text
from daemon.errors import CentralinoError, InvalidSettingsError, NotAuthorizedError, UnavailableError


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@given(st.text())
def test_no_control_character_reaches_the_terminal(text: str) -> None:
    shown = render.visible(text)
    assert not {unicodedata.category(character) for character in shown} & {
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Cn",
        "Zl",
        "Zp",
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pl\u00e4in 4\u20ac", "pl\u00e4in 4\u20ac"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
    ],
)
def test_controls_are_written_out(text: str, shown: str) -> None:
    assert render.visible(text) == shown


@given(
    st.lists(st.tuples(*[st.text(max_size=40)] * 4), max_size=3),
    st.integers(20, 120),
)
def test_tables_keep_to_the_width(rows: list[tuple[str, ...]], columns: int) -> None:
    from rich.cells import cell_len

    stream = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "dumb")
        render.table(("NAME", "STATE", "SINCE", "REASON"), rows, stream=stream)
    for line in stream.getvalue().splitlines():
        assert cell_len(line) <= columns
        assert line == line.rstrip()


def test_a_table_in_a_pipe_is_never_wrapped() -> None:
    stream = io.StringIO()
    render.table(("NAME", "REASON"), [("a", "x" * 500), ("bb", "y")], stream=stream)
    assert stream.getvalue().splitlines() == ["NAME  REASON", "a     " + "x" * 500, "bb    y"]


def test_a_narrow_terminal_gets_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    stream = Terminal()
    render.table(("SERVICE", "STATE", "REASON"), [("asterisk-realtime", "running", "")], stream=stream)
    assert stream.getvalue() == "SERVICE:\nasterisk-realtime\nSTATE: running\n"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_colour(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], wanted: bool) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert render.colour_wanted(Terminal()) is wanted
    assert render.colour_wanted(io.StringIO()) is False


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3661, "1 h 1 min"), (90_000, "1 d 1 h"), (-5, "0 s")],
)
def test_durations(value: float, shown: str) -> None:
    assert render.seconds(value) == shown


def test_every_error_class_comes_back_from_its_bus_name() -> None:
    for kind in CentralinoError.__subclasses__():
        if kind.__module__ == "daemon.errors" and kind is not InvalidSettingsError:
            found = error_from_bus(kind.bus_name(), "what; do this")
            assert type(found) is kind and found.exit_code == kind.exit_code and str(found) == "what; do this"


def test_errors_of_the_bus_say_what_to_do() -> None:
    gone = error_from_bus("org.freedesktop.DBus.Error.ServiceUnknown", "The name is not activatable")
    assert isinstance(gone, UnavailableError) and "systemctl start centralinod" in gone.remedy
    refused = error_from_bus("org.freedesktop.DBus.Error.AccessDenied", "Rejected send message")
    assert isinstance(refused, NotAuthorizedError) and "centralino-operator" in refused.remedy
    assert error_from_bus("com.example.Odd", "text").exit_code == 1


def test_problems_are_read_from_a_refusal() -> None:
    problems = problems_from_text("node.hostname: is bad; mend it\nsomething else: entirely\nplain")
    assert [(problem.path, problem.message) for problem in problems] == [
        ("node.hostname", "is bad; mend it"),
        ("", "something else: entirely"),
        ("", "plain"),
    ]
