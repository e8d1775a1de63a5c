"""`nox -s demo`: from nothing to an appliance that lost its PBX core, and to a pair that lost its master.

Builds the reference root tree (or takes it from the cache), boots it as a node, waits until its own
`centralino status` says healthy, registers a phone and calls the echo test with SIPp, kills Asterisk, freezes
Asterisk, and calls again; then the same with two nodes and the power of one (`demo_pair`). Everything it
claims is measured from outside the nodes, in this run.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from appliance.cli_common import errors_to_exit_codes, mirror_option, run_command, wheel_dir_option
from appliance.demo_pair import show_pair
from appliance.demo_steps import Facts, Steps, wait_healthy
from appliance.errors import BuildError
from appliance.lab import LOGS, Lab
from appliance.lab_cli import built_root
from appliance.lab_host import LabError
from appliance.lab_sip import OptionsProber, add_phone, call_echo, register, welcome_prober

RECOVERY_LIMIT_SECONDS = 60.0


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
    """Boot the built appliance, place a call, break its core; then form a pair and power its master off."""
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
            show_pair(root, Path(directory) / "pair", steps, facts)
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
