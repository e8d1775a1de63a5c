"""Plans before they happen: show them, ask, apply them, and say what must be confirmed."""

from __future__ import annotations

import json
import sys

import click

from daemon.cli.client import RETURN_LIMIT_SECONDS, SETTINGS, Client, problems_of
from daemon.cli.json_types import JsonObject, as_object, objects_of, text_of, texts_of, whole_of
from daemon.cli.moments import local_time, seconds_until
from daemon.cli.progress import follow
from daemon.cli.render import diff, emit_json, line, seconds
from daemon.cli.session import Session, Write
from daemon.errors import CentralinoError, InvalidSettingsError


def plan_of(answer: str) -> JsonObject:
    """The plan that the dry run of a verb answers with."""
    try:
        return as_object(json.loads(answer))
    except ValueError:
        return {}


def show_verb_plan(plan: JsonObject, otherwise: str) -> None:
    """Print what the dry run of a service or maintenance verb answered."""
    line(text_of(plan, "sentence") or otherwise)
    for change in objects_of(plan, "changes"):
        line(f"  {text_of(change, 'sentence')}")
    for note in texts_of(plan, "notes") + texts_of(plan, "warnings"):
        line(f"  {note}")
    if plan.get("drops_calls") is True:
        line("  Live calls end.", style="bold red")


def agreed(write: Write, plan: JsonObject, question: str, otherwise: str = "") -> bool:
    """Show what a verb would do (`otherwise` where it has no words of its own) and ask.

    False if the dry run is all that is wanted; raises DeclinedError for a no.
    """
    if not write.json:
        show_verb_plan(plan, otherwise)
    if write.dry_run:
        if write.json:
            emit_json({"dry_run": True, **plan})
        return False
    write.ask(question)
    return True


def propose(client: Client, document: JsonObject, base: int) -> JsonObject:
    """The daemon's plan for a whole document; raises InvalidSettingsError with every fatal problem."""
    plan = client.read_object(SETTINGS, "Propose", json.dumps(document), base)
    fatal = [problem for problem in problems_of(plan) if problem.fatal]
    if fatal:
        raise InvalidSettingsError(fatal)
    return plan


def changes_nothing(plan: JsonObject) -> bool:
    """Whether settings and box stay as they are."""
    return not text_of(plan, "diff").strip() and not objects_of(plan, "changes")


def show(plan: JsonObject) -> None:
    """Print a plan: settings, steps, files, restarts, calls that drop, warnings, need to confirm."""
    if changes_nothing(plan):
        line("Nothing changes: the settings are like that already.")
        return
    if text_of(plan, "diff").strip():
        line("Settings", style="bold")
        diff(text_of(plan, "diff"))
    changes = objects_of(plan, "changes")
    line("Steps" if changes else "The box itself stays as it is.", style="bold" if changes else "")
    for number, change in enumerate(changes, start=1):
        line(f"  {number}. {text_of(change, 'sentence')}")
        for verb, key in (("restarts", "restarts"), ("reloads", "reloads"), ("deletes", "deletes")):
            if names := texts_of(change, key):
                line(f"     {verb} {', '.join(names)}")
        if change.get("drops_calls") is True:
            line("     live calls end", style="bold red")
        if text_of(change, "diff").strip():
            diff(text_of(change, "diff"), indent="       ")
    for problem in problems_of(plan):
        if not problem.fatal:
            line(f"Warning: {problem.sentence()}", style="yellow")
    if plan.get("needs_confirm") is True:
        line(
            "This could cut you off: unless it is confirmed afterwards, it returns by itself.", style="yellow"
        )


def change_settings(
    session: Session, write: Write, document: JsonObject, base: int, *, confirm_seconds: int | None = None
) -> None:
    """Show the plan for a document, ask, apply it and report; `--dry-run` stops after the plan.

    `base` is the revision that the document was made from: somebody else's change in between is refused by
    the daemon, not overwritten.
    """
    if write.yes and not write.dry_run:
        _change_without_asking(session, write, document, base, confirm_seconds)
        return
    plan = propose(session.client, document, base)
    if not write.json:
        show(plan)
    if write.dry_run or changes_nothing(plan):
        if write.json:
            emit_json({"dry_run": write.dry_run, "changed": False, "plan": plan})
        return
    write.ask("Apply this?")
    result = apply(
        session.client, document, base, write.comment, confirm_seconds=confirm_seconds, quiet=write.json
    )
    if write.json:
        emit_json({"changed": True, **result})
        return
    line(f"Applied as revision {text_of(result, 'revision')}.", style="green")
    if text_of(result, "confirm_by"):
        _confirm(session.client, result, write)


def _change_without_asking(
    session: Session, write: Write, document: JsonObject, base: int, confirm_seconds: int | None
) -> None:
    """Where nobody is asked, the plan is not fetched beforehand: it comes with the result."""
    result = apply(
        session.client, document, base, write.comment, confirm_seconds=confirm_seconds, quiet=write.json
    )
    plan = as_object(result.get("plan"))
    changed = not changes_nothing(plan)
    if write.json:
        emit_json(
            {"changed": True, **result} if changed else {"dry_run": False, "changed": False, "plan": plan}
        )
        return
    show(plan)
    if not changed:
        return
    line(f"Applied as revision {text_of(result, 'revision')}.", style="green")
    if text_of(result, "confirm_by"):
        _confirm(session.client, result, write)


def apply(
    client: Client,
    document: JsonObject,
    base: int,
    comment: str,
    *,
    confirm_seconds: int | None = None,
    quiet: bool = False,
) -> JsonObject:
    """Apply a document and wait for `{"revision", "confirm_by", "plan"}`; raises what went wrong."""
    options: JsonObject = {"base": base, "comment": comment}
    if confirm_seconds is not None:
        options["confirm_seconds"] = confirm_seconds
    words = (json.dumps(document), json.dumps(options))
    return follow(client, lambda: client.call(SETTINGS, "Apply", *words), quiet=quiet)


def _confirm(client: Client, result: JsonObject, write: Write) -> None:
    until = text_of(result, "confirm_by")
    left = seconds_until(until)
    line(
        f"Unconfirmed: revision {text_of(result, 'revision')} returns by itself at {local_time(until)}"
        + (f" (in {seconds(left)})" if left is not None else "")
        + " unless you run: centralino config confirm",
        style="bold yellow",
    )
    if write.yes or not sys.stdin.isatty():
        return
    if click.confirm("Do you still reach the box, and keep this?", default=False, err=True):
        client.call(SETTINGS, "Confirm", write.comment)
        line("Confirmed.", style="green")
    else:
        client.call(SETTINGS, "Return", write.comment, limit_seconds=RETURN_LIMIT_SECONDS)
        line("Taken back: the old settings are in force again.")


def current(client: Client) -> tuple[JsonObject, int]:
    """The current document and the number of its revision."""
    answer = client.read_object(SETTINGS, "Get", "")
    document = as_object(answer.get("settings"))
    if not document:
        raise CentralinoError("the daemon answered without settings", "see: journalctl -u centralinod")
    return document, whole_of(answer, "revision")
