"""Temporary directories that an interruption can neither orphan nor leave half removed."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, Ctrl-C and its like wait for the end. Python hears of signals in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, remember) for number in INTERRUPTIONS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


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
