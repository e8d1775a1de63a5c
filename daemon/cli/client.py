"""The one door of the command line: calls on the bus, each with a time limit, errors as our own classes.

jeepney speaks the bus, not GLib as in the daemon: to load GLib's bindings takes longer than all that a
command does on the bus. It waits in plain system calls, so that Ctrl-C ends a call at once.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from daemon.cli.json_types import JsonObject, JsonValue, as_list, as_object, objects_of, text_of
from daemon.errors import (
    BUS_ERROR_PREFIX,
    CentralinoError,
    InvalidSettingsError,
    NotAuthorizedError,
    Problem,
    UnavailableError,
)

if TYPE_CHECKING:
    from jeepney.io.blocking import DBusConnection
    from jeepney.low_level import Message

BUS_NAME = "org.centralino"
OBJECT_PATH = "/org/centralino"
SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"

SETTINGS = "Settings1"
SERVICES = "Services1"
SYSTEM = "System1"
JOBS = "Jobs1"
FIREWALL = "Firewall1"

CONNECT_LIMIT_SECONDS = 10.0
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


def _broken(error: OSError) -> UnavailableError:
    return UnavailableError(
        f"the connection to the system bus broke: {error.strerror or error}", "see: systemctl status dbus"
    )


def _first_text(message: Message) -> str:
    return str(message.body[0]) if message.body else ""


class Client:
    """A connection to the bus. `address` is for tests; the default is the system bus."""

    def __init__(self, address: str | None = None) -> None:
        from jeepney.bus import get_bus
        from jeepney.io.blocking import DBusConnection, prep_socket

        address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
        try:
            socket = prep_socket(get_bus(address), timeout=CONNECT_LIMIT_SECONDS)
            self._connection: DBusConnection = DBusConnection(socket)
        # An address that cannot be read is a ValueError or RuntimeError, and so is a refused login.
        except (OSError, ValueError, RuntimeError) as error:
            raise UnavailableError(
                f"the system bus cannot be reached: {error}", "see: systemctl status dbus"
            ) from error

    def close(self) -> None:
        """Leave the bus."""
        self._connection.close()

    def call(
        self, interface: str, method: str, *arguments: str | int, limit_seconds: float = CALL_LIMIT_SECONDS
    ) -> str:
        """Call `org.centralino.INTERFACE.METHOD`; texts go as `s`, whole numbers as `u`.

        Returns the string that the method answers, "" if it answers nothing. Raises the CentralinoError
        that the daemon named, or UnavailableError when no answer comes within `limit_seconds`.
        """
        from jeepney.low_level import HeaderFields, MessageType
        from jeepney.wrappers import DBusAddress, new_method_call

        signature = "".join("s" if isinstance(argument, str) else "u" for argument in arguments)
        target = DBusAddress(OBJECT_PATH, BUS_NAME, f"{BUS_NAME}.{interface}")
        message = new_method_call(target, method, signature or None, arguments)
        try:
            self._connection.sock.settimeout(limit_seconds)  # for the sending, should the bus not read
            answer = self._connection.send_and_get_reply(message, timeout=limit_seconds)
        except TimeoutError:
            raise UnavailableError(
                f"the Centralino daemon did not answer {method} within {limit_seconds:g} s",
                "see: systemctl status centralinod",
            ) from None
        except OSError as error:
            raise _broken(error) from error
        if answer.header.message_type is MessageType.error:
            raise error_from_bus(answer.header.fields[HeaderFields.error_name], _first_text(answer))
        return _first_text(answer)

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
        from jeepney.bus_messages import MatchRule, message_bus
        from jeepney.low_level import MessageFlag

        # The bus knows our daemon by its name; what it hands on carries the number of its connection.
        event = {"interface": f"{BUS_NAME}.{interface}", "member": signal, "path": OBJECT_PATH}
        asked = MatchRule(type="signal", sender=BUS_NAME, **event)
        received: deque[Message] = deque()

        def tell_bus(request: Message) -> None:
            # Not waited for: the bus takes one message after the other, so this is done before any call.
            request.header.flags |= MessageFlag.no_reply_expected
            self._connection.send(request)

        def wait(seconds: float) -> list[str]:
            try:
                received.appendleft(self._connection.recv_until_filtered(received, timeout=seconds))
            except TimeoutError:
                return []
            except OSError as error:
                raise _broken(error) from error
            heard = [_first_text(message) for message in received]
            received.clear()
            return heard

        try:
            with self._connection.filter(MatchRule(type="signal", **event), queue=received):
                with suppress(OSError):  # the bus may be gone: the next call says so
                    tell_bus(message_bus.AddMatch(asked))
                yield wait
        finally:
            with suppress(OSError):  # the bus may be gone already
                tell_bus(message_bus.RemoveMatch(asked))

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
