"""The methods of org.centralino.Certificates1: from JSON text to the certificates and back."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from typing import Any

from daemon.audit import AuditLog
from daemon.authorization import Caller, reads, writes
from daemon.bus import BUS_NAME, Handler
from daemon.certificates.edge import refuse_without
from daemon.certificates.operations import AcmeWishes, Operations, Upload, encoded_roots
from daemon.engine import Progress
from daemon.errors import InvalidSettingsError, Problem, UnavailableError
from daemon.jobs import JobHandle, Jobs
from daemon.settings.reach import KeyType
from daemon.subsystem import JsonObject

LANE = "certificates"
MOST_FILES = 20
LARGEST_FILE_BYTES = 1024 * 1024
LONGEST_TEXT = 500
METHODS = {
    "certificate upload": "Upload",
    "certificate renew": "Renew",
    "certificate acme": "EnableAcme",
    "certificate rollback": "Rollback",
}
"""Methods by the kind of their jobs."""
ORGANISATION = ("organisation", "unit", "locality", "state", "country")


def certificate_handlers(
    operations: Operations | None, jobs: Jobs, audit: AuditLog | None = None
) -> dict[str, Handler]:
    """Every method of Certificates1 by its full name; without operations (no known platform) they say so.

    `audit` also takes how each job ended.
    """
    methods = _Certificates(operations, jobs, audit)
    table: Mapping[str, Handler] = {
        "Show": methods.show,
        "Check": methods.check,
        "Upload": methods.upload,
        "Request": methods.request,
        "Renew": methods.renew,
        "EnableAcme": methods.enable_acme,
        "Rollback": methods.rollback,
        "Push": methods.push,
    }
    return {f"{BUS_NAME}.Certificates1.{name}": handler for name, handler in table.items()}


def _recorded(options: str, *names: str) -> dict[str, object]:
    """Options for the audit log; never the material."""
    try:
        table = json.loads(options or "{}")
    except (ValueError, RecursionError):
        return {"options": "not JSON"}
    if not isinstance(table, dict):
        return {}
    return {key: table[key] for key in ("comment", "dry_run", *names) if key in table}


class _Certificates:
    def __init__(self, operations: Operations | None, jobs: Jobs, audit: AuditLog | None) -> None:
        self._operations = operations
        self._jobs = jobs
        self._audit = audit

    @reads
    def show(self, _caller: Caller) -> str:
        return _text(self._known().show())

    @reads
    def check(self, _caller: Caller, material: str) -> str:
        return _text(self._known().check(_upload(material)))

    @writes(lambda _material, options: _recorded(options))
    def upload(self, caller: Caller, material: str, options: str) -> str:
        operations, upload = self._known(), _upload(material)
        table = _options(options, {"comment": str, "dry_run": bool})
        if table.get("dry_run") is True:
            return _text({"dry_run": True, **operations.check(upload)})
        return self._job(
            caller,
            "certificate upload",
            lambda tell: operations.upload(upload, _comment(table), caller.shown, tell),
        )

    @writes(lambda options: _recorded(options, "organisation", "names", "key_type"))
    def request(self, _caller: Caller, options: str) -> str:
        table = _options(
            options, {"comment": str, "dry_run": bool, "organisation": dict, "names": list, "key_type": str}
        )
        organisation = {
            key: _line(value)
            for key, value in (table.get("organisation") or {}).items()
            if key in ORGANISATION
        }
        names = [_line(name) for name in table.get("names") or []][:MOST_FILES]
        kind = table.get("key_type") or ""
        if kind and kind not in list(KeyType):
            known = ", ".join(one.value for one in KeyType)
            raise InvalidSettingsError([Problem("key_type", "is not known", f"use one of: {known}")])
        if table.get("dry_run") is True:
            return _text({"dry_run": True, "sentence": "Would make a key and a certificate request."})
        return _text(self._known().request(organisation, names, kind))

    @writes(lambda options: _recorded(options))
    def renew(self, caller: Caller, options: str) -> str:
        table = _options(options, {"comment": str, "dry_run": bool})
        operations = self._known()
        if table.get("dry_run") is True:
            source = operations.show()["source"]
            return _text({"dry_run": True, "sentence": f"Would get and serve a new {source} certificate."})
        return self._job(caller, "certificate renew", lambda tell: operations.renew(caller.shown, tell))

    @writes(lambda options: _recorded(options, "email", "staging", "directory", "accept_terms"))
    def enable_acme(self, caller: Caller, options: str) -> str:
        table = _options(
            options,
            {
                "comment": str,
                "dry_run": bool,
                "email": str,
                "staging": bool,
                "directory": str,
                "roots": str,
                "accept_terms": bool,
            },
        )
        wishes = AcmeWishes(
            contact=table.get("email"),
            staging=table.get("staging"),
            directory=table.get("directory"),
            directory_roots=encoded_roots(table["roots"]) if table.get("roots") else None,
            terms_accepted=table.get("accept_terms") is True,
        )
        operations = self._known()
        if table.get("dry_run") is True:
            return _text({"dry_run": True, "problems": operations.conditions(wishes)})
        return self._job(
            caller,
            "certificate acme",
            lambda tell: operations.enable_acme(wishes, _comment(table), caller.shown, tell),
        )

    @writes(lambda options: _recorded(options))
    def rollback(self, caller: Caller, options: str) -> str:
        table = _options(options, {"comment": str, "dry_run": bool})
        operations = self._known()
        if table.get("dry_run") is True:
            return _text({"dry_run": True, "previous": operations.show()["previous"]})
        return self._job(
            caller,
            "certificate rollback",
            lambda tell: operations.rollback(_comment(table), caller.shown, tell),
        )

    @writes(lambda _material: {})
    def push(self, _caller: Caller, _material: str) -> str:
        refuse_without(None)
        raise UnavailableError("no edge is configured")

    def _job(self, caller: Caller, kind: str, work: Callable[[Progress], JsonObject]) -> str:
        def run(handle: JobHandle) -> object:
            outcome, serial = "failed", ""
            try:
                result = work(handle.progress)
                outcome, serial = "done", _serial(result)
                return result
            except Exception as error:
                outcome = f"failed: {error}"
                raise
            finally:
                if self._audit is not None:
                    arguments = {"job": handle.job.identifier, "certificate": serial}
                    name = f"Certificates1.{METHODS[kind]}"
                    self._audit.record(
                        who=caller.shown, uid=caller.uid, method=name, arguments=arguments, outcome=outcome
                    )

        return self._jobs.submit(kind, caller.shown, run, lane=LANE).identifier

    def _known(self) -> Operations:
        if self._operations is None:
            raise UnavailableError(
                "certificates are not managed here", "see the reasons in `centralino status`"
            )
        return self._operations


def _upload(material: str) -> Upload:
    """`{"files": [base64...], "password": "..."|null}`. Raises InvalidSettingsError, without any value."""
    try:
        table = json.loads(material)
        files = [text for text in table["files"] if isinstance(text, str)]
        sizes = [len(base64.b64decode(text, validate=True)) for text in files]
        password = table.get("password")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, binascii.Error):
        raise InvalidSettingsError([Problem("material", "is not what an upload is", "see Upload")]) from None
    if not 1 <= len(files) <= MOST_FILES or max(sizes) > LARGEST_FILE_BYTES:
        raise InvalidSettingsError(
            [Problem("material", f"must be 1 to {MOST_FILES} files of at most 1 MiB", "leave the rest out")]
        )
    return Upload(tuple(files), password if isinstance(password, str) and password else None)


def _options(text: str, known: Mapping[str, type]) -> dict[str, Any]:
    """The options object; refuses unknown keys and wrong types, all at once."""
    try:
        table: object = json.loads(text or "{}")
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise InvalidSettingsError([Problem("options", "is not a JSON object", "write {}")])
    problems = [
        Problem(
            f"options.{str(key)[:64]}", "is not an option, or of the wrong type", f"known: {', '.join(known)}"
        )
        for key, value in table.items()
        if key not in known or (value is not None and type(value) is not known[key])
    ]
    if problems:
        raise InvalidSettingsError(problems)
    return table


def _line(value: object) -> str:
    """One printable line."""
    text = str(value)[:LONGEST_TEXT]
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _comment(table: Mapping[str, Any]) -> str:
    return _line(table.get("comment") or "")


def _serial(result: JsonObject) -> str:
    served = result.get("certificate")
    return str(served.get("serial", "")) if isinstance(served, dict) else ""


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
