"""Asterisk in its role: a node that does not serve registers no trunk and expires no contact.

Two files beside the other facts of this boot say so to an Asterisk that starts; a running one is told over
AMI. What it does not do now is done again with a later look, because Asterisk may be starting.

Contacts are rows that both nodes share, and Asterisk keeps a state of each in memory which it does not learn
from rows that came by replication. A reload of PJSIP, which leaves calls and listeners alone, makes it read
them all: without it phones that registered at the peer would count as absent in queues and on busy lamps, and
those that a silent node asked in vain would be called no more (res_pjsip/pjsip_options.c, location.c).
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path

from daemon.errors import StorageError
from daemon.files import write_file
from daemon.services.model import Finding
from daemon.services.probes.asking import Deadline, ProbeError
from daemon.services.probes.manager_interface import PORT, Manager
from fault_tolerance.pair import RUN

HOST = "127.0.0.1"
TRUNKS = "res_pjsip_outbound_registration.so"
CORE = "res_pjsip.so"
LIMIT_SECONDS = 5.0
# Included by modules.conf and, inside of [global], by pjsip.conf (roles/pbx); without them Asterisk serves.
ROLE_FILES = {
    "modules.conf": f"noload = {TRUNKS}\n",
    "pjsip-global.conf": "contact_expiration_check_interval = 0\n",
}
_INTERVAL = re.compile(r"^\s*contact_expiration_check_interval\s*:\s*(\d+)", re.MULTILINE)
_UNREACHABLE = re.compile(r"^\s*Contact:\s+([^/\s]+)/\S+\s+\S+\s+Unavail", re.MULTILINE)

log = logging.getLogger(__name__)


def note_role(*, serving: bool, directory: Path = RUN) -> None:
    """What an Asterisk that starts from now on shall do. Raises StorageError."""
    for name, text in ROLE_FILES.items():
        file = directory / name
        if not serving:
            write_file(file, text, mode=0o644)
            continue
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{file} cannot be removed: {error.strerror}") from error


class Pbx:
    """Every method waits up to 5 s and never raises for an Asterisk that is away."""

    def __init__(self, secret_file: Path, control: Path, directory: Path = RUN, port: int = PORT) -> None:
        self._secret_file, self._control = secret_file, control
        self._directory, self._port = directory, port
        self._lock = threading.Lock()
        self._wanted: bool | None = None
        self._done = False
        self._seen = 0
        self._said = ""

    def open(self) -> None:
        """Register the trunks, and know where the phones are."""
        self._wanted, self._done = True, False
        self._tell()

    def close(self) -> None:
        """Unregister the trunks and end what calls are left: their address has gone."""
        self._wanted, self._done = False, False
        self._tell()

    def look(self, *, serving: bool) -> None:
        """Bring it back to what it was told last, if it did not take that yet or has started anew.

        `serving` is what it shall do before it was told anything; a look that comes late undoes no order.
        """
        if self._wanted is None:
            self._wanted = serving
        self._tell()

    @property
    def settled(self) -> bool:
        """Whether a look would find nothing to do; never waits."""
        return self._done and self._started() == self._seen

    def _started(self) -> int:
        """Another number for each start of Asterisk; 0 while it is away."""
        try:
            return self._control.stat().st_ctime_ns
        except OSError:
            return 0

    def _tell(self) -> None:
        with self._lock:
            started = self._started()
            if self._done and started == self._seen:
                return
            # In this order: an order that comes from here on is seen now, or takes `_done` back.
            self._seen, self._done = started, True
            serving, taken = self._wanted is True, False
            try:
                note_role(serving=serving, directory=self._directory)
                taken = self._ask(_open if serving else _close)
            finally:
                if not taken:
                    self._done = False

    def _ask(self, work: Callable[[Manager, Deadline], None]) -> bool:
        manager = Manager(HOST, self._port, self._secret_file)
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


def _open(manager: Manager, deadline: Deadline) -> None:
    if not _loaded(manager, deadline):
        _module(manager, deadline, TRUNKS, "load")
    if _interval(manager, deadline) == 0:
        _module(manager, deadline, CORE, "reload")
    for endpoint in sorted(set(_UNREACHABLE.findall(manager.command(deadline, "pjsip show contacts")))):
        manager.action(deadline, "PJSIPQualify", Endpoint=endpoint)


def _close(manager: Manager, deadline: Deadline) -> None:
    manager.command(deadline, "channel request hangup all")
    if _loaded(manager, deadline):
        _module(manager, deadline, TRUNKS, "unload")
    if _interval(manager, deadline) != 0:
        _module(manager, deadline, CORE, "reload")


def _loaded(manager: Manager, deadline: Deadline) -> bool:
    return TRUNKS in manager.command(deadline, f"module show like {TRUNKS}")


def _interval(manager: Manager, deadline: Deadline) -> int:
    found = _INTERVAL.search(manager.command(deadline, "pjsip show settings"))
    if found is None:
        raise ProbeError(Finding.FAULTY, "its settings of PJSIP cannot be read")
    return int(found[1])


def _module(manager: Manager, deadline: Deadline, module: str, verb: str) -> None:
    """AMI refuses the console's own commands for modules."""
    answer = manager.action(deadline, "ModuleLoad", Module=module, LoadType=verb)
    if answer.get("Response") != "Success":
        raise ProbeError(
            Finding.DENIED, f"{verb} of {module} failed: {answer.get('Message', 'no reason given')}"
        )
