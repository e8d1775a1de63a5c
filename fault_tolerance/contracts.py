"""What the role runtime asks of the two replications, and what it gives them: borders, no behaviour.

The runtime (`centralino-peer run`) builds the parts with

    fault_tolerance.database.build(pair, channel) -> DatabaseReplica
    fault_tolerance.files.build(pair, channel)    -> FileReplica

and calls them from its executor thread (everything that may wait, each call with a time limit of its own)
and from its loop (`position`, `state`, `lag`: from memory, never waiting). They raise CentralinoError.

All traffic between the nodes goes through the peer link: `PeerChannel.command(...)` is the argument list of
an SSH client whose standard input and output are those of a program on the peer, started there as root by
the peer's runtime. Only the programs in `Channel` can be started so, with the arguments that the peer's own
`serve_argv` makes of the words (never a shell, never the words as they came).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from fault_tolerance.view import Obstacle

Progress = Callable[[float | None, str], None]
"""Fraction done (None: unknown) and a sentence; may raise CancelledError, which stops the work."""


def nothing() -> None:
    """For whom it makes no difference."""


class Channel(StrEnum):
    """What a connection to the peer carries; its first word. `heartbeat` and `pair` are the link's own."""

    HEARTBEAT = "heartbeat"
    PAIR = "pair"
    DATABASE = "database"
    FILES = "files"
    SECRETS = "secrets"


class PeerChannel(Protocol):
    """The way to the peer."""

    def command(self, channel: Channel, words: Sequence[str] = ()) -> list[str]:
        """The argument list of an `ssh` process to the peer: keys, pinned host key, time limits included."""
        ...

    def remote_shell(self, channel: Channel) -> list[str]:
        """The same for programs that bring their own remote command, as `rsync --rsh` does: they append a
        host name, which is ignored, and the words."""
        ...


@dataclass(frozen=True)
class ReplicaState:
    """How a replica is. `obstacles` keep this node from taking over (slave only); `lag_milliseconds` is
    None while unknown; `synchronous` is None where it does not apply (a slave), and on a master says whether
    every acknowledged commit is on the peer; `detail` is a sentence for people; `alarm` one that must not
    wait until somebody looks, "" without."""

    obstacles: frozenset[Obstacle] = frozenset()
    lag_milliseconds: float | None = None
    synchronous: bool | None = None
    detail: str = ""
    alarm: str = ""


class DatabaseReplica(Protocol):
    """The database of this node as one half of a pair."""

    def make_writable(
        self, limit_seconds: float, not_before: float = 0.0, ready: Callable[[], None] = nothing
    ) -> None:
        """Drain the relay log, end the replication from the peer, call `ready`, and allow writes when
        the clock has passed `not_before` (monotonic seconds)."""
        ...

    def make_read_only(self, limit_seconds: float) -> None:
        """Refuse every write, also of privileged users, and verify it. Raises if that cannot be proven."""
        ...

    def follow(self, limit_seconds: float) -> None:
        """Replicate from the peer, which is master: compare positions, catch up, or ask for a seed.

        Returns as soon as the way is clear; a seed goes on in a thread of the part's own and is an obstacle
        (SEEDING) meanwhile."""
        ...

    def position(self) -> int:
        """One number that grows with every transaction that this node has (received counts); from memory."""
        ...

    def state(self) -> ReplicaState:
        """From memory."""
        ...

    def seed_from_peer(self, progress: Progress) -> None:
        """Throw this node's copy away and take the peer's; safe to interrupt and repeat."""
        ...

    def heartbeat(self) -> dict[str, object]:
        """JSON facts for the peer's part, carried in each heartbeat: small, from memory."""
        ...

    def heard(self, facts: dict[str, object]) -> None:
        """What the peer's part said in its last heartbeat; called from the loop, must not wait."""
        ...

    def serve_argv(self, words: Sequence[str]) -> list[str]:
        """The program that serves a peer's `Channel.DATABASE` connection (stdin and stdout are the peer's).

        Raises CentralinoError for words that it does not know."""
        ...

    def close(self) -> None:
        """End all threads and processes of this part; the database itself goes on."""
        ...


class FileReplica(Protocol):
    """The declared file trees of this node as one half of a pair."""

    def send(self, epoch: int) -> None:
        """This node is a proven master of `epoch`: begin to send changes to the peer."""
        ...

    def receive(self, epoch: int) -> None:
        """The peer is master of `epoch`: take from it what is of this epoch or newer, send nothing."""
        ...

    def stop(self) -> None:
        """Neither send nor receive; returns when nothing is on its way any more."""
        ...

    def state(self) -> ReplicaState:
        """From memory."""
        ...

    def resynchronize(self, progress: Progress, accept_deletions: bool = False) -> None:
        """A full pass over all trees (a slave asks its master for it); safe to interrupt and repeat.

        `accept_deletions` says that a person wants the mass deletions that were held back."""
        ...

    def heartbeat(self) -> dict[str, object]:
        """As in DatabaseReplica."""
        ...

    def heard(self, facts: dict[str, object]) -> None:
        """As in DatabaseReplica."""
        ...

    def serve_argv(self, words: Sequence[str]) -> list[str]:
        """The program that serves a peer's `Channel.FILES` connection, `rsync --server ...` checked word by
        word. Raises CentralinoError."""
        ...

    def close(self) -> None:
        """End all threads and processes of this part."""
        ...


@dataclass(frozen=True)
class Places:
    """Where a part keeps what is its own; all exist when `build` is called."""

    state: Path
    run: Path
