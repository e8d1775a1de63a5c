"""The daemon itself: which parts there are, and the main loop that keeps them alive."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from gi.repository import GLib

from daemon.alarms import Alarms
from daemon.audit import AuditLog
from daemon.authorization import Caller
from daemon.bus import BusService
from daemon.bus_api import SETTINGS_LANE, Core, handlers, signal_of
from daemon.bus_certificates import LANE as CERTIFICATES_LANE
from daemon.bus_certificates import certificate_handlers
from daemon.bus_domain import domain_handlers
from daemon.bus_fault_tolerance import fault_tolerance_handlers
from daemon.bus_firewall import firewall_handlers
from daemon.bus_replication import replication_handlers
from daemon.certificates.operations import Operations, orders_barred
from daemon.certificates.subsystem import Certificates
from daemon.clock import Clock
from daemon.domain import Domain
from daemon.drift import DriftWatch
from daemon.engine import Engine
from daemon.errors import CentralinoError, StorageError, UnavailableError
from daemon.first_settings import first_settings
from daemon.hostname import Hostname
from daemon.jobs import JobHandle, Jobs
from daemon.log_retention import LogRetention
from daemon.maintenance import Maintenance
from daemon.mode import Mode
from daemon.network import Network
from daemon.network.events import NetworkEvents
from daemon.notify import ServiceManagerLink
from daemon.pair import FaultToleranceSubsystem
from daemon.pair_link import PairLink
from daemon.pair_secrets import PairSecrets
from daemon.pair_words import PairWords
from daemon.places import Places
from daemon.platform import Platform, platform
from daemon.secrets import SecretStore
from daemon.services.api import ServiceManager, restart_service
from daemon.services.model import Role
from daemon.settings.revisions import RevisionStore
from daemon.status import StatusBoard
from daemon.subsystem import Subsystem
from firewall.shield import Shield
from firewall.subsystem import Firewall

log = logging.getLogger(__name__)

RETRY_SECONDS = 60
STOP_LIMIT_SECONDS = 10.0
DISTRIBUTION = "centralino"


class Daemon:
    """Builds everything, answers on the bus, waits. Raises a CentralinoError if it cannot begin."""

    def __init__(self, places: Places, bus_address: str) -> None:
        self._places = places
        self._systemd = ServiceManagerLink()
        self._loop = GLib.MainLoop()
        self._status = 0
        self._stopping = False
        self._emitting = threading.Lock()
        self._bus: BusService | None = None
        audit = AuditLog(places.audit_log)
        alarms = Alarms(places.state / "alarms.json")
        found, trouble = _platform(places)
        store = RevisionStore(places.revisions, lambda: first_settings(places))
        self._services = self._service_manager(found, alarms)
        # The order in which changes are applied; they are undone in reverse.
        subsystems: list[Subsystem] = [
            Hostname(places),
            Network(places, peer_trouble=lambda: self._pair.peer_trouble()),
            LogRetention(places, audit),
        ]
        self._shield = self._sip_shield(found)
        refill = (lambda: None) if self._shield is None else self._shield.fill_kernel
        # A slave's SIP is closed and opened by the role runtime without this daemon (see its silence.py).
        self._firewall = Firewall(
            places,
            lambda: self._engine.settings,
            alarms,
            serving=lambda: self._pair.role() in (Role.MASTER, Role.STANDALONE),
            on_lost=refill,
        )
        subsystems.append(self._firewall)
        self._domain = self._mode = None
        if found is not None:
            self._domain = Domain(
                places,
                found,
                lambda: self._engine.settings,
                live_calls=self._live_calls,
                restart=lambda name: restart_service(self._services, found, name),
            )
            self._mode = Mode(places, found, lambda: self._engine.settings)
            subsystems += [self._domain, self._mode]
        self._certificates: Certificates | None = None
        if found is not None:
            self._certificates = Certificates(places, found, lambda: self._engine.settings, alarms)
            subsystems.append(self._certificates)
        if self._services is not None:
            subsystems.append(self._services)
        program = program_version()
        secrets = PairSecrets(
            places,
            lambda: self._engine,
            lambda: self._jobs,
            lambda: self._pair,
            self._certificates,
            (lambda _names: None) if self._mode is None else self._mode.secrets_changed,
        )
        words = PairWords(
            lambda: self._engine, lambda: self._services, alarms, lambda: self._jobs, lambda: secrets
        )
        self._pair = PairLink(
            words.paired,
            words.core,
            alarms,
            self._role_changed,
            self._changed,
            words.take_settings,
            secrets.take,
        )
        pair = FaultToleranceSubsystem(places, program, self._pair.state)
        subsystems.append(pair)
        clock = Clock(places.boot_marker)
        self._engine = Engine(store, subsystems, clock=clock, program=program, on_change=self._changed)
        self._engine.report("platform", trouble)
        self._jobs = Jobs(lambda job: self._emit("Jobs1", "JobChanged", signal_of(job)))
        operations: Operations | None = None
        if self._certificates is not None:
            operations = Operations(
                self._certificates, self._engine, alarms, barred=lambda: orders_barred(self._pair.role())
            )
            operations.attach(self._jobs, CERTIFICATES_LANE)
        self._alarms = alarms
        self._drift = DriftWatch(self._engine, alarms)
        self._events = NetworkEvents(lambda: self._engine.settings, alarms, self._changed)
        alarms.listen(lambda _alarm, _raised: self._changed())
        board = StatusBoard(
            self._engine,
            self._jobs,
            alarms,
            audit,
            self._services,
            found,
            program,
            role=self._pair.role_word,
        )
        self._board = board
        core = Core(
            engine=self._engine,
            jobs=self._jobs,
            audit=audit,
            secrets=SecretStore(places.secrets),
            maintenance=Maintenance(places, None if self._services is None else self._services.drain),
            services=self._services,
            status=board.status,
        )

        def record(caller: Caller, method: str, arguments: object, outcome: str) -> None:
            values = arguments if isinstance(arguments, dict) else {}
            audit.record(who=caller.shown, uid=caller.uid, method=method, arguments=values, outcome=outcome)

        methods = handlers(core) | certificate_handlers(operations, self._jobs, audit)
        methods |= firewall_handlers(self._engine, self._firewall, self._shield)
        methods |= domain_handlers(self._engine, self._domain, self._mode)
        manager = words.manager(places, pair, self._pair) if places.is_live else None
        methods |= fault_tolerance_handlers(manager, self._pair, self._jobs)
        methods |= replication_handlers(self._pair, self._jobs)
        self._bus = BusService(bus_address, methods, record, self._bus_lost)

    def run(self) -> int:
        """Answer calls until SIGTERM or SIGINT; returns the exit code."""
        bus = self._bus
        if bus is None:
            return UnavailableError.exit_code
        for number in (signal.SIGTERM, signal.SIGINT):
            GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, self._stop)
        if self._systemd.watchdog_seconds is not None:
            GLib.timeout_add(int(self._systemd.watchdog_seconds * 1000 / 2.5), self._alive)
        GLib.timeout_add_seconds(RETRY_SECONDS, self._retry)
        try:
            # Before the name is taken: an apply that arrives at once must queue behind the recovery.
            self._jobs.submit("start", "centralinod", self._recover, lane=SETTINGS_LANE)
            bus.own_name()
            if self._places.is_live:
                self._events.start(_MainLoop())
            if self._services is not None:
                self._services.start()
        except CentralinoError as error:
            log.critical("centralinod cannot start: %s", error)
            return error.exit_code
        self._systemd.ready(f"revision {self._engine.revision} is in force")
        log.info("revision %d is in force", self._engine.revision)
        self._loop.run()
        self._end(bus)
        return self._status

    def _recover(self, _handle: JobHandle) -> object:
        if self._certificates is not None:
            self._certificates.prepare()
        self._engine.start()
        if self._certificates is not None:
            self._certificates.start()
        self._firewall.start()
        if self._shield is not None:
            self._shield.start()
        self._pair.start()
        self._changed()
        return {"revision": self._engine.revision}

    def _live_calls(self) -> int | None:
        """Calls that are up now, None if nobody can tell."""
        known = None if self._services is None else self._services.observe().facts.get("live_calls")
        return known if isinstance(known, int) else None

    def _retry(self) -> bool:
        if self._engine.needs_retry() and self._jobs.running() == 0:
            self._jobs.submit(
                "retry", "centralinod", lambda _handle: self._engine.retry(), lane=SETTINGS_LANE
            )
        elif self._jobs.running() == 0:
            self._drift.begin()
        return True

    def _alive(self) -> bool:
        if self._bus is not None and self._bus.answers():
            self._systemd.alive()
        else:
            log.critical("calls are not answered any more; systemd will restart the daemon")
        return True

    def _stop(self) -> bool:
        if not self._stopping:
            self._stopping = True
            self._systemd.stopping()
            self._loop.quit()
        return True

    def _bus_lost(self) -> None:
        if not self._stopping:
            log.critical("the bus went away; systemd will restart the daemon when it is back")
            self._status = UnavailableError.exit_code
            self._loop.quit()

    def _end(self, bus: BusService) -> None:
        self._jobs.close()
        if not self._jobs.wait(STOP_LIMIT_SECONDS):
            log.warning("a job did not end in time; the next start settles what it left")
        self._engine.stop()
        self._pair.stop()
        self._events.stop()
        if self._certificates is not None:
            self._certificates.stop()
        self._firewall.stop()
        if self._shield is not None:
            self._shield.stop()
        if self._services is not None:
            self._services.stop()
        bus.close()
        self._alarms.flush()

    def _service_manager(self, found: Platform | None, alarms: Alarms) -> ServiceManager | None:
        """Supervision, on a live box with a known platform; there is nothing to supervise elsewhere."""
        if found is None or not self._places.is_live:
            return None
        from daemon.services.manager import Supervision

        return Supervision(
            self._places,
            found,
            lambda: self._engine.settings,
            alarms,
            role=lambda: self._pair.role(),
            on_change=self._changed,
        )

    def _sip_shield(self, found: Platform | None) -> Shield | None:
        """The shield, on a live box that has an Asterisk to listen to."""
        if found is None or not self._places.is_live:
            return None
        return Shield(lambda: self._engine.settings, found.paths["ami_secret"], self._places.state)

    def _role_changed(self) -> None:
        if self._services is not None:
            self._services.refresh()
        if self._certificates is not None:
            # Renewals are the master's work: a new one looks at once what is due.
            self._certificates.wake()

    def _changed(self) -> None:
        self._pair.start()
        self._emit("System1", "StatusChanged", self._board.summary())
        pending = self._engine.pending()
        waits = f", revision {pending['revision']} waits for confirm" if pending else ""
        self._systemd.status(f"revision {self._engine.revision} is in force{waits}")

    def _emit(self, interface: str, name: str, text: str) -> None:
        # Jobs and alarms may speak before there is a bus to speak on.
        if self._bus is not None and not self._stopping:
            with self._emitting:
                self._bus.emit(interface, name, text)


class _MainLoop:
    """See daemon.network.events.Loop."""

    def watch(self, listening: socket.socket, readable: Callable[[], None]) -> None:
        """Call `readable` when the socket has something, until it is closed."""

        def arrived(*_event: object) -> bool:
            readable()
            return listening.fileno() >= 0

        GLib.io_add_watch(listening.fileno(), GLib.PRIORITY_DEFAULT, GLib.IO_IN, arrived)


def program_version() -> str:
    """The version of this program, `unknown` when it runs without being installed.

    It stands in the name of the installation's metadata directory; importlib.metadata would keep a megabyte
    of mail and archive parsers in memory to read the same.
    """
    for entry in sys.path:
        for found in Path(entry or ".").glob(f"{DISTRIBUTION}-*.dist-info"):
            return found.name.removeprefix(f"{DISTRIBUTION}-").removesuffix(".dist-info")
    return "unknown"


def _platform(places: Places) -> tuple[Platform | None, str | None]:
    """The platform, or why it is not known: the daemon then still answers, and says so."""
    try:
        return platform(places.platform_file), None
    except StorageError as error:
        log.error("%s", error)
        return None, str(error)
