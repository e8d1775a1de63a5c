"""`centralino services`: see, start, stop and restart the supervised services, and read their journals."""

from __future__ import annotations

import json
import sys
import time

import click

from daemon.cli.client import SERVICES
from daemon.cli.completion import complete_services
from daemon.cli.json_types import JsonObject, as_list, objects_of, text_of
from daemon.cli.plans import agreed, plan_of
from daemon.cli.progress import follow
from daemon.cli.render import emit_json, line, table, visible
from daemon.cli.session import Session, Write, reads, writes
from daemon.cli.status import SERVICE_HEADS, service_rows
from daemon.errors import UnavailableError

FOLLOW_SECONDS = 1.0


@click.group()
def services() -> None:
    """See, start, stop and restart the supervised services."""


@services.command("list")
@reads
def list_services(session: Session, as_json: bool) -> None:
    """List the services with their state and what their probes say."""
    found = session.client.read_list(SERVICES, "List")
    if as_json:
        emit_json(found)
        return
    table(SERVICE_HEADS, service_rows(found))
    for service in found:
        failing = [probe for probe in objects_of(service, "probes") if probe.get("healthy") is False]
        for probe in failing:
            line(f"  {text_of(service, 'name')}: probe {text_of(probe, 'name')}: {_probe_reason(probe)}")


def _probe_reason(probe: JsonObject) -> str:
    return text_of(probe, "reason") or text_of(probe, "message") or "fails"


_ACTS = {
    "start": "Start a service and watch it until its probes pass.",
    "stop": "Stop a service; supervision leaves it alone until it is started again.",
    "restart": "Stop a service, then start it.",
}


def _act(verb: str) -> click.Command:
    @click.argument("name", shell_complete=complete_services)
    @click.option(
        "--drain",
        type=click.IntRange(0, 86400),
        metavar="SECONDS",
        help="Wait so long for calls to end before the stop becomes firm; default: the service's policy.",
    )
    @writes
    def act(session: Session, write: Write, name: str, drain: int | None) -> None:
        look = write.options(dry=True, drain_seconds=drain)
        plan = plan_of(session.client.call(SERVICES, "Act", name, verb, look))
        word = verb.capitalize()
        if not agreed(write, plan, f"{word} {visible(name)}?", f"{word} the service {name}."):
            return
        job = session.client.call(SERVICES, "Act", name, verb, write.options(drain_seconds=drain))
        result = follow(session.client, job, quiet=write.json)
        if write.json:
            emit_json({"job": job, "result": result})
            return
        line(f"{name}: {_DONE[verb]}", style="green")

    act.__doc__ = _ACTS[verb]
    return click.command(verb, help=_ACTS[verb])(act)


_DONE = {"start": "started", "stop": "stopped", "restart": "restarted"}


for _verb in _ACTS:
    services.add_command(_act(_verb))


@services.command("logs")
@click.argument("name", shell_complete=complete_services)
@click.option("--follow", "-f", "follow_on", is_flag=True, help="Stay, and print new lines as they come.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    metavar="NUMBER",
    help="How many.",
)
@reads
def logs(session: Session, as_json: bool, name: str, follow_on: bool, lines: int) -> None:
    """Print the newest lines of a service's journal, oldest first.

    With --json, one document; with --json --follow, one JSON value a line.
    """
    entries = session.client.read_object(SERVICES, "Logs", name, lines, "")
    if as_json and not follow_on:
        emit_json(entries)
        return
    _print_entries(entries, as_json)
    cursor = text_of(entries, "cursor")
    while follow_on:
        time.sleep(FOLLOW_SECONDS)
        try:
            entries = session.client.read_object(SERVICES, "Logs", name, 10_000, cursor)
        except UnavailableError:
            continue  # the daemon restarts; its journal and our place in it stay
        _print_entries(entries, as_json)
        cursor = text_of(entries, "cursor") or cursor


def _print_entries(entries: JsonObject, as_json: bool) -> None:
    for entry in as_list(entries.get("lines")):
        if as_json:
            print(json.dumps(entry))
        elif isinstance(entry, dict):
            when = text_of(entry, "when")
            print(visible(f"{when} {text_of(entry, 'message')}".strip(), keep="\t"))
        else:
            print(visible(str(entry), keep="\t"))
    sys.stdout.flush()
