"""`nox -s demo`: from nothing to an appliance that answered a call, lost its PBX core, and recovered.

Builds the reference root tree (or takes it from the cache), boots it as a node, waits until its own
`centralino status` says healthy, registers a phone and calls the echo test with SIPp, kills Asterisk, freezes
Asterisk, and calls again. Everything it claims is measured from outside the node, in this run.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from appliance.cli_common import errors_to_exit_codes, mirror_option, run_command, wheel_dir_option
from appliance.errors import BuildError
from appliance.lab import LOGS, Lab, Node
from appliance.lab_cli import built_root
from appliance.lab_host import LabError, wait_for
from appliance.lab_sip import OptionsProber, add_phone, call_echo, register, welcome_prober

HEALTHY_LIMIT_SECONDS = 180.0
RECOVERY_LIMIT_SECONDS = 60.0
Facts = dict[str, float | int]


class Steps:
    """Shows each step as it goes and remembers for the table what it said."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: list[tuple[str, str]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Name a step on the console while it runs; an error in it is told with its name."""
        self.console.print(f"[bold]>[/bold] {title}", highlight=False)
        try:
            yield
        except BaseException:
            self.console.print(f"[bold red]failed:[/bold red] {title}", highlight=False)
            raise

    def say(self, what: str, result: str) -> None:
        """A finding: one line now, one row of the table at the end."""
        self.rows.append((what, result))
        self.console.print(f"  {what}: {result}", highlight=False)


def wait_healthy(node: Node, limit_seconds: float = HEALTHY_LIMIT_SECONDS) -> dict[str, object]:
    """Wait until the node calls itself healthy; its whole status. Raises LabError with the reasons given."""
    last: dict[str, object] = {}

    def healthy() -> bool:
        nonlocal last
        last = node.json(["centralino", "status", "--json"])
        return last.get("healthy") is True

    try:
        wait_for(healthy, limit_seconds, f"{node.name} becoming healthy", interval_seconds=0.3)
    except LabError as error:
        raise LabError(f"{error}; its reasons: {last.get('reasons')}") from error
    return last


def show(root: Path, directory: Path, steps: Steps, facts: Facts) -> None:
    """Boot one node and put it through a call, a crash, a hang and another call."""
    with Lab(root, directory) as lab:
        node = lab.add_node()
        phone, probe = lab.add_client("phone"), lab.add_client("probe")
        with steps.step("boot the appliance"):
            began = time.monotonic()
            facts["boot_seconds"] = node.power_on(120)
            status = wait_healthy(node)
            facts["healthy_seconds"] = time.monotonic() - began
            services = status.get("services")
            running = (
                [s for s in services if s.get("state") == "active"] if isinstance(services, list) else []
            )
            facts["services_running"] = len(running)
        steps.say("power-on to healthy", f"{facts['healthy_seconds']:.1f} s, {len(running)} services run")

        with steps.step("register a phone and call the echo test (600)"):
            account = add_phone(node, "1001")
            facts["register_seconds"] = register(phone, account, node.address())
            call = call_echo(phone, account, node.address())
            facts["call_setup_seconds"] = call.setup_seconds
            facts["frames_echoed"] = call.media.echoed
            facts["frames_received"] = call.media.received
        if call.media.echoed == 0:
            raise LabError("the call was answered, but no sound came back")
        steps.say("registered by digest", f"{facts['register_seconds'] * 1000:.0f} ms")
        steps.say("call answered", f"{facts['call_setup_seconds'] * 1000:.0f} ms after INVITE")
        steps.say(
            "sound came back", f"{call.media.echoed} frames, bit by bit; {call.media.received} received"
        )

        welcome_prober(node, probe)
        with OptionsProber(probe, node.address()) as prober:
            prober.first_after(time.monotonic(), RECOVERY_LIMIT_SECONDS)
            for name, number, text in (
                ("crash", signal.SIGKILL, "kill Asterisk (SIGKILL)"),
                ("hang", signal.SIGSTOP, "freeze Asterisk (SIGSTOP)"),
            ):
                with steps.step(text):
                    moment = node.signal_unit("asterisk.service", number)
                    answer = prober.first_after(moment, RECOVERY_LIMIT_SECONDS)
                    facts[f"{name}_recovery_seconds"] = answer.received - moment
                    wait_healthy(node, RECOVERY_LIMIT_SECONDS)
                steps.say(f"{text}: SIP answers again", f"after {facts[f'{name}_recovery_seconds']:.2f} s")

        with steps.step("call again"):
            # The account came back with the core, because it lives in the database.
            again = call_echo(phone, account, node.address())
            facts["second_call_setup_seconds"] = again.setup_seconds
            facts["second_call_frames_echoed"] = again.media.echoed
        if again.media.echoed == 0:
            raise LabError("the call after the recoveries was answered, but no sound came back")
        steps.say("call after the recoveries", f"answered in {again.setup_seconds * 1000:.0f} ms")


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/demo.json"), show_default=True)
@click.option("--root", type=click.Path(path_type=Path, exists=True), help="Boot this tree; build nothing.")
@mirror_option
@wheel_dir_option
def demo(
    output: Path,
    root: Path | None,
    mirrors: tuple[str, ...],
    wheel_directories: tuple[Path, ...],
) -> None:
    """Build the appliance, boot it, place a call, kill and freeze Asterisk, show the recovery."""
    console = Console(stderr=True)
    steps, facts = Steps(console), {}
    began = time.monotonic()
    try:
        if root is None:
            with steps.step("build the root tree of profile pbx-debian12"):
                root = built_root(None, "debian12", mirrors=mirrors, wheel_directories=wheel_directories)
                facts["build_seconds"] = time.monotonic() - began
            steps.say("root tree built", f"{facts['build_seconds']:.1f} s (cached stages count as nothing)")
        with tempfile.TemporaryDirectory(prefix="centralino-demo-", dir="/var/tmp") as directory:
            show(root, Path(directory) / "lab", steps, facts)
    except BuildError:
        console.print(f"logs of the lab, if it came so far: {LOGS.resolve()}", highlight=False)
        raise
    facts["total_seconds"] = time.monotonic() - began
    output.parent.mkdir(parents=True, exist_ok=True)
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in facts.items()}
    output.write_text(json.dumps(rounded, indent=2) + "\n")
    table = Table(title="Centralino: what this run saw", title_justify="left", show_header=False)
    for what, result in steps.rows:
        table.add_row(what, result)
    table.add_row("everything", f"{facts['total_seconds']:.0f} s; figures in {output}")
    Console().print(table)


@errors_to_exit_codes
def main() -> None:
    """Entry point of `python -m appliance.demo`."""
    run_command(demo)


if __name__ == "__main__":
    sys.exit(main())
