"""Where this node's database is, and who may read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """Where this node's database is. `home` holds its data directory; `user` and `group` are the numbers of
    the system user as whom the peer reads, `owner_id` the database's own."""

    socket: Path
    home: Path
    configuration: Path
    unit: str
    owner: str
    owner_id: int
    user: int
    group: int
    number: int
    state: Path
    run: Path

    @property
    def evidence(self) -> Path:
        """What only this node had, and what people have not taken away yet."""
        return self.state / "evidence"
