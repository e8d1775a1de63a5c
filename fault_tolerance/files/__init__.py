"""The declared file trees on both nodes: in real time, one way, within a bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.platform import platform

if TYPE_CHECKING:
    from fault_tolerance.contracts import FileReplica, PeerChannel
    from fault_tolerance.files.trees import Tree
    from fault_tolerance.pair import Pair

STATE = Path("/var/lib/centralino/fault-tolerance/files")
RUN = Path("/run/centralino-files")


def build(pair: Pair, channel: PeerChannel) -> FileReplica:
    """The declared trees of this node as half of a pair. Raises CentralinoError."""
    from fault_tolerance.files.trees import read

    return build_with(pair, channel, read(paths=platform().paths))


def build_with(pair: Pair, channel: PeerChannel, trees: Sequence[Tree]) -> FileReplica:
    """The same for other trees."""
    from fault_tolerance.files.replica import Files

    return Files(trees, channel, STATE, RUN, pair.kilobytes_per_second)
