"""Asterisk in its role: on a silent node no trunk registers and no contact expires (the database there is
read-only). Both belong to modules that are loaded and unloaded over AMI; what it does not do now is done
again with every look, because Asterisk may be starting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from daemon.services.model import Finding
from daemon.services.probes.asking import Deadline, ProbeError
from daemon.services.probes.manager_interface import PORT, Manager

HOST = "127.0.0.1"
TRUNKS = "res_pjsip_outbound_registration.so"
LIMIT_SECONDS = 5.0

log = logging.getLogger(__name__)


class Pbx:
    """Every method waits up to 5 s and never raises for an Asterisk that is away."""

    def __init__(self, secret_file: Path) -> None:
        self._secret_file = secret_file
        self._lock = threading.Lock()
        self._wanted: bool | None = None
        self._done = False
        self._said = ""

    def open(self) -> None:
        """Register the trunks."""
        self._want(True)

    def close(self) -> None:
        """Unregister the trunks and end what calls are left: their address has gone."""
        self._want(False)

    def look(self) -> None:
        """Try again what Asterisk did not take; also after it has started anew."""
        if self._wanted is not None and not self._done:
            self._want(self._wanted)

    def started_anew(self) -> None:
        """Its modules are those of its configuration again."""
        self._done = False

    def _want(self, wanted: bool) -> None:
        with self._lock:
            self._wanted, self._done = wanted, False
            self._done = self._ask(self._open if wanted else self._close)

    @staticmethod
    def _open(manager: Manager, deadline: Deadline) -> None:
        if TRUNKS in manager.command(deadline, f"module show like {TRUNKS}"):
            return
        _module(manager, deadline, "load")

    @staticmethod
    def _close(manager: Manager, deadline: Deadline) -> None:
        manager.command(deadline, "channel request hangup all")
        if TRUNKS in manager.command(deadline, f"module show like {TRUNKS}"):
            _module(manager, deadline, "unload")

    def _ask(self, work: Callable[[Manager, Deadline], None]) -> bool:
        manager = Manager(HOST, PORT, self._secret_file)
        deadline = Deadline(LIMIT_SECONDS)
        try:
            manager.connect(deadline)
            work(manager, deadline)
        except (OSError, EOFError, ProbeError) as error:
            reason = str(error)
            if reason != self._said:
                log.info("Asterisk did not take its role yet: %s", error)
                self._said = reason
            return False
        finally:
            manager.close()
        return True


def _module(manager: Manager, deadline: Deadline, verb: str) -> None:
    """AMI refuses the console's own commands for modules."""
    answer = manager.action(deadline, "ModuleLoad", Module=TRUNKS, LoadType=verb)
    if answer.get("Response") != "Success":
        raise ProbeError(
            Finding.DENIED, f"{TRUNKS} was not {verb}ed: {answer.get('Message', 'no reason given')}"
        )
