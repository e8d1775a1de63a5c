"""Entry point of `centralino`: the commands by name, loaded when used, and errors as messages and codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from contextlib import suppress

import click

from daemon.cli.render import line, prepare_streams
from daemon.cli.session import Session
from daemon.connections import leave
from daemon.errors import CentralinoError, InvalidSettingsError, StorageError

# As a shell counts the signals 2 and 13; the module that names them takes its time to load.
INTERRUPTED = 128 + 2
READER_GONE = 128 + 13

COMMANDS: Mapping[str, tuple[str, str]] = {
    "audit": ("daemon.cli.audit", "audit"),
    "certificate": ("daemon.cli.certificate", "certificate"),
    "completion": ("daemon.cli.completion", "completion"),
    "config": ("daemon.cli.config", "config"),
    "console": ("daemon.cli.console", "console"),
    "fault-tolerance": ("daemon.cli.fault_tolerance", "fault_tolerance"),
    "firewall": ("daemon.cli.firewall", "firewall"),
    "domain": ("daemon.cli.domain", "domain"),
    "jobs": ("daemon.cli.jobs", "jobs"),
    "maintenance": ("daemon.cli.maintenance", "maintenance"),
    "mode": ("daemon.cli.domain", "mode"),
    "network": ("daemon.cli.network", "network"),
    "password": ("daemon.cli.password", "password"),
    "replication": ("daemon.cli.replication", "replication"),
    "services": ("daemon.cli.services", "services"),
    "status": ("daemon.cli.status", "status"),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - a wrong row in COMMANDS, seen by any test
        return command


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"centralino {version('centralino')}")
        except PackageNotFoundError:
            click.echo("centralino, run from its source tree")
        context.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes, and every option: docs/cli.md, or `centralino COMMAND --help`.",
)
@click.option(
    "--bus", hidden=True, envvar="CENTRALINO_BUS", metavar="ADDRESS", help="Another bus, for tests."
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def cli(context: click.Context, bus: str | None) -> None:
    """See and change the state of this Centralino box.

    Every command talks to the daemon over the system bus. Reading needs membership of the group
    centralino-operator or centralino-admin, changing needs centralino-admin or root.
    """
    context.obj = session = Session(bus)
    context.call_on_close(session.close)


def report(error: CentralinoError, *, as_json: bool) -> None:
    """Write an error to stderr: one JSON document, or sentences."""
    if as_json:
        problems = error.problems if isinstance(error, InvalidSettingsError) else []
        import json

        document = {
            "error": type(error).bus_name().rpartition(".")[2],
            "message": error.message,
            "remedy": error.remedy,
            "exit_code": error.exit_code,
            "problems": [problem.as_json() for problem in problems],
        }
        print(json.dumps(document, indent=2), file=sys.stderr)
        return
    if isinstance(error, InvalidSettingsError):
        heading = getattr(error, "heading", "The settings are refused; nothing was changed:")
        line(heading, style="bold red", stream=sys.stderr)
        for problem in error.problems:
            line(f"  {problem.sentence()}", stream=sys.stderr)
        return
    line(f"centralino: {error}", style="red", stream=sys.stderr)


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code (see docs/cli.md)."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = cli.main(words, prog_name="centralino", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except CentralinoError as error:
        report(error, as_json="--json" in words)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print(file=sys.stderr)
        return INTERRUPTED


def main() -> None:
    """Run, flush, and leave with the exit code; a reader that went away (`| head`) is no error."""
    prepare_streams()
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
        code = READER_GONE
    except OSError as error:
        _abandon_stdout()
        with suppress(OSError):  # a terminal that went away takes both with it
            print(f"centralino: the output could not be written: {error.strerror}", file=sys.stderr)
        code = StorageError.exit_code
    leave(code)


def _abandon_stdout() -> None:
    """The interpreter flushes stdout once more at exit and would complain about the same thing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


__all__ = ["cli", "main", "run"]
