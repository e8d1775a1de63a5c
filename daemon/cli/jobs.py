"""`centralino jobs`: long work with progress."""

from __future__ import annotations

import click

from daemon.cli.client import FINISHED, JOBS
from daemon.cli.completion import complete_jobs
from daemon.cli.json_types import JsonObject, as_object, text_of
from daemon.cli.progress import job_error, watch
from daemon.cli.render import emit_json, fields, line, table
from daemon.cli.session import Session, Write, reads, writes


@click.group()
def jobs() -> None:
    """See, watch and cancel long work."""


@jobs.command("list")
@reads
def list_jobs(session: Session, as_json: bool) -> None:
    """List the jobs that run, wait or ended lately."""
    found = session.client.read_list(JOBS, "List")
    if as_json:
        emit_json(found)
        return
    if not found:
        line("There are no jobs.")
        return
    heads = ("JOB", "KIND", "STATE", "PROGRESS", "WHO", "MESSAGE")
    table(
        heads,
        [
            (
                text_of(job, "id"),
                text_of(job, "kind"),
                text_of(job, "state"),
                _share(job),
                text_of(job, "who"),
                _message(job),
            )
            for job in found
        ],
    )


def _share(job: JsonObject) -> str:
    share = job.get("progress")
    if isinstance(share, bool) or not isinstance(share, int | float):
        return ""
    return f"{share:.0%}"


def _message(job: JsonObject) -> str:
    error = job.get("error")
    if isinstance(error, dict):
        return text_of(as_object(error), "message")
    return text_of(job, "error") or text_of(job, "message")


@jobs.command("show")
@click.argument("job_id", metavar="JOB", shell_complete=complete_jobs)
@reads
def show(session: Session, as_json: bool, job_id: str) -> None:
    """Show one job with its result."""
    _print(session.client.read_object(JOBS, "Get", job_id), as_json)


def _print(job: JsonObject, as_json: bool) -> None:
    import json

    if as_json:
        emit_json(job)
        return
    result = job.get("result")
    fields(
        (
            ("Job", text_of(job, "id")),
            ("Kind", text_of(job, "kind")),
            ("State", text_of(job, "state")),
            ("Progress", _share(job)),
            ("Who", text_of(job, "who")),
            ("Message", _message(job)),
            ("Result", "" if result is None else json.dumps(result)),
        )
    )


@jobs.command("watch")
@click.argument("job_id", metavar="JOB", shell_complete=complete_jobs)
@reads
def watch_job(session: Session, as_json: bool, job_id: str) -> None:
    """Follow a job to its end; the exit code is the job's."""
    job = watch(session.client, job_id, quiet=as_json)
    _print(job, as_json)
    if text_of(job, "state") != "done":
        raise job_error(job)


@jobs.command("cancel")
@click.argument("job_id", metavar="JOB", shell_complete=complete_jobs)
@writes
def cancel(session: Session, write: Write, job_id: str) -> None:
    """Ask a job to stop; what it has not begun is left undone."""
    job = session.client.read_object(JOBS, "Get", job_id)
    if not write.json:
        _print(job, as_json=False)
    ended = text_of(job, "state") in FINISHED
    if write.dry_run or ended:
        if write.json:
            emit_json({"dry_run": write.dry_run, "job": job, "would_cancel": not ended})
        else:
            line("The job has ended already." if ended else "It would be asked to stop.")
        return
    write.ask("Cancel this job?")
    session.client.call(JOBS, "Cancel", job_id, write.comment)
    if write.json:
        emit_json({"job": session.client.read_object(JOBS, "Get", job_id)})
    else:
        line("The job was asked to stop.")
