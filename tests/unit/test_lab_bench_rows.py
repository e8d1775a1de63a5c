"""The table of figures tells the truth about what was missed."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.rows import BEGIN, END, Row, markdown, median, update_document, write


def row(**changes: object) -> Row:
    given = {
        "name": "boot",
        "ours": 2.0,
        "peer": 4.0,
        "peer_name": "theirs",
        "unit": "s",
        "runs": 3,
    } | changes
    return Row(**given)  # type: ignore[arg-type]


def test_ratio_and_target() -> None:
    assert row().ratio == 0.5
    assert row().met is None
    assert row(target=2.0).met is True
    assert row(target=1.9).met is False
    assert row(ours=None, target=1.9).met is False
    assert row(peer=None).ratio is None
    assert row(peer=0.0).ratio is None


def test_what_never_happened_counts_as_longest() -> None:
    assert median([1.0, None, 3.0]) == 3.0
    assert median([1.0, None, None]) is None
    assert median([None]) is None


def test_missed_rows_stay_in_the_table_and_are_marked() -> None:
    table = [row(target=1.0, note="why").as_json(), row(name="hang", peer=None).as_json()]
    text = markdown(table)
    assert "| boot | 2 s | 4 s (theirs) | 0.50 | ≤ 1 s | **no** | 3 |" in text
    assert "| hang | 2 s | never (theirs) |  | none set |  | 3 |" in text
    assert "- boot: why" in text


def test_a_partial_run_keeps_the_other_rows(tmp_path: Path) -> None:
    file = tmp_path / "out" / "bench.json"
    write([row(), row(name="hang")], file)
    table = write([row(ours=9.0)], file)
    assert {(each["name"], each["ours"]) for each in table} == {("boot", 9.0), ("hang", 2.0)}
    assert json.loads(file.read_text()) == table


def test_only_the_generated_part_of_the_document_changes(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"above\n{BEGIN}old\n{END}below\n")
    update_document([row().as_json()], document)
    text = document.read_text()
    assert text.startswith(f"above\n{BEGIN}")
    assert text.endswith(f"{END}below\n")
    assert "old" not in text
    assert "| boot |" in text
