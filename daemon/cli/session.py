"""What every command shares: the connection, the common options, the questions."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import click

from daemon.cli.client import Client
from daemon.cli.json_types import JsonValue
from daemon.errors import CentralinoError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Command = Callable[Parameters, Result]

CONFIRM_SECONDS = 60


class DeclinedError(CentralinoError):
    """The person answered no; nothing was changed."""

    exit_code = 13


class UnhealthyError(CentralinoError):
    """The box is not healthy; only `status --check` and `status --wait` say so by exit code."""

    exit_code = 11


class Session:
    """One run of the command line; connects to the bus when a command first needs it."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The connection; raises UnavailableError when there is no bus."""
        if self._client is None:
            self._client = Client(self._address)
        return self._client

    def close(self) -> None:
        """Leave the bus, if it was entered."""
        if self._client is not None:
            self._client.close()
            self._client = None


class Write(NamedTuple):
    """The options that every write has."""

    dry_run: bool
    comment: str
    yes: bool
    json: bool

    def options(self, *, dry: bool = False, **values: JsonValue) -> str:
        """What a verb of the bus takes as its options: those of every write, and these but for None."""
        given = {name: value for name, value in values.items() if value is not None}
        return json.dumps({"dry_run": dry, "comment": self.comment, **given})

    def ask(self, question: str) -> None:
        """Go on only with consent; raises DeclinedError, or UsageError where nobody can be asked."""
        if self.yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise click.UsageError("there is no terminal to ask on: add --yes, or --dry-run to only look")
        if not click.confirm(question, default=False, err=True):
            raise DeclinedError("nothing was changed")


def reads(command: Callable[Concatenate[Session, bool, Parameters], Result]) -> Callable[..., Result]:
    """Decorate a read: gives it the session and `--json`."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.pass_obj
    @functools.wraps(command)
    def decorated(
        session: Session, /, as_json: bool, *arguments: Parameters.args, **options: Parameters.kwargs
    ) -> Result:
        return command(session, as_json, *arguments, **options)

    return decorated


def writes(command: Callable[Concatenate[Session, Write, Parameters], Result]) -> Callable[..., Result]:
    """Decorate a write: gives it the session and `--dry-run`, `--comment`, `--yes`, `--json`."""

    @click.option("--dry-run", is_flag=True, help="Show what would happen; change nothing.")
    @click.option("--comment", default="", metavar="TEXT", help="Why; kept in history and audit.")
    @click.option("--yes", "-y", is_flag=True, help="Do not ask.")
    @click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document; needs --yes or --dry-run."
    )
    @click.pass_obj
    @functools.wraps(command)
    def decorated(
        session: Session,
        /,
        dry_run: bool,
        comment: str,
        yes: bool,
        as_json: bool,
        *arguments: Parameters.args,
        **options: Parameters.kwargs,
    ) -> Result:
        if as_json and not (yes or dry_run):
            raise click.UsageError("--json asks no questions: add --yes, or --dry-run to only look")
        return command(session, Write(dry_run, comment, yes, as_json), *arguments, **options)

    return decorated
