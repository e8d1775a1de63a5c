"""The campaign's own judgement: draws, spans, and what it reads out of evidence."""

from __future__ import annotations

import json
from pathlib import Path

from tests.chaos import report
from tests.chaos.audits import EVIDENCE_ROW, Outcome, by_turns
from tests.chaos.campaign import draw
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.load import Acknowledged, double_holders, longest_gap
from tests.chaos.observe import Sample, overlaps, spans


def test_every_fault_has_a_row() -> None:
    assert set(FAULTS) == set(Fault)


def test_a_seed_draws_the_same_faults_and_each_one_once_a_turn() -> None:
    faults = draw(7, 2 * len(Fault))
    assert faults == draw(7, 2 * len(Fault))
    assert set(faults[: len(Fault)]) == set(Fault) == set(faults[len(Fault) :])
    assert draw(8, len(Fault)) != faults[: len(Fault)]
    # A longer campaign begins as the shorter one.
    assert draw(7, 5) == faults[:5]


def test_a_span_lasts_from_answer_to_answer_and_ends_with_silence() -> None:
    samples = [
        Sample(0.0, 0.1, writable=True),
        Sample(0.2, 0.3, writable=True),
        Sample(5.0, 5.1, writable=True),
        Sample(5.2, 5.3, writable=True),
        Sample(5.4, 5.5, writable=False),
    ]
    assert spans(samples) == [(0.1, 0.3), (5.1, 5.3)]


def test_overlaps() -> None:
    assert overlaps([(0.0, 2.0), (3.0, 4.0)], [(1.0, 3.5)]) == [(1.0, 2.0), (3.0, 3.5)]
    assert overlaps([(0.0, 1.0)], [(1.0, 2.0)]) == []


def test_a_double_holder_answers_the_same_question() -> None:
    assert double_holders([(0.0, "a"), (0.05, "a"), (0.10, "b"), (0.15, "b"), (0.20, "a")]) == []
    both = [(0.0, "a"), (0.05, "b"), (0.051, "a"), (0.10, "a"), (0.102, "b"), (0.15, "b"), (2.0, "b")]
    assert double_holders(both) == [(0.05, 0.102)]


def test_turns() -> None:
    rows = [Acknowledged(n, node, n / 10) for n, node in enumerate("aababb")]
    assert len(by_turns(rows)) == 2
    assert by_turns([Acknowledged(n, node, n / 10) for n, node in enumerate("aaabbb")]) == []


def test_longest_gap_counts_the_ends() -> None:
    assert longest_gap([1.0, 2.0], 0.0, 5.0) == 3.0
    assert longest_gap([], 0.0, 5.0) == 5.0


def test_rows_are_found_in_evidence() -> None:
    text = (
        "#Q> INSERT INTO chaos_rows (n, node) VALUES (812, 'node1')\n"
        "### INSERT INTO `centralino`.`chaos_rows`\n### SET\n"
        "###   @1=812 /* LONGINT meta=0 nullable=0 is_null=0 */\n"
        "###   @2='node1' /* VARSTRING(64) meta=64 nullable=0 is_null=0 */\n"
    )
    assert EVIDENCE_ROW.findall(text) == ["812"]


def test_figures_are_written(tmp_path: Path) -> None:
    outcomes = [
        Outcome("freeze-master", "1", 0, rows_acknowledged=10, two_writable=[0.2]),
        Outcome("freeze-slave", "1", 1, rows_acknowledged=5, rows_lost=1, failures=["row 3 is nowhere"]),
    ]
    report.write(tmp_path / "chaos.json", 1, outcomes)
    written = json.loads((tmp_path / "chaos.json").read_text())
    assert (written["faults"], written["faults_with_failures"], written["rows_lost"]) == (2, 1, 1)
    assert (written["rows_acknowledged"], written["two_writable_windows"]) == (15, 1)
