"""Replacing the served certificate: files, reloads, proof by handshake; or everything as it was.

The store first says which set is tried; only when every consumer that runs serves it, the store keeps it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daemon.alarms import Alarms
from daemon.certificates.consumers import Consumer, Copy
from daemon.certificates.handshake import Served, serve_all
from daemon.certificates.helper import Ask, Verb
from daemon.certificates.store import CertificateSet, Store
from daemon.errors import ApplyFailedError, CentralinoError, StorageError, UnavailableError
from daemon.files import ensure_directory, read_text, write_file
from daemon.subsystem import JsonObject

log = logging.getLogger(__name__)

ALARM = "certificate.replacement"
LOOPBACK = "127.0.0.1"
# A reload has ended when it returns, but nginx and coturn hand over to new workers a moment later.
PROOF_SECONDS = 2.5
PROOF_BEFORE_HARDER_SECONDS = 0.3


@dataclass(frozen=True)
class Proof:
    """What a consumer served last; `trouble` is "" if it is the certificate wanted, else a sentence."""

    consumer: str
    port: int
    serial: str
    trouble: str

    def as_json(self) -> JsonObject:
        """All fields."""
        return dict(vars(self))


class Replacement:
    """One replacement at a time. `find_consumers` is asked each time: configurations change."""

    def __init__(
        self,
        store: Store,
        alarms: Alarms,
        find_consumers: Callable[[], Sequence[Consumer]],
        ask: Ask,
        *,
        live: bool = True,
        proof_seconds: float = PROOF_SECONDS,
    ) -> None:
        self.lock = threading.RLock()
        self._store = store
        self._alarms = alarms
        self._consumers = find_consumers
        self._ask = ask
        self._live = live
        self._proof_seconds = proof_seconds

    def serve(self, wanted: CertificateSet) -> list[Proof]:
        """Serve a set of the store. Raises ApplyFailedError with the old certificate back in force (or the
        message, and an alarm, say that it is not), StorageError when nothing was changed."""
        with self.lock:
            begin = time.monotonic()
            old = self._store.served()
            found = self._consumers()
            self._store.begin(wanted.name)
            try:
                self._write(found, wanted)
                proofs = self._reload(found, wanted)
                self._refuse_unproven(proofs)
                self._store.keep()
            except CentralinoError as error:
                raise self._return(found, old, error) from error
            self._alarms.clear_alarm(ALARM)
            log.info(
                "certificate %s is served by %s, after %.1f s",
                wanted.facts.serial,
                ", ".join(proof.consumer for proof in proofs) or "nobody yet",
                time.monotonic() - begin,
            )
            return proofs

    def settle(self) -> None:
        """After a power loss in the middle of `serve`: go back. Raises ApplyFailedError, StorageError."""
        with self.lock:
            if not self._store.state.trial:
                return
            old = self._store.served()
            if old is not None:
                found = self._consumers()
                self._write(found, old)
                self._refuse_unproven(self._reload(found, old))
            self._store.give_up()

    def write_missing(self, wanted: CertificateSet) -> None:
        """Give files to consumers that have none yet, and tell nobody. Raises StorageError."""
        with self.lock:
            missing = [consumer for consumer in self._consumers() if not consumer.copy.chain.exists()]
            self._write(missing, wanted)

    def matches(self, wanted: CertificateSet) -> bool:
        """Whether the live files hold the set."""
        return all(_same(copy, wanted) for copy in _copies(self._consumers()))

    def prove(self, wanted: CertificateSet) -> list[Proof]:
        """Ask everyone that runs which certificate it serves; changes nothing."""
        running = [consumer for consumer in self._consumers() if self._live and consumer.running()]
        return self._proofs(running, wanted, PROOF_BEFORE_HARDER_SECONDS)

    # --- the steps ------------------------------------------------------------------------------------------

    def _write(self, found: Sequence[Consumer], wanted: CertificateSet) -> None:
        for copy in _copies(found):
            if not copy.chain.parent.is_dir():
                ensure_directory(copy.chain.parent)
            owner = None if copy.owner == "root" else copy.owner
            # The key first: whoever starts in between refuses the pair instead of serving a stranger's.
            write_file(copy.key, wanted.key, mode=0o600, owner=owner, group=owner)
            write_file(copy.chain, wanted.chain, mode=0o644)

    def _reload(self, found: Sequence[Consumer], wanted: CertificateSet) -> list[Proof]:
        """Let everyone that runs take the files; each way of reloading only for those that need it."""
        if not self._live:
            return []
        left = [consumer for consumer in found if consumer.running()]
        proofs: dict[str, Proof] = {}
        failed: dict[str, str] = {}
        for step in range(max((len(consumer.reloads) for consumer in left), default=0)):
            for consumer in left:
                if step < len(consumer.reloads):
                    failed.pop(consumer.service.value, None)
                    try:
                        consumer.reloads[step]()
                    except CentralinoError as error:
                        failed[consumer.service.value] = f"did not reload: {error.message}"
            harder = any(step + 1 < len(consumer.reloads) for consumer in left)
            asked = self._proofs(left, wanted, PROOF_BEFORE_HARDER_SECONDS if harder else self._proof_seconds)
            for proof in asked:
                trouble = proof.trouble and failed.get(proof.consumer, proof.trouble)
                proofs[proof.consumer] = Proof(proof.consumer, proof.port, proof.serial, trouble)
            left = [consumer for consumer in left if proofs[consumer.service.value].trouble]
        # Whoever was asked briefly while another needed a harder way gets its full time now.
        for proof in self._proofs(left, wanted, self._proof_seconds) if left else ():
            if not proof.trouble:
                proofs[proof.consumer] = proof
        return list(proofs.values())

    def _proofs(self, asked: Sequence[Consumer], wanted: CertificateSet, seconds: float) -> list[Proof]:
        targets = [
            (consumer.service.value, LOOPBACK, consumer.port)
            for consumer in asked
            if consumer.port is not None
        ]
        return [
            self._proof(served, wanted) for served in serve_all(targets, wanted.facts.fingerprint, seconds)
        ]

    def _proof(self, served: Served, wanted: CertificateSet) -> Proof:
        if served.trouble:
            trouble = f"cannot be asked on port {served.port}: {served.trouble}"
            return Proof(served.name, served.port, "", trouble)
        if served.fingerprint == wanted.facts.fingerprint:
            return Proof(served.name, served.port, wanted.facts.serial, "")
        try:
            serial = str(self._ask(Verb.DESCRIBE, chain=served.certificate)["facts"]["serial"])
        except UnavailableError:
            serial = "of another kind"
        trouble = f"still serves certificate {serial} on port {served.port}"
        return Proof(served.name, served.port, serial, trouble)

    def _refuse_unproven(self, proofs: Sequence[Proof]) -> None:
        wrong = [f"{proof.consumer} {proof.trouble}" for proof in proofs if proof.trouble]
        if wrong:
            raise ApplyFailedError("; ".join(wrong), "see the journal of that service")

    def _return(
        self, found: Sequence[Consumer], old: CertificateSet | None, error: CentralinoError
    ) -> CentralinoError:
        """Put the old certificate back, raise the alarm, and say how both went."""
        reason = f"the new certificate could not be put in force: {error.message}"
        ending, remedy = "the old one is back", error.remedy
        try:
            if old is None:
                ending = "there is no old one to go back to"
            else:
                self._write(found, old)
                self._refuse_unproven(self._reload(found, old))
            self._store.give_up()
        except CentralinoError as second:
            log.exception("the old certificate could not be put back")
            ending = f"and the old one could not be put back: {second.message}"
            remedy = "free the disk or repair the service, then restart centralinod"
        with contextlib.suppress(StorageError):
            self._store.prune()
        self._alarms.raise_alarm(ALARM, f"{reason}; {ending}; {remedy}")
        return ApplyFailedError(f"{reason}; {ending}", remedy)


def _copies(found: Sequence[Consumer]) -> list[Copy]:
    """Each once; two consumers may read the same files."""
    return list(dict.fromkeys(consumer.copy for consumer in found))


def _same(copy: Copy, wanted: CertificateSet) -> bool:
    try:
        return read_text(copy.chain) == wanted.chain and read_text(copy.key) == wanted.key
    except StorageError:
        return False
