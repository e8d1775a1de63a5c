"""`centralino maintenance`: reboot and power off, after calls have been given time to end."""

from __future__ import annotations

import click

from daemon.cli.client import SYSTEM
from daemon.cli.json_types import as_object, text_of
from daemon.cli.plans import agreed, plan_of
from daemon.cli.progress import job_error, watch
from daemon.cli.render import emit_json, line
from daemon.cli.session import Session, Write, writes
from daemon.errors import UnavailableError

_VERBS = {
    "reboot": ("Restart the whole box.", "Reboot this box?", "The box reboots now."),
    "poweroff": ("Stop the box and switch it off.", "Power this box off?", "The box powers off now."),
}


@click.group()
def maintenance() -> None:
    """Reboot or power off the box."""


def _verb(verb: str) -> click.Command:
    help_text, question, done = _VERBS[verb]

    @click.option(
        "--drain",
        type=click.IntRange(0, 86400),
        metavar="SECONDS",
        help="Wait so long for live calls to end first; default: 0.",
    )
    @writes
    def act(session: Session, write: Write, drain: int | None) -> None:
        look = write.options(dry=True, drain_seconds=drain)
        plan = plan_of(session.client.call(SYSTEM, "Maintenance", verb, look))
        if not agreed(write, plan, question, help_text):
            return
        job = session.client.call(SYSTEM, "Maintenance", verb, write.options(drain_seconds=drain))
        try:
            ended = watch(session.client, job, quiet=write.json)
        except UnavailableError:
            ended = {"state": "done"}  # the bus went down with the box, which is what was asked for
        if text_of(ended, "state") != "done":
            raise job_error(ended)
        result = as_object(ended.get("result"))
        if write.json:
            emit_json({"job": job, "result": result})
        else:
            line(done)

    return click.command(verb, help=help_text)(act)


for _name in _VERBS:
    maintenance.add_command(_verb(_name))
