"""What must outlive a power loss (epoch, mastery, an administrator's `off`), and what only this boot.

The durable part is fsynced before anything acts on it: a promotion whose epoch was not written did not begin.
The part of this boot lies below /run, so that a restarted runtime goes on with the role that it had.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from daemon.errors import StorageError
from daemon.files import ensure_directory, write_file
from fault_tolerance.view import Role

HOUR = 3600.0


@dataclass(frozen=True)
class Durable:
    """`epoch`: the newest ever seen; `mastered`: the epoch of the data that this node has; `off`: services
    are off by an administrator's wish; `moves`: wall-clock times of automatic promotions, newest last."""

    epoch: int = 0
    mastered: int = 0
    off: bool = False
    moves: tuple[float, ...] = ()


class RoleState:
    """Reads once, writes through. A damaged file counts as one that is not there: then the peer is newer."""

    def __init__(self, directory: Path, run: Path, clock: Callable[[], float] = time.time) -> None:
        self._file = directory / "role.json"
        self._boot_file = run / "role"
        self._watch_file = run / "watched"
        self._clock = clock
        ensure_directory(directory, 0o700)
        self._durable = _read(self._file)

    @property
    def durable(self) -> Durable:
        """As it is on the disk."""
        return self._durable

    def change(
        self,
        *,
        epoch: int | None = None,
        mastered: int | None = None,
        off: bool | None = None,
        moved: bool = False,
    ) -> None:
        """Write what differs, at one go: a promotion waits for it. `moved` remembers an automatic promotion.

        Raises StorageError, and then nothing has changed.
        """
        now = self._durable
        after = replace(
            now,
            epoch=now.epoch if epoch is None else max(epoch, now.epoch),
            mastered=now.mastered if mastered is None else mastered,
            off=now.off if off is None else off,
            moves=(*self._recent(), self._clock()) if moved else now.moves,
        )
        self._write(after)

    def forget_moves(self) -> None:
        """A person has looked."""
        if self._durable.moves:
            self._write(replace(self._durable, moves=()))

    def moves_in_last_hour(self) -> int:
        """How often this node has promoted itself lately."""
        return len(self._recent())

    def role_of_this_boot(self) -> Role | None:
        """What the runtime before this one was in the same boot; None after a boot."""
        try:
            return Role(self._boot_file.read_text().strip())
        except (OSError, ValueError):
            return None

    def note_role(self, role: Role) -> None:
        """Keep the role for the next runtime of this boot."""
        write_file(self._boot_file, f"{role.value}\n")

    def note_watch(self) -> None:
        """The loop turns. In memory: a look that fails is one that was not there."""
        with contextlib.suppress(OSError):
            self._watch_file.write_text(f"{time.monotonic()}\n")

    def forget_watch(self) -> None:
        """Have the next runtime take this node for one that nobody watched."""
        with contextlib.suppress(OSError):
            self._watch_file.unlink(missing_ok=True)

    def unwatched_for(self) -> float:
        """Seconds since the loop of a runtime turned last in this boot; endless if none ever did."""
        try:
            return time.monotonic() - float(self._watch_file.read_text())
        except (OSError, ValueError):
            return float("inf")

    def free_bytes(self) -> int:
        """What the disk below the durable part has left."""
        try:
            found = os.statvfs(self._file.parent)
        except OSError:
            return 0
        return found.f_bavail * found.f_frsize

    def _recent(self) -> tuple[float, ...]:
        now = self._clock()
        return tuple(moment for moment in self._durable.moves if now - HOUR < moment <= now)

    def _write(self, after: Durable) -> None:
        if after == self._durable:
            return
        table = {
            "epoch": after.epoch,
            "mastered": after.mastered,
            "off": after.off,
            "moves": list(after.moves),
        }
        write_file(self._file, json.dumps(table) + "\n", mode=0o600)
        self._durable = after


def _read(path: Path) -> Durable:
    try:
        table = json.loads(path.read_text())
        return Durable(
            epoch=int(table["epoch"]),
            mastered=int(table["mastered"]),
            off=table["off"] is True,
            moves=tuple(float(moment) for moment in table["moves"]),
        )
    except FileNotFoundError:
        return Durable()
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error.strerror}", "look at that disk") from error
    except (ValueError, KeyError, TypeError):
        return Durable()
