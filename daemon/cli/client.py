"""The one door of the command line: calls on the bus, each with a time limit, errors as our own classes.

Gio is used directly, not through pydbus: a proxy would fetch and parse the introspection on every start,
which costs a tenth of the time that `centralino status` may take, and calls would have no time limit.
Calls run inside a main loop, so that Ctrl-C ends them at once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from daemon.cli.json_types import JsonObject, JsonValue, as_list, as_object, objects_of, text_of
from daemon.connections import keep
from daemon.errors import (
    BUS_ERROR_PREFIX,
    CentralinoError,
    InvalidSettingsError,
    NotAuthorizedError,
    Problem,
    UnavailableError,
)

if TYPE_CHECKING:
    from gi.repository import Gio, GLib

BUS_NAME = "org.centralino"
OBJECT_PATH = "/org/centralino"
SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"

SETTINGS = "Settings1"
SERVICES = "Services1"
SYSTEM = "System1"
JOBS = "Jobs1"
FIREWALL = "Firewall1"

CALL_LIMIT_SECONDS = 10.0
# To return is to apply the old settings, and to wait for what restarts by it.
RETURN_LIMIT_SECONDS = 120.0
JOB_POLL_SECONDS = 2.0
FINISHED = frozenset({"done", "failed", "cancelled"})

_NOT_RUNNING = ("the Centralino daemon does not run", "start it with: systemctl start centralinod")
_REFUSED = (
    "the system bus refuses you the Centralino daemon",
    "log in as a member of centralino-operator (reads) or centralino-admin (writes), or as root",
)
_BUS_ERRORS: dict[str, tuple[type[CentralinoError], str, str]] = {
    "org.freedesktop.DBus.Error.ServiceUnknown": (UnavailableError, *_NOT_RUNNING),
    "org.freedesktop.DBus.Error.NameHasNoOwner": (UnavailableError, *_NOT_RUNNING),
    "org.freedesktop.DBus.Error.AccessDenied": (NotAuthorizedError, *_REFUSED),
    "org.freedesktop.DBus.Error.NoReply": (
        UnavailableError,
        "the Centralino daemon went away before it answered",
        "see: journalctl -u centralinod; then ask again, what you asked for may have happened",
    ),
    "org.freedesktop.DBus.Error.UnknownMethod": (
        UnavailableError,
        "the Centralino daemon that runs is of another version than this command",
        "restart it with: systemctl restart centralinod",
    ),
}


def _error_classes() -> dict[str, type[CentralinoError]]:
    known = CentralinoError.__subclasses__()
    return {kind.bus_name(): kind for kind in known if kind.__module__ == CentralinoError.__module__}


def error_from_bus(name: str, message: str) -> CentralinoError:
    """Our exception for a D-Bus error `name`; an unknown name keeps its message and the exit code 1."""
    if name == InvalidSettingsError.bus_name():
        return InvalidSettingsError(problems_from_text(message))
    if name in (kinds := _error_classes()):
        return kinds[name](message)
    if name in _BUS_ERRORS:
        kind, what, remedy = _BUS_ERRORS[name]
        return kind(what, remedy)
    shown = name.removeprefix(BUS_ERROR_PREFIX)
    return CentralinoError(f"the daemon answered {shown or 'an error'}: {message}")


def problems_from_text(message: str) -> list[Problem]:
    """The problems in an InvalidSettings message: one `path: message; remedy` a line."""
    problems = []
    for line in message.splitlines() or [message]:
        path, separator, rest = line.partition(": ")
        problems.append(Problem(path, rest) if separator and " " not in path else Problem("", line))
    return problems


def problems_of(answer: JsonObject) -> list[Problem]:
    """The list `problems` of a plan or an error, warnings included."""
    return [
        Problem(
            text_of(entry, "path"),
            text_of(entry, "message"),
            text_of(entry, "remedy"),
            entry.get("fatal") is not False,
        )
        for entry in objects_of(answer, "problems")
    ]


class Client:
    """A connection to the bus. `address` is for tests; the default is the system bus."""

    def __init__(self, address: str | None = None) -> None:
        from gi.repository import Gio, GLib

        self._gio, self._glib = Gio, GLib
        address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        try:
            self._connection: Gio.DBusConnection = keep(
                Gio.DBusConnection.new_for_address_sync(address, flags, None, None)
            )
        except GLib.Error as error:
            raise UnavailableError(
                f"the system bus cannot be reached: {error.message}", "see: systemctl status dbus"
            ) from error

    def close(self) -> None:
        """Leave the bus."""
        with suppress(self._glib.Error):  # the bus may be gone already
            self._connection.close_sync(None)

    def call(
        self, interface: str, method: str, *arguments: str | int, limit_seconds: float = CALL_LIMIT_SECONDS
    ) -> str:
        """Call `org.centralino.INTERFACE.METHOD`; texts go as `s`, whole numbers as `u`.

        Returns the string that the method answers, "" if it answers nothing. Raises the CentralinoError
        that the daemon named, or UnavailableError when no answer comes within `limit_seconds`.
        """
        signature = "".join("s" if isinstance(argument, str) else "u" for argument in arguments)
        loop = self._glib.MainLoop()
        answers: list[Gio.AsyncResult] = []

        def finished(_connection: Gio.DBusConnection, result: Gio.AsyncResult) -> None:
            answers.append(result)
            loop.quit()

        self._connection.call(
            BUS_NAME,
            OBJECT_PATH,
            f"{BUS_NAME}.{interface}",
            method,
            self._glib.Variant(f"({signature})", arguments) if arguments else None,
            None,
            self._gio.DBusCallFlags.NONE,
            int(limit_seconds * 1000),
            None,
            finished,
        )
        loop.run()
        try:
            values = self._connection.call_finish(answers[0]).unpack()
        except self._glib.Error as error:
            raise self._translated(error, method, limit_seconds) from None
        return str(values[0]) if values else ""

    def _translated(self, error: GLib.Error, method: str, limit_seconds: float) -> CentralinoError:
        name = self._gio.DBusError.get_remote_error(error)
        if name is not None:
            prefix = f"GDBus.Error:{name}: "
            return error_from_bus(name, error.message.removeprefix(prefix))
        if error.matches(self._gio.io_error_quark(), self._gio.IOErrorEnum.TIMED_OUT):
            return UnavailableError(
                f"the Centralino daemon did not answer {method} within {limit_seconds:g} s",
                "see: systemctl status centralinod",
            )
        return UnavailableError(
            f"the connection to the system bus broke: {error.message}", "see: systemctl status dbus"
        )

    def read(
        self, interface: str, method: str, *arguments: str | int, limit_seconds: float = CALL_LIMIT_SECONDS
    ) -> JsonValue:
        """Like `call`, for methods that answer a JSON document."""
        answer = self.call(interface, method, *arguments, limit_seconds=limit_seconds)
        try:
            value: JsonValue = json.loads(answer)
        except ValueError as error:
            raise UnavailableError(f"the daemon's answer to {method} is no JSON: {error}") from error
        return value

    def read_object(
        self, interface: str, method: str, *arguments: str | int, limit_seconds: float = CALL_LIMIT_SECONDS
    ) -> JsonObject:
        """Like `read`, for methods that answer a JSON object."""
        return as_object(self.read(interface, method, *arguments, limit_seconds=limit_seconds))

    def read_list(self, interface: str, method: str, *arguments: str | int) -> list[JsonObject]:
        """Like `read`, for methods that answer a list of JSON objects."""
        return [as_object(entry) for entry in as_list(self.read(interface, method, *arguments))]

    @contextmanager
    def signals(self, interface: str, signal: str) -> Iterator[Callable[[float], list[str]]]:
        """Subscribe to a signal with one string.

        Yields a function that waits at most so many seconds and returns the strings received by then; it
        returns as soon as one has come.
        """
        received: list[str] = []
        loop = self._glib.MainLoop()

        def arrived(*event: object) -> None:
            received.append(str(event[5].unpack()[0]))  # type: ignore[attr-defined]
            loop.quit()

        subscription = self._connection.signal_subscribe(
            BUS_NAME,
            f"{BUS_NAME}.{interface}",
            signal,
            OBJECT_PATH,
            None,
            self._gio.DBusSignalFlags.NONE,
            arrived,
        )

        def wait(seconds: float) -> list[str]:
            if not received:
                timer = self._glib.timeout_add(max(1, int(seconds * 1000)), loop.quit)
                loop.run()
                # A timer that has fired is gone already; removing it again would only earn a warning.
                if source := self._glib.MainContext.default().find_source_by_id(timer):
                    source.destroy()
            heard = received.copy()
            received.clear()
            return heard

        try:
            yield wait
        finally:
            self._connection.signal_unsubscribe(subscription)

    def watch_job(
        self,
        job: str | Callable[[], str],
        on_change: Callable[[JsonObject], None] | None = None,
        *,
        limit_seconds: float | None = None,
    ) -> JsonObject:
        """Wait until a job ends and return it; `on_change` is called with every state seen on the way.

        `job` is its identifier, or the call that begins it and returns that: then no word of it is missed.
        Without `on_change` the daemon is not asked for what happens on the way.

        A lost signal costs at most `JOB_POLL_SECONDS`: the job is also asked for. Raises UnavailableError
        when `limit_seconds` pass first.
        """
        started = time.monotonic()
        with self.signals(JOBS, "JobChanged") as wait:
            identifier = job if isinstance(job, str) else job()
            seen: JsonObject = {}
            if isinstance(job, str) or on_change is not None:
                seen = self.read_object(JOBS, "Get", identifier)
            if on_change is not None:
                on_change(seen)
            while text_of(seen, "state") not in FINISHED:
                if limit_seconds is not None and time.monotonic() - started > limit_seconds:
                    raise UnavailableError(
                        f"job {identifier} did not end within {limit_seconds:g} s",
                        f"follow it with: centralino jobs watch {identifier}",
                    )
                events = [as_object(json.loads(event)) for event in wait(JOB_POLL_SECONDS)]
                # The signal goes to everybody and so tells little: message and result must be asked for.
                ours = [event for event in events if text_of(event, "id") == identifier]
                ended = any(text_of(event, "state") in FINISHED for event in ours)
                if not events or ended or (ours and on_change is not None):
                    seen = self.read_object(JOBS, "Get", identifier)
                    if on_change is not None:
                        on_change(seen)
        return seen
