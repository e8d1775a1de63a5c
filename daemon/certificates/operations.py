"""What an admin does with certificates: check, upload, request, renew, order automatically, go back."""

from __future__ import annotations

import json
import logging
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.alarms import Alarms
from daemon.certificates import schedule
from daemon.certificates.helper import Answer, Verb
from daemon.certificates.store import CertificateSet
from daemon.certificates.subsystem import Certificates, wanted_names
from daemon.engine import Engine, Progress
from daemon.errors import (
    CentralinoError,
    ConflictError,
    InvalidSettingsError,
    NotFoundError,
    Problem,
    UnavailableError,
)
from daemon.jobs import JobHandle, Jobs
from daemon.services.model import Role
from daemon.settings import Settings
from daemon.settings.messages import Severity
from daemon.settings.reach import Acme, CertificateSource, WorkMode
from daemon.subsystem import JsonObject

log = logging.getLogger(__name__)

RENEWAL_ALARM = "certificate.renewal"
JUDGE_SECONDS = 30.0
ORDER_SECONDS = 90.0
ORDER_HELPER_SECONDS = 180.0
CONDITIONS_SECONDS = 90.0
LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
LETS_ENCRYPT_STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"


@dataclass(frozen=True)
class Upload:
    """The files of an upload in base64, and the password that opens them."""

    files: tuple[str, ...]
    password: str | None


@dataclass(frozen=True)
class AcmeWishes:
    """What `acme enable` was asked for; None leaves the setting as it is."""

    contact: str | None = None
    staging: bool | None = None
    directory: str | None = None
    directory_roots: tuple[str, ...] | None = None
    terms_accepted: bool = False


def directory_of(acme: Acme) -> str:
    """The ACME directory that the settings choose."""
    if acme.directory is not None:
        return acme.directory
    return LETS_ENCRYPT_STAGING if acme.staging else LETS_ENCRYPT


def orders_barred(role: Role) -> str | None:
    """Why a node in this role has no certificates of its own, None if it has: a pair has each one once."""
    return None if role in (Role.STANDALONE, Role.MASTER) else f"its role is {role}"


def encoded_roots(text: str) -> tuple[str, ...]:
    """The certificates of a PEM file as the settings keep them: base64 in one line each.

    Raises InvalidSettingsError if there is none.
    """
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----", text)
    if not blocks:
        remedy = "give a file with -----BEGIN CERTIFICATE-----"
        raise InvalidSettingsError([Problem("roots", "there is no certificate in PEM", remedy)])
    return tuple("".join(block.split()) for block in blocks)


def pem_of(roots: Sequence[str]) -> str:
    """The reverse of `encoded_roots`."""
    lines = ("\n".join(textwrap.wrap(root, 64)) for root in roots)
    return "".join(f"-----BEGIN CERTIFICATE-----\n{block}\n-----END CERTIFICATE-----\n" for block in lines)


class Operations:
    """Every method may be called from any thread; those with `progress` take seconds and run as jobs.

    `barred` says why this node must not order certificates (a slave receives them), None if it may.
    """

    def __init__(
        self,
        certificates: Certificates,
        engine: Engine,
        alarms: Alarms,
        *,
        barred: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._certificates = certificates
        self._store = certificates.store
        self._engine = engine
        self._alarms = alarms
        self._barred = barred
        certificates.plans_renewals = lambda: barred() is None

    def attach(self, jobs: Jobs, lane: str) -> None:
        """Let the watch over the certificate renew it, as a job in `lane`."""

        def renew(handle: JobHandle) -> object:
            return self.renew_if_due(handle.progress)

        self._certificates.renew = lambda: jobs.submit("certificate renew", "centralinod", renew, lane=lane)
        self._certificates.ask_suggestion = self.ask_suggestion

    # --- looking ----------------------------------------------------------------------------------------

    def show(self) -> JsonObject:
        """The certificate that is served, those kept, what waits; see Certificates1.Show."""
        store, settings = self._store, self._engine.settings
        served, previous = store.served(), store.get(store.state.previous)
        kept = {source.value: store.newest(source) for source in CertificateSource}
        return {
            "source": settings.certificates.source.value,
            "names": wanted_names(settings),
            "served": None if served is None else self._certificates.facts(served),
            "previous": None if previous is None else _short(previous),
            "kept": {name: _short(found) for name, found in kept.items() if found is not None},
            "pending_request": store.pending_request(),
            "acme": {
                "directory": directory_of(settings.certificates.acme),
                "account": store.account(directory_of(settings.certificates.acme)) is not None,
                "terms_accepted": settings.certificates.acme.terms_accepted,
            },
        }

    def check(self, upload: Upload) -> JsonObject:
        """The verdict on an upload: `accepted`, `problems`, `notes`, `certificate`. Keeps nothing of it."""
        return _verdict(self._judge(upload))

    # --- changing ---------------------------------------------------------------------------------------

    def upload(self, upload: Upload, comment: str, who: str, progress: Progress) -> JsonObject:
        """Judge, try, prove, keep. Raises InvalidSettingsError with every fault, ApplyFailedError."""
        self._refuse_slave()
        progress(0.1, "checking the upload")
        answer = self._judge(upload)
        if answer["problems"]:
            raise InvalidSettingsError(_problems(answer["problems"]))
        progress(0.4, "putting the certificate in force")
        result = self._use(CertificateSource.UPLOADED, answer, comment, who)
        if answer["used_pending_key"]:
            self._store.clear_pending()
        return {**result, "notes": answer["notes"]}

    def request(self, organisation: Mapping[str, str], names: Sequence[str], key_type: str) -> JsonObject:
        """A request for the domain (S-CE-04): `request` in PEM; the key stays on the box.

        Raises InvalidSettingsError without a domain, or with a field that no certificate can hold.
        """
        self._refuse_slave()
        settings = self._engine.settings
        wanted = list(dict.fromkeys([*wanted_names(settings), *names]))
        if settings.domain.fqdn is None and not names:
            raise InvalidSettingsError([Problem("domain.fqdn", "no domain is set", "set it, or add --name")])
        answer = self._certificates.ask(
            Verb.REQUEST,
            names=wanted,
            key_type=key_type or settings.certificates.key_type.value,
            organisation=dict(organisation),
        )
        if "problems" in answer:
            raise InvalidSettingsError(_problems(answer["problems"]))
        with self._certificates.replacement.lock:
            self._store.set_pending(answer["key"], answer["request"])
        return {"request": answer["request"], "names": wanted}

    def renew(self, who: str, progress: Progress) -> JsonObject:
        """A new certificate of the same source. Raises UnavailableError where the box cannot make one."""
        self._refuse_slave()
        settings = self._engine.settings
        source = settings.certificates.source
        if source is CertificateSource.SELF_SIGNED:
            progress(0.2, "making a self-signed certificate")
            names = [*wanted_names(settings), settings.node.hostname]
            made = self._certificates.make_self_signed(names, settings.certificates.key_type.value)
            return self._result(made)
        if source is not CertificateSource.ACME:
            raise UnavailableError(
                f"an {source} certificate cannot be renewed by this box",
                "make a request with `centralino certificate request` and upload the answer",
            )
        try:
            answer = self._order(settings, settings.certificates.acme, progress)
            progress(0.8, "putting the certificate in force")
            made = self._certificates.take(CertificateSource.ACME, answer)
        except CentralinoError as error:
            self._renewal_failed(error)
            raise
        self._alarms.clear_alarm(RENEWAL_ALARM)
        log.info("certificate %s was renewed by %s", made.facts.serial, who)
        return self._result(made)

    def conditions(self, wishes: AcmeWishes) -> list[JsonObject]:
        """Which conditions of automatic certificates do not hold (S-CE-03), as problems."""
        return self._conditions(self._engine.settings, self._wished(wishes)[1])

    def enable_acme(self, wishes: AcmeWishes, comment: str, who: str, progress: Progress) -> JsonObject:
        """Check the conditions, order, try, prove, keep, and renew from now on.

        Raises InvalidSettingsError naming each condition that fails, UnavailableError when none is issued.
        """
        self._refuse_slave()
        progress(0.05, "checking the conditions")
        settings, (table, acme) = self._engine.settings, self._wished(wishes)
        found = self._conditions(settings, acme)
        fatal = [problem for problem in _problems(found) if problem.fatal]
        if fatal:
            raise InvalidSettingsError(fatal)
        answer = self._order(settings, acme, progress)
        progress(0.8, "putting the certificate in force")
        result = self._use(CertificateSource.ACME, answer, comment, who, acme=table)
        self._alarms.clear_alarm(RENEWAL_ALARM)
        warnings = [problem.sentence() for problem in _problems(found)]
        return {**result, "notes": warnings}

    def rollback(self, comment: str, who: str, progress: Progress) -> JsonObject:
        """Serve the certificate from before the last change again. Raises NotFoundError without one."""
        self._refuse_slave()
        with self._certificates.replacement.lock:
            previous = self._store.get(self._store.state.previous)
            if previous is None:
                raise NotFoundError("there is no certificate from before", "upload one")
            if previous.facts.not_after <= self._certificates.now():
                raise ConflictError(
                    f"the certificate from before expired on {previous.facts.not_after:%Y-%m-%d}",
                    "upload one",
                )
        progress(0.3, "putting the certificate from before in force")
        return self._use_set(previous, comment or "back to the certificate from before", who)

    def renew_if_due(self, progress: Progress) -> JsonObject:
        """The renewal that the watch asks for: silent where this node must not, or another was faster."""
        renewal = self._store.state.renewal
        if self._barred() is not None or not schedule.is_due(renewal, self._certificates.now()):
            return {"renewed": False}
        return {"renewed": True, **self.renew("centralinod", progress)}

    def ask_suggestion(self) -> None:
        """Ask the service when it wants the renewal (RFC 9773) and take its wish. Failures wait for later."""
        settings, now = self._engine.settings, self._certificates.now()
        served, renewal = self._store.served(), self._store.state.renewal
        again = schedule.parsed(renewal.ask_again)
        if (
            served is None
            or served.source is not CertificateSource.ACME
            or self._barred() is not None
            or (again is not None and now < again)
        ):
            return
        acme = settings.certificates.acme
        answer = self._certificates.ask(
            Verb.ACME_RENEWAL, limit_seconds=ORDER_HELPER_SECONDS, chain=served.chain, **self._service(acme)
        )
        with self._certificates.replacement.lock:
            if self._store.state.served == served.name:
                self._store.set_renewal(
                    schedule.with_suggestion(self._store.state.renewal, served.facts, answer, now)
                )

    # --- inside -----------------------------------------------------------------------------------------

    def _judge(self, upload: Upload) -> Answer:
        return self._certificates.ask(
            Verb.JUDGE,
            limit_seconds=JUDGE_SECONDS,
            files=list(upload.files),
            password=upload.password,
            pending_key=self._store.pending_key(),
            names=wanted_names(self._engine.settings),
            roots=self._bundle(),
        )

    def _use(
        self,
        source: CertificateSource,
        answer: Answer,
        comment: str,
        who: str,
        *,
        acme: JsonObject | None = None,
    ) -> JsonObject:
        made = self._certificates.keep(source, answer)
        return self._use_set(made, comment or f"{source} certificate {made.facts.serial}", who, acme=acme)

    def _use_set(
        self, wanted: CertificateSet, comment: str, who: str, *, acme: JsonObject | None = None
    ) -> JsonObject:
        """Serve a set by way of the settings, so that history tells and a rollback brings it back."""
        store, lock = self._store, self._certificates.replacement.lock
        with lock:
            before = store.state.newest.get(wanted.source.value, "")
            store.set_newest(wanted.source, wanted.name)
        try:
            self._change_settings(wanted.source, acme, comment, who)
            if store.state.served != wanted.name:
                self._certificates.serve(wanted)
        except CentralinoError:
            with lock:
                store.set_newest(wanted.source, before)
                store.prune()
            raise
        return self._result(wanted)

    def _change_settings(
        self, source: CertificateSource, acme: JsonObject | None, comment: str, who: str
    ) -> None:
        """Choose the source, and `acme` if it is given; nothing where the settings are like that already."""
        document, base = self._document()
        section: dict[str, Any] = document["certificates"]
        wanted = section | {"source": source.value} | ({} if acme is None else {"acme": acme})
        if wanted != section:
            document["certificates"] = wanted
            self._engine.apply(json.dumps(document), base=base, comment=comment, who=who)

    def _document(self) -> tuple[dict[str, Any], int]:
        base = self._engine.revision
        return dict(self._engine.document(0)), base

    def _wished(self, wishes: AcmeWishes) -> tuple[JsonObject, Acme]:
        """The section as it would be, as JSON and as settings. Raises InvalidSettingsError."""
        document, base = self._document()
        section: dict[str, Any] = document["certificates"]
        given = {key: value for key, value in vars(wishes).items() if value is not None}
        given["terms_accepted"] = wishes.terms_accepted or section["acme"]["terms_accepted"]
        if wishes.directory_roots is not None:
            given["directory_roots"] = list(wishes.directory_roots)
        acme: JsonObject = section["acme"] | given
        document["certificates"] = section | {"acme": acme}
        settings = self._engine.propose(json.dumps(document), base).settings
        return acme, settings.certificates.acme

    def _conditions(self, settings: Settings, acme: Acme) -> list[JsonObject]:
        public = settings.domain.public_address
        answer = self._certificates.ask(
            Verb.ACME_CONDITIONS,
            limit_seconds=CONDITIONS_SECONDS,
            cloud=settings.mode.mode is WorkMode.CLOUD,
            names=wanted_names(settings) if settings.domain.fqdn else [],
            public_address=None if public is None else str(public),
            terms_accepted=acme.terms_accepted,
            resolvers=[str(address) for address in settings.domain.public_resolvers],
            webroot=self._webroot(),
            **self._service(acme),
        )
        return list(answer["problems"])

    def _order(self, settings: Settings, acme: Acme, progress: Progress) -> Answer:
        directory = directory_of(acme)
        progress(0.3, f"ordering at {directory}")
        answer = self._certificates.ask(
            Verb.ACME_ORDER,
            limit_seconds=ORDER_HELPER_SECONDS,
            names=wanted_names(settings),
            key_type=settings.certificates.key_type.value,
            contact=acme.contact,
            account=self._store.account(directory),
            webroot=self._webroot(),
            patience_seconds=ORDER_SECONDS,
            **self._service(acme),
        )
        if "account" in answer:
            self._store.set_account(directory, str(answer["account"]))
        if "order_error" in answer:
            raise OrderFailedError(answer["order_error"])
        return answer

    def _service(self, acme: Acme) -> dict[str, Any]:
        return {
            "directory": directory_of(acme),
            "bundle": self._bundle(),
            "roots": pem_of(acme.directory_roots) if acme.directory and acme.directory_roots else None,
        }

    def _bundle(self) -> str:
        """What clients know: the roots that the platform ships."""
        return str(self._certificates.places.on_box(self._certificates.platform.paths["ca_bundle"]))

    def _webroot(self) -> str:
        web = self._certificates.places.on_box(self._certificates.platform.paths["web_root"])
        return str(web / "acme")

    def _refuse_slave(self) -> None:
        reason = self._barred()
        if reason is not None:
            raise ConflictError(f"this node takes its certificates from the master: {reason}", "do it there")

    def _renewal_failed(self, error: CentralinoError) -> None:
        now = self._certificates.now()
        retry_after = schedule.parsed(error.retry_after) if isinstance(error, OrderFailedError) else None
        with self._certificates.replacement.lock:
            renewal = schedule.after_failure(self._store.state.renewal, now, str(error), retry_after)
            self._store.set_renewal(renewal)
        sentence = (
            f"the certificate could not be renewed: {error}; the next try is at {renewal.not_before[:16]} UTC"
        )
        self._alarms.raise_alarm(RENEWAL_ALARM, sentence, Severity.WARNING)

    def _result(self, served: CertificateSet) -> JsonObject:
        return {"certificate": self._certificates.facts(served)}


class OrderFailedError(UnavailableError):
    """No automatic certificate was issued; `retry_after` is the moment (ISO 8601) of the next try, or ""."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        super().__init__(str(table["message"]), str(table["remedy"]))
        self.fault = str(table["fault"])
        self.retry_after = str(table["retry_after"] or "")

    @classmethod
    def bus_name(cls) -> str:
        """Clients know it as the service that must answer and does not."""
        return UnavailableError.bus_name()


def _verdict(answer: Answer) -> JsonObject:
    return {
        "accepted": not answer["problems"],
        "problems": answer["problems"],
        "notes": answer["notes"],
        "certificate": answer.get("facts"),
        "uses_pending_key": answer.get("used_pending_key", False),
    }


def _problems(rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
    return [Problem(row["path"], row["message"], row["remedy"], row["fatal"]) for row in rows]


def _short(found: CertificateSet) -> JsonObject:
    return {**found.facts.as_json(), "source": found.source.value}


__all__ = ["AcmeWishes", "Operations", "OrderFailedError", "Upload", "directory_of"]
