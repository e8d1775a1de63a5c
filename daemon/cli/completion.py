"""`centralino completion SHELL`, and what completes from the live box: services, jobs, settings paths."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from daemon.cli.client import JOBS, SERVICES, SETTINGS
from daemon.cli.json_types import text_of
from daemon.cli.session import Session
from daemon.errors import CentralinoError

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_CENTRALINO_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    The appliance has them installed. Elsewhere: `centralino completion bash` into
    /usr/share/bash-completion/completions/centralino, zsh into a directory of $fpath as _centralino, fish
    into /usr/share/fish/vendor_completions.d/centralino.fish.
    """
    from daemon.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click knows all of SHELLS
    click.echo(kind(cli, {}, "centralino", VARIABLE).source())


def _session(context: click.Context) -> Session:
    return Session(context.find_root().params.get("bus"))


def complete_services(
    context: click.Context, _parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Names of services, their state as help; nothing when the daemon does not answer."""
    try:
        found = _session(context).client.read_list(SERVICES, "List")
    except CentralinoError:
        return []
    return [
        CompletionItem(text_of(service, "name"), help=text_of(service, "state"))
        for service in found
        if text_of(service, "name").startswith(typed)
    ]


def complete_jobs(context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of jobs, their kind as help."""
    try:
        found = _session(context).client.read_list(JOBS, "List")
    except CentralinoError:
        return []
    return [
        CompletionItem(text_of(job, "id"), help=text_of(job, "kind"))
        for job in found
        if text_of(job, "id").startswith(typed)
    ]


def complete_paths(context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Paths of settings, one level further than what is typed."""
    from daemon.cli.schema import Schema

    try:
        client = _session(context).client
        schema = Schema(client.read_object(SETTINGS, "Schema"))
        document = client.read_object(SETTINGS, "Get", "")
    except CentralinoError:
        return []
    return [
        CompletionItem(path, help=text)
        for path, text in schema.children(typed, document.get("settings"))
        if path.startswith(typed)
    ]
