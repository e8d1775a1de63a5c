"""`centralino replication`: how far both copies are, and a full resynchronization (S-FT-07)."""

from __future__ import annotations

import time

import click

from daemon.cli.json_types import JsonObject, as_object, text_of, texts_of
from daemon.cli.plans import agreed, plan_of
from daemon.cli.progress import follow as follow_job
from daemon.cli.render import emit_json, fields, line
from daemon.cli.session import Session, Write, reads, writes

REPLICATION = "Replication1"
WATCH_SECONDS = 1.0


@click.group()
def replication() -> None:
    """Watch the replication of database and files, and start it anew."""


@replication.command("status")
@click.option("--watch", is_flag=True, help="Show it anew each second until Ctrl-C.")
@reads
def status(session: Session, as_json: bool, watch: bool) -> None:
    """Show the lag of database and files, and what stands in the way."""
    while True:
        found = session.client.read_object(REPLICATION, "Status")
        if as_json:
            emit_json(found)
        else:
            if watch:
                click.clear()
            _show(found)
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


@replication.command("start")
@click.option(
    "--what",
    type=click.Choice(("db", "files", "all")),
    default="all",
    show_default=True,
    help="The database, the file trees, or both.",
)
@click.option("--follow", is_flag=True, help="Show progress and the time that remains, until the end.")
@click.option("--accept-deletions", is_flag=True, help="Delete on the slave whatever is gone on the master.")
@writes
def start(session: Session, write: Write, what: str, follow: bool, accept_deletions: bool) -> None:
    """Copy everything from the master anew. Safe to interrupt and to repeat."""
    look = write.options(dry=True, what=what, accept_deletions=accept_deletions)
    plan = plan_of(session.client.call(REPLICATION, "Start", look))
    if not agreed(write, plan, "Start?", "A full resynchronization would begin."):
        return
    order = write.options(what=what, accept_deletions=accept_deletions)
    job = session.client.call(REPLICATION, "Start", order)
    if not follow:
        if write.json:
            emit_json({"job": job})
        else:
            line(f"It runs. Follow it with: centralino jobs watch {job}")
        return
    result = follow_job(session.client, job, quiet=write.json)
    if write.json:
        emit_json(result)
    else:
        line(text_of(result, "message", "done"), style="green")


def _show(found: JsonObject) -> None:
    if found.get("paired") is not True:
        line("This node has no peer, so nothing is replicated.")
        return
    pairs = [("this node", text_of(found, "role"))]
    for name in ("database", "files"):
        part = as_object(found.get(name))
        lag = part.get("lag_milliseconds")
        shown = "unknown" if lag is None else f"{float(str(lag)):.0f} ms"
        pairs += [(name, text_of(part, "detail")), (f"{name} lag", shown)]
    if obstacles := texts_of(found, "obstacles"):
        pairs.append(("in the way", "; ".join(obstacles)))
    resync = as_object(found.get("resync"))
    if resync.get("running") is True:
        pairs.append(("resynchronization", text_of(resync, "message")))
    fields(pairs)
