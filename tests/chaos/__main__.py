"""`nox -s chaos`: the fault campaign. Exit status 1 if an audit failed."""

from __future__ import annotations

import secrets
import signal
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from appliance.lab_cli import built_root
from tests.chaos import campaign, report
from tests.chaos.audits import Outcome
from tests.chaos.faults import Fault


@click.command()
@click.option("--seed", type=int, help="Repeat the campaign of that seed; without it one is drawn and shown.")
@click.option(
    "--count", type=click.IntRange(1), default=len(Fault), show_default=True, help="How many faults."
)
@click.option("--minutes", type=click.FloatRange(min=0), help="Begin no fault later than this.")
@click.option("--root", type=click.Path(path_type=Path, exists=True), help="Boot this tree; build nothing.")
@click.option(
    "--fault", "names", multiple=True, type=click.Choice([fault.value for fault in Fault]), help="Only these."
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/chaos.json"), show_default=True)
def main(
    seed: int | None,
    count: int,
    minutes: float | None,
    root: Path | None,
    names: tuple[str, ...],
    output: Path,
) -> None:
    """Break a pair in every way, under load, and audit it after each fault."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    console.print(f"seed {seed}, {count} faults", highlight=False)
    faults = campaign.draw(seed, count, [Fault(name) for name in names])
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        print(report.line(outcome), flush=True)
        report.write(output, seed, outcomes)

    # An end from outside is an end like Ctrl-C: the lab is taken down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    limit = float("inf") if minutes is None else minutes * 60
    chosen = root or built_root(None, "debian12")
    with tempfile.TemporaryDirectory(prefix="centralino-chaos-", dir="/var/tmp") as directory:
        campaign.run(chosen, Path(directory) / "lab", seed, faults, tell, limit)
    console.print(report.table(outcomes))
    for name, value in report.write(output, seed, outcomes).items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(f"seed {seed}; all of it: {output}", highlight=False)
    sys.exit(1 if any(outcome.failures for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
