"""The replications of a node that has nothing to replicate: every step succeeds, nothing lags."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from daemon.errors import UnavailableError
from fault_tolerance.contracts import Progress, ReplicaState, nothing


class _Nothing:
    def position(self) -> int:
        """Always 0."""
        return 0

    def state(self) -> ReplicaState:
        """Nothing can be behind."""
        return ReplicaState(detail="not replicated")

    def heartbeat(self) -> dict[str, object]:
        """Nothing to tell."""
        return {}

    def heard(self, facts: dict[str, object]) -> None:
        """Nothing to learn."""

    def serve_argv(self, words: Sequence[str]) -> list[str]:
        """Raises UnavailableError."""
        raise UnavailableError("nothing is replicated here", "is the same version installed on both nodes?")

    def close(self) -> None:
        """Nothing to end."""


class NoDatabase(_Nothing):
    """`contracts.DatabaseReplica` without a database."""

    def make_writable(
        self, limit_seconds: float, not_before: float = 0.0, ready: Callable[[], None] = nothing
    ) -> None:
        """Nothing is written here: it is ready."""
        ready()

    def make_read_only(self, limit_seconds: float) -> None:
        """Done."""

    def follow(self, limit_seconds: float) -> None:
        """Done."""

    def seed_from_peer(self, progress: Progress) -> None:
        """Done."""


class NoFiles(_Nothing):
    """`contracts.FileReplica` without files."""

    def send(self, epoch: int) -> None:
        """Done."""

    def receive(self, epoch: int) -> None:
        """Done."""

    def stop(self) -> None:
        """Done."""

    def resynchronize(self, progress: Progress, accept_deletions: bool = False) -> None:
        """Done."""
