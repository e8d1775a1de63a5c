"""Temporary directories that an interruption can neither orphan nor leave half removed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from appliance.interruptions import uninterrupted


class Scratch(tempfile.TemporaryDirectory[str]):
    """As its base class, for a builder that Ctrl-C may end at any moment.

    Between the making of a directory and its owner's knowledge of it is such a moment; the first directory
    is preceded by a trial file.
    """

    def __init__(
        self,
        *,
        prefix: str | None = None,
        dir: Path | str | None = None,  # noqa: A002
        ignore_cleanup_errors: bool = False,
    ) -> None:
        with uninterrupted():
            super().__init__(prefix=prefix, dir=dir, ignore_cleanup_errors=ignore_cleanup_errors)

    def cleanup(self) -> None:
        """Remove it and all that is in it."""
        with uninterrupted():
            super().cleanup()
