"""The table of a campaign and its JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from tests.chaos.audits import ADVERT_SECONDS, Outcome

Figures = dict[str, object]


def totals(outcomes: Sequence[Outcome]) -> Figures:
    """The figures that docs/fault-tolerance.md speaks of."""
    holders = [length for outcome in outcomes for length in outcome.two_holders]
    writable = [length for outcome in outcomes for length in outcome.two_writable]
    return {
        "faults": len(outcomes),
        "faults_with_failures": sum(bool(outcome.failures) for outcome in outcomes),
        "rows_acknowledged": sum(outcome.rows_acknowledged for outcome in outcomes),
        "rows_lost": sum(outcome.rows_lost for outcome in outcomes),
        "rows_in_evidence": sum(outcome.rows_in_evidence for outcome in outcomes),
        "files_acknowledged": sum(outcome.files_acknowledged for outcome in outcomes),
        "files_lost": sum(outcome.files_lost for outcome in outcomes),
        "files_set_aside": sum(outcome.files_set_aside for outcome in outcomes),
        "two_writable_windows": len(writable),
        "two_writable_longest_seconds": max(writable, default=0.0),
        "two_acknowledging_windows": sum(len(outcome.two_acknowledging) for outcome in outcomes),
        "two_holder_windows": len(holders),
        "two_holder_windows_beyond_an_advert": sum(length > ADVERT_SECONDS for length in holders),
        "two_holder_longest_seconds": max(holders, default=0.0),
        "moves": sum(outcome.moved for outcome in outcomes),
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
    }


def write(file: Path, seed: int, outcomes: Sequence[Outcome]) -> Figures:
    """Write totals and every outcome; returns the totals."""
    figures = totals(outcomes)
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {"seed": seed, **figures, "outcomes": [asdict(outcome) for outcome in outcomes]}
    file.write_text(json.dumps(document, indent=2) + "\n")
    return figures


def line(outcome: Outcome) -> str:
    """One fault, as it ends."""
    verdict = "FAILED" if outcome.failures else "ok"
    moved = "moved" if outcome.moved else "stayed"
    words = [
        f"{outcome.number:>3} {outcome.fault:<36} {verdict:<6} {moved:<6}",
        f"held {outcome.hold_seconds:>4.1f} s, healthy {outcome.healthy_seconds:>5.1f} s later",
        f"rows {outcome.rows_acknowledged:>5} lost {outcome.rows_lost}",
        f"silent: SIP {outcome.silent_sip_seconds:.1f}, rows {outcome.silent_rows_seconds:.1f} s",
    ]
    extra = [f"      {failure}" for failure in outcome.failures] + [f"      note: {n}" for n in outcome.notes]
    return "\n".join([", ".join(words), *extra])


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row a fault kind."""
    made = Table(title="Faults of this campaign", title_justify="left")
    for name in ("fault", "runs", "failed", "moved", "rows", "lost", "two writable", "SIP silent", "healthy"):
        made.add_column(name, justify="left" if name == "fault" else "right")
    for fault in dict.fromkeys(outcome.fault for outcome in outcomes):
        chosen = [outcome for outcome in outcomes if outcome.fault == fault]
        made.add_row(
            fault,
            str(len(chosen)),
            str(sum(bool(each.failures) for each in chosen)),
            str(sum(each.moved for each in chosen)),
            str(sum(each.rows_acknowledged for each in chosen)),
            str(sum(each.rows_lost for each in chosen)),
            str(sum(len(each.two_writable) for each in chosen)),
            f"{max(each.silent_sip_seconds for each in chosen):.1f} s",
            f"{max(each.healthy_seconds for each in chosen):.1f} s",
        )
    return made
