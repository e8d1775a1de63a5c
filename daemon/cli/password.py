"""`centralino password`: the password of a login user of this box."""

from __future__ import annotations

import sys

import click

from daemon.cli.client import SYSTEM
from daemon.cli.render import emit_json, line, visible
from daemon.cli.session import Session, Write, writes


@click.command()
@click.argument("user", default="admin")
@click.option(
    "--stdin", "from_stdin", is_flag=True, help="Read the new password from the first line of stdin."
)
@writes
def password(session: Session, write: Write, user: str, from_stdin: bool) -> None:
    """Change the password of USER (default: admin).

    The password is asked for twice and not shown, or read from stdin; it is never an argument, because
    arguments are visible to every user of the box.
    """
    if write.dry_run:
        what = f"Would ask for a new password of {user} and set it."
        if write.json:
            emit_json({"dry_run": True, "sentence": what})
        else:
            line(what)
        return
    secret = read_secret(f"New password of {visible(user)}", from_stdin)
    session.client.call(SYSTEM, "SetPassword", user, secret, write.comment)
    if write.json:
        emit_json({"user": user, "changed": True})
    else:
        line(f"The password of {user} is changed.", style="green")


def read_secret(prompt: str, from_stdin: bool) -> str:
    """A secret from the terminal (asked for twice, not shown) or from the first line of stdin."""
    if from_stdin:
        first = sys.stdin.readline().rstrip("\n")
        if not first:
            raise click.UsageError("the first line of stdin is empty")
        return first
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: add --stdin and pipe the secret in")
    answer: str = click.prompt(prompt, hide_input=True, confirmation_prompt="The same again", err=True)
    return answer
