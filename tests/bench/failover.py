"""A pair that loses its master, and one that hands over, seen from outside; beside what else moves addresses.

Run alone with `python -m tests.bench.failover --root TREE`, in parts with `--profile` and `--part`; the peers
run on the same two nodes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click

from appliance.lab import Lab
from appliance.lab_failover import Failure, Handover, Onlookers, bring_dialplan
from appliance.lab_pair import PairOfNodes, add_two, make_pair, power_on
from tests.bench import rows
from tests.bench.failover_peers import (
    PACEMAKER_PACKAGES,
    PACEMAKER_UNITS,
    measure_bare,
    measure_pacemaker,
)
from tests.bench.idle import WATCH_SECONDS, processor_seconds, resident_mebibytes
from tests.bench.nodes import install
from tests.bench.rows import NO_PEER, Row, median

ADVERTS = {"standard": 0.3, "fast": 0.1}
TARGETS = {"standard": 1.3, "fast": 0.45}
PARTS = ("failure", "bare", "pacemaker", "switch", "idle")
KEEPALIVED = "keepalived alone, same adverts"
ALLOWED_RATIO = 1.15
FAILURE = "power-off of the master to"
UNITS = ("centralinod.service", "centralino-peer.service")
IDLE_LIMIT_PERCENT = 1.0
IDLE_LIMIT_MEBIBYTES = 40.0


def fail_over(pair: PairOfNodes, onlookers: Onlookers, runs: int) -> list[Failure]:
    """Power off whoever is master, `runs` times, and let it come back each time."""
    found = []
    for _ in range(runs):
        master = pair.wait_healthy()
        found.append(onlookers.fail_over(master))
        master.power_on(120)
    pair.wait_healthy()
    return found


def switch(pair: PairOfNodes, onlookers: Onlookers, runs: int) -> list[Handover]:
    """Hand the role over, `runs` times."""
    return [onlookers.switch(pair.wait_healthy()) for _ in range(runs)]


def failure_rows(profile: str, seen: Sequence[Failure]) -> list[Row]:
    """What phones and writer saw; the peers' row of the address is another one."""
    runs = len(seen)
    delays = {
        "SIP OPTIONS answered, beyond the echo": ([s.sip_seconds - s.address_seconds for s in seen], 0.5),
        "first REGISTER accepted, beyond the echo": (
            [s.register_seconds - s.address_seconds for s in seen],
            1.5,
        ),
        "first row acknowledged, beyond the echo": (
            [s.database_seconds - s.address_seconds for s in seen],
            1.5,
        ),
    }
    made = [
        Row(
            f"{FAILURE} {what}, {profile}", median(values), None, NO_PEER, "s", runs, limit, note=_all(values)
        )
        for what, (values, limit) in delays.items()
    ]
    lost = sum(s.rows_lost for s in seen)
    acknowledged = sum(s.rows_acknowledged for s in seen)
    note = f"{acknowledged} acknowledged in {runs} failures"
    made.append(
        Row(
            f"acknowledged rows lost at power-off, {profile}", lost, None, NO_PEER, "rows", runs, 0, note=note
        )
    )
    missed = sum(not s.registration_kept for s in seen)
    note = "registered once over UDP before, called with sound after, by another phone"
    name = f"registered phones that could not be called after power-off, {profile}"
    made.append(Row(name, missed, None, NO_PEER, "phones", runs, 0, note=note))
    return made


def address_row(profile: str, seen: Sequence[Failure], peer: Sequence[float], peer_name: str) -> Row:
    """The shared address beside one peer."""
    ours = [each.address_seconds for each in seen]
    target, rule = TARGETS[profile], ""
    bare = median(peer)
    if peer_name == KEEPALIVED and bare is not None and bare * ALLOWED_RATIO < target:
        target, rule = bare * ALLOWED_RATIO, f"{ALLOWED_RATIO} x peer"
    note = f"ours {_all(ours)}; {peer_name} {_all(peer)}"
    what = f"{FAILURE} UDP echo at the shared address, {profile}"
    return Row(what, median(ours), bare, peer_name, "s", len(ours), target, rule, note)


def switch_rows(profile: str, seen: Sequence[Handover]) -> list[Row]:
    """The longest silences of planned switches, and their rows."""
    runs = len(seen)
    silent = [each.sip_seconds for each in seen]
    lost = sum(each.rows_lost for each in seen)
    acknowledged = sum(each.rows_acknowledged for each in seen)
    name, rows_name = (
        "planned switch, longest time without SIP answer",
        "planned switch, acknowledged rows lost",
    )
    note = f"{_all(silent)}; the address was silent for {_all([each.address_seconds for each in seen])}"
    return [
        Row(f"{name}, {profile}", median(silent), None, NO_PEER, "s", runs, 1.0, note=note),
        Row(
            f"{rows_name}, {profile}",
            lost,
            None,
            NO_PEER,
            "rows",
            runs,
            0,
            note=f"{acknowledged} acknowledged",
        ),
    ]


def idle_rows(pair: PairOfNodes, profile: str, runs: int) -> list[Row]:
    """What both daemons of a node cost while the pair is healthy and nobody calls; the busier node counts."""
    pair.wait_healthy()
    load: list[float] = []
    memory: dict[str, list[float]] = {unit: [] for unit in UNITS}
    for _ in range(runs):
        began = time.monotonic()
        used = {(node, unit): processor_seconds(node, unit) for node in pair.nodes for unit in UNITS}
        time.sleep(WATCH_SECONDS)  # the span that is measured
        spent = {key: processor_seconds(*key) - before for key, before in used.items()}
        seconds = time.monotonic() - began
        load.append(max(sum(spent[node, unit] for unit in UNITS) for node in pair.nodes) / seconds * 100)
        for unit in UNITS:
            memory[unit].append(max(resident_mebibytes(node, unit) for node in pair.nodes))
    note = f"both daemons of the busier node over {WATCH_SECONDS:.0f} s: {_all(load)}"
    what = f"idle pair, {profile}"
    return [
        Row(
            f"{what}: share of a core", median(load), None, NO_PEER, "%", runs, IDLE_LIMIT_PERCENT, note=note
        ),
        *(
            Row(
                f"{what}: resident memory of `{unit.removesuffix('.service')}`",
                median(values),
                None,
                NO_PEER,
                "MiB",
                runs,
                IDLE_LIMIT_MEBIBYTES,
            )
            for unit, values in memory.items()
        ),
    ]


def measure_profile(root: Path, profile: str, runs: int, parts: Sequence[str]) -> list[Row]:
    """One pair of one profile, in the order in which nothing disturbs what comes after it."""
    made: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="centralino-bench-", dir="/var/tmp") as folder,
        Lab(root, Path(folder) / "lab") as lab,
    ):
        pair = add_two(lab)
        for node in pair.nodes:
            if "pacemaker" in parts:
                install(node, PACEMAKER_PACKAGES, disabled=PACEMAKER_UNITS)
            bring_dialplan(node)
        power_on(pair)
        make_pair(pair, profile=profile)
        master = pair.wait_healthy()
        if "idle" in parts:
            made += idle_rows(pair, profile, 1)
        onlookers = Onlookers(pair, master)
        if "switch" in parts:
            made += switch_rows(profile, switch(pair, onlookers, runs))
        seen = fail_over(pair, onlookers, runs) if {"failure", "bare", "pacemaker"} & set(parts) else []
        if seen:
            made += failure_rows(profile, seen)
        if "bare" in parts:
            bare = measure_bare(pair, ADVERTS[profile], runs)
            made.append(address_row(profile, seen, bare, KEEPALIVED))
        if "pacemaker" in parts:
            stock = measure_pacemaker(pair, runs)
            made.append(address_row(profile, seen, stock, "Pacemaker + corosync, stock"))
    return made


def measure(
    root: Path, runs: int = 5, profiles: Sequence[str] = tuple(ADVERTS), parts: Sequence[str] = PARTS
) -> list[Row]:
    """Both profiles beside bare keepalived; Pacemaker, which knows no profile, beside the standard one."""
    made = []
    for profile in profiles:
        chosen = [part for part in parts if part != "pacemaker" or profile == "standard"]
        made += measure_profile(root, profile, runs, chosen)
    return made


def _all(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


@click.command()
@click.option("--root", type=click.Path(path_type=Path, exists=True), required=True, help="The tree to boot.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--profile", "profiles", multiple=True, type=click.Choice(tuple(ADVERTS)))
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS))
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/bench.json"), show_default=True)
def main(root: Path, runs: int, profiles: tuple[str, ...], parts: tuple[str, ...], output: Path) -> None:
    """Measure failover and switch, side by side with the named peers."""
    found = measure(root, runs, profiles or tuple(ADVERTS), parts or PARTS)
    rows.write(found, output)
    click.echo(rows.markdown([row.as_json() for row in found]))


if __name__ == "__main__":
    main()
