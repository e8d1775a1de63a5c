"""A short fault campaign of a fixed seed; `nox -s chaos` makes the long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import campaign, report
from tests.chaos.audits import Outcome
from tests.chaos.faults import Fault

SEED = 20261124
# One of each kind that differs: power, a dead process, a frozen one, a cable, a hand.
FAULTS = (
    Fault.POWER_OFF_MASTER,
    Fault.KILL_DATABASE_MASTER,
    Fault.FREEZE_KEEPALIVED_MASTER,
    Fault.MANAGEMENT_LINK,
    Fault.SWITCH,
)

pytestmark = [pytest.mark.lab]


def test_a_short_campaign_loses_nothing(lab_root: Path, tmp_path: Path) -> None:
    def tell(outcome: Outcome) -> None:
        print(report.line(outcome), flush=True)

    faults = campaign.draw(SEED, len(FAULTS), FAULTS)
    outcomes = campaign.run(lab_root, tmp_path / "lab", SEED, faults, tell)
    figures = report.write(Path("out/chaos-short.json"), SEED, outcomes)
    assert [outcome.failures for outcome in outcomes if outcome.failures] == []
    assert figures["faults"] == len(FAULTS)
    assert (figures["rows_lost"], figures["files_lost"], figures["two_writable_windows"]) == (0, 0, 0)
    # The load was one: a campaign in which nobody wrote proves nothing.
    assert all(outcome.rows_acknowledged > 20 and outcome.files_acknowledged for outcome in outcomes)
