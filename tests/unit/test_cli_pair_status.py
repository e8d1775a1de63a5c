"""What `centralino fault-tolerance status` shows of a peer that is heard, and of one that is not."""

from __future__ import annotations

import pytest

from daemon.cli.fault_tolerance import _show
from daemon.cli.json_types import JsonObject


def status(link: JsonObject) -> JsonObject:
    return {
        "paired": True,
        "role": "master",
        "epoch": 3,
        "reason": "this node serves",
        "ready": True,
        "link": link,
        "peer": {"role": "slave", "epoch": 3, "ready": True, "obstacles": []},
    }


def test_a_peer_that_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    _show(status({"state": "up", "silent_seconds": 0.12}))
    shown = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["peer", "slave", "(epoch", "3)"] for line in shown), shown
    assert any(line.split() == ["peer", "ready", "yes"] for line in shown), shown


def test_a_peer_that_is_silent_is_not_called_ready(capsys: pytest.CaptureFixture[str]) -> None:
    _show(status({"state": "lost", "silent_seconds": 120.03, "trouble": "No route to host"}))
    shown = capsys.readouterr().out
    assert "was slave (epoch 3) when it was heard last, 120 s ago" in shown
    assert any(line.split() == ["peer", "ready", "not", "known"] for line in shown.splitlines()), shown
    assert "lost (No route to host)" in shown
