"""Interfaces, routes and name servers of this node, carried out by NetworkManager.

`keyfile` renders profiles, `truth` reads what the kernel has, `checks` judges, `manager` speaks to
NetworkManager, `subsystem` joins them for the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.network.subsystem import Network

__all__ = ["Network"]


def __getattr__(name: str) -> object:
    """`Network`, with the settings that it needs, for who asks for it: `netlink` is used without."""
    if name != "Network":
        raise AttributeError(f"daemon.network has no {name}")
    from daemon.network.subsystem import Network

    return Network
