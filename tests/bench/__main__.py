"""`nox -s bench`: every figure beside its peer, in one run; writes out/bench.json and docs/benchmarks.md."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.console import Console

from appliance.cli_common import errors_to_exit_codes, run_command
from appliance.demo_steps import wait_healthy
from appliance.lab import Lab
from appliance.lab_cli import built_root
from tests.bench import (
    build,
    certificates,
    failover,
    firewall,
    idle,
    images,
    installer,
    interface,
    network,
    recovery,
    replication,
    rows,
)
from tests.bench.nodes import install_peers, start_peers

GROUPS = (
    "interface",
    "idle",
    "network",
    "certificates",
    "firewall",
    "recovery",
    "replication",
    "failover",
    "build",
    "images",
    "installer",
)


@click.command()
@click.option("--only", multiple=True, type=click.Choice(GROUPS), help="Measure these groups alone.")
@click.option("--runs", type=click.IntRange(1), help="Runs per figure; default: what each figure needs.")
@click.option("--root", type=click.Path(path_type=Path, exists=True), help="Boot this tree; build none.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/bench.json"), show_default=True)
@click.option("--document", type=click.Path(path_type=Path), default=rows.DOCUMENT, show_default=True)
def bench(only: tuple[str, ...], runs: int | None, root: Path | None, output: Path, document: Path) -> None:
    """Measure, side by side with the named peers."""
    chosen = only or GROUPS
    console = Console(stderr=True)
    found: list[rows.Row] = []
    given = {} if runs is None else {"runs": runs}
    if set(chosen) - {"build", "images", "installer"}:
        tree = root or built_root(None, "debian12")
        with tempfile.TemporaryDirectory(prefix="centralino-bench-", dir="/var/tmp") as folder:
            with Lab(tree, Path(folder) / "lab") as lab:
                node = lab.add_node()
                if {"interface", "idle"} & set(chosen):
                    console.print("> install the peers")
                    install_peers(node)
                node.power_on(120)
                if {"interface", "idle"} & set(chosen):
                    start_peers(node)
                wait_healthy(node, 60)
                if "interface" in chosen:
                    console.print("> ask for the status")
                    found += interface.measure(node, **given)
                if "idle" in chosen:
                    console.print("> watch the daemons idle")
                    found += idle.measure(node, **given)
            if "network" in chosen:
                with Lab(tree, Path(folder) / "lab") as lab:
                    console.print("> change the network")
                    node = lab.add_node()
                    node.power_on(120)
                    wait_healthy(node, 60)
                    found += network.measure(node, **given)
            if "certificates" in chosen:
                with Lab(tree, Path(folder) / "lab") as lab:
                    console.print("> replace certificates under calls")
                    node = lab.add_node()
                    node.power_on(120)
                    wait_healthy(node, 60)
                    found += certificates.measure(lab, node, **given)
            if "firewall" in chosen:
                with Lab(tree, Path(folder) / "lab") as lab:
                    console.print("> attack, flood and block")
                    node = lab.add_node()
                    install_peers(node, firewall.PACKAGES)
                    node.power_on(120)
                    wait_healthy(node, 60)
                    found += firewall.measure(lab, node, **given)
            if "recovery" in chosen:
                with Lab(tree, Path(folder) / "lab") as lab:
                    console.print("> kill and freeze Asterisk")
                    node = lab.add_node()
                    node.power_on(120)
                    found += recovery.measure(lab, node, **given)
            if "replication" in chosen:
                console.print("> replicate a database and files between two nodes")
                found += replication.measure(tree)
            if "failover" in chosen:
                console.print("> power the master of a pair off")
                found += failover.measure(tree, **given)
    if "build" in chosen:
        console.print("> build, and build bare")
        found += build.measure(**given)
    if "images" in chosen:
        console.print("> assemble disks, and build again")
        found += images.measure(**given)
    if "installer" in chosen:
        console.print("> remaster an installer, and copy one")
        found += installer.measure(**given)
    table = rows.write(found, output)
    rows.update_document(table, document)
    click.echo(rows.markdown(table))


@errors_to_exit_codes
def main() -> None:
    """Entry point of `python -m tests.bench`."""
    run_command(bench)


if __name__ == "__main__":
    main()
