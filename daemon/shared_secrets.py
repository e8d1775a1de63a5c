"""What a pair has in common and nobody else may see: secrets, and certificates with their keys and accounts.

    python -I -m daemon.shared_secrets EPOCH NAME...

writes it to standard output, which is the SSH connection of a slave that asked for it. Names are no secrets;
values are never in an argument list.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256

from daemon.certificates.shared import export
from daemon.certificates.store import Store
from daemon.errors import CentralinoError
from daemon.files import remove_file
from daemon.places import Places
from daemon.secrets import SecretStore
from daemon.subsystem import JsonObject


def pack(places: Places, names: Sequence[str]) -> JsonObject:
    """`secrets` (None for one that is not set) and `certificates`. Raises StorageError, or UnavailableError
    while a certificate is being replaced."""
    store = SecretStore(places.secrets)
    return {
        "secrets": {name: store.get(name) if store.has(name) else None for name in sorted(names)},
        "certificates": export(Store(places.state / "certificates")),
    }


def digest(packed: JsonObject) -> str:
    """The same on two nodes that have the same."""
    return sha256(json.dumps(packed, sort_keys=True).encode()).hexdigest()[:32]


def take_secrets(places: Places, given: dict[str, object]) -> frozenset[str]:
    """Have the secrets that the master has, and no others of those names; which ones changed.

    Raises StorageError, InvalidSettingsError."""
    store, changed = SecretStore(places.secrets), set()
    for name, value in given.items():
        before = store.get(name) if store.has(name) else None
        if before == value:
            continue
        changed.add(name)
        if isinstance(value, str):
            store.set(name, value)
        else:
            remove_file(places.secrets / name)
    return frozenset(changed)


class Digest:
    """The digest of this node's, made anew only when a file has changed."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._seen: object = None
        self._known = ""

    def now(self, names: Sequence[str]) -> str:
        """As of now; while a certificate is being replaced, as it was before. Raises StorageError."""
        seen = (tuple(names), tuple(self._marks(names)))
        if seen != self._seen:
            try:
                self._known = digest(pack(self._places, names))
            except CentralinoError:
                return self._known
            self._seen = seen
        return self._known

    def _marks(self, names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
        directory = self._places.state / "certificates"
        files = [
            *(self._places.secrets / name for name in names),
            directory / "state.json",
            *sorted(directory.glob("pending/*")),
            *sorted(directory.glob("accounts/*")),
        ]
        for file in files:
            try:
                found = file.stat()
            except OSError:
                continue
            # Each file is replaced whole, so its number changes with its contents.
            yield str(file), found.st_ino, found.st_mtime_ns


def main(words: Sequence[str]) -> int:
    """Exit codes are those of daemon.errors."""
    epoch, *names = words
    try:
        table = {"epoch": int(epoch), **pack(Places(), names)}
    except CentralinoError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(table) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
