"""When received files are written out."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fault_tolerance.files import flush as module
from fault_tolerance.files.flush import Flusher, flush


def test_folders_that_are_not_there_are_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flush([tmp_path, tmp_path / "none", tmp_path])
    assert caplog.text == ""


def test_flushes_once_more_after_the_last_arrival_and_rests_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.001)
    answers = [True, True, False]
    done = threading.Semaphore(0)
    monkeypatch.setattr(module, "flush", lambda _folders: done.release())
    flusher = Flusher([], busy=lambda: answers.pop(0))
    assert not done.acquire(timeout=0.05)  # nothing has arrived
    flusher.note()
    for _ in range(3):
        assert done.acquire(timeout=5)
    assert not done.acquire(timeout=0.05)
    assert answers == []
    flusher.end()
