"""systemd over D-Bus: hears every change of our units by signal, and starts, stops and kills them.

One connection and one thread of its own with its own main context, so that a busy bus of the daemon never
delays the news of a death. A slow comparison with systemd's own list catches whatever a signal did not say.
Interface: org.freedesktop.systemd1(5), as of systemd 239.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gi.repository import Gio, GLib

from daemon.connections import keep
from daemon.errors import UnavailableError
from daemon.services.model import ActiveState, LoadState, UnitState

BUS_NAME = "org.freedesktop.systemd1"
MANAGER_PATH = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
UNIT = "org.freedesktop.systemd1.Unit"
SERVICE = "org.freedesktop.systemd1.Service"
PROPERTIES = "org.freedesktop.DBus.Properties"
CALL_LIMIT_SECONDS = 5.0
COMPARE_SECONDS = 30
RECONNECT_SECONDS = 1
MICROSECONDS = 1_000_000

log = logging.getLogger(__name__)

OnChange = Callable[[str, UnitState], None]
Word = TypeVar("Word", ActiveState, LoadState)


@dataclass(frozen=True)
class Process:
    """Facts of a unit for people: main process (0: none), systemd's count of restarts, last state change.

    `changed_at` is wall-clock seconds since the epoch, 0 if it never changed.
    """

    pid: int = 0
    restarts: int = 0
    changed_at: float = 0.0


class Units(Protocol):
    """What supervision needs of systemd; names are service names of the catalogue."""

    def start(self, on_change: OnChange) -> None:
        """Begin to report; `on_change` is called from a thread of this object."""
        ...

    def close(self) -> None:
        """Report nothing any more."""
        ...

    def process(self, name: str) -> Process:
        """Facts for people, as last heard."""
        ...

    def start_unit(self, name: str) -> None:
        """Start it now, whatever systemd's own restart timer and limit say."""
        ...

    def stop_unit(self, name: str) -> None:
        """Ask systemd to stop it."""
        ...

    def kill_unit(self, name: str) -> None:
        """SIGKILL to every process of it."""
        ...

    def shutting_down(self) -> bool:
        """Whether the box is going down."""
        ...


class SystemdUnits:
    """`Units` on the system bus. Calls raise UnavailableError if systemd does not do its part in time."""

    def __init__(self, units: Mapping[str, str]) -> None:
        self._units = dict(units)
        self._names = {unit: name for name, unit in units.items()}
        self._paths: dict[str, str] = {}
        self._known: dict[str, dict[str, object]] = {name: {} for name in units}
        self._context = GLib.MainContext.new()
        self._loop = GLib.MainLoop.new(self._context, False)
        self._thread: threading.Thread | None = None
        self._connection: Gio.DBusConnection | None = None
        self._on_change: OnChange = lambda name, state: None
        self._closing = False

    def start(self, on_change: OnChange) -> None:
        """See Units."""
        self._on_change = on_change
        self._thread = threading.Thread(target=self._run, name="systemd", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See Units."""
        self._closing = True
        self._loop.quit()
        if self._thread is not None:
            self._thread.join(CALL_LIMIT_SECONDS)

    def process(self, name: str) -> Process:
        """See Units."""
        known = self._known[name]
        return Process(
            pid=_number(known, "MainPID"),
            restarts=_number(known, "NRestarts"),
            changed_at=_number(known, "StateChangeTimestamp") / MICROSECONDS,
        )

    def start_unit(self, name: str) -> None:
        """See Units. RestartUnit, since StartUnit on a unit that waits for its timer would wait as well."""
        if self._known[name].get("ActiveState") == ActiveState.FAILED:
            self._manager("ResetFailedUnit", "(s)", self._units[name])
        self._manager("RestartUnit", "(ss)", self._units[name], "replace")

    def stop_unit(self, name: str) -> None:
        """See Units."""
        self._manager("StopUnit", "(ss)", self._units[name], "replace")

    def kill_unit(self, name: str) -> None:
        """See Units."""
        self._manager("KillUnit", "(ssi)", self._units[name], "all", 9)

    def shutting_down(self) -> bool:
        """See Units; a systemd that does not answer is no reason to believe it."""
        try:
            reply = self._call(MANAGER_PATH, PROPERTIES, "Get", "(ss)", MANAGER, "SystemState")
        except UnavailableError:
            return False
        return bool(reply.unpack()[0] == "stopping")

    def _run(self) -> None:
        self._context.push_thread_default()
        try:
            while not self._closing:
                try:
                    self._connect()
                except (GLib.Error, UnavailableError) as error:
                    log.error("systemd cannot be watched: %s; it is tried again", _text(error))
                    self._wait(RECONNECT_SECONDS)
                    continue
                self._loop.run()
        finally:
            self._context.pop_thread_default()

    def _wait(self, seconds: int) -> None:
        source = GLib.timeout_source_new_seconds(seconds)
        source.set_callback(self._quit)
        source.attach(self._context)
        self._loop.run()
        source.destroy()

    def _quit(self, *_: object) -> bool:
        self._loop.quit()
        return False

    def _connect(self) -> None:
        address = Gio.dbus_address_get_for_bus_sync(Gio.BusType.SYSTEM, None)
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        connection = keep(Gio.DBusConnection.new_for_address_sync(address, flags, None, None))
        connection.set_exit_on_close(False)
        connection.connect("closed", self._quit)
        self._connection = connection
        self._manager("Subscribe", "()")
        for name, unit in self._units.items():
            path = str(self._manager("LoadUnit", "(s)", unit).unpack()[0])
            self._paths[path] = name
            self._listen(connection, PROPERTIES, "PropertiesChanged", path, self._changed)
        self._listen(connection, MANAGER, "Reloading", MANAGER_PATH, self._reloaded)
        for name in self._units:
            self._read(name)
        timer = GLib.timeout_source_new_seconds(COMPARE_SECONDS)
        timer.set_callback(self._compare, connection)
        timer.attach(self._context)

    @staticmethod
    def _listen(
        connection: Gio.DBusConnection, interface: str, member: str, path: str, callback: Callable[..., None]
    ) -> None:
        connection.signal_subscribe(
            BUS_NAME, interface, member, path, None, Gio.DBusSignalFlags.NONE, callback
        )

    def _changed(
        self, _connection: object, _sender: str, path: str, _interface: str, _signal: str, body: GLib.Variant
    ) -> None:
        """The change of the Service interface comes before that of the Unit, which completes it."""
        name = self._paths[path]
        interface = body.get_child_value(0).get_string()
        self._merge(name, body.get_child_value(1))
        if interface == UNIT:
            self._on_change(name, _state(self._known[name]))

    def _reloaded(self, *arguments: object) -> None:
        body = arguments[-1]
        if not isinstance(body, GLib.Variant) or body.unpack() != (False,):
            return
        try:
            for name in self._units:
                self._read(name)
        except UnavailableError as error:
            log.warning("the units could not be read after a reload, they will be compared soon: %s", error)

    def _compare(self, connection: object) -> bool:
        """Read again whatever differs from systemd's own list; ends with its connection."""
        if self._closing or connection is not self._connection:
            return False
        try:
            listed = self._manager("ListUnitsByNames", "(as)", list(self._units.values())).unpack()[0]
            for unit, _, load, active, sub, *_ in listed:
                name = self._names.get(unit)
                if name is None:
                    continue
                known = self._known[name]
                if (load, active, sub) != tuple(
                    known.get(key) for key in ("LoadState", "ActiveState", "SubState")
                ):
                    self._read(name)
        except UnavailableError as error:
            log.warning("systemd does not answer: %s", error)
        return True

    def _read(self, name: str) -> None:
        """Read a unit anew and report it."""
        for path, owner in self._paths.items():
            if owner == name:
                for interface in (SERVICE, UNIT):
                    reply = self._call(path, PROPERTIES, "GetAll", "(s)", interface)
                    self._merge(name, reply.get_child_value(0))
        self._on_change(name, _state(self._known[name]))

    def _merge(self, name: str, changed: GLib.Variant) -> None:
        known = dict(self._known[name])
        for key in _WANTED:
            value = changed.lookup_value(key, None)
            if value is not None:
                known[key] = value.unpack()
        self._known[name] = known

    def _manager(self, method: str, signature: str, *arguments: object) -> GLib.Variant:
        return self._call(MANAGER_PATH, MANAGER, method, signature, *arguments)

    def _call(
        self, path: str, interface: str, method: str, signature: str, *arguments: object
    ) -> GLib.Variant:
        if self._connection is None:
            raise UnavailableError("systemd is not reachable over D-Bus yet", "try again in a moment")
        try:
            return self._connection.call_sync(
                BUS_NAME,
                path,
                interface,
                method,
                GLib.Variant(signature, arguments),
                None,
                Gio.DBusCallFlags.NONE,
                int(CALL_LIMIT_SECONDS * 1000),
                None,
            )
        except GLib.Error as error:
            raise UnavailableError(f"systemd refused {method}: {_text(error)}") from error


_WANTED = (
    "ActiveState",
    "SubState",
    "LoadState",
    "Job",
    "ConditionResult",
    "ConditionTimestampMonotonic",
    "InactiveExitTimestampMonotonic",
    "ActiveEnterTimestampMonotonic",
    "StateChangeTimestamp",
    "Result",
    "MainPID",
    "NRestarts",
)


def _state(known: Mapping[str, object]) -> UnitState:
    job = known.get("Job")
    entered = _number(known, "ActiveEnterTimestampMonotonic")
    # A unit that was never tried has no result of its conditions; systemd reports that as false.
    tried = _number(known, "ConditionTimestampMonotonic") > 0
    return UnitState(
        active=_member(ActiveState, known.get("ActiveState"), ActiveState.UNKNOWN),
        sub=str(known.get("SubState", "")),
        load=_member(LoadState, known.get("LoadState"), LoadState.OTHER),
        job=int(job[0]) if isinstance(job, tuple) else 0,
        condition=not tried or bool(known.get("ConditionResult", True)),
        result=str(known.get("Result", "success")),
        run=_number(known, "InactiveExitTimestampMonotonic"),
        up_since=entered / MICROSECONDS if entered else None,
    )


def _member(kind: type[Word], value: object, other: Word) -> Word:
    try:
        return kind(str(value))
    except ValueError:
        return other


def _number(known: Mapping[str, object], key: str) -> int:
    value = known.get(key, 0)
    return value if isinstance(value, int) else 0


def _text(error: Exception) -> str:
    return str(error.message) if isinstance(error, GLib.Error) else str(error)
