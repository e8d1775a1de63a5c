"""Word of every change of the kernel's rules, whoever makes it: a netlink socket that sleeps until then.

Elements that packets add to dynamic sets, or that end by themselves, are no changes. Source:
linux/netfilter/nfnetlink.h (NFNLGRP_NFTABLES); in Linux since 3.14.
"""

from __future__ import annotations

import errno
import logging
import socket
import time

# A transaction is told in many messages, and nftables.service makes several: they are looked at as one.
GATHER_SECONDS = 0.2
# Without word of changes (a kernel that tells none) one has to look.
BLIND_SECONDS = 5.0
_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP_NFTABLES = 7
_PIECE = 1 << 16

log = logging.getLogger(__name__)


class KernelChanges:
    """Used by one thread. Hears from the moment that it is made."""

    def __init__(self) -> None:
        self._link: socket.socket | None = None
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            link = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
            link.bind((0, 0))
            link.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
            self._link = link
        except OSError as error:
            log.warning("changes of the firewall are not told, but looked for: %s", error.strerror)

    def wait(self, limit_seconds: float) -> None:
        """Sleep until rules changed, or for the limit."""
        if self._link is None:
            time.sleep(min(limit_seconds, BLIND_SECONDS))
            return
        if self._heard(self._link, limit_seconds):
            time.sleep(GATHER_SECONDS)
            while self._heard(self._link, 0.0):
                pass

    @staticmethod
    def _heard(link: socket.socket, limit_seconds: float) -> bool:
        link.settimeout(limit_seconds)
        try:
            link.recv(_PIECE)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            # Too much at once is word of changes too.
            return error.errno == errno.ENOBUFS
        return True

    def close(self) -> None:
        """Hear no more."""
        if self._link is not None:
            self._link.close()
