"""`centralino certificate`: which certificate is served, and how it gets another one."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from daemon.cli.client import Client, problems_of
from daemon.cli.json_types import JsonObject, as_list, as_object, objects_of, text_of, texts_of
from daemon.cli.moments import local_time
from daemon.cli.progress import follow
from daemon.cli.render import emit_json, fields, line
from daemon.cli.session import Session, Write, reads, writes
from daemon.errors import InvalidSettingsError, NotFoundError, Problem

CERTIFICATES = "Certificates1"
LIMIT_SECONDS = 120.0
LARGEST_FILE_BYTES = 1024 * 1024

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

files_argument: Decorator = click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
password_option: Decorator = click.option(
    "--password-stdin", is_flag=True, help="Read the password of the key from the first line of stdin."
)


class RefusedError(InvalidSettingsError):
    """A certificate, a request or an order is refused."""

    def __init__(
        self, problems: list[Problem], heading: str = "The certificate is refused; nothing was changed:"
    ) -> None:
        super().__init__(problems)
        self.heading = heading


@click.group()
def certificate() -> None:
    """See which certificate is served, check and upload others, request one, have them made automatically."""


@certificate.command("show")
@click.option(
    "--request", "request_only", is_flag=True, help="Print only the request that waits for its answer."
)
@reads
def show(session: Session, as_json: bool, request_only: bool) -> None:
    """Show the certificate that is served, by whom, and what is kept besides."""
    found = session.client.read_object(CERTIFICATES, "Show")
    if request_only:
        _print_request(found, as_json)
        return
    if as_json:
        emit_json(found)
        return
    served = as_object(found.get("served"))
    if not served:
        line("This box has no certificate yet.", style="bold red")
    else:
        fields(_described(served))
        renewal = as_object(served.get("renewal"))
        if text_of(renewal, "due"):
            line(f"It is renewed by itself after {local_time(text_of(renewal, 'due'))}.")
        if text_of(renewal, "trouble"):
            line(f"! The last renewal failed: {text_of(renewal, 'trouble')}", style="bold red")
        for consumer in objects_of(served, "consumers"):
            trouble = text_of(consumer, "trouble")
            state = trouble or f"serves {text_of(consumer, 'serial')} on port {text_of(consumer, 'port')}"
            line(f"  {text_of(consumer, 'consumer')}: {state}", style="bold red" if trouble else "")
    previous = as_object(found.get("previous"))
    if previous:
        before = f"{text_of(previous, 'source')}, {text_of(previous, 'serial')}"
        line(f"Before: {before}; it comes back with: centralino certificate rollback")
    if text_of(found, "pending_request"):
        line("A request waits for its answer: centralino certificate show --request prints it.")


def _print_request(found: JsonObject, as_json: bool) -> None:
    request = text_of(found, "pending_request")
    if not request:
        raise NotFoundError("no request waits for an answer", "make one with: centralino certificate request")
    if as_json:
        emit_json({"request": request})
    else:
        sys.stdout.write(request)


@certificate.command("check")
@files_argument
@password_option
@reads
def check(session: Session, as_json: bool, files: tuple[Path, ...], password_stdin: bool) -> None:
    """Say whether FILEs make a certificate that this box can use; change nothing.

    Key, certificate and chain may be in one file or in several, in any order: PEM, DER, PKCS#8, PKCS#12.
    """
    verdict = _judged(session.client, files, password_stdin)
    if as_json:
        emit_json(verdict)
    else:
        _show_verdict(verdict)
    if verdict.get("accepted") is not True:
        raise RefusedError(problems_of(verdict))


@certificate.command("upload")
@files_argument
@password_option
@writes
def upload(session: Session, write: Write, files: tuple[Path, ...], password_stdin: bool) -> None:
    """Check FILEs, serve them in place of the certificate of now, and prove it with a handshake each.

    The answer to a request needs no key file: the key has stayed on this box. No call is dropped. If a
    service does not serve the new certificate, all return to the old one.
    """
    material = _material(files, password_stdin)
    if write.dry_run or not write.yes:
        # With --yes nobody looks at a verdict first: the upload comes to the same one.
        verdict = _checked(session.client, material, password_stdin)
        if verdict.get("accepted") is not True:
            raise RefusedError(problems_of(verdict))
        if write.dry_run and write.json:
            emit_json({"dry_run": True, **verdict})
        else:
            _show_verdict(verdict)
        if write.dry_run:
            return
        write.ask("Serve this certificate?")
    job = session.client.call(
        CERTIFICATES,
        "Upload",
        json.dumps(material),
        json.dumps({"comment": write.comment}),
        limit_seconds=LIMIT_SECONDS,
    )
    _finish(session.client, write, job)


@certificate.command("request")
@click.option("--organisation", metavar="TEXT", help="Name of the company.")
@click.option("--unit", metavar="TEXT", help="Department.")
@click.option("--locality", metavar="TEXT", help="City.")
@click.option("--state", metavar="TEXT", help="State or province.")
@click.option("--country", metavar="XX", help="Two letters, such as IT.")
@click.option("--name", "names", metavar="NAME", multiple=True, help="A further name; may be repeated.")
@click.option("--key-type", type=click.Choice(["ec-p256", "rsa3072"]), help="Default: as in the settings.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the request to this file.")
@writes
def request(
    session: Session,
    write: Write,
    /,
    names: tuple[str, ...],
    key_type: str | None,
    output: Path | None,
    **organisation: str | None,
) -> None:
    """Make a key, which stays on this box, and a request for a certificate authority.

    Upload the answer with `centralino certificate upload`. A request that waits is replaced.
    """
    options: JsonObject = {
        "comment": write.comment,
        "dry_run": write.dry_run,
        "names": list(names),
        "organisation": {key: value for key, value in organisation.items() if value},
    }
    if key_type:
        options["key_type"] = key_type
    found = session.client.read_object(
        CERTIFICATES, "Request", json.dumps(options), limit_seconds=LIMIT_SECONDS
    )
    if write.dry_run:
        emit_json(found) if write.json else line(text_of(found, "sentence"))
        return
    if output is not None:
        output.write_text(text_of(found, "request"))
    if write.json:
        emit_json(found)
    elif output is None:
        sys.stdout.write(text_of(found, "request"))
    else:
        names_text = ", ".join(texts_of(found, "names"))
        line(f"The request for {names_text} is in {output}; send it to the authority.", style="green")


@certificate.command("renew")
@writes
def renew(session: Session, write: Write) -> None:
    """Get and serve a new certificate of the same source now: self-signed, or automatic."""
    answer = as_object(
        session.client.read(CERTIFICATES, "Renew", json.dumps({"dry_run": True, "comment": write.comment}))
    )
    if write.dry_run:
        emit_json(answer) if write.json else line(text_of(answer, "sentence"))
        return
    write.ask("Renew the certificate now?")
    job = session.client.call(CERTIFICATES, "Renew", json.dumps({"comment": write.comment}))
    _finish(session.client, write, job)


@certificate.group("acme")
def acme() -> None:
    """Certificates that are made and renewed automatically (Let's Encrypt, or a service of your own)."""


@acme.command("enable")
@click.option("--email", metavar="ADDRESS", help="Where the service may reach you.")
@click.option("--staging/--no-staging", default=None, help="Use Let's Encrypt's trial service.")
@click.option("--directory", metavar="URL", help="Another service's ACME directory.")
@click.option(
    "--roots",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Certificates (PEM) that vouch for that directory.",
)
@click.option("--accept-terms", is_flag=True, help="Accept the terms of the service.")
@writes
def enable(
    session: Session,
    write: Write,
    email: str | None,
    staging: bool | None,
    directory: str | None,
    roots: Path | None,
    accept_terms: bool,
) -> None:
    """Check the conditions, order a certificate for the domain, serve it, and renew it from now on.

    For work mode cloud: the domain must resolve to this box, and TCP port 80 must reach it from everywhere.
    """
    options: JsonObject = {"comment": write.comment, "accept_terms": accept_terms}
    given: JsonObject = {"email": email, "staging": staging, "directory": directory}
    options |= {key: value for key, value in given.items() if value is not None}
    if roots is not None:
        options["roots"] = roots.read_text()
    if write.dry_run:
        answer = session.client.read_object(
            CERTIFICATES, "EnableAcme", json.dumps({**options, "dry_run": True}), limit_seconds=LIMIT_SECONDS
        )
        if write.json:
            emit_json(answer)
        elif not problems_of(answer):
            line("All conditions hold.", style="green")
        for problem in [] if write.json else problems_of(answer):
            line(f"{'!' if problem.fatal else 'Warning:'} {problem.sentence()}")
        return
    write.ask("Order a certificate for the domain?")
    job = session.client.call(CERTIFICATES, "EnableAcme", json.dumps(options))
    _finish(session.client, write, job, "No certificate was ordered; these conditions do not hold:")


@certificate.command("rollback")
@writes
def rollback(session: Session, write: Write) -> None:
    """Serve the certificate from before the last change again."""
    answer = session.client.read_object(CERTIFICATES, "Rollback", json.dumps({"dry_run": True}))
    previous = as_object(answer.get("previous"))
    if not previous:
        raise NotFoundError("there is no certificate from before", "upload one")
    if not write.json:
        fields(_described(previous))
    if write.dry_run:
        if write.json:
            emit_json(answer)
        return
    write.ask("Serve this certificate again?")
    job = session.client.call(CERTIFICATES, "Rollback", json.dumps({"comment": write.comment}))
    _finish(session.client, write, job)


def _finish(client: Client, write: Write, job: str, heading: str = "") -> None:
    try:
        result = follow(client, job, quiet=write.json)
    except InvalidSettingsError as error:
        raise RefusedError(error.problems, *([heading] if heading else [])) from None
    if write.json:
        emit_json({"job": job, "result": result})
        return
    served = as_object(as_object(result).get("certificate"))
    for note in texts_of(as_object(result), "notes"):
        line(f"Note: {note}", style="yellow")
    consumers = [
        f"{text_of(one, 'consumer')} (port {text_of(one, 'port')})" for one in objects_of(served, "consumers")
    ]
    proven = ", ".join(consumers) or "nobody that runs"
    line(f"Certificate {text_of(served, 'serial')} is served, proven by {proven}.", style="green")


def _described(found: JsonObject) -> list[tuple[str, str]]:
    return [
        ("certificate", f"{text_of(found, 'subject') or 'no subject'}, {text_of(found, 'source')}"),
        ("names", ", ".join(texts_of(found, "names"))),
        ("issuer", text_of(found, "issuer")),
        ("key", text_of(found, "key")),
        ("serial", text_of(found, "serial")),
        ("valid until", local_time(text_of(found, "not_after"))),
    ]


def _show_verdict(verdict: JsonObject) -> None:
    found = as_object(verdict.get("certificate"))
    if found:
        fields([(name, value) for name, value in _described({**found, "source": "uploaded"})])
    for note in texts_of(verdict, "notes"):
        line(f"Note: {note}", style="yellow")
    if verdict.get("uses_pending_key") is True:
        line("It belongs to the request that was made on this box.")
    if verdict.get("accepted") is True:
        line("The certificate can be used.", style="green")


def _judged(client: Client, files: Sequence[Path], password_stdin: bool) -> JsonObject:
    return _checked(client, _material(files, password_stdin), password_stdin)


def _checked(client: Client, material: dict[str, Any], password_stdin: bool) -> JsonObject:
    """The verdict; asks for the password on a terminal if one turns out to be needed."""
    verdict = client.read_object(CERTIFICATES, "Check", json.dumps(material), limit_seconds=LIMIT_SECONDS)
    paths = [text_of(as_object(problem), "path") for problem in as_list(verdict.get("problems"))]
    if "certificate.password-missing" in paths and not password_stdin and sys.stdin.isatty():
        material["password"] = click.prompt("Password of the key", hide_input=True, err=True)
        return client.read_object(CERTIFICATES, "Check", json.dumps(material), limit_seconds=LIMIT_SECONDS)
    return verdict


def _material(files: Sequence[Path], password_stdin: bool) -> dict[str, Any]:
    """What the daemon takes; the password never is an argument, because arguments are visible to all."""
    for file in files:
        if file.stat().st_size > LARGEST_FILE_BYTES:
            raise click.UsageError(f"{file} is larger than 1 MiB, so it is not a certificate")
    password = sys.stdin.readline().rstrip("\n") if password_stdin else None
    if password_stdin and not password:
        raise click.UsageError("the first line of stdin is empty")
    return {"files": [base64.b64encode(file.read_bytes()).decode() for file in files], "password": password}
