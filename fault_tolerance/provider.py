"""In a cloud the provider is the second signal: its hook must say that a silent peer does not run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fault_tolerance.view import Link

SILENCE_SECONDS = 5.0

Background = Callable[[str, Callable[[], None]], None]


class Provider:
    """`hook` None: nobody can say it, so a person moves the role."""

    def __init__(
        self, hook: Callable[[str], None] | None, background: Background, wake: Callable[[], None]
    ) -> None:
        self._hook = hook
        self._background = background
        self._wake = wake
        self._asking = False
        self._link = Link.NEVER
        self.peer_is_dead = False

    def look(self, link: Link, silent_seconds: float | None, *, ready: bool) -> None:
        """Called each two seconds or so; `ready` says that this node could take over."""
        hook, self._link = self._hook, link
        if link is not Link.LOST:
            self.peer_is_dead = False
            return
        if hook is None or not ready or self._asking or self.peer_is_dead:
            return
        if silent_seconds is None or silent_seconds < SILENCE_SECONDS:
            return
        self._asking = True

        def ask() -> None:
            try:
                hook("confirm")
                # A peer that was heard meanwhile is not dead, whatever the provider said before.
                self.peer_is_dead = self._link is Link.LOST
            finally:
                self._asking = False
                self._wake()

        self._background("provider", ask)


def hook_of(directory: Path = Path("/etc/centralino/hooks")) -> Path | None:
    """The provider hook, if an executable one is installed."""
    path = directory / "public-address"
    return path if os.access(path, os.X_OK) else None
