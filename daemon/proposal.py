"""What a document would change, what an apply left behind, and what went wrong on the way: plain values."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from daemon.errors import Problem
from daemon.settings import Settings
from daemon.subsystem import Change, JsonObject

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proposal:
    """What a document would change: the answer to a dry run, and the first half of an apply."""

    base: int
    settings: Settings
    changes: tuple[Change, ...]
    problems: tuple[Problem, ...]
    diff: str
    # False for a repair: there is no revision that the box could return to.
    confirmable: bool = True

    @property
    def needs_confirm(self) -> bool:
        """Whether a change could cut the admin off and can be taken back."""
        return self.confirmable and any(change.risky for change in self.changes)

    def as_json(self) -> JsonObject:
        """As documented for `Propose` in org.centralino.xml."""
        return {
            "base": self.base,
            "changes": [change.as_json() for change in self.changes],
            "problems": [problem.as_json() for problem in self.problems],
            "needs_confirm": self.needs_confirm,
            "restarts": list(dict.fromkeys(unit for change in self.changes for unit in change.restarts)),
            "drops_calls": any(change.drops_calls for change in self.changes),
            "diff": self.diff,
        }


@dataclass(frozen=True)
class Applied:
    """The end of an apply; `confirm_by` is set while the change waits for `confirm`."""

    revision: int
    confirm_by: str | None
    proposal: Proposal

    def as_json(self) -> JsonObject:
        """As documented for `Apply` in org.centralino.xml."""
        return {"revision": self.revision, "confirm_by": self.confirm_by, "plan": self.proposal.as_json()}


@dataclass
class Report:
    """What went wrong so far, in sentences that `status` shows; each under a key, so that it can end."""

    sentences: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, sentence: str) -> None:
        """Add or replace a sentence; a new one is logged."""
        if self.sentences.get(key) != sentence:
            log.error("%s", sentence)
        self.sentences[key] = sentence

    def clear(self, key: str) -> None:
        """It is over."""
        self.sentences.pop(key, None)
