"""What a person reads: tables that fit, text without control characters, colour only where it is wanted.

Nothing that came over the bus reaches the terminal raw: `visible` shows control characters instead of
sending them. rich and textwrap are loaded only when there is something to draw or to wrap.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 10_000
NARROWEST_TEXT = 16
GAP = 2

_GOOD = frozenset({"healthy", "running", "active", "done", "confirmed", "ok", "yes", "granted", "up"})
_BAD = frozenset({"unhealthy", "failed", "alarm", "error", "refused", "down", "dead", "no", "critical"})
_WAITING = frozenset(
    {
        "pending",
        "unconfirmed",
        "queued",
        "starting",
        "stopping",
        "degraded",
        "warning",
        "cancelled",
        "rolled_back",
        "unknown",
    }
)


def visible(text: str, *, keep: str = "") -> str:
    """The text with every control and direction-changing character written out, as `\\x1b` or `\\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character in keep or not _is_control(character) else _escaped(character)
        for character in text
    )


def _is_control(character: str) -> bool:
    import unicodedata  # a library of its own, for text that is not plain

    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def colour_wanted(stream: TextIO) -> bool:
    """True on a terminal that can, unless NO_COLOR (https://no-color.org) is set and not empty."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def width_of(stream: TextIO) -> int:
    """Columns of the terminal; pipes and files are never wrapped."""
    if not stream.isatty():
        return PIPE_WIDTH
    import shutil  # three milliseconds that only a terminal needs

    return max(20, shutil.get_terminal_size((80, 24)).columns)


def prepare_streams() -> None:
    """Let no character that the locale cannot write end a command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def console(stream: TextIO | None = None) -> Console:
    """A rich console that obeys the rules of this module."""
    from rich.console import Console

    stream = stream or sys.stdout
    return Console(
        file=stream,
        width=width_of(stream),
        color_system="standard" if colour_wanted(stream) else None,
        force_terminal=colour_wanted(stream),
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def emit_json(value: object) -> None:
    """One JSON document on stdout, never coloured, ASCII only."""
    print(json.dumps(value, indent=2), flush=True)


def line(text: str = "", *, style: str = "", stream: TextIO | None = None) -> None:
    """One line (or several), styled where colour is wanted, wrapped at the terminal's width."""
    stream = stream or sys.stdout
    shown = visible(text, keep="\n\t")
    width = width_of(stream)
    if width < PIPE_WIDTH:
        shown = "\n".join(_wrapped(part, width) for part in shown.split("\n"))
    if style and colour_wanted(stream):
        import click

        bold, colour = style.startswith("bold"), style.removeprefix("bold").strip()
        shown = click.style(shown, fg=colour or None, bold=bold or None)
    print(shown, file=stream, flush=True)


def _wrapped(text: str, width: int) -> str:
    if len(text) <= width and text.isascii():
        return text.rstrip()
    indent = " " * min(len(text) - len(text.lstrip(" ")), width // 2)
    if text.isascii():
        import textwrap

        lines = textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)
    else:  # characters may be two columns wide, which rich knows
        from rich.text import Text

        wrapped = Text(text.lstrip(" ")).wrap(console(), width - len(indent), overflow="fold")
        lines = [indent + part.plain for part in wrapped]
    return "\n".join(part.rstrip() for part in lines)


def diff(text: str, *, indent: str = "  ", stream: TextIO | None = None) -> None:
    """A unified diff; lines are not wrapped, so that it can be copied."""
    stream = stream or sys.stdout
    coloured = colour_wanted(stream)
    for entry in text.splitlines():
        shown = indent + visible(entry, keep="\t")
        if coloured and (colour := _diff_colour(entry)):
            import click

            shown = click.style(shown, fg=colour)
        print(shown, file=stream)


def _diff_colour(entry: str) -> str:
    if entry.startswith(("+++", "---")):
        return ""
    return {"+": "green", "-": "red", "@": "cyan"}.get(entry[:1], "")


def style_of(word: str) -> str:
    """The colour of a state: green, red or yellow, none for a word that is no state."""
    lowered = word.strip().lower()
    if lowered in _GOOD:
        return "green"
    if lowered in _BAD:
        return "red"
    return "yellow" if lowered in _WAITING else ""


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, stream: TextIO | None = None, indent: int = 0
) -> None:
    """Aligned columns. The last column is free text: it wraps where the terminal is narrow.

    Where even that leaves it less than `NARROWEST_TEXT` columns, each row becomes a block of
    `head: value` lines, which any width can show.
    """
    from rich.cells import cell_len
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    stream = stream or sys.stdout
    cells = [[visible(cell) for cell in row] for row in rows]
    widths = [
        max([cell_len(head), *(cell_len(row[index]) for row in cells)]) for index, head in enumerate(heads)
    ]
    room = width_of(stream) - indent
    fixed = sum(widths[:-1]) + GAP * (len(widths) - 1)
    if fixed + min(widths[-1], NARROWEST_TEXT) > room:
        _blocks(heads, cells, stream, indent)
        return
    drawn = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_edge=False, header_style="bold")
    for index, head in enumerate(heads):
        last = index == len(heads) - 1
        drawn.add_column(Text(head), no_wrap=not last, overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(cell, style=style_of(cell)) for cell in row))
    target = console(stream)
    with target.capture() as captured:
        target.print(Padding(drawn, (0, 0, 0, indent)) if indent else drawn)
    for drawn_line in captured.get().splitlines():
        print(drawn_line.rstrip(), file=stream)
    stream.flush()


def _blocks(heads: Sequence[str], cells: Sequence[Sequence[str]], stream: TextIO, indent: int) -> None:
    for number, row in enumerate(cells):
        if number:
            print(file=stream)
        for head, cell in zip(heads, row, strict=True):
            if cell:
                line(f"{' ' * indent}{head}: {cell}", stream=stream)


def fields(pairs: Iterable[tuple[str, str]], *, stream: TextIO | None = None) -> None:
    """Names on the left, values on the right; empty values are left out."""
    stream = stream or sys.stdout
    shown = [(name, visible(value)) for name, value in pairs if value]
    left = max((len(name) for name, _ in shown), default=0) + GAP
    room = width_of(stream) - left
    coloured = colour_wanted(stream)
    for name, value in shown:
        lines = [value]
        if 0 < room < len(value):
            import textwrap

            lines = textwrap.wrap(value, room, break_on_hyphens=False)
        for number, part in enumerate(lines or [""]):
            if coloured and (colour := style_of(value)):
                import click

                part = click.style(part, fg=colour)
            print(f"{name if number == 0 else '':<{left}}{part}", file=stream)
    stream.flush()


def seconds(value: float) -> str:
    """A duration for people: `42 s`, `3 min 20 s`, `5 h 3 min`, `2 d 4 h`."""
    whole = max(0, round(value))
    for size, unit, small, small_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{whole} s"
