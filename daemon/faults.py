"""Named fault points: the places at which a test may pull the plug.

`reach(name)` does nothing on a box. A test installs a callback (`install`) in a process of its own and lets
it kill that process, or raise, at each point in turn: so "power loss at every write point" is an enumeration
and not a hope. Names read `area:subject:moment`, for example `file:hostname:renamed`.
"""

from __future__ import annotations

from collections.abc import Callable

_callback: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Tell the installed callback, if there is one, that execution is at `name`."""
    if _callback is not None:
        _callback(name)


def install(callback: Callable[[str], None] | None) -> None:
    """Set or (with None) remove the callback; for tests only."""
    global _callback
    _callback = callback
