"""The certificates of the box on disk: one set per fingerprint, which source has which, which is served.

    /var/lib/centralino/certificates/          0700
        sets/FINGERPRINT/{chain.pem,key.pem,set.json}
        state.json                             what is newest of each source, what is served, what was before
        pending/{key.pem,request.pem}          a request whose answer has not come yet
        accounts/DIGEST.json                   accounts at certificate services, with their keys

A set is written whole before the state names it, and the state is replaced atomically: a power loss leaves
the old state or the new one. Sets that the state does not name are removed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from daemon.certificates.facts import Facts
from daemon.errors import StorageError
from daemon.files import ensure_directory, read_text, remove_file, write_file
from daemon.settings.reach import CertificateSource

log = logging.getLogger(__name__)

NAME_LENGTH = 32
_ACCOUNT = re.compile(rf"[0-9a-f]{{{NAME_LENGTH}}}\.json")


@dataclass(frozen=True)
class CertificateSet:
    """One certificate with chain and key, in PEM."""

    name: str
    source: CertificateSource
    facts: Facts
    chain: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class Renewal:
    """When an automatic certificate is renewed. Times are ISO 8601, "" if there is none.

    `of` is the set that all this is about, `due` the planned moment, `not_before` the end of a pause after
    `failures` failed tries, `ask_again`
    when the service is asked for its own wish, `trouble` the last failure as a sentence.
    """

    of: str = ""
    due: str = ""
    not_before: str = ""
    ask_again: str = ""
    failures: int = 0
    trouble: str = ""


@dataclass(frozen=True)
class StoreState:
    """Names of sets, "" if there is none. `trial` is the set that is being tried in place of `served`."""

    served: str = ""
    previous: str = ""
    trial: str = ""
    newest: Mapping[str, str] = field(default_factory=dict)
    renewal: Renewal = Renewal()

    def named(self) -> set[str]:
        """Every set that must be kept."""
        return {self.served, self.previous, self.trial, *self.newest.values()} - {""}


class Store:
    """Reads and writes the directory; not thread-safe, its user holds a lock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = self._read_state()

    # --- sets -------------------------------------------------------------------------------------------

    def add(self, source: CertificateSource, facts: Facts, chain: str, key: str) -> CertificateSet:
        """Keep a set; the state does not name it yet. Raises StorageError."""
        made = CertificateSet(facts.fingerprint[:NAME_LENGTH], source, facts, chain, key)
        directory = self._set_directory(made.name)
        ensure_directory(self.directory, 0o700)
        ensure_directory(directory.parent, 0o700)
        ensure_directory(directory, 0o700)
        write_file(directory / "key.pem", key, mode=0o600)
        write_file(directory / "chain.pem", chain, mode=0o600)
        table = {"source": source.value, "facts": facts.as_json()}
        write_file(directory / "set.json", json.dumps(table, indent=1) + "\n", mode=0o600)
        return made

    def get(self, name: str) -> CertificateSet | None:
        """A set, None if it is not there or damaged (which is logged)."""
        if not name:
            return None
        directory = self._set_directory(name)
        try:
            texts = [read_text(directory / file) for file in ("set.json", "chain.pem", "key.pem")]
            if None in texts:
                return None
            table = json.loads(texts[0] or "")
            facts = Facts.from_json(table["facts"])
            source = CertificateSource(table["source"])
        except (StorageError, ValueError, KeyError, TypeError) as error:
            log.warning("the certificate in %s cannot be used: %s", directory, error)
            return None
        return CertificateSet(name, source, facts, texts[1] or "", texts[2] or "")

    def served(self) -> CertificateSet | None:
        """The set that the state says is served."""
        return self.get(self.state.served)

    def newest(self, source: CertificateSource) -> CertificateSet | None:
        """The set that a source would serve."""
        return self.get(self.state.newest.get(source.value, ""))

    # --- state ------------------------------------------------------------------------------------------

    def set_newest(self, source: CertificateSource, name: str) -> None:
        """Say which set a source serves; "" takes it away. Raises StorageError."""
        newest = {key: value for key, value in self.state.newest.items() if key != source.value}
        self._write(replace(self.state, newest=newest | ({source.value: name} if name else {})))

    def begin(self, name: str) -> None:
        """From now on `name` may lie in the live files. Raises StorageError."""
        self._write(replace(self.state, trial=name))

    def keep(self) -> None:
        """The set on trial is the served one. Raises StorageError."""
        state = self.state
        previous = state.served if state.served not in ("", state.trial) else state.previous
        self._write(replace(state, served=state.trial, previous=previous, trial=""))
        self.prune()

    def give_up(self) -> None:
        """The served set is back in the live files. Raises StorageError."""
        self._write(replace(self.state, trial=""))

    def set_renewal(self, renewal: Renewal) -> None:
        """Remember when to renew. Raises StorageError."""
        if renewal != self.state.renewal:
            self._write(replace(self.state, renewal=renewal))

    def set_shared(self, newest: Mapping[str, str], renewal: Renewal) -> None:
        """Have the sets and the plan of the other node of the pair. Raises StorageError."""
        self._write(replace(self.state, newest=dict(newest), renewal=renewal))
        self.prune()

    def prune(self) -> None:
        """Remove the sets that nothing names any more, and with them their keys."""
        named = self.state.named()
        for directory in (self.directory / "sets").glob("*"):
            if directory.name not in named:
                _remove(directory)

    # --- requests and accounts --------------------------------------------------------------------------

    def set_pending(self, key: str, request: str) -> None:
        """Keep a request's key, and the request to show it again. Raises StorageError."""
        ensure_directory(self.directory, 0o700)
        ensure_directory(self.directory / "pending", 0o700)
        write_file(self.directory / "pending/key.pem", key, mode=0o600)
        write_file(self.directory / "pending/request.pem", request, mode=0o600)

    def pending_key(self) -> str | None:
        """The key of the request that waits for its answer."""
        return read_text(self.directory / "pending/key.pem")

    def pending_request(self) -> str | None:
        """The request that waits for its answer."""
        return read_text(self.directory / "pending/request.pem")

    def clear_pending(self) -> None:
        """The answer has come."""
        remove_file(self.directory / "pending/request.pem")
        remove_file(self.directory / "pending/key.pem")

    def account(self, directory: str) -> str | None:
        """The account at the service with this ACME directory."""
        return read_text(self._account_file(directory))

    def set_account(self, directory: str, text: str) -> None:
        """Keep an account. Raises StorageError."""
        file = self._account_file(directory)
        ensure_directory(self.directory, 0o700)
        ensure_directory(file.parent, 0o700)
        write_file(file, text, mode=0o600)

    def accounts(self) -> Mapping[str, str]:
        """Every account, by the name of its file."""
        files = (self.directory / "accounts").glob("*.json")
        return {file.name: text for file in files if (text := read_text(file)) is not None}

    def set_accounts(self, accounts: Mapping[str, str]) -> None:
        """Have these and no others. Raises ValueError for a name that is none of ours, StorageError."""
        if not all(_ACCOUNT.fullmatch(name) for name in accounts):
            raise ValueError("an account with a strange name")
        directory = self.directory / "accounts"
        ensure_directory(self.directory, 0o700)
        ensure_directory(directory, 0o700)
        for name in self.accounts().keys() - accounts.keys():
            remove_file(directory / name)
        for name, text in accounts.items():
            if read_text(directory / name) != text:
                write_file(directory / name, text, mode=0o600)

    # --- inside -----------------------------------------------------------------------------------------

    def _account_file(self, directory: str) -> Path:
        return self.directory / "accounts" / f"{sha256(directory.encode()).hexdigest()[:NAME_LENGTH]}.json"

    def _set_directory(self, name: str) -> Path:
        return self.directory / "sets" / name

    def _write(self, state: StoreState) -> None:
        ensure_directory(self.directory, 0o700)
        table = {**vars(state), "newest": dict(state.newest), "renewal": vars(state.renewal)}
        write_file(self.directory / "state.json", json.dumps(table, indent=1) + "\n", mode=0o600)
        self.state = state

    def _read_state(self) -> StoreState:
        try:
            text = read_text(self.directory / "state.json")
            if text is None:
                return StoreState()
            table = json.loads(text)
            return StoreState(
                served=str(table["served"]),
                previous=str(table["previous"]),
                trial=str(table["trial"]),
                newest={CertificateSource(key).value: str(value) for key, value in table["newest"].items()},
                renewal=Renewal(**table["renewal"]),
            )
        except (StorageError, ValueError, KeyError, TypeError, AttributeError) as error:
            # The live files are what counts; they are adopted anew.
            log.warning("%s/state.json cannot be used: %s", self.directory, error)
            return StoreState()


def _remove(directory: Path) -> None:
    """A set's directory; shutil would bring half a megabyte of archivers. What cannot go is tried again."""
    with contextlib.suppress(OSError):
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()
