"""What both nodes of a pair have of the certificates.

The newest of each source with its key, the plan of the renewal, the request that waits for its answer, the
accounts at certificate services: so the new master of a failover serves the same and goes on renewing it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from daemon.certificates.facts import Facts
from daemon.certificates.store import Renewal, Store
from daemon.errors import UnavailableError
from daemon.settings.reach import CertificateSource
from daemon.subsystem import JsonObject

_FINGERPRINT = re.compile(r"[0-9A-F]{64}")


def export(store: Store) -> JsonObject:
    """What `adopt` takes. Raises UnavailableError while a certificate is being replaced.

    Of the source that is served, what is served counts: a newer one of it has still to prove itself here.
    """
    state, served = store.state, store.served()
    names = dict(state.newest) | ({} if served is None else {served.source.value: served.name})
    sets = {source: store.get(name) for source, name in names.items() if name}
    if state.trial or None in sets.values():
        raise UnavailableError("a certificate is being replaced at this moment", "try again")
    return {
        "sets": {
            source: {"facts": found.facts.as_json(), "chain": found.chain, "key": found.key}
            for source, found in sorted(sets.items())
            if found is not None
        },
        "renewal": vars(state.renewal),
        "pending": [store.pending_key(), store.pending_request()],
        "accounts": dict(sorted(store.accounts().items())),
    }


def adopt(store: Store, given: Mapping[str, object]) -> None:
    """Have what the other node has; what is served is left to the caller, who holds the lock.

    The state is written last, so a power loss leaves the old certificates or the new ones. Raises
    StorageError; ValueError, KeyError or TypeError, with nothing changed, for what `export` did not make.
    """
    sets = [
        (CertificateSource(source), Facts.from_json(row["facts"]), str(row["chain"]), str(row["key"]))
        for source, row in _table(given["sets"]).items()
    ]
    if not all(_FINGERPRINT.fullmatch(facts.fingerprint) for _, facts, _, _ in sets):
        raise ValueError("a certificate without a fingerprint")
    renewal = Renewal(**_table(given["renewal"]))
    accounts = {str(name): str(text) for name, text in _table(given["accounts"]).items()}
    pending = given["pending"]
    key, request = pending if isinstance(pending, list) and len(pending) == 2 else (None, None)
    newest = {}
    for source, facts, chain, private in sets:
        newest[source.value] = store.add(source, facts, chain, private).name
    store.set_accounts(accounts)
    if key and request:
        store.set_pending(str(key), str(request))
    else:
        store.clear_pending()
    store.set_shared(newest, renewal)


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("no object")
    return value
