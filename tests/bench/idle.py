"""What a daemon costs while nothing happens: memory and processor time of everything in its service."""

from __future__ import annotations

import os
import time
from pathlib import Path

from appliance.lab import Node
from tests.bench.rows import Row, median

OURS = "centralinod.service"
PEERS = ("firewalld.service", "fail2ban.service")
LIMIT_MEBIBYTES = 40.0
LIMIT_PERCENT = 0.2
WATCH_SECONDS = 60.0
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mebibytes(node: Node, unit: str) -> float:
    """Sum of the resident sets of all processes of a unit, shared pages counted in each."""
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in node.processes_of(unit))
    return pages * PAGE / (1 << 20)


def processor_seconds(node: Node, unit: str) -> float:
    """Processor time that the unit's control group used so far, short-lived children included."""
    statistics = (node.unit_group(unit).paths[0] / "cpu.stat").read_text().split()
    return int(statistics[statistics.index("usage_usec") + 1]) / 1e6


def measure(node: Node, runs: int = 3) -> list[Row]:
    """Watch all services during the same spans, and nobody asks them anything meanwhile."""
    units = (OURS, *PEERS)
    memory: dict[str, list[float | None]] = {unit: [] for unit in units}
    load: dict[str, list[float | None]] = {unit: [] for unit in units}
    for _ in range(runs):
        before = {unit: (time.monotonic(), processor_seconds(node, unit)) for unit in units}
        time.sleep(WATCH_SECONDS)  # the span that is measured
        for unit, (began, used) in before.items():
            share = (processor_seconds(node, unit) - used) / (time.monotonic() - began)
            load[unit].append(share * 100)
            memory[unit].append(resident_mebibytes(node, unit))
    rows = []
    for peer in PEERS:
        name = f"`{peer.removesuffix('.service')}`"
        ours = median(memory[OURS])
        rows.append(
            Row(
                "`centralinod` idle, resident memory",
                ours,
                median(memory[peer]),
                name,
                "MiB",
                runs,
                LIMIT_MEBIBYTES,
            )
        )
        ours = median(load[OURS])
        note = f"over {WATCH_SECONDS:.0f} s, all processes of the service, those that came and went included"
        rows.append(
            Row(
                "`centralinod` idle, share of a core",
                ours,
                median(load[peer]),
                name,
                "%",
                runs,
                LIMIT_PERCENT,
                note=note,
            )
        )
    return rows
