"""Replacing the served certificate, with real files, real TLS servers and the real helper process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from certificate_authority import PrivateAuthority
from certificate_helper import ask_here
from certificate_servers import TlsServer

from daemon import faults
from daemon.alarms import Alarms
from daemon.certificates.consumers import Consumer, Copy, Service
from daemon.certificates.handshake import ask
from daemon.certificates.helper import Verb
from daemon.certificates.replacement import ALARM, Replacement
from daemon.certificates.store import CertificateSet, Store
from daemon.errors import ApplyFailedError, CentralinoError, StorageError
from daemon.settings.reach import CertificateSource


class RunningConsumer(Consumer):
    """A consumer whose unit always runs."""

    def running(self) -> bool:
        return self.port is not None


class Box:
    """Two consumers, a store, and what an authority issues."""

    def __init__(self, directory: Path) -> None:
        self.authority = PrivateAuthority()
        self.store = Store(directory / "store")
        self.alarms = Alarms(directory / "alarms.json")
        self.first = self.issue()
        self.copies = [
            Copy(directory / name / "box.crt", directory / name / "box.key", "root")
            for name in ("web", "sip")
        ]
        for copy in self.copies:
            copy.chain.parent.mkdir()
            copy.chain.write_text(self.first.chain)
            copy.key.write_text(self.first.key)
        self.servers = [TlsServer(copy.chain, copy.key) for copy in self.copies]
        self.asked: list[str] = []
        self.consumers = [
            self._consumer(Service.WEB, 0, self._reload("web", 0)),
            self._consumer(Service.SIP, 1, self._reload("gently", 1), self._reload("harder", 1)),
        ]
        self.harder_helps = False
        self.replacement = self.replaces(self.store)
        self.store.set_newest(self.first.source, self.first.name)
        self.store.begin(self.first.name)
        self.store.keep()

    def replaces(self, store: Store) -> Replacement:
        return Replacement(store, self.alarms, lambda: self.consumers, ask_here, proof_seconds=0.2)

    def issue(self) -> CertificateSet:
        chain, key = self.authority.issue(["pbx.example.com"])
        answer = ask_here(Verb.DESCRIBE, chain=chain)
        from daemon.certificates.facts import Facts

        return self.store.add(CertificateSource.UPLOADED, Facts.from_json(answer["facts"]), chain, key)

    def _consumer(self, service: Service, number: int, *reloads: object) -> RunningConsumer:
        port = self.servers[number].port
        return RunningConsumer(service, service.value, "unit", port, self.copies[number], reloads)  # type: ignore[arg-type]

    def _reload(self, how: str, number: int) -> object:
        def reload() -> None:
            self.asked.append(how)
            if how == "harder" and self.harder_helps:
                self.servers[number].deaf = False
            self.servers[number].reload()

        return reload

    def serials(self) -> list[str]:
        found = [ask("server", "127.0.0.1", server.port) for server in self.servers]
        return [ask_here(Verb.DESCRIBE, chain=served.certificate)["facts"]["serial"] for served in found]

    def files(self) -> set[str]:
        return {copy.chain.read_text() for copy in self.copies} | {
            copy.key.read_text() for copy in self.copies
        }


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    for server in made.servers:
        server.close()


def test_everyone_serves_the_new_certificate_and_the_old_one_is_kept(box: Box) -> None:
    assert box.serials() == [box.first.facts.serial] * 2
    second = box.issue()
    proofs = box.replacement.serve(second)
    assert [(proof.consumer, proof.serial, proof.trouble) for proof in proofs] == [
        ("nginx", second.facts.serial, ""),
        ("asterisk-tls", second.facts.serial, ""),
    ]
    assert box.serials() == [second.facts.serial] * 2
    assert box.store.served() == second
    assert box.store.get(box.store.state.previous) == box.first
    assert box.asked == ["web", "gently"], "the harder way is for those that need it"
    assert all(copy.key.stat().st_mode & 0o777 == 0o600 for copy in box.copies)
    assert box.alarms.standing() == ()


def test_who_ignores_the_gentle_reload_is_asked_harder(box: Box) -> None:
    box.servers[1].deaf = True
    box.harder_helps = True
    second = box.issue()
    box.replacement.serve(second)
    assert box.asked == ["web", "gently", "harder"]
    assert box.serials() == [second.facts.serial] * 2


def test_if_one_keeps_the_old_certificate_all_return_to_it_and_an_alarm_is_raised(box: Box) -> None:
    box.servers[1].deaf = True
    second = box.issue()
    with pytest.raises(ApplyFailedError) as refused:
        box.replacement.serve(second)
    assert "asterisk-tls still serves certificate " + box.first.facts.serial in refused.value.message
    assert refused.value.message.endswith("the old one is back")
    assert box.serials() == [box.first.facts.serial] * 2
    assert box.files() == {box.first.chain, box.first.key}
    assert box.store.served() == box.first
    assert box.store.state.trial == ""
    assert box.store.get(second.name) is None, "the key of a certificate that failed stays nowhere"
    (alarm,) = box.alarms.standing()
    assert alarm.identifier == ALARM
    assert "the old one is back" in alarm.sentence
    box.servers[1].deaf = False
    box.replacement.serve(box.issue())
    assert box.alarms.standing() == ()


def test_a_consumer_that_fails_to_reload_says_so(box: Box) -> None:
    def broken() -> None:
        raise CentralinoError("the configuration is broken")

    port, copy = box.servers[0].port, box.copies[0]
    box.consumers[0] = RunningConsumer(Service.WEB, "web", "unit", port, copy, (broken,))
    with pytest.raises(ApplyFailedError, match="nginx did not reload: the configuration is broken"):
        box.replacement.serve(box.issue())


def test_a_consumer_that_is_away_is_named(box: Box) -> None:
    box.servers[0].close()
    with pytest.raises(ApplyFailedError, match=r"nginx cannot be asked on port \d+: connection refused"):
        box.replacement.serve(box.issue())
    (alarm,) = box.alarms.standing()
    assert "could not be put back" in alarm.sentence, "the old certificate is not proven either"


def test_those_that_do_not_run_get_their_files_alone(box: Box) -> None:
    box.consumers[1] = RunningConsumer(Service.SIP, "sip", "unit", None, box.copies[1], ())
    second = box.issue()
    assert [proof.consumer for proof in box.replacement.serve(second)] == ["nginx"]
    assert box.copies[1].chain.read_text() == second.chain


POWER_LOSSES = ["file:box.key:written", "file:box.key:done", "file:box.crt:renamed", "file:box.crt:done"]


@pytest.mark.parametrize("point", POWER_LOSSES)
def test_a_power_loss_in_the_middle_returns_to_the_old_certificate(box: Box, point: str) -> None:
    class PowerLoss(BaseException):
        pass

    second = box.issue()

    def strike(reached: str) -> None:
        if reached == point:
            raise PowerLoss

    faults.install(strike)
    try:
        with pytest.raises(PowerLoss):
            box.replacement.serve(second)
    finally:
        faults.install(None)
    store = Store(box.store.directory)
    assert store.state.trial == second.name
    box.replaces(store).settle()
    assert box.files() == {box.first.chain, box.first.key}
    assert box.serials() == [box.first.facts.serial] * 2
    assert Store(box.store.directory).state.trial == ""


def test_a_full_disk_changes_nothing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    second = box.issue()

    def full(*_arguments: object, **_options: object) -> None:
        raise StorageError("the disk is full", "free space")

    monkeypatch.setattr("daemon.certificates.store.write_file", full)
    with pytest.raises(StorageError):
        box.replacement.serve(second)
    assert box.files() == {box.first.chain, box.first.key}
