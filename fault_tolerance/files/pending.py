"""What has changed in a tree and is not on the peer yet, and whether so much may be deleted. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

# A deletion waits for so long before it is passed on: time to notice that it is one of very many.
DELETION_SECONDS = 10.0
WINDOW_SECONDS = 600.0
MOST_LOST_SHARE = 0.3
# Below so many a share says nothing.
FEW = 20
LARGEST_BATCH = 1000


def refusal(lost: int, left: int) -> str | None:
    """Why so many deletions are not passed on, None when they may be; `left` files are still there."""
    if lost <= FEW or lost <= MOST_LOST_SHARE * (lost + left):
        return None
    return f"{lost} of {lost + left} files vanished at once"


@dataclass
class Pending:
    """Of one tree. Paths are relative to it; moments are monotonic and those of the first change.

    `files` is how many files the tree has, as far as the events tell.
    """

    files: int = 0
    changed: dict[str, float] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)
    sending: dict[str, float] = field(default_factory=dict)
    # New files that the peer has never had: whether they go is nobody's loss.
    _unsent: set[str] = field(default_factory=set)
    _losses: deque[tuple[float, int]] = field(default_factory=deque)

    def note_changed(self, path: str, moment: float, *, new: int = 0, back: int = 0) -> None:
        """A path is there, with contents that the peer may not have. `new` files came with it; `back` of them
        had been counted as lost when they were renamed."""
        self.gone.pop(path, None)
        self.changed.setdefault(path, moment)
        self.files += new
        if new and not back:
            self._unsent.add(path)
        if back:
            self._losses.append((moment, -back))

    def note_born(self, path: str) -> None:
        """A file began to be; that it is whole is told later."""
        self.files += 1
        self._unsent.add(path)

    def note_gone(self, path: str, moment: float, *, lost: int = 1) -> int:
        """It is not there any more, and `lost` files with it; how many of them the peer may have."""
        self.changed.pop(path, None)
        self.gone.setdefault(path, moment)
        self.files = max(0, self.files - lost)
        unsent = {name for name in self._unsent if name == path or name.startswith(f"{path}/")}
        self._unsent -= unsent
        counted = max(0, lost - len(unsent))
        if counted:
            self._losses.append((moment, counted))
        return counted

    def lost_lately(self, now: float) -> int:
        """How many files went away within the window, less those that only got another name."""
        while self._losses and self._losses[0][0] < now - WINDOW_SECONDS:
            self._losses.popleft()
        return max(0, sum(count for _, count in self._losses))

    def refusal(self, now: float) -> str | None:
        """Why nothing may be passed on now."""
        return refusal(self.lost_lately(now), self.files)

    def forgive(self) -> None:
        """A person says that all losses were meant."""
        self._losses.clear()

    def take_changed(self) -> list[str]:
        """The oldest changes, now being sent."""
        chosen = list(self.changed)[:LARGEST_BATCH]
        self.sending = {path: self.changed.pop(path) for path in chosen}
        return chosen

    def take_gone(self, now: float) -> list[str]:
        """Deletions whose time has come, now being passed on."""
        chosen = [path for path, moment in self.gone.items() if now - moment >= DELETION_SECONDS][
            :LARGEST_BATCH
        ]
        self.sending = {path: self.gone.pop(path) for path in chosen}
        return chosen

    def sent(self) -> None:
        """What was taken is on the peer."""
        self._unsent.difference_update(self.sending)
        self.sending = {}

    def return_changed(self) -> None:
        """What was taken did not arrive; it keeps its age."""
        again = {path: moment for path, moment in self.sending.items() if path not in self.gone}
        self.changed = {
            **again,
            **{path: moment for path, moment in self.changed.items() if path not in again},
        }
        self.sending = {}

    def return_gone(self) -> None:
        """The deletions that were taken did not arrive."""
        again = {path: moment for path, moment in self.sending.items() if path not in self.changed}
        self.gone = {**again, **self.gone}
        self.sending = {}

    def oldest(self) -> float | None:
        """The moment of the oldest change that is not on the peer; deletions wait on purpose."""
        moments = [next(iter(table.values())) for table in (self.sending, self.changed) if table]
        return min(moments, default=None)

    def count(self) -> int:
        """How many paths are not on the peer."""
        return len(self.changed) + len(self.gone) + len(self.sending)
