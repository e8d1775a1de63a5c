"""How long a person or a script waits for an answer: our status beside firewalld's and NetworkManager's."""

from __future__ import annotations

from appliance.lab import Node
from tests.bench.rows import Row, median

OURS = ("centralino", "status", "--json")
PEERS = (("firewall-cmd", "--state"), ("nmcli", "general"))
LIMIT_MILLISECONDS = 150.0


def measure(node: Node, runs: int = 20) -> list[Row]:
    """Median wall time of each command, in turns so that all see the same machine; two rounds warm up."""
    times: dict[tuple[str, ...], list[float]] = {command: [] for command in (OURS, *PEERS)}
    for turn in range(runs + 2):
        for command, seen in times.items():
            seconds = node.run(command).seconds
            if turn >= 2:
                seen.append(seconds * 1000)
    note = "each command is started in the node from outside, which adds the same few ms to all"
    return [
        Row(
            "`centralino status --json`, wall time",
            median(times[OURS]),
            median(times[peer]),
            f"`{' '.join(peer)}`",
            "ms",
            runs,
            LIMIT_MILLISECONDS,
            note=note,
        )
        for peer in PEERS
    ]
