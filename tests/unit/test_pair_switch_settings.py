"""A planned switch and the settings that the slave has not taken yet; the runtime is a double."""

from __future__ import annotations

from typing import Any, cast

import pytest

from daemon import pair_jobs
from daemon.errors import ApplyFailedError
from daemon.pair_jobs import PairJobs


class Runtime:
    """Answers as the role runtime of a master does; after the wish, as that of the old master."""

    def __init__(self, looks_until_agreed: int) -> None:
        self.left = looks_until_agreed
        self.wishes: list[str] = []

    def ask(self, method: str, **arguments: Any) -> dict[str, object]:
        if method == "wish":
            assert self.left <= 0, "the role was handed over before the settings were there"
            self.wishes.append(str(arguments["wish"]))
            return {}
        self.left -= 1
        moved = bool(self.wishes)
        return {
            "role": "slave" if moved else "master",
            "link": {"state": "up"},
            "peer": {
                "role": "master" if moved else "slave",
                "ready": True,
                "settings_agree": self.left <= 0,
            },
        }


def switch(runtime: Runtime) -> object:
    unused = cast(Any, None)
    return PairJobs(unused, unused, unused, cast(Any, runtime)).switch(0, lambda _share, _text: None)


def test_a_switch_waits_until_the_slave_has_the_newest_settings() -> None:
    runtime = Runtime(looks_until_agreed=4)
    assert switch(runtime)
    assert runtime.wishes == ["slave"]


def test_a_slave_that_takes_no_settings_is_handed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_jobs, "SETTINGS_SECONDS", 0.2)
    runtime = Runtime(looks_until_agreed=10_000)
    with pytest.raises(ApplyFailedError, match="newest settings"):
        switch(runtime)
    assert runtime.wishes == []
