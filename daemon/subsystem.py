"""What the engine asks of each subsystem: four functions, of which only `apply` touches the box.

    verify(settings, facts) -> problems     what only this box can know
    plan(old, new)          -> changes      pure apart from reading the files it would replace
    apply(change)                           idempotent: applying a change twice equals applying it once
    observe()               -> State        what is true now

`plan(None, settings)` means "nothing is known of the box": it plans whatever makes the box match. The
engine uses it after a power loss, and undoes a failed or unconfirmed change with `plan(new, old)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from daemon.errors import Problem
from daemon.files import FileChange as FileChange
from daemon.settings import Settings

JsonObject = dict[str, object]


@dataclass(frozen=True)
class Change:
    """One step of a plan.

    `sentence` is what a person reads. `restarts` and `reloads` name systemd units. `drops_calls` says that
    live calls end. `risky` changes could cut the admin off and need `config confirm`. `deletes` names what
    cannot be had back except from history. `detail` is for the subsystem's own `apply` (JSON types only).
    """

    subsystem: str
    sentence: str
    files: tuple[FileChange, ...] = ()
    restarts: tuple[str, ...] = ()
    reloads: tuple[str, ...] = ()
    drops_calls: bool = False
    risky: bool = False
    deletes: tuple[str, ...] = ()
    detail: Mapping[str, object] = field(default_factory=dict)

    def as_json(self) -> JsonObject:
        """For the bus: files as diffs, `detail` left out (it may hold secrets)."""
        return {
            "subsystem": self.subsystem,
            "sentence": self.sentence,
            "diff": "".join(change.diff() for change in self.files),
            "restarts": list(self.restarts),
            "reloads": list(self.reloads),
            "drops_calls": self.drops_calls,
            "risky": self.risky,
            "deletes": list(self.deletes),
        }


@dataclass(frozen=True)
class State:
    """What a subsystem sees now.

    `healthy` is the verdict, `reasons` the sentences behind a bad one, `drift` the differences between
    settings and box, `facts` what `status --json` shows (JSON types, no secrets).
    """

    healthy: bool
    reasons: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)


class Facts(Mapping[str, object]):
    """The facts of each subsystem by its name; the box is looked at when somebody first asks for one."""

    def __init__(self, observe: Callable[[], Mapping[str, State]]) -> None:
        self._observe = observe
        self._seen: Mapping[str, State] | None = None

    def __getitem__(self, name: str) -> object:
        return self._states[name].facts

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    @property
    def _states(self) -> Mapping[str, State]:
        if self._seen is None:
            self._seen = self._observe()
        return self._seen


@runtime_checkable
class Subsystem(Protocol):
    """See the module's text."""

    @property
    def name(self) -> str:
        """A short word of the field, unique; class attributes will do."""
        ...

    @property
    def sections(self) -> tuple[str, ...]:
        """Settings sections that this subsystem brings to the box."""
        ...

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        """Problems that only this box can know; an empty list lets the document through."""
        ...

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        """The steps from `old` (None: unknown) to `new`, in order."""
        ...

    def apply(self, change: Change) -> None:
        """Carry out one step, or raise a CentralinoError; the engine then undoes the steps before it."""
        ...

    def observe(self) -> State:
        """What is true now; must return within a second and never raise."""
        ...


@runtime_checkable
class Guard(Protocol):
    """A subsystem that also watches over a change which waits for confirm (all four are optional as one).

    The engine calls them in the order begins, trouble, ends, whatever subsystems the change belongs to; one
    that raises is logged and ignored.
    """

    def trial_begins(self, changes: Sequence[Change], old: Settings, seconds: int) -> None:
        """A change is about to be carried out and will wait `seconds` for confirm: remember what was true."""
        ...

    def trial_resumes(self) -> None:
        """The daemon was restarted while a change waits: recall what was true; `trial_trouble` follows."""
        ...

    def trial_trouble(self, new: Settings) -> str | None:
        """The change is carried out: a sentence why the box must return at once, or None. Takes seconds."""
        ...

    def trial_ends(self) -> None:
        """No change waits any more: it was kept, or the box has returned. Called more often than needed."""
        ...
