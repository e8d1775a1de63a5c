"""`centralino status`: the whole state of the box on one screen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import click

from daemon.cli.client import SYSTEM, Client
from daemon.cli.json_types import JsonObject, as_list, as_object, objects_of, text_of, texts_of
from daemon.cli.moments import elapsed, local_time, now
from daemon.cli.render import colour_wanted, emit_json, fields, line, seconds, table
from daemon.cli.session import Session, UnhealthyError, reads
from daemon.errors import UnavailableError

REFRESH_SECONDS = 5.0
RETRY_SECONDS = 1.0


@click.command()
@click.option("--watch", "-w", is_flag=True, help="Stay, and show every change; Ctrl-C ends it.")
@click.option("--check", is_flag=True, help="Leave with exit code 11 when the box is not healthy.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Wait until the box is healthy, at most so long; exit code 11 if it is not by then.",
)
@reads
def status(session: Session, as_json: bool, watch: bool, check: bool, wait: float | None) -> None:
    """Show health, role, services and alarms.

    With --watch and --json, every change is one JSON document on one line.
    """
    if watch and wait is not None:
        raise click.UsageError("--watch and --wait exclude each other")
    if watch:
        _watch(session.client, as_json)
        return
    state = _until_healthy(session, wait) if wait is not None else _state(session.client)
    if as_json:
        emit_json(state)
    else:
        show(state)
    if (check or wait is not None) and state.get("healthy") is not True:
        raise UnhealthyError("the box is not healthy", "the reasons are in: centralino status")


def _state(client: Client) -> JsonObject:
    return client.read_object(SYSTEM, "Status")


def _until_healthy(session: Session, limit_seconds: float) -> JsonObject:
    """The first healthy state, or the last one seen; a daemon that is still starting is waited for."""
    deadline = time.monotonic() + limit_seconds
    while True:
        try:
            state = _state(session.client)
            if state.get("healthy") is True or time.monotonic() >= deadline:
                return state
        except UnavailableError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(min(RETRY_SECONDS, max(0.0, deadline - time.monotonic())))


def show(state: JsonObject) -> None:
    """Print a status document for a person."""
    fields(summary(state))
    for reason in texts_of(state, "reasons"):
        line(f"  - {reason}")
    alarms = objects_of(state, "alarms")
    if alarms:
        line()
        line("Alarms", style="bold red")
        for alarm in alarms:
            line(f"  {_alarm_sentence(alarm)}")
    services = objects_of(state, "services")
    if services:
        line()
        table(SERVICE_HEADS, service_rows(services))
    subsystems = list(_subsystem_rows(state))
    if subsystems:
        line()
        table(("SUBSYSTEM", "HEALTH", "REASON"), subsystems)
    if stored := texts_of(state, "stored_only"):
        line()
        line(f"Settings kept, but not applied by this version: {', '.join(stored)}.")


def summary(state: JsonObject) -> Iterator[tuple[str, str]]:
    """Name and text of what matters most: state, node, role, version, revision, what is unconfirmed."""
    yield "State", "healthy" if state.get("healthy") is True else "unhealthy"
    yield "Node", text_of(state, "hostname")
    yield "Role", _named(state, "role", "role")
    platform = _named(state, "platform", "name")
    yield "Version", text_of(state, "version") + (f" on {platform}" if platform else "")
    yield "Revision", text_of(state, "revision")
    pending = state.get("pending")
    if pending:
        yield "Unconfirmed", pending_sentence(as_object(pending))


def _named(state: JsonObject, key: str, name: str) -> str:
    """The text at `key`, or the one called `name` in the object there."""
    value = state.get(key)
    return text_of(value, name) if isinstance(value, dict) else text_of(state, key)


def pending_sentence(pending: JsonObject) -> str:
    """Which revision waits for `config confirm`, and until when."""
    number = text_of(pending, "revision")
    by = text_of(pending, "confirm_by")
    what = (f"revision {number}" if number else "a change") + " returns by itself"
    return what + (f" at {local_time(by)}" if by else "") + " unless you run: centralino config confirm"


def _alarm_sentence(alarm: JsonObject) -> str:
    when = local_time(text_of(alarm, "since") or text_of(alarm, "when"))
    what = text_of(alarm, "message") or text_of(alarm, "sentence") or text_of(alarm, "reason")
    name = text_of(alarm, "name") or text_of(alarm, "id")
    return " ".join(part for part in (when, f"{name}:" if name else "", what) if part)


SERVICE_HEADS = ("SERVICE", "STATE", "HEALTH", "RESTARTS", "FOR", "REASON")


def _service_health(service: JsonObject) -> str:
    """In a word; a service that rightly does not run is neither well nor ill."""
    if service.get("healthy") is False:
        return "unhealthy"
    if service.get("healthy") is None:
        return "unknown"
    return "-" if text_of(service, "state") in ("inactive", "off") else "healthy"


def service_rows(services: list[JsonObject]) -> list[tuple[str, ...]]:
    """Rows for `SERVICE_HEADS`."""
    return [
        (
            text_of(service, "name"),
            text_of(service, "state"),
            _service_health(service),
            text_of(service, "restarts", "0"),
            elapsed(text_of(service, "since")),
            text_of(service, "reason"),
        )
        for service in services
    ]


def _subsystem_rows(state: JsonObject) -> Iterator[tuple[str, ...]]:
    subsystems = state.get("subsystems")
    if isinstance(subsystems, dict):
        entries = [{"name": name, **as_object(entry)} for name, entry in subsystems.items()]
    else:
        entries = [as_object(entry) for entry in as_list(subsystems)]
    for entry in entries:
        reasons = texts_of(entry, "reasons") + [f"drift: {drift}" for drift in texts_of(entry, "drift")]
        yield (
            text_of(entry, "name"),
            "healthy" if entry.get("healthy") is True else "unhealthy",
            "; ".join(reasons),
        )


def _watch(client: Client, as_json: bool) -> None:
    """Show the state again at every signal and at least every `REFRESH_SECONDS`."""
    redraw = not as_json and colour_wanted(sys.stdout)
    shown = ""
    gone_since: float | None = None
    with client.signals(SYSTEM, "StatusChanged") as wait:
        while True:
            try:
                state = _state(client)
            except UnavailableError as error:
                # The daemon may be restarting; a watcher stays.
                gone_since = gone_since or time.monotonic()
                away = seconds(time.monotonic() - gone_since)
                state = {"healthy": False, "reasons": [f"{error} (for {away})"]}
            else:
                gone_since = None
            text = json.dumps(state)
            if as_json:
                if text != shown:
                    print(text, flush=True)
            elif redraw:
                click.clear()
                show(state)
                line()
                line(f"{now():%H:%M:%S}, Ctrl-C ends")
            elif text != shown:
                line(f"--- {now():%Y-%m-%d %H:%M:%S}")
                show(state)
            shown = text
            wait(REFRESH_SECONDS if gone_since is None else RETRY_SECONDS)
