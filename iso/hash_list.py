"""The hash list of the medium: SHA256SUMS names every file, the kickstart pins the list, a key may sign it.

What cannot be in the list: the kickstarts (they hold its digest), the list itself and its signature, and
two files that are written while the image is (`isolinux.bin` gets its boot information table, `boot.cat`
the boot catalogue). Those two are checked by `iso.inspect`, the kickstarts by a list of their own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from appliance.errors import InputError
from appliance.run import require, run
from appliance.scratch import Scratch
from iso.boot_menus import QUESTIONS_KICKSTART, UNATTENDED_KICKSTART

HASH_LIST = "SHA256SUMS"
KICKSTART_LIST = "SHA256SUMS.kickstart"
SIGNATURE_SUFFIX = ".sig"
SIGNING_KEY = "centralino/signing-key.gpg"
KICKSTARTS = (UNATTENDED_KICKSTART, QUESTIONS_KICKSTART)
WRITTEN_LATE = ("isolinux/isolinux.bin", "isolinux/boot.cat")
UNLISTED = frozenset(
    {
        HASH_LIST,
        HASH_LIST + SIGNATURE_SUFFIX,
        KICKSTART_LIST,
        KICKSTART_LIST + SIGNATURE_SUFFIX,
        *KICKSTARTS,
        *WRITTEN_LATE,
    }
)


def hash_list(digests: Mapping[str, str]) -> str:
    """The list as `sha256sum --check` reads it: `HEX  ./PATH`, sorted by path.

    Raises InputError for names that sha256sum would escape: no file of a medium needs them.
    """
    for path in digests:
        if "\n" in path or "\\" in path:
            raise InputError(f"the file name {path!r} cannot be on a medium", "rename it")
    return "".join(f"{digests[path]}  ./{path}\n" for path in sorted(digests) if path not in UNLISTED)


def parse_hash_list(text: str, name: str = HASH_LIST) -> dict[str, str]:
    """Path to digest; raises InputError naming the first bad line."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64})  \./(.+)", line)
        if match is None:
            raise InputError(f"line {number} of {name} is no digest with a path", "write the medium again")
        found[match[2]] = match[1]
    return found


def digest_text(text: str) -> str:
    """SHA-256 of a text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


class Signer:
    """Signs files with a GPG secret key file, in a keyring of its own that vanishes afterwards.

    `time` (seconds since 1970) goes into every signature, so that equal inputs give equal bytes; if the
    key is younger, the key's own creation time does. Use it as a context manager; raises InputError if the
    file holds no usable secret key.
    """

    def __init__(self, key_file: Path, *, time: int) -> None:
        require({"gpg": "gnupg", "gpgconf": "gnupg"})
        self._key_file = key_file
        self._time = time
        self._fingerprint = ""

    def __enter__(self) -> Signer:
        # A short path: the agent's socket below it may have no more than 107 characters.
        self._scratch = Scratch(prefix="gpg-", dir="/tmp", ignore_cleanup_errors=True)  # noqa: S108
        self._home = Path(self._scratch.name)
        try:
            done = self._gpg("--import", self._key_file, check=False)
            records = [
                line.split(":") for line in self._gpg("--with-colons", "--list-secret-keys").splitlines()
            ]
            self._fingerprint = next((record[9] for record in records if record[0] == "fpr"), "")
            if not self._fingerprint:
                raise InputError(
                    f"{self._key_file} holds no secret GPG key{': ' + done if done else ''}",
                    "export one: gpg --export-secret-keys ID >FILE",
                )
            created = next(record[5] for record in records if record[0] == "sec")
            self._time = max(self._time, int(created or 0))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        # The agent that gpg started would outlive us and hold the directory.
        run(["gpgconf", "--homedir", self._home, "--kill", "all"], check=False, limit_seconds=30)
        self._scratch.cleanup()

    def _gpg(self, *words: str | Path, check: bool = True) -> str:
        base: list[str | Path] = ["gpg", "--homedir", self._home, "--batch", "--no-tty", "--quiet", "--yes"]
        base += ["--pinentry-mode", "loopback"]
        remedy = "use a key without a passphrase for unattended builds, kept in a file of mode 0600"
        return run([*base, *words], check=check, limit_seconds=60, remedy=remedy).output

    def export(self, keyring: Path) -> None:
        """Write the public half as a keyring that gpgv reads."""
        self._gpg("--output", keyring, "--export", self._fingerprint)

    def sign(self, file: Path) -> Path:
        """A detached binary signature, `.sig` beside the file."""
        signature = file.with_name(file.name + SIGNATURE_SUFFIX)
        self._gpg(
            "--faked-system-time", f"{self._time}!", "--local-user", self._fingerprint, "--output", signature,
            "--detach-sign", file,
        )  # fmt: skip
        return signature
