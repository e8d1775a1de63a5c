"""The certificates subsystem: which certificate the settings want, which is served, and when it ends."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from daemon.alarms import Alarms
from daemon.certificates import schedule
from daemon.certificates.consumers import consumers
from daemon.certificates.helper import Ask, Verb, ask_helper
from daemon.certificates.names import uncovered
from daemon.certificates.replacement import Proof, Replacement
from daemon.certificates.shared import adopt
from daemon.certificates.store import CertificateSet, Renewal, Store
from daemon.errors import ApplyFailedError, CentralinoError, Problem
from daemon.files import read_text
from daemon.places import Places
from daemon.platform import Platform
from daemon.settings import Settings
from daemon.settings.messages import Severity
from daemon.settings.reach import CertificateSource
from daemon.subsystem import Change, JsonObject, State

log = logging.getLogger(__name__)

EXPIRY_ALARM = "certificate.expiry"
NAMES_ALARM = "certificate.names"
SERVED_ALARM = "certificate.served"
FIRST_LOOK_SECONDS = 30.0
WATCH_SECONDS = 3600.0
DOUBT_SECONDS = 10.0
TROUBLE_SECONDS = 60.0
URGENT_DAYS = 7


def wanted_names(settings: Settings) -> list[str]:
    """The names that the certificate must cover, the domain first."""
    first = [settings.domain.fqdn] if settings.domain.fqdn else []
    return list(dict.fromkeys([*first, *settings.certificates.names]))


class Certificates:
    """See daemon.subsystem.Subsystem. Below another root than `/`, only files are touched.

    `renew` starts the renewal of the served certificate as a job, `ask_suggestion` asks its service when,
    `plans_renewals` says whether this node does so at all; `Operations` sets them.
    `now` is wall-clock time in UTC.
    """

    name = "certificates"
    sections: tuple[str, ...] = ("certificates",)

    def __init__(
        self,
        places: Places,
        platform: Platform,
        settings: Callable[[], Settings],
        alarms: Alarms,
        *,
        ask: Ask = ask_helper,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.store = Store(places.state / "certificates")
        self.ask = ask
        self.now = now
        self.platform = platform
        self.places = places
        self.replacement = Replacement(
            self.store, alarms, lambda: consumers(places, platform), ask, live=places.is_live
        )
        self.renew: Callable[[], object] = lambda: None
        self.ask_suggestion: Callable[[], None] = lambda: None
        self.plans_renewals: Callable[[], bool] = lambda: True
        self.proofs: tuple[Proof, ...] = ()
        self._settings = settings
        self._alarms = alarms
        self._wake = threading.Event()
        self._stopped = False
        self._watcher: threading.Thread | None = None
        self._trouble = ""
        self._doubted = False

    # --- subsystem --------------------------------------------------------------------------------------

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        """The chosen source must have a certificate, or be able to make one; it should cover the domain."""
        source = settings.certificates.source
        if source is CertificateSource.SELF_SIGNED:
            return []
        found = self.store.newest(source)
        if found is None:
            return [Problem("certificates.source", f"there is no {source} certificate yet", _GET[source])]
        missing = uncovered(found.facts.names, wanted_names(settings))
        if not missing:
            return []
        remedy = (
            "it is ordered anew afterwards"
            if source is CertificateSource.ACME
            else "request one for the domain: centralino certificate request"
        )
        message = f"the certificate does not cover {', '.join(missing)}"
        return [Problem("certificates", message, remedy, fatal=False)]

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        """At most one change: serve another certificate, or make a self-signed one and serve that."""
        if old is not None and (old.certificates, old.domain) == (new.certificates, new.domain):
            return []
        source, names = new.certificates.source, wanted_names(new)
        found = self.store.newest(source)
        units = tuple(dict.fromkeys(one.unit for one in consumers(self.places, self.platform)))
        if source is CertificateSource.SELF_SIGNED and (
            found is None or uncovered(found.facts.names, names) or not self._key_type_fits(old, new)
        ):
            sentence = f"Make and serve a self-signed certificate for {', '.join(names) or 'this node'}."
            detail = {"make": [*names, new.node.hostname], "key_type": new.certificates.key_type.value}
            return [Change(self.name, sentence, reloads=units, detail=detail)]
        if found is None:
            return []
        if self.store.state.served != found.name or not self.replacement.matches(found):
            sentence = f"Serve the {source} certificate {found.facts.serial}, valid until {_day(found)}."
            return [Change(self.name, sentence, reloads=units, detail={"serve": found.name})]
        if source is CertificateSource.ACME and uncovered(found.facts.names, names):
            sentence = f"Order a certificate for {', '.join(names)} afterwards."
            return [Change(self.name, sentence, detail={"order": True})]
        return []

    def apply(self, change: Change) -> None:
        """Carry the change out; the old certificate is back when it raises."""
        with self.replacement.lock:
            if "make" in change.detail:
                names, kind = change.detail["make"], change.detail["key_type"]
                self.make_self_signed([str(name) for name in _list(names)], str(kind))
            elif "serve" in change.detail:
                wanted = self.store.get(str(change.detail["serve"]))
                if wanted is None:
                    raise ApplyFailedError("the certificate is not there any more", "upload it again")
                self.serve(wanted)
        self.wake()

    def observe(self) -> State:
        """What is served, by the last proof, and what is wrong with it. Reads small files alone."""
        served = self.store.served()
        if served is None:
            reason = self._trouble or "the certificate of this box is not known yet"
            return State(False, (reason,), (), {})
        settings = self._settings()
        reasons = [f"{proof.consumer} {proof.trouble}" for proof in self.proofs if proof.trouble]
        reasons += [self._trouble] if self._trouble else []
        left = served.facts.not_after - self.now()
        if left.total_seconds() <= 0:
            reasons.append(f"the certificate expired on {_day(served)}; {_GET[served.source]}")
        drift = []
        if not self.replacement.matches(served):
            drift.append("the certificate's files are not those that were put there; restart centralinod")
        if served.source is not settings.certificates.source:
            drift.append(
                f"the settings want the {settings.certificates.source} certificate, "
                f"the {served.source} one is served"
            )
        return State(not reasons and not drift, tuple(reasons), tuple(drift), self.facts(served))

    def facts(self, served: CertificateSet) -> JsonObject:
        """What status shows of the certificate that is served."""
        return {
            **served.facts.as_json(),
            "source": served.source.value,
            "days_left": max(0, (served.facts.not_after - self.now()).days),
            "renewal": vars(self.store.state.renewal) if served.source in schedule.AUTOMATIC else None,
            "consumers": [proof.as_json() for proof in self.proofs],
        }

    # --- life -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Before the engine starts: settle what a power loss cut off; know the certificate of first boot.

        Never raises: what is wrong is a reason in `observe`.
        """
        try:
            self.replacement.settle()
            served = self.store.served() or self._adopt()
            if served is not None:
                self.replacement.write_missing(served)
            self._trouble = ""
        except CentralinoError as error:
            log.error("the certificate could not be made ready: %s", error)
            self._trouble = str(error)

    def start(self) -> None:
        """Watch: expiry, names, renewal, and what is really served."""
        self._watcher = threading.Thread(target=self._watch, name="certificates", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped = True
        self._wake.set()
        if self._watcher is not None:
            self._watcher.join(2.0)

    def wake(self) -> None:
        """Look now instead of within the hour."""
        self._wake.set()

    def look(self) -> None:
        """One look at everything that time changes; raises, clears and renews."""
        with self.replacement.lock:
            served = self.store.served()
            if served is None:
                self.prepare()
                served = self.store.served()
            if served is None:
                return
            self._raise_expiry(served)
            self._plan_renewal(served)
        self._prove(served)
        try:
            self.ask_suggestion()
        except CentralinoError as error:
            log.info("the service was not asked when to renew: %s", error)
        renewal = self.store.state.renewal
        if served.source in schedule.AUTOMATIC and schedule.is_due(renewal, self.now()):
            self.renew()

    # --- making and serving -----------------------------------------------------------------------------

    def make_self_signed(self, names: Sequence[str], key_type: str) -> CertificateSet:
        """Make one, serve it, and keep it as the newest of its source. Raises as `serve` does."""
        answer = self.ask(
            Verb.SELF_SIGNED, names=list(dict.fromkeys([*names, "localhost"])), key_type=key_type
        )
        return self.take(CertificateSource.SELF_SIGNED, answer)

    def take(self, source: CertificateSource, answer: Mapping[str, object]) -> CertificateSet:
        """Serve what the helper made (`chain`, `key`, `facts`); nothing stays of it if that fails."""
        with self.replacement.lock:
            made = self.keep(source, answer)
            before = self.store.state.newest.get(source.value, "")
            try:
                self.store.set_newest(source, made.name)
                self.serve(made)
            except CentralinoError:
                self.store.set_newest(source, before)
                self.store.prune()
                raise
            return made

    def keep(self, source: CertificateSource, answer: Mapping[str, object]) -> CertificateSet:
        """Put what the helper made or judged into the store, without using it yet."""
        facts = answer["facts"]
        from daemon.certificates.facts import Facts

        return self.store.add(
            source,
            Facts.from_json(facts if isinstance(facts, Mapping) else {}),
            str(answer["chain"]),
            str(answer["key"]),
        )

    def serve(self, wanted: CertificateSet) -> tuple[Proof, ...]:
        """Serve a set, proven by handshakes. Raises ApplyFailedError with the old one back."""
        with self.replacement.lock:
            self.proofs = tuple(self.replacement.serve(wanted))
            self._alarms.clear_alarm(SERVED_ALARM)
            self._doubted = False
            self._trouble = ""
            self._raise_expiry(wanted)
            self._plan_renewal(wanted)
            return self.proofs

    # --- as the slave of a pair --------------------------------------------------------------------------

    def follow(self, shared: Mapping[str, object]) -> None:
        """Have what the master has, and serve what the settings choose of it.

        Raises as `serve` and `adopt`."""
        with self.replacement.lock:
            adopt(self.store, shared)
            wanted = self._chosen()
            if wanted is not None and not self.serves_chosen():
                self.serve(wanted)

    def serves_chosen(self) -> bool:
        """Whether the newest certificate of the chosen source is served; True without one."""
        newest = self.store.state.newest.get(self._settings().certificates.source.value, "")
        return newest in ("", self.store.state.served)

    def _chosen(self) -> CertificateSet | None:
        return self.store.newest(self._settings().certificates.source)

    # --- inside -----------------------------------------------------------------------------------------

    def _adopt(self) -> CertificateSet | None:
        """The certificate that first boot made, or whoever set the box up put in its place."""
        chain = read_text(self.places.on_box(self.platform.paths["tls_certificate"]))
        key = read_text(self.places.on_box(self.platform.paths["tls_key"]))
        if not chain or not key:
            self._trouble = "this box has no certificate; run: centralino certificate renew"
            return None
        answer = self.ask(Verb.DESCRIBE, chain=chain)
        source = self._settings().certificates.source
        made = self.keep(source, {**answer, "chain": chain, "key": key})
        self.store.set_newest(source, made.name)
        self.store.begin(made.name)
        self.store.keep()
        return made

    def _key_type_fits(self, old: Settings | None, new: Settings) -> bool:
        """Only a wish that was changed makes a new key; first boot's may be of either kind."""
        if old is None or old.certificates.key_type is new.certificates.key_type:
            return True
        return old.certificates.source is not CertificateSource.SELF_SIGNED

    def _raise_expiry(self, served: CertificateSet) -> None:
        settings = self._settings().certificates
        reached = schedule.expiry_threshold(
            served.facts, served.source, settings.expiry_alarm_days, self.now()
        )
        for alarm in self._alarms.standing():
            if alarm.identifier.startswith(f"{EXPIRY_ALARM}-") and alarm.identifier != _expiry(reached):
                self._alarms.clear_alarm(alarm.identifier)
        if reached is not None:
            left = max(0, (served.facts.not_after - self.now()).days)
            ends = f"ends in {left} days, on {_day(served)}" if reached else f"expired on {_day(served)}"
            severity = Severity.WARNING if reached > URGENT_DAYS else Severity.CRITICAL
            trouble = self.store.state.renewal.trouble
            because = f"; the last renewal failed: {trouble}" if trouble else ""
            sentence = f"the {served.source} certificate {ends}{because}; {_GET[served.source]}"
            # One alarm for each threshold, so that each is told anew.
            self._alarms.raise_alarm(_expiry(reached), sentence, severity)
        missing = uncovered(served.facts.names, wanted_names(self._settings()))
        if missing:
            sentence = f"the certificate does not cover {', '.join(missing)}; {_GET[served.source]}"
            self._alarms.raise_alarm(NAMES_ALARM, sentence, Severity.WARNING)
        else:
            self._alarms.clear_alarm(NAMES_ALARM)

    def _plan_renewal(self, served: CertificateSet) -> None:
        if served.source not in schedule.AUTOMATIC or not self.plans_renewals():
            return
        renewal = self.store.state.renewal
        if renewal.of != served.name:
            chance = random.random()  # noqa: S311 - spreads load, hides nothing
            renewal = Renewal(of=served.name, due=schedule.due(served.facts, chance).isoformat())
        if uncovered(served.facts.names, wanted_names(self._settings())):
            renewal = replace(renewal, due=min(renewal.due, self.now().isoformat()))
        self.store.set_renewal(renewal)

    def _prove(self, served: CertificateSet) -> None:
        """Whether everyone still serves it: somebody may have restored old files, or a service its memory."""
        if not self.places.is_live:
            return
        proofs = tuple(self.replacement.prove(served))
        wrong = [f"{proof.consumer} {proof.trouble}" for proof in proofs if proof.trouble]
        if wrong and not self._doubted:
            # Perhaps a service that restarts or hangs just now, which is supervision's work: ask once more.
            log.info("asked again soon: %s", "; ".join(wrong))
            self._doubted = True
            return
        self._doubted = bool(wrong)
        with self.replacement.lock:
            if self.store.state.served != served.name or self.store.state.trial:
                return
            self.proofs = proofs
        if wrong:
            sentence = f"{'; '.join(wrong)}; restart that service, or see its journal"
            self._alarms.raise_alarm(SERVED_ALARM, sentence, Severity.WARNING)
        else:
            self._alarms.clear_alarm(SERVED_ALARM)

    def _watch(self) -> None:
        seconds = FIRST_LOOK_SECONDS
        while not self._stopped:
            woken = self._wake.wait(seconds)
            self._wake.clear()
            if self._stopped:
                return
            try:
                served = self.store.served()
                if self._doubted and not woken and served is not None:
                    self._prove(served)
                else:
                    self.look()
            except Exception:
                log.exception("the certificate could not be looked at; it is tried again")
            seconds = WATCH_SECONDS
            if self._doubted:
                seconds = TROUBLE_SECONDS if self._in_trouble() else DOUBT_SECONDS

    def _in_trouble(self) -> bool:
        return any(proof.trouble for proof in self.proofs)


_GET: Mapping[CertificateSource, str] = {
    CertificateSource.SELF_SIGNED: "make a new one with: centralino certificate renew",
    CertificateSource.UPLOADED: "upload one with: centralino certificate upload",
    CertificateSource.ACME: "get one with: centralino certificate acme enable",
    CertificateSource.EDGE: "the edge pushes it; until then use another source",
}


def _expiry(days: int | None) -> str:
    return "" if days is None else f"{EXPIRY_ALARM}-{days}"


def _day(found: CertificateSet) -> str:
    return f"{found.facts.not_after:%Y-%m-%d}"


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else []
