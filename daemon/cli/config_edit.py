"""`config edit`: the loop of editor and refusal in which nothing that was typed is lost."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from daemon.cli.client import Client
from daemon.cli.json_types import JsonObject, JsonValue
from daemon.cli.plans import propose
from daemon.cli.render import line
from daemon.cli.schema import Schema, join_path
from daemon.cli.values import from_json, value_at, with_value
from daemon.cli.yaml_text import Text, marked, read, unmarked, write
from daemon.errors import CommandFailedError, InvalidSettingsError, Problem, StorageError
from daemon.run import run_on_terminal

EDITORS = ("sensible-editor", "nano", "vi")
HEADER = """\
# Settings of this Centralino box{where}, revision {base}. Save and leave the editor to go on; nothing is
# applied before you have seen what it changes and said yes. An empty file, or an unchanged one, changes
# nothing. Lines that begin with "#!" name a mistake in the line below; they go away by themselves.
"""


def parse_document(text: str) -> JsonObject:
    """A whole settings document from YAML or JSON; raises InvalidSettingsError."""
    value = from_json(text, "the file") if text.lstrip().startswith("{") else read(text).value
    if not isinstance(value, dict):
        raise InvalidSettingsError(
            [Problem("the file", "holds no settings", "see: centralino config export")]
        )
    return value


def edit_settings(
    client: Client,
    schema: Schema,
    document: JsonObject,
    base: int,
    keys: Sequence[str],
    draft: Path | None,
    *,
    interactive: bool,
) -> tuple[JsonObject | None, Path]:
    """Let a person edit what is below `keys` until the daemon accepts it or the person gives up.

    Returns the changed document (None: nothing changed) and the file that holds the text. Raises
    InvalidSettingsError when the person gives up on a refused text; the file then stays.
    """
    where = f", below {join_path(keys)}" if keys else ""
    original = HEADER.format(where=where, base=base) + write(value_at(document, keys), schema, keys)
    file = draft or _new_draft(original)
    if draft:
        _warn_of_age(draft, base)
    while True:
        _open_editor(file)
        text = unmarked(_read(file))
        if not draft and text.strip() in ("", original.strip()):
            file.unlink(missing_ok=True)
            return None, file
        source: Text | None = None
        try:
            source = read(text)
            changed = _put(document, keys, source.value)
            propose(client, changed, base)
            _save(file, text)
            return changed, file
        except InvalidSettingsError as refusal:
            problems = [_below(problem, keys) for problem in refusal.problems]
            _save(file, marked(text, problems, source))
            line("The settings are refused:", style="bold red", stream=sys.stderr)
            for problem in refusal.problems:
                line(f"  {problem.sentence()}", stream=sys.stderr)
            again = (
                interactive and sys.stdin.isatty() and click.confirm("Edit again?", default=True, err=True)
            )
            if not again:
                resume = " ".join(["centralino config edit", *([join_path(keys)] if keys else [])])
                line(f"Your text is kept. Go on with: {resume} --draft {file}", stream=sys.stderr)
                raise


def _warn_of_age(draft: Path, base: int) -> None:
    """A draft of an older revision would undo what others changed since; the plan shows it, this says it."""
    made_from = re.search(r"^# Settings .*, revision (\d+)\.", _read(draft), re.MULTILINE)
    if made_from and int(made_from[1]) != base:
        line(
            f"This text was made from revision {made_from[1]}, but {base} is in force. Look at the plan: it "
            "would also undo what others have changed in this part since.",
            style="bold yellow",
            stream=sys.stderr,
        )


def _put(document: JsonObject, keys: Sequence[str], value: JsonValue) -> JsonObject:
    if not keys and not isinstance(value, dict):
        raise InvalidSettingsError([Problem("line 1", "holds no settings")])
    return with_value(document, keys, value)


def _below(problem: Problem, keys: Sequence[str]) -> Problem:
    """The problem with its path relative to the edited part, as the text's lines are known by."""
    prefix = ".".join(keys) + "."
    quoted = join_path(keys) + "."
    for start in (prefix, quoted):
        if keys and problem.path.startswith(start):
            return Problem(problem.path.removeprefix(start), problem.message, problem.remedy, problem.fatal)
    return problem


def _new_draft(text: str) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    try:
        folder = state / "centralino"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="settings-", suffix=".yaml", dir=folder)
    except OSError:
        handle, name = tempfile.mkstemp(prefix="centralino-settings-", suffix=".yaml")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    return Path(name)


def _save(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}", "free some space") from error


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{file} cannot be read: {error}") from error


def _open_editor(file: Path) -> None:
    from shutil import which

    wanted = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    words = shlex.split(wanted or "") or [next((editor for editor in EDITORS if which(editor)), "vi")]
    try:
        status = run_on_terminal([*words, str(file)])
    except CommandFailedError as error:
        raise CommandFailedError(
            error.message, f"name an editor that is installed in EDITOR; your text is in {file}"
        ) from None
    if status != 0:
        raise CommandFailedError(
            f"the editor {words[0]} ended with status {status}; nothing was changed",
            f"your text is in {file}",
        )
