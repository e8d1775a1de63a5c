"""`centralino audit`: who changed what, when, and how it ended."""

from __future__ import annotations

import json

import click

from daemon.cli.client import SYSTEM
from daemon.cli.json_types import text_of
from daemon.cli.moments import local_time
from daemon.cli.render import emit_json, line, table
from daemon.cli.session import Session, reads


@click.command()
@click.option(
    "--limit",
    "-n",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    metavar="NUMBER",
    help="How many, at most 10000.",
)
@reads
def audit(session: Session, as_json: bool, limit: int) -> None:
    """List the latest mutating and refused calls, newest first. Secrets are never in it.

    Kept are the last six files of logs.audit_megabytes each.
    """
    entries = session.client.read_list(SYSTEM, "Audit", limit)
    if as_json:
        emit_json(entries)
        return
    if not entries:
        line("Nothing has been changed yet.")
        return
    rows = [
        (
            local_time(text_of(entry, "when")),
            text_of(entry, "who") or text_of(entry, "uid"),
            text_of(entry, "method"),
            text_of(entry, "outcome"),
            _arguments(entry.get("arguments")),
        )
        for entry in entries
    ]
    table(("WHEN", "WHO", "CALL", "OUTCOME", "ARGUMENTS"), rows)


def _arguments(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
