"""Following a job: a bar where the terminal can draw one, lines elsewhere, nothing for `--json`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from daemon.cli.client import Client
from daemon.cli.json_types import JsonObject, as_object, text_of
from daemon.cli.render import colour_wanted, line, visible
from daemon.errors import CancelledError, CentralinoError, InvalidSettingsError


def follow(
    client: Client,
    identifier: str | Callable[[], str],
    *,
    quiet: bool = False,
    limit_seconds: float | None = None,
) -> JsonObject:
    """Wait for a job and return its result; raises what the job failed with.

    In place of its identifier may stand the call that begins it. Ctrl-C stops the watching, not the job, and
    says so.
    """
    job = watch(client, identifier, quiet=quiet, limit_seconds=limit_seconds)
    if text_of(job, "state") == "done":
        return as_object(job.get("result"))
    raise job_error(job)


def watch(
    client: Client,
    identifier: str | Callable[[], str],
    *,
    quiet: bool = False,
    limit_seconds: float | None = None,
) -> JsonObject:
    """Wait for a job, or begin it and wait, and return it as it ended, whatever its end."""
    known = identifier if isinstance(identifier, str) else ""
    try:
        if quiet:
            return client.watch_job(identifier, limit_seconds=limit_seconds)
        known = identifier if isinstance(identifier, str) else identifier()
        if colour_wanted(sys.stderr):
            return _with_bar(client, known, limit_seconds)
        return client.watch_job(known, _lines(), limit_seconds=limit_seconds)
    except KeyboardInterrupt:
        line(
            f"The job goes on. Follow it with: centralino jobs watch {known}; "
            f"stop it with: centralino jobs cancel {known}"
            if known
            else "What has begun goes on. See: centralino jobs",
            stream=sys.stderr,
        )
        raise


class _lines:  # noqa: N801 - a function with memory
    def __init__(self) -> None:
        self._last = ""

    def __call__(self, job: JsonObject) -> None:
        message = text_of(job, "message")
        if message and message != self._last:
            line(f"  {message}", stream=sys.stderr)
            self._last = message


def _with_bar(client: Client, identifier: str, limit_seconds: float | None) -> JsonObject:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    from daemon.cli.render import console

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(sys.stderr), transient=True) as progress:
        task = progress.add_task("waiting", total=None)

        def changed(job: JsonObject) -> None:
            share = job.get("progress")
            known = isinstance(share, int | float) and not isinstance(share, bool)
            progress.update(
                task,
                description=Text(visible(text_of(job, "message") or text_of(job, "state"))).plain,
                total=1.0 if known else None,
                completed=float(share) if isinstance(share, int | float) else None,
            )

        return client.watch_job(identifier, changed, limit_seconds=limit_seconds)


def job_error(job: JsonObject) -> CentralinoError:
    """The exception for a job that failed or was cancelled."""
    from daemon.cli.client import error_from_bus, problems_of

    if text_of(job, "state") == "cancelled":
        return CancelledError(f"job {text_of(job, 'id')} was cancelled", "what it had begun was put back")
    error = as_object(job.get("error"))
    if problems := problems_of(error):
        return InvalidSettingsError(problems)
    found = error_from_bus(text_of(error, "name"), text_of(error, "message", "it gave no reason"))
    found.remedy = text_of(error, "remedy")
    return found
