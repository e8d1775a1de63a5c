"""The methods of org.centralino: from JSON text to the core and back. No decision is made here.

Argument and result shapes are documented in org.centralino.xml. Signals go to every user of the bus, so they
carry no settings, no results and no names: who may read asks for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from daemon.audit import AuditLog
from daemon.authorization import Caller, reads, writes
from daemon.bus import BUS_NAME, Handler
from daemon.engine import Engine
from daemon.errors import InvalidSettingsError, NotFoundError, Problem, UnavailableError
from daemon.jobs import Job, JobHandle, Jobs
from daemon.maintenance import Maintenance, MaintenanceVerb
from daemon.secrets import SecretStore
from daemon.services.api import ActOptions, ServiceManager, Verb
from daemon.settings import json_schema
from daemon.subsystem import JsonObject

LONGEST_COMMENT = 500
LONGEST_LOG = 10_000
LONGEST_HISTORY = 10_000
SETTINGS_LANE = "settings"
SERVICES_LANE = "services"

StatusSource = Callable[[], JsonObject]
Word = TypeVar("Word", Verb, MaintenanceVerb)


@dataclass(frozen=True)
class Core:
    """Everything that the bus methods reach."""

    engine: Engine
    jobs: Jobs
    audit: AuditLog
    secrets: SecretStore
    maintenance: Maintenance
    services: ServiceManager | None
    status: StatusSource


def handlers(core: Core) -> dict[str, Handler]:
    """Every method of the interface by its full name."""
    settings, services = _Settings(core), _Services(core)
    system, jobs = _System(core), _Jobs(core)
    table: Mapping[str, Handler] = {
        "Settings1.Get": settings.get,
        "Settings1.Schema": settings.schema,
        "Settings1.Propose": settings.propose,
        "Settings1.Apply": settings.apply,
        "Settings1.Repair": settings.repair,
        "Settings1.Confirm": settings.confirm,
        "Settings1.Return": settings.return_now,
        "Settings1.History": settings.history,
        "Settings1.Diff": settings.diff,
        "Settings1.Revision": settings.revision,
        "Settings1.SetSecret": settings.set_secret,
        "Services1.List": services.list,
        "Services1.Act": services.act,
        "Services1.Logs": services.logs,
        "System1.Status": system.status,
        "System1.Maintenance": system.maintenance,
        "System1.Audit": system.audit,
        "System1.SetPassword": system.set_password,
        "Jobs1.List": jobs.list,
        "Jobs1.Get": jobs.get,
        "Jobs1.Cancel": jobs.cancel,
    }
    return {f"{BUS_NAME}.{name}": handler for name, handler in table.items()}


def signal_of(job: Job) -> str:
    """What JobChanged tells everybody: no result, no name, no settings."""
    return _text({"id": job.identifier, "kind": job.kind, "state": job.state.value, "progress": job.progress})


class _Settings:
    def __init__(self, core: Core) -> None:
        self._core = core

    @reads
    def get(self, _caller: Caller, section: str) -> str:
        engine = self._core.engine
        document, revision = engine.document(0), engine.revision
        return _text({"revision": revision, "settings": _inside(document, section)})

    @reads
    def schema(self, _caller: Caller) -> str:
        return _text(json_schema())

    @reads
    def propose(self, _caller: Caller, document: str, base: int) -> str:
        try:
            return _text(self._core.engine.propose(document, base).as_json())
        except InvalidSettingsError as error:
            return _text(
                {
                    "base": base,
                    "changes": [],
                    "problems": [problem.as_json() for problem in error.problems],
                    "needs_confirm": False,
                    "restarts": [],
                    "drops_calls": False,
                    "diff": "",
                }
            )

    @writes(lambda document, options: {"characters": len(document), **_some(options, "base", "comment")})
    def apply(self, caller: Caller, document: str, options: str) -> str:
        table = _options(options, {"base": int, "comment": str, "confirm_seconds": int})
        comment = _comment(table)
        base, confirm = _whole(table, "base"), _whole(table, "confirm_seconds")
        engine, audit = self._core.engine, self._core.audit

        def work(handle: JobHandle) -> object:
            outcome, revision = "failed", 0
            try:
                applied = engine.apply(
                    document,
                    base=base or 0,
                    comment=comment,
                    who=caller.shown,
                    confirm_seconds=confirm,
                    progress=handle.progress,
                )
                revision = applied.revision
                outcome = "unconfirmed" if applied.confirm_by else "applied"
                return applied.as_json()
            except Exception as error:
                outcome = f"failed: {error}"
                raise
            finally:
                audit.record(
                    who=caller.shown,
                    uid=caller.uid,
                    method="Settings1.Apply",
                    arguments={"job": handle.job.identifier, "revision": revision, "comment": comment},
                    outcome=outcome,
                )

        return self._core.jobs.submit("apply", caller.shown, work, lane=SETTINGS_LANE).identifier

    @writes(lambda options: _some(options, "dry_run", "comment"))
    def repair(self, caller: Caller, options: str) -> str:
        table = _options(options, {"dry_run": bool, "comment": str})
        engine = self._core.engine
        if table.get("dry_run") is True:
            return _text(engine.propose_repair().as_json())
        return self._core.jobs.submit(
            "repair",
            caller.shown,
            lambda handle: engine.repair(handle.progress).as_json(),
            lane=SETTINGS_LANE,
        ).identifier

    @writes(lambda comment: _remark(comment))
    def confirm(self, _caller: Caller, _comment: str) -> str:
        return _text({"revision": self._core.engine.confirm()})

    @writes(lambda comment: _remark(comment))
    def return_now(self, caller: Caller, _comment: str) -> str:
        return _text({"left": self._core.engine.return_now(f"was taken back by {caller.shown}")})

    @reads
    def history(self, _caller: Caller, limit: int) -> str:
        revisions = self._core.engine.history(min(limit, LONGEST_HISTORY))
        return _text([revision.as_json() for revision in revisions])

    @reads
    def diff(self, _caller: Caller, older: int, newer: int) -> str:
        return self._core.engine.diff(older, newer)

    @reads
    def revision(self, _caller: Caller, number: int) -> str:
        return _text(self._core.engine.document(number))

    @writes(lambda name, _value, comment: {"name": name, **_remark(comment)})
    def set_secret(self, _caller: Caller, name: str, value: str, _comment: str) -> None:
        self._core.secrets.set(name, value)


class _Services:
    def __init__(self, core: Core) -> None:
        self._core = core

    @reads
    def list(self, _caller: Caller) -> str:
        manager = self._core.services
        return _text([] if manager is None else [*manager.list()])

    @writes(lambda name, verb, options: {"name": name, "verb": verb, **_some(options)})
    def act(self, caller: Caller, name: str, verb: str, options: str) -> str:
        table = _options(options, {"drain_seconds": int, "dry_run": bool, "comment": str})
        wanted = ActOptions(_whole(table, "drain_seconds"), _comment(table), caller.shown)
        chosen = _one_of(Verb, verb)
        manager = self._manager()
        plan = manager.plan_act(name, chosen, wanted)
        if table.get("dry_run") is True:
            return _text(plan)
        job = self._core.jobs.submit(
            f"{chosen} {name}",
            caller.shown,
            lambda handle: manager.act(name, chosen, wanted, handle.progress),
            # A drain takes minutes; another service need not wait for it.
            lane=f"{SERVICES_LANE}.{name}",
        )
        return job.identifier

    @reads
    def logs(self, _caller: Caller, name: str, lines: int, cursor: str) -> str:
        return _text(self._manager().logs(name, min(lines, LONGEST_LOG), cursor))

    def _manager(self) -> ServiceManager:
        if self._core.services is None:
            raise UnavailableError("supervision does not run", "see the reasons in `centralino status`")
        return self._core.services


class _System:
    def __init__(self, core: Core) -> None:
        self._core = core

    @reads
    def status(self, _caller: Caller) -> str:
        return _text(self._core.status())

    @writes(lambda verb, options: {"verb": verb, **_some(options)})
    def maintenance(self, caller: Caller, verb: str, options: str) -> str:
        table = _options(options, {"drain_seconds": int, "dry_run": bool, "comment": str})
        chosen = _one_of(MaintenanceVerb, verb)
        drain = _whole(table, "drain_seconds") or 0
        if table.get("dry_run") is True:
            return _text(self._core.maintenance.plan(chosen, drain))
        comment = _comment(table)
        job = self._core.jobs.submit(
            chosen.value,
            caller.shown,
            lambda handle: self._core.maintenance.carry_out(chosen, drain, comment, handle.progress),
            lane=SETTINGS_LANE,
        )
        return job.identifier

    @reads
    def audit(self, _caller: Caller, limit: int) -> str:
        return _text(self._core.audit.entries(min(limit, LONGEST_HISTORY)))

    @writes(lambda user, _password, comment: {"user": user, **_remark(comment)})
    def set_password(self, _caller: Caller, user: str, password: str, _comment: str) -> None:
        self._core.maintenance.set_password(user, password)


class _Jobs:
    def __init__(self, core: Core) -> None:
        self._core = core

    @reads
    def list(self, _caller: Caller) -> str:
        return _text([job.as_json() for job in self._core.jobs.list()])

    @reads
    def get(self, _caller: Caller, identifier: str) -> str:
        return _text(self._core.jobs.get(identifier).as_json())

    @writes(lambda identifier, comment: {"job": identifier, **_remark(comment)})
    def cancel(self, _caller: Caller, identifier: str, _comment: str) -> None:
        self._core.jobs.cancel(identifier)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _inside(document: JsonObject, section: str) -> object:
    """The value at a dotted path; keys may hold dots themselves (`network.interfaces.eth0.10`)."""
    here: object = document
    rest = section.split(".") if section else []
    while rest:
        for length in range(len(rest), 0, -1):
            key = ".".join(rest[:length])
            if isinstance(here, dict) and key in here:
                here, rest = here[key], rest[length:]
                break
            if isinstance(here, list) and length == 1 and key.isdecimal() and int(key[:6]) < len(here):
                here, rest = here[int(key)], rest[1:]
                break
        else:
            raise NotFoundError(f"there is no setting {section[:200]!r}", "see `centralino config schema`")
    return here


def _options(text: str, known: Mapping[str, type]) -> JsonObject:
    """The options object; refuses unknown keys and wrong types, all at once."""
    try:
        table: object = json.loads(text or "{}")
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise InvalidSettingsError([Problem("options", "is not a JSON object", "write {}")])
    problems = []
    for key, value in table.items():
        if key not in known:
            problems.append(Problem(f"options.{key[:64]}", "is not an option", f"known: {', '.join(known)}"))
        elif value is not None and type(value) is not known[key]:
            problems.append(Problem(f"options.{key}", f"must be {known[key].__name__}", "correct it"))
        elif isinstance(value, int) and value < 0:
            problems.append(Problem(f"options.{key}", "must not be negative", "correct it"))
    if problems:
        raise InvalidSettingsError(problems)
    return table


def _whole(table: JsonObject, key: str) -> int | None:
    value = table.get(key)
    return value if isinstance(value, int) else None


def _comment(table: JsonObject) -> str:
    """One printable line, whatever was given: it is shown in histories and terminals."""
    text = str(table.get("comment") or "")[:LONGEST_COMMENT]
    return "".join(character if character.isprintable() else " " for character in text).strip()


def _remark(comment: str) -> dict[str, object]:
    """A comment for the audit log, which is all that it is for."""
    return {"comment": comment} if comment else {}


def _some(options: str, *names: str) -> dict[str, object]:
    """Options for the audit log, if they are what they should be."""
    try:
        table = json.loads(options or "{}")
    except (ValueError, RecursionError):
        return {"options": "not JSON"}
    wanted = names or ("drain_seconds", "dry_run", "comment")
    return {key: table[key] for key in wanted if key in table} if isinstance(table, dict) else {}


def _one_of(words: type[Word], text: str) -> Word:
    try:
        return words(text)
    except ValueError:
        known = ", ".join(word.value for word in words)
        raise InvalidSettingsError([Problem("verb", "is not known", f"use one of: {known}")]) from None
