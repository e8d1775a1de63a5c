"""What holds for every test."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let Ctrl-C end what tests start: a shell that runs this in the background has all of it ignore that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
