"""The table of figures: one row per claim, ours beside a named peer, written as JSON and Markdown."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

DOCUMENT = Path("docs/benchmarks.md")
# For figures that nobody else has.
NO_PEER = "no peer"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"


@dataclass(frozen=True)
class Row:
    """One figure. `ours` and `peer` are medians in `unit` over `runs` runs each; None: never happened.

    `target` is the largest value that `ours` may have; None where the issue sets none. `rule` says where the
    target comes from, `note` what a reader must know.
    """

    name: str
    ours: float | None
    peer: float | None
    peer_name: str
    unit: str
    runs: int
    target: float | None = None
    rule: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """`ours` / `peer`."""
        return self.ours / self.peer if self.ours is not None and self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.ours is not None and self.ours <= self.target

    def as_json(self) -> dict[str, object]:
        """All fields, `ratio` and `met`; figures with four significant digits."""
        table = asdict(self) | {"ratio": self.ratio, "met": self.met}
        return {key: _short(value) if isinstance(value, float) else value for key, value in table.items()}


def median(values: Sequence[float | None]) -> float | None:
    """The median; a run in which it never happened (None) counts as infinitely long."""
    middle = statistics.median(math.inf if value is None else value for value in values)
    return None if math.isinf(middle) else middle


def write(rows: Sequence[Row], file: Path) -> list[dict[str, object]]:
    """Write the rows as JSON; rows of earlier runs with other names stay. Returns all rows."""
    fresh = [row.as_json() for row in rows]
    names = {(row["name"], row["peer_name"]) for row in fresh}
    kept = json.loads(file.read_text()) if file.exists() else []
    table = [row for row in kept if (row["name"], row["peer_name"]) not in names] + fresh
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(table, indent=2) + "\n")
    return table


def markdown(table: Sequence[dict[str, object]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| figure | ours | peer | ratio | target | met | runs |", "|---|---|---|---|---|---|---|"]
    for row in sorted(table, key=lambda row: (str(row["name"]), str(row["peer_name"]))):
        target = f"≤ {row['target']:g} {row['unit']}" if row["target"] is not None else "none set"
        rule = f" ({row['rule']})" if row["rule"] else ""
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]  # type: ignore[index]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        peer = f"{_text(row['peer'], row['unit'])} ({row['peer_name']})"
        cells = [_text(row["ours"], row["unit"]), "none" if row["peer_name"] == NO_PEER else peer]
        lines.append(
            f"| {row['name']} | {cells[0]} | {cells[1]} | {ratio} | {target}{rule} | {met} | {row['runs']} |"
        )
    notes = sorted({f"- {row['name']}: {row['note']}" for row in table if row["note"]})
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def update_document(table: Sequence[dict[str, object]], document: Path = DOCUMENT) -> None:
    """Replace the generated part of docs/benchmarks.md."""
    text = document.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    host = (
        f"Host of this run: {os.cpu_count()} processor cores, Linux {platform.release().split('-')[0]}.\n\n"
    )
    document.write_text(head + BEGIN + host + markdown(table) + END + tail)


def _text(value: object, unit: object) -> str:
    return "never" if value is None else f"{value:g} {unit}"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
