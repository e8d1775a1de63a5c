"""Interfaces, routes and name servers of this node, carried out by NetworkManager.

`keyfile` renders profiles, `truth` reads what the kernel has, `checks` judges, `manager` speaks to
NetworkManager, `subsystem` joins them for the engine.
"""

from daemon.network.subsystem import Network

__all__ = ["Network"]
