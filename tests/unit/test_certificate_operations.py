"""What an admin does with certificates, by the real engine and helper, below a root directory of its own."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certificate_authority import PrivateAuthority
from certificate_helper import ask_here

from daemon.alarms import Alarms
from daemon.audit import AuditLog
from daemon.authorization import Caller, method_of
from daemon.bus_certificates import certificate_handlers
from daemon.certificates.helper import Answer, Verb
from daemon.certificates.operations import (
    AcmeWishes,
    Operations,
    OrderFailedError,
    Upload,
    encoded_roots,
    orders_barred,
    pem_of,
)
from daemon.certificates.replacement import Proof
from daemon.certificates.shared import export
from daemon.certificates.subsystem import Certificates
from daemon.clock import Clock
from daemon.engine import Engine
from daemon.errors import ConflictError, InvalidSettingsError, NotFoundError, UnavailableError
from daemon.jobs import Jobs
from daemon.places import Places
from daemon.platform import Platform
from daemon.services.model import Role
from daemon.settings import Settings
from daemon.settings.messages import Severity
from daemon.settings.reach import CertificateSource
from daemon.settings.revisions import RevisionStore

NAME = "pbx.example.com"
ADMIN = Caller(":1.1", 0, "admin", frozenset())
PATHS = {
    "asterisk_config": "/etc/asterisk",
    "asterisk_binary": "/usr/sbin/asterisk",
    "tls_certificate": "/etc/tls/box.crt",
    "tls_key": "/etc/tls/box.key",
    "coturn_config": "/etc/turnserver.conf",
    "ca_bundle": "/etc/ssl/roots.pem",
    "web_root": "/var/www",
}
UNITS = {"nginx": "nginx.service", "asterisk": "asterisk.service", "coturn": "coturn.service"}


def silent(_fraction: float | None, _message: str) -> None:
    return


class Box:
    """A box below a root directory, without services. `orders` answers for ACME services."""

    def __init__(self, root: Path) -> None:
        self.places = Places(root)
        for name in (
            "etc/tls",
            "etc/asterisk/keys",
            "etc/ssl",
            "var/www",
            "var/lib/centralino",
            "run/centralino",
        ):
            (root / name).mkdir(parents=True)
        self.authority = PrivateAuthority()
        (root / "etc/ssl/roots.pem").write_text(self.authority.root)
        first = ask_here(Verb.SELF_SIGNED, names=["node1"], key_type="ec-p256")
        self.first = first["facts"]["serial"]
        for path, text in (("box.crt", first["chain"]), ("box.key", first["key"])):
            (root / "etc/tls" / path).write_text(text)
            (root / "etc/asterisk/keys" / path).write_text(text)
        self.platform = Platform(
            "test",
            "1",
            UNITS,
            {name: Path(path) for name, path in PATHS.items()},
            {"asterisk": "root", "coturn": "root", "nginx": "root"},
        )
        self.now = datetime.now(UTC)
        self.orders: Callable[..., Answer] | None = None
        self.asked: list[Verb] = []
        self.barred: str | None = None
        self.start()

    def start(self) -> None:
        """As the daemon does it."""
        self.alarms = Alarms(self.places.state / "alarms.json")
        self.certificates = Certificates(
            self.places,
            self.platform,
            lambda: self.engine.settings,
            self.alarms,
            ask=self.ask,
            now=lambda: self.now,
        )
        store = RevisionStore(self.places.revisions, lambda: (Settings(), "first start", None))
        self.engine = Engine(store, [self.certificates], clock=Clock(self.places.boot_marker))
        self.operations = Operations(self.certificates, self.engine, self.alarms, barred=lambda: self.barred)
        self.certificates.prepare()
        self.engine.start()

    def ask(self, verb: Verb, **values: object) -> Answer:
        self.asked.append(verb)
        if verb in (Verb.ACME_CONDITIONS, Verb.ACME_ORDER, Verb.ACME_RENEWAL) and self.orders is not None:
            return self.orders(verb, **values)
        return ask_here(verb, **values)  # type: ignore[arg-type]

    def set(self, section: str, **values: object) -> None:
        document = self.engine.document(0)
        document[section] |= values  # type: ignore[operator]
        self.engine.apply(json.dumps(document))

    def served(self) -> str:
        """The serial of what lies in the live files; key and certificate must be a pair everywhere."""
        chains = {
            (self.places.root / path).read_text()
            for path in ("etc/tls/box.crt", "etc/asterisk/keys/box.crt", "etc/tls/coturn/box.crt")
        }
        (chain,) = chains
        key = (self.places.root / "etc/tls/box.key").read_text()
        texts = [base64.b64encode(text.encode()).decode() for text in (chain, key, self.authority.root)]
        answer = ask_here(
            Verb.JUDGE, files=texts, password=None, pending_key=None, names=[], roots="/dev/null"
        )
        assert not [one for one in answer["problems"] if one["path"] == "certificate.wrong-pair"]
        return str(ask_here(Verb.DESCRIBE, chain=chain)["facts"]["serial"])

    def upload(self, *texts: str, password: str | None = None) -> str:
        result = self.operations.upload(upload(*texts, password=password), "", "admin", silent)
        return str(result["certificate"]["serial"])  # type: ignore[index]

    def standing(self) -> list[str]:
        return [alarm.identifier for alarm in self.alarms.standing()]


def upload(*texts: str, password: str | None = None) -> Upload:
    return Upload(tuple(base64.b64encode(text.encode()).decode() for text in texts), password)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_the_certificate_of_first_boot_is_known_from_the_start(box: Box) -> None:
    state = box.certificates.observe()
    assert state.healthy
    assert state.facts["serial"] == box.first
    assert state.facts["source"] == "self-signed"
    assert box.served() == box.first, "coturn got its copy too"
    assert list(box.engine.propose(json.dumps(box.engine.document(0))).changes) == []


def test_an_upload_is_served_recorded_and_goes_back(box: Box) -> None:
    box.set("domain", fqdn=NAME)
    made_here = box.served()
    certificate, key = box.authority.issue([NAME])
    serial = box.upload(key, certificate)
    assert box.served() == serial
    assert box.engine.settings.certificates.source is CertificateSource.UPLOADED
    assert "uploaded certificate" in box.engine.history(1)[0].comment
    second = box.upload(*reversed(box.authority.issue([NAME])))
    assert box.served() == second
    box.operations.rollback("", "admin", silent)
    assert box.served() == serial
    box.set("certificates", source="self-signed")
    assert box.served() == made_here
    box.set("certificates", source="uploaded")
    assert box.served() == serial


def test_a_refused_upload_changes_nothing_and_names_every_fault(box: Box) -> None:
    box.set("domain", fqdn=NAME)
    before = box.served()
    certificate, key = box.authority.issue(["other.example.com"], days=10, age_days=30)
    with pytest.raises(InvalidSettingsError) as refused:
        box.upload(certificate, key)
    assert {problem.path for problem in refused.value.problems} == {
        "certificate.expired",
        "certificate.name-missing",
    }
    assert box.served() == before
    assert not box.operations.check(upload(certificate, key))["accepted"]


def test_a_request_its_answer_and_nothing_of_the_key_outside(box: Box) -> None:
    with pytest.raises(InvalidSettingsError, match="no domain is set"):
        box.operations.request({}, [], "")
    box.set("domain", fqdn=NAME)
    made = box.operations.request({"organisation": "Example"}, ["www.example.com"], "")
    assert made["names"] == [NAME, "www.example.com"]
    assert set(made) == {"request", "names"}
    assert box.operations.show()["pending_request"] == made["request"]
    serial = box.upload(box.authority.answer(str(made["request"])))
    assert box.served() == serial
    assert box.operations.show()["pending_request"] is None


def test_a_source_without_certificate_is_refused(box: Box) -> None:
    box.set("domain", fqdn=NAME)
    before = box.served()
    for source in ("uploaded", "acme", "edge"):
        with pytest.raises(InvalidSettingsError, match=f"there is no {source} certificate yet"):
            box.set("certificates", source=source)
    assert box.served() == before


def test_a_new_domain_makes_a_new_self_signed_certificate(box: Box) -> None:
    box.set("domain", fqdn=NAME)
    facts = box.certificates.observe().facts
    assert facts["serial"] != box.first
    assert NAME in facts["names"]  # type: ignore[operator]
    assert box.served() == facts["serial"]


def test_a_new_domain_that_the_upload_does_not_cover_is_a_warning_and_an_alarm(box: Box) -> None:
    box.upload(*box.authority.issue([NAME]))
    document = box.engine.document(0)
    document["domain"] |= {"fqdn": "new.example.com"}  # type: ignore[operator]
    problems = box.engine.propose(json.dumps(document)).problems
    assert [problem.message for problem in problems] == ["the certificate does not cover new.example.com"]
    assert not problems[0].fatal
    box.set("domain", fqdn="new.example.com")
    box.certificates.look()
    assert "certificate.names" in box.standing()
    box.upload(*box.authority.issue(["new.example.com"]))
    box.certificates.look()
    assert "certificate.names" not in box.standing()


def test_expiry_alarms_at_each_threshold_each_told_anew(box: Box) -> None:
    box.upload(*box.authority.issue([NAME], days=100, age_days=0))
    told: list[str] = []
    box.alarms.listen(lambda alarm, raised: told.append(alarm.identifier) if raised else None)
    begin = box.now
    for day in range(103):
        box.now = begin + timedelta(days=day, minutes=1)
        box.certificates.look()
    assert told == [f"certificate.expiry-{days}" for days in (30, 14, 7, 1, 0)]
    (alarm,) = box.alarms.standing()
    assert alarm.severity is Severity.CRITICAL
    assert "expired on" in alarm.sentence
    box.now = begin
    box.upload(*box.authority.issue([NAME]))
    assert box.standing() == []


def test_a_self_signed_certificate_is_renewed_at_two_thirds_of_its_life(box: Box) -> None:
    renewed: list[int] = []
    box.certificates.renew = lambda: renewed.append(1)
    box.certificates.look()
    assert not renewed
    box.now += timedelta(days=365 * 10 * 0.6)
    box.certificates.look()
    assert not renewed
    box.now += timedelta(days=365 * 10 * 0.07)
    box.certificates.look()
    assert renewed
    assert box.operations.renew_if_due(silent)["renewed"]
    assert box.served() != box.first


def test_hand_edited_files_are_drift(box: Box) -> None:
    (box.places.root / "etc/asterisk/keys/box.crt").write_text("something else")
    (drift,) = box.certificates.observe().drift
    assert "not those that were put there" in drift


def test_an_uploaded_certificate_cannot_be_renewed_here(box: Box) -> None:
    box.upload(*box.authority.issue([NAME]))
    with pytest.raises(UnavailableError, match="cannot be renewed by this box"):
        box.operations.renew("admin", silent)


def test_there_is_nothing_to_go_back_to(box: Box) -> None:
    with pytest.raises(NotFoundError, match="no certificate from before"):
        box.operations.rollback("", "admin", silent)


def test_an_expired_one_is_nothing_to_go_back_to(box: Box) -> None:
    box.upload(*box.authority.issue([NAME], days=10))
    box.upload(*box.authority.issue([NAME], days=90))
    box.now += timedelta(days=20)
    with pytest.raises(ConflictError, match="the certificate from before expired"):
        box.operations.rollback("", "admin", silent)


# --- automatic certificates, with a service that the test plays (Pebble is in tests/lab) ------------------


class PlayedService:
    """Answers for the helper: conditions hold, orders give a certificate or fail."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.problems: list[dict[str, object]] = []
        self.error: dict[str, object] | None = None
        self.suggested: str | None = None
        self.requests: list[dict[str, object]] = []

    def __call__(self, verb: Verb, **values: object) -> Answer:
        self.requests.append(values)
        if verb is Verb.ACME_CONDITIONS:
            return {"problems": self.problems}
        if verb is Verb.ACME_RENEWAL:
            return {"suggested": self.suggested, "ask_again": ""}
        if self.error is not None:
            return {"order_error": self.error}
        ahead = (self.box.now - datetime.now(UTC)) / timedelta(days=1)
        chain, key = self.box.authority.issue([NAME], days=90, age_days=-ahead)
        facts = ask_here(Verb.DESCRIBE, chain=chain)["facts"]
        return {"chain": chain, "key": key, "facts": facts, "account": '{"key": "secret"}'}


@pytest.fixture
def service(box: Box) -> PlayedService:
    box.set("domain", fqdn=NAME)
    played = PlayedService(box)
    box.orders = played
    return played


LIMIT = {"fault": "rate-limited", "message": "too many", "remedy": "wait"}


def enable(box: Box, **wishes: object) -> None:
    given = AcmeWishes(terms_accepted=True, **wishes)  # type: ignore[arg-type]
    box.operations.enable_acme(given, "", "admin", silent)


def test_automatic_certificates_are_enabled_kept_and_renewed(box: Box, service: PlayedService) -> None:
    roots = encoded_roots(box.authority.root)
    enable(box, contact="a@example.com", directory="https://acme.example/dir", directory_roots=roots)
    section = box.engine.settings.certificates
    assert (section.source, section.acme.directory) == (CertificateSource.ACME, "https://acme.example/dir")
    assert service.requests[-1]["roots"] == pem_of(roots) == box.authority.root
    assert service.requests[-1]["account"] is None
    first = box.served()
    due = datetime.fromisoformat(box.certificates.store.state.renewal.due)
    assert timedelta(days=56) < due - box.now <= timedelta(days=60)
    box.now += timedelta(days=61)
    assert box.operations.renew_if_due(silent)["renewed"] is True
    assert service.requests[-1]["account"] == '{"key": "secret"}', "the account is kept"
    assert box.served() != first
    assert box.operations.renew_if_due(silent)["renewed"] is False


def test_conditions_that_fail_refuse_and_change_nothing(box: Box, service: PlayedService) -> None:
    before = box.served()
    service.problems = [
        {"path": "acme.mode", "message": "no", "remedy": "do", "fatal": True},
        {"path": "acme.port-80-unseen", "message": "perhaps", "remedy": "do", "fatal": False},
    ]
    with pytest.raises(InvalidSettingsError) as refused:
        enable(box)
    assert [problem.path for problem in refused.value.problems] == ["acme.mode"]
    assert Verb.ACME_ORDER not in box.asked
    assert box.served() == before
    assert box.engine.settings.certificates.source is CertificateSource.SELF_SIGNED


def test_a_failed_order_changes_nothing(box: Box, service: PlayedService) -> None:
    before, revision = box.served(), box.engine.revision
    service.error = {**LIMIT, "retry_after": None}
    with pytest.raises(OrderFailedError, match="too many; wait"):
        enable(box)
    assert (box.served(), box.engine.revision) == (before, revision)


def test_a_failed_renewal_alarms_waits_and_ends(box: Box, service: PlayedService) -> None:
    enable(box)
    box.now += timedelta(days=61)
    until = box.now + timedelta(days=2)
    service.error = {**LIMIT, "retry_after": until.isoformat()}
    with pytest.raises(OrderFailedError):
        box.operations.renew_if_due(silent)
    assert "certificate.renewal" in box.standing()
    asked = len(service.requests)
    box.now = until - timedelta(minutes=1)
    assert box.operations.renew_if_due(silent)["renewed"] is False
    assert len(service.requests) == asked, "nothing is asked before the service allows it"
    service.error = None
    box.now = until
    assert box.operations.renew_if_due(silent)["renewed"] is True
    assert "certificate.renewal" not in box.standing()
    assert box.certificates.store.state.renewal.failures == 0


def test_pauses_outlive_a_restart(box: Box, service: PlayedService) -> None:
    enable(box)
    box.now += timedelta(days=61)
    service.error = {**LIMIT, "retry_after": None}
    with pytest.raises(OrderFailedError):
        box.operations.renew_if_due(silent)
    box.start()
    assert box.operations.renew_if_due(silent)["renewed"] is False


def test_only_the_node_that_serves_orders() -> None:
    barred = {role for role in Role if orders_barred(role) is not None}
    assert barred == {Role.SLAVE, Role.OFF}


def test_a_slave_orders_nothing(box: Box, service: PlayedService) -> None:
    enable(box)
    box.barred = "it is a slave"
    box.now += timedelta(days=61)
    assert box.operations.renew_if_due(silent)["renewed"] is False
    with pytest.raises(ConflictError, match="it is a slave"):
        enable(box)


def test_the_slave_has_what_its_master_has_and_goes_on_renewing_it(
    tmp_path: Path, service: PlayedService, box: Box
) -> None:
    """Keys, account, plan and waiting request travel; the new master orders with the old one's account."""
    box.set("domain", fqdn=NAME)
    box.operations.request({}, [], "")
    box.operations.enable_acme(AcmeWishes(terms_accepted=True), "", "admin", silent)
    slave = Box(tmp_path / "slave")
    slave.orders, slave.barred = box.orders, "its role is slave"
    given = json.loads(json.dumps(export(box.certificates.store)))
    with slave.certificates.replacement.lock:
        slave.certificates.follow(given)
    slave.set("domain", fqdn=NAME)
    slave.set("certificates", **box.engine.document(0)["certificates"])  # type: ignore[arg-type]
    assert slave.served() == box.served()
    assert export(slave.certificates.store) == given
    assert slave.certificates.store.pending_key() == box.certificates.store.pending_key()
    for file in (slave.places.state / "certificates").rglob("*"):
        assert file.stat().st_mode & 0o777 == (0o700 if file.is_dir() else 0o600), file
    # A slave neither plans nor orders, also when the time has come.
    slave.now = datetime.now(UTC) + timedelta(days=80)
    slave.certificates.look()
    assert export(slave.certificates.store) == given
    assert slave.operations.renew_if_due(silent) == {"renewed": False}
    account = slave.certificates.store.accounts()
    slave.barred = None
    assert slave.operations.renew_if_due(silent)["renewed"] is True
    assert service.requests[-1]["account"] == '{"key": "secret"}'
    assert slave.certificates.store.accounts().keys() == account.keys()


def test_only_what_has_proven_itself_here_goes_to_the_slave(box: Box) -> None:
    box.set("domain", fqdn=NAME)
    box.upload(*reversed(box.authority.issue([NAME])))
    before = export(box.certificates.store)
    chain, key = box.authority.issue([NAME])
    facts = ask_here(Verb.DESCRIBE, chain=chain)["facts"]
    made = box.certificates.keep(CertificateSource.UPLOADED, {"chain": chain, "key": key, "facts": facts})
    box.certificates.store.set_newest(CertificateSource.UPLOADED, made.name)
    assert export(box.certificates.store) == before
    box.certificates.store.begin(made.name)
    with pytest.raises(UnavailableError):
        export(box.certificates.store)
    box.certificates.store.keep()
    assert export(box.certificates.store) != before


def test_damaged_material_of_the_peer_changes_nothing(tmp_path: Path, box: Box) -> None:
    slave = Box(tmp_path / "slave")
    before = export(slave.certificates.store)
    given = export(box.certificates.store)
    (row,) = dict(given["sets"]).values()  # type: ignore[call-overload]
    damages: tuple[dict[str, object], ...] = (
        {"sets": {"moon": row}},
        {"sets": {"acme": {**row, "facts": {**row["facts"], "fingerprint": "../../x"}}}},
        {"sets": []},
        {"accounts": {"../../x.json": "{}"}},
        {"renewal": {"of": "", "strange": ""}},
    )
    for damage in damages:
        with pytest.raises((ValueError, KeyError, TypeError)):
            slave.certificates.follow({**given, **damage})
        assert export(slave.certificates.store) == before
    assert slave.served() == slave.first


def test_the_service_may_ask_for_an_early_renewal(box: Box, service: PlayedService) -> None:
    box.operations.attach(Jobs(), "certificates")
    enable(box)
    service.suggested = (box.now - timedelta(hours=1)).isoformat()
    box.certificates.renew = lambda: None
    box.certificates.look()
    renewal = box.certificates.store.state.renewal
    assert renewal.due == service.suggested
    asked = box.asked.count(Verb.ACME_RENEWAL)
    box.certificates.look()
    assert box.asked.count(Verb.ACME_RENEWAL) == asked, "once in a while is enough"


def test_a_new_domain_makes_the_renewal_due_at_once(box: Box, service: PlayedService) -> None:
    enable(box)
    renewed: list[int] = []
    box.certificates.renew = lambda: renewed.append(1)
    box.set("domain", fqdn="new.example.com")
    box.certificates.look()
    assert renewed


# --- the bus ----------------------------------------------------------------------------------------------


def test_the_bus_records_no_material_and_refuses_nonsense(box: Box) -> None:
    jobs, audit = Jobs(), AuditLog(box.places.state / "audit.jsonl")
    methods = {
        name.rpartition(".")[2]: method
        for name, method in certificate_handlers(box.operations, jobs, audit).items()
    }
    certificate, key = box.authority.issue([NAME])
    material = json.dumps({"files": list(upload(certificate, key).files), "password": "sesame"})
    note = method_of(methods["Upload"])
    assert note is not None
    assert note.summary(material, '{"comment": "new"}') == {"comment": "new"}
    for wrong in ("", "[]", "{}", '{"files": []}', '{"files": ["%%%"]}', '{"files": 1}', "[" * 100_000):
        with pytest.raises(InvalidSettingsError):
            methods["Check"](ADMIN, wrong)
    for options in ("x", '{"what": 1}', '{"dry_run": "yes"}'):
        with pytest.raises(InvalidSettingsError):
            methods["Upload"](ADMIN, material, options)
    dry = json.loads(str(methods["Upload"](ADMIN, material, '{"dry_run": true}')))
    assert dry["accepted"]
    assert "key" not in dry
    assert box.served() == box.first
    identifier = str(methods["Upload"](ADMIN, material, "{}"))
    assert jobs.wait(20)
    assert box.served() == json.loads(json.dumps(jobs.get(identifier).result))["certificate"]["serial"]
    (entry,) = audit.entries(10)
    assert (entry["method"], entry["outcome"]) == ("Certificates1.Upload", "done")
    assert entry["arguments"] == {"job": identifier, "certificate": box.served()}
    shown = str(methods["Show"](ADMIN))
    assert "PRIVATE KEY" not in shown
    assert box.served() in shown


def test_an_edge_may_push_nothing_where_none_is_configured(box: Box) -> None:
    methods = certificate_handlers(box.operations, Jobs())
    with pytest.raises(UnavailableError, match="no edge is configured"):
        methods["org.centralino.Certificates1.Push"](ADMIN, "{}")


def test_without_a_platform_the_methods_say_so() -> None:
    methods = certificate_handlers(None, Jobs())
    with pytest.raises(UnavailableError, match="not managed here"):
        methods["org.centralino.Certificates1.Show"](ADMIN)


def test_a_service_that_hangs_for_a_moment_raises_no_alarm(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Proof("nginx", 443, "", "cannot be asked on port 443")
    well = Proof("nginx", 443, box.first, "")
    answers: list[Proof] = []
    monkeypatch.setattr(Places, "is_live", True)
    monkeypatch.setattr(box.certificates.replacement, "prove", lambda served: [answers.pop(0)])

    def looked(answer: Proof) -> tuple[bool, bool]:
        answers.append(answer)
        box.certificates.look()
        return "certificate.served" in box.standing(), box.certificates.observe().healthy

    assert looked(away) == (False, True)
    assert looked(well) == (False, True)
    assert looked(away) == (False, True)
    assert looked(away) == (True, False)
    assert looked(well) == (False, True)
