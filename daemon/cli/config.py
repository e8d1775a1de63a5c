"""`centralino config`: the one settings document, its history, and trying a change safely."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from daemon.cli.client import RETURN_LIMIT_SECONDS, SETTINGS, Client
from daemon.cli.completion import complete_paths
from daemon.cli.json_types import JsonObject, JsonValue, as_object, text_of, whole_of
from daemon.cli.moments import local_time
from daemon.cli.plans import change_settings, changes_nothing, current
from daemon.cli.plans import show as show_plan
from daemon.cli.progress import follow
from daemon.cli.render import diff, emit_json, line, table, visible
from daemon.cli.schema import Schema, join_path
from daemon.cli.session import Session, Write, reads, writes
from daemon.cli.status import pending_sentence
from daemon.errors import InvalidSettingsError, NotFoundError, Problem

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

path_argument: Decorator = click.argument("path", shell_complete=complete_paths)
confirm_option: Decorator = click.option(
    "--confirm-seconds",
    type=click.IntRange(5, 3600),
    metavar="SECONDS",
    help="Time to confirm a change that could cut you off; default: history.confirm_seconds.",
)


@click.group()
def config() -> None:
    """See and change the settings, their history, and confirm or undo a change.

    Settings are named by their path, such as network.dns.servers; `centralino config schema` lists them.
    A name that holds a dot is written in quotes: 'network.interfaces."eth0.100".mtu'.
    """


def _schema(client: Client) -> Schema:
    return Schema(client.read_object(SETTINGS, "Schema"))


@config.command("show")
@click.argument("path", default="", shell_complete=complete_paths)
@click.option("--comments/--no-comments", default=False, help="With the description of every setting.")
@reads
def show(session: Session, as_json: bool, path: str, comments: bool) -> None:
    """Show the settings, or those below PATH, as YAML."""
    from daemon.cli.values import value_at

    document, _ = current(session.client)
    schema = _schema(session.client)
    keys = schema.keys_of(path, document) if path else []
    value = value_at(document, keys)
    if as_json:
        emit_json(value)
        return
    _print_yaml(value, schema if comments else None, keys)


def _print_yaml(value: JsonValue, schema: Schema | None, keys: list[str]) -> None:
    from daemon.cli.yaml_text import write

    print(write(value, schema, keys).strip("\n"))


@config.command("schema")
@click.argument("path", default="", shell_complete=complete_paths)
@reads
def schema_command(session: Session, as_json: bool, path: str) -> None:
    """List what can be set, or what can be set below PATH: type, default, meaning.

    With --json, the JSON Schema itself. NAME stands for a name of your choice, 0 for a place in a list.
    """
    schema = _schema(session.client)
    keys = schema.keys_of(path) if path else []
    if as_json:
        node = schema.resolve(schema.node(keys) or {})
        emit_json({**node, "$defs": schema.document.get("$defs", {})})
        return
    rows = [(field.path, field.kind, field.default, field.description) for field in schema.fields(keys)]
    table(("SETTING", "TAKES", "DEFAULT", "MEANING"), rows)


@config.command("set")
@click.argument("words", metavar="PATH VALUE...", nargs=-1, required=True, shell_complete=complete_paths)
@confirm_option
@writes
def set_command(session: Session, write: Write, words: tuple[str, ...], confirm_seconds: int | None) -> None:
    """Set one setting, or several at once.

    \b
    centralino config set node.hostname pbx1
    centralino config set network.dns.servers 192.0.2.53 192.0.2.54
    centralino config set 'network.interfaces.eth0={"ipv4": "static", "addresses": ["192.0.2.10/24"]}'
    centralino config set mail.server=smtp.example.com mail.port=587

    Text needs no quotes beyond the shell's. Lists take several words or one JSON list, objects take JSON,
    null takes the word null. PATH=VALUE pairs are applied together, as one change.
    """
    from daemon.cli.values import typed, with_value

    document, base = current(session.client)
    schema = _schema(session.client)
    for path, texts in _assignments(words):
        keys = schema.keys_of(path, document)
        document = with_value(document, keys, typed(schema, keys, texts))
    change_settings(session, write, document, base, confirm_seconds=confirm_seconds)


def _assignments(words: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    if "=" not in words[0]:
        if len(words) < 2:
            raise click.UsageError(f"give {words[0]} a value, or use: config unset {words[0]}")
        return [(words[0], list(words[1:]))]
    pairs = [word.partition("=") for word in words]
    for path, equals, _ in pairs:
        if not (path and equals):
            raise click.UsageError(f"{path!r} is no PATH=VALUE; either all words are, or none")
    return [(path, [value]) for path, _, value in pairs]


@config.command("unset")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, shell_complete=complete_paths)
@confirm_option
@writes
def unset(session: Session, write: Write, paths: tuple[str, ...], confirm_seconds: int | None) -> None:
    """Set settings back to their default; entries of lists and mappings are removed."""
    from daemon.cli.values import without

    document, base = current(session.client)
    schema = _schema(session.client)
    # From the back, so that removing one entry of a list does not move the next one.
    for keys in sorted((schema.keys_of(path, document) for path in paths), key=_place, reverse=True):
        document = without(document, keys)
    change_settings(session, write, document, base, confirm_seconds=confirm_seconds)


def _place(keys: list[str]) -> list[tuple[int, str]]:
    return [(int(key), "") if key.isdigit() else (-1, key) for key in keys]


@config.command("append")
@path_argument
@click.argument("values", metavar="VALUE...", nargs=-1, required=True)
@confirm_option
@writes
def append(
    session: Session, write: Write, path: str, values: tuple[str, ...], confirm_seconds: int | None
) -> None:
    """Add entries to the end of a list; those that are there already are left where they are."""

    def grown(entries: list[JsonValue], added: list[JsonValue]) -> list[JsonValue]:
        return entries + [entry for entry in added if entry not in entries]

    _change_list(session, write, path, values, grown, confirm_seconds)


@config.command("remove")
@path_argument
@click.argument("values", metavar="VALUE...", nargs=-1, required=True)
@confirm_option
@writes
def remove(
    session: Session, write: Write, path: str, values: tuple[str, ...], confirm_seconds: int | None
) -> None:
    """Remove entries from a list, by their value."""

    def shrunk(entries: list[JsonValue], removed: list[JsonValue]) -> list[JsonValue]:
        for entry in removed:
            if entry not in entries:
                raise NotFoundError(f"{path} does not hold {visible(str(entry))}", f"see: config show {path}")
        return [entry for entry in entries if entry not in removed]

    _change_list(session, write, path, values, shrunk, confirm_seconds)


def _change_list(
    session: Session,
    write: Write,
    path: str,
    texts: tuple[str, ...],
    change: Callable[[list[JsonValue], list[JsonValue]], list[JsonValue]],
    confirm_seconds: int | None,
) -> None:
    from daemon.cli.values import scalar, value_at, with_value

    document, base = current(session.client)
    schema = _schema(session.client)
    keys = schema.keys_of(path, document)
    entries = value_at(document, keys)
    if not isinstance(entries, list):
        raise InvalidSettingsError([Problem(join_path(keys), "is no list", f"use: config set {path} VALUE")])
    items = schema.child(schema.node(keys) or {}, "0") or {}
    words = [scalar(schema, items, text, [*keys, "0"]) for text in texts]
    document = with_value(document, keys, change(entries, words))
    change_settings(session, write, document, base, confirm_seconds=confirm_seconds)


@config.command("edit")
@click.argument("path", default="", shell_complete=complete_paths)
@click.option("--draft", type=click.Path(dir_okay=False, path_type=Path), help="Go on with this text.")
@confirm_option
@writes
def edit(session: Session, write: Write, path: str, draft: Path | None, confirm_seconds: int | None) -> None:
    """Edit the settings, or those below PATH, as YAML in $VISUAL or $EDITOR.

    Mistakes are shown above the line that they are in, and the editor opens again. What you wrote is kept
    in a file until it is applied, whatever happens.
    """
    from daemon.cli.config_edit import edit_settings

    document, base = current(session.client)
    schema = _schema(session.client)
    keys = schema.keys_of(path, document) if path else []
    changed, kept = edit_settings(
        session.client, schema, document, base, keys, draft, interactive=not write.yes
    )
    if changed is None:
        line("Nothing was changed.")
        return
    try:
        change_settings(session, write, changed, base, confirm_seconds=confirm_seconds)
    except BaseException:
        resume = " ".join(["centralino config edit", *([path] if path else [])])
        line(f"Your text is kept. Go on with: {resume} --draft {kept}", stream=sys.stderr)
        raise
    if not write.dry_run:
        kept.unlink(missing_ok=True)


@config.command("diff")
@click.argument("older", type=click.IntRange(0), required=False)
@click.argument("newer", type=click.IntRange(0), default=0)
@reads
def diff_command(session: Session, as_json: bool, older: int | None, newer: int) -> None:
    """Show what differs between two revisions; default: the latest change.

    0 is the current revision. One number compares that revision with the current one.
    """
    if older is None:
        found = session.client.read_list(SETTINGS, "History", 2)
        if len(found) < 2:
            line("There is only one revision.", stream=sys.stderr if as_json else None)
            older = newer = whole_of(found[0], "revision") if found else 0
        else:
            older, newer = whole_of(found[1], "revision"), whole_of(found[0], "revision")
    text = session.client.call(SETTINGS, "Diff", older, newer)
    if as_json:
        emit_json({"older": older, "newer": newer, "diff": text})
    elif text.strip():
        diff(text, indent="")
    else:
        line("They are the same.")


@config.command("history")
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
def history(session: Session, as_json: bool, limit: int) -> None:
    """List the revisions, newest first: when, who, why."""
    found = session.client.read_list(SETTINGS, "History", limit)
    if as_json:
        emit_json(found)
        return
    rows = [
        (
            text_of(entry, "revision"),
            local_time(text_of(entry, "when")),
            text_of(entry, "who"),
            text_of(entry, "state"),
            text_of(entry, "comment"),
        )
        for entry in found
    ]
    table(("REVISION", "WHEN", "WHO", "STATE", "COMMENT"), rows)


@config.command("rollback")
@click.argument("revision", type=click.IntRange(1))
@confirm_option
@writes
def rollback(session: Session, write: Write, revision: int, confirm_seconds: int | None) -> None:
    """Apply the settings of an older REVISION again, as a new revision."""
    _, base = current(session.client)
    answer = session.client.read_object(SETTINGS, "Revision", revision)
    document = as_object(answer.get("settings")) or answer
    comment = write.comment or f"Back to revision {revision}"
    change_settings(
        session,
        Write(write.dry_run, comment, write.yes, write.json),
        document,
        base,
        confirm_seconds=confirm_seconds,
    )


@config.command("confirm")
@writes
def confirm(session: Session, write: Write) -> None:
    """Keep the change that waits for confirmation.

    Asks nothing: that you can run it is the proof that the box is still reached.
    """
    if write.dry_run:
        pending = as_object(session.client.read_object("System1", "Status").get("pending"))
        if write.json:
            emit_json({"dry_run": True, "pending": pending or None})
        else:
            line(pending_sentence(pending) if pending else "Nothing waits for confirmation.")
        return
    answer = session.client.call(SETTINGS, "Confirm", write.comment)
    if write.json:
        emit_json({"confirmed": True, "result": answer})
    else:
        line("Confirmed.", style="green")


@config.command("return")
@writes
def return_command(session: Session, write: Write) -> None:
    """Take back the change that waits for confirmation, now instead of at its deadline."""
    if write.dry_run:
        pending = as_object(session.client.read_object("System1", "Status").get("pending"))
        if write.json:
            emit_json({"dry_run": True, "pending": pending or None})
        else:
            line(pending_sentence(pending) if pending else "Nothing waits for confirmation.")
        return
    answer = session.client.read_object(SETTINGS, "Return", write.comment, limit_seconds=RETURN_LIMIT_SECONDS)
    if write.json:
        emit_json({"returned": True, **answer})
    else:
        line(f"Revision {text_of(answer, 'left')} is taken back; the settings before it are in force.")


@config.command("repair")
@writes
def repair(session: Session, write: Write) -> None:
    """Bring back what other hands changed on the box, so that it is again as the settings say.

    `centralino status` and an alarm name such drift. Settings and history stay as they are, and nothing
    waits for confirmation: there is no other revision that the box could return to.
    """
    plan = session.client.read_object(SETTINGS, "Repair", json.dumps({"dry_run": True}))
    if not write.json:
        show_plan(plan)
    if write.dry_run or changes_nothing(plan):
        if write.json:
            emit_json({"dry_run": write.dry_run, "changed": False, "plan": plan})
        return
    write.ask("Repair this?")
    job = session.client.call(SETTINGS, "Repair", json.dumps({"comment": write.comment}))
    done = follow(session.client, job, quiet=write.json)
    if write.json:
        emit_json({"changed": True, "plan": done})
    else:
        line("The box is as the settings say.", style="green")


@config.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), default="-")
@click.option(
    "--revision",
    type=click.IntRange(0),
    default=0,
    metavar="NUMBER",
    help="An older revision; default: the current one.",
)
@click.option(
    "--format", "kind", type=click.Choice(["yaml", "json"]), help="Default: by the file's name, else YAML."
)
@reads
def export(session: Session, as_json: bool, file: Path, revision: int, kind: str | None) -> None:
    """Write the settings to FILE, or to stdout. Secrets are not in it."""
    if revision:
        answer = session.client.read_object(SETTINGS, "Revision", revision)
        document: JsonObject = as_object(answer.get("settings")) or answer
    else:
        document, _ = current(session.client)
    if as_json or kind == "json" or (kind is None and file.suffix == ".json"):
        text = json.dumps(document, indent=2) + "\n"
    else:
        from daemon.cli.yaml_text import write as write_yaml

        text = write_yaml(document, _schema(session.client)).lstrip("\n")
    if str(file) == "-":
        click.echo(text, nl=False)
        return
    try:
        file.write_text(text)
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from error
    line(f"The settings are in {file}.", stream=sys.stderr)


@config.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=True))
@confirm_option
@writes
def import_command(session: Session, write: Write, file: Path, confirm_seconds: int | None) -> None:
    """Replace the settings by those in FILE (YAML or JSON; - is stdin).

    What the file does not mention gets its default.
    """
    from daemon.cli.config_edit import parse_document

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise click.FileError(str(file), str(error)) from error
    value = parse_document(text)
    _, base = current(session.client)
    change_settings(session, write, value, base, confirm_seconds=confirm_seconds)


@config.command("secret")
@click.argument("name")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the secret from the first line of stdin.")
@writes
def secret(session: Session, write: Write, name: str, from_stdin: bool) -> None:
    """Store the secret NAME, to which a *_secret setting refers (such as mail.password_secret).

    Secrets are kept apart from the settings and are never shown again.
    """
    from daemon.cli.password import read_secret

    if write.dry_run:
        what = f"Would ask for the secret {name} and store it."
        if write.json:
            emit_json({"dry_run": True, "sentence": what})
        else:
            line(what)
        return
    value = read_secret(f"Secret {visible(name)}", from_stdin)
    session.client.call(SETTINGS, "SetSecret", name, value, write.comment)
    if write.json:
        emit_json({"name": name, "stored": True})
    else:
        line(f"The secret {name} is stored.", style="green")
