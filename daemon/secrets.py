"""Secrets: one file each, mode 0600, apart from the settings, which name them and never hold them."""

from __future__ import annotations

import re
from pathlib import Path

from daemon.errors import InvalidSettingsError, NotFoundError, Problem
from daemon.files import ensure_directory, read_text, write_file

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
LONGEST_SECRET = 64 * 1024


class SecretStore:
    """The secrets directory (0700)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def set(self, name: str, value: str) -> None:
        """Store a secret durably. Raises InvalidSettingsError for a bad name or value, StorageError."""
        if not value or len(value) > LONGEST_SECRET or "\0" in value:
            raise InvalidSettingsError(
                [Problem("value", f"must have 1 to {LONGEST_SECRET} characters and no NUL", "give another")]
            )
        file = self._file(name)
        ensure_directory(self.directory, 0o700)
        write_file(file, value, mode=0o600)

    def get(self, name: str) -> str:
        """The value of a secret. Raises NotFoundError, StorageError."""
        value = read_text(self._file(name))
        if value is None:
            raise NotFoundError(f"there is no secret {name}", f"set it with: centralino config secret {name}")
        return value

    def has(self, name: str) -> bool:
        """Whether the secret is set."""
        return self._file(name).is_file()

    def _file(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise InvalidSettingsError(
                [
                    Problem(
                        "name",
                        "is not the name of a secret",
                        "use up to 64 lower-case letters, digits, dots and dashes",
                    )
                ]
            )
        return self.directory / name
