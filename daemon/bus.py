"""The one module that knows pydbus: publishes our interfaces, and guards against its traps.

pydbus 0.6.0 is the last of its line and PyGObject 3.44.2 the newest for AlmaLinux 8. What they do wrong is
put right here, so that replacing them would be a change of this module alone:

(a) no call of ours waits for ever: every call to another program has a time limit;
(b) a method never runs on the main loop: a few worker threads answer, each caller gets its fair share;
(c) errors carry the D-Bus name of their class, never `unknown.ValueError`, and no traceback;
(d) there are no properties, so none can be written without an authorized caller;
(e) polkit is asked without interaction and with a time limit (`bus_identity`);
(f) the name is requested without allowing replacement;
(g) nothing of pydbus is used beyond this module, `GLib` and `Gio` apart;
and each call that GLib before 2.84 hands to PyGObject before 3.50 leaks one reference, which is dropped.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path

import gi
import pydbus
from gi.repository import Gio, GLib
from pydbus.registration import ObjectRegistration, ObjectWrapper

from daemon.authorization import Caller, Method, authorize, method_of
from daemon.bus_identity import BUS, CALL_LIMIT_MILLISECONDS, Identities
from daemon.connections import keep
from daemon.errors import CentralinoError, NotAuthorizedError, UnavailableError

log = logging.getLogger(__name__)

BUS_NAME = "org.centralino"
OBJECT_PATH = "/org/centralino"
INTERFACE_FILE = Path(__file__).with_name("org.centralino.xml")
PROPERTIES = "org.freedesktop.DBus.Properties"
# Flags and answers of RequestName (D-Bus specification): neither queued nor replaceable.
DO_NOT_QUEUE = 4
PRIMARY_OWNER = 1
WORKERS = 4
IDLE_SECONDS = 30.0
STUCK_SECONDS = 120.0
LONGEST_QUEUE = 200
CALLS_OF_ONE_SENDER = 16
LONGEST_MESSAGE = 100_000


# A bus method: the caller, then the arguments (text and whole numbers). Returns a string, or None for a
# method without result; runs on a worker thread; raises CentralinoError for what the caller shall read.
Handler = Callable[..., str | None]
Record = Callable[[Caller, str, Mapping[str, object], str], None]


def introspection() -> str:
    """The introspection XML, the only place where the interface is written down."""
    return INTERFACE_FILE.read_text()


def methods_of_interface(xml: str) -> dict[str, list[str]]:
    """`org.centralino.Settings1.Get` -> the names of its arguments, for every method in the XML."""
    root = ElementTree.fromstring(xml)  # noqa: S314  our own file
    return {
        f"{interface.get('name')}.{method.get('name')}": [
            str(argument.get("name"))
            for argument in method.findall("arg")
            if argument.get("direction") == "in"
        ]
        for interface in root.findall("interface")
        for method in interface.findall("method")
    }


class BusService:
    """Our name and object on one bus. `handlers` maps `org.centralino.INTERFACE.METHOD` to its handler."""

    def __init__(
        self, address: str, handlers: Mapping[str, Handler], record: Record, on_lost: Callable[[], None]
    ) -> None:
        """Connects; `address` is `system`, `session` or a D-Bus address. `record` writes the audit log,
        `on_lost` is called when the bus goes away. Raises UnavailableError."""
        xml = introspection()
        if missing := set(methods_of_interface(xml)) ^ set(handlers):
            raise RuntimeError(f"interface and handlers differ: {', '.join(sorted(missing))}")
        try:
            self._bus = connect(address)
        except GLib.Error as error:
            raise UnavailableError(
                f"the bus cannot be reached: {error.message}", "is dbus running?"
            ) from error
        self._bus.con.set_exit_on_close(False)
        self._bus.con.connect("closed", lambda *_arguments: on_lost())
        self._identities = Identities(self._bus.con, ask_polkit=address == "system")
        self._dispatcher = _Dispatcher(handlers, self._identities, record)
        interfaces = Gio.DBusNodeInfo.new_for_xml(xml).interfaces
        wrapper = _Wrapper(interfaces, self._dispatcher)
        self._registration = ObjectRegistration(self._bus, OBJECT_PATH, interfaces, wrapper, own_wrapper=True)

    def own_name(self) -> None:
        """Take the name; from now on calls arrive. Raises UnavailableError if another process has it."""
        # pydbus' request_name asks without a time limit.
        try:
            answer = self._bus.con.call_sync(
                *BUS,
                "RequestName",
                GLib.Variant("(su)", (BUS_NAME, DO_NOT_QUEUE)),
                GLib.VariantType("(u)"),
                Gio.DBusCallFlags.NONE,
                CALL_LIMIT_MILLISECONDS,
                None,
            )
        except GLib.Error as error:
            raise UnavailableError(
                f"the name {BUS_NAME} cannot be taken: {error.message}", "is the bus policy installed?"
            ) from error
        if answer.unpack()[0] != PRIMARY_OWNER:
            raise UnavailableError(f"the name {BUS_NAME} is taken already", "does another centralinod run?")

    def emit(self, interface: str, signal: str, text: str) -> None:
        """Send a signal with one string; from any thread. A bus that is away loses it, which is logged."""
        try:
            self._bus.con.emit_signal(
                None, OBJECT_PATH, f"{BUS_NAME}.{interface}", signal, GLib.Variant("(s)", (text,))
            )
        except GLib.Error as error:
            log.warning("signal %s was lost: %s", signal, error.message)

    def answers(self) -> bool:
        """False when every worker has been at the same call for longer than any call may take."""
        return self._dispatcher.answers()

    def close(self) -> None:
        """Take no more calls, answer those that run (within 2 s), and leave the bus."""
        self._registration.unregister()
        self._dispatcher.close(limit_seconds=2.0)
        try:
            self._bus.con.flush_sync(None)
            self._bus.con.close_sync(None)
        except GLib.Error as error:
            log.info("the bus was gone already: %s", error.message)


def connect(address: str) -> pydbus.bus.Bus:
    """A pydbus connection to `system`, `session` or an address. Raises GLib.Error."""
    if address == "system":
        return keep(pydbus.SystemBus())
    if address == "session":
        return keep(pydbus.SessionBus())
    return keep(pydbus.connect(address))


def leaks_invocations() -> bool:
    """Whether this GLib and PyGObject leak a reference of every call (PyGObject issue 519)."""
    return (GLib.MAJOR_VERSION, GLib.MINOR_VERSION) < (2, 84) and gi.version_info < (3, 50)


class _Call:
    """One call that waits for its answer."""

    def __init__(self, sender: str, name: str, arguments: tuple[str | int, ...], invocation: object) -> None:
        self.sender = sender
        self.name = name
        self.arguments = arguments
        self._invocation = invocation

    def answer(self, result: str | None) -> None:
        value = None if result is None else GLib.Variant("(s)", (result,))
        self._end(lambda invocation: invocation.return_value(value))

    def refuse(self, name: str, message: str) -> None:
        text = message.replace("\0", "\\0")[:LONGEST_MESSAGE]
        text = text.encode(errors="backslashreplace").decode()
        self._end(lambda invocation: invocation.return_dbus_error(name, text))

    def _end(self, send: Callable[[Gio.DBusMethodInvocation], None]) -> None:
        invocation, self._invocation = self._invocation, None
        if invocation is None:
            return
        try:
            send(invocation)
        except GLib.Error as error:
            log.info("the answer to %s was lost: %s", self.name, error.message)
        finally:
            release(invocation)


def release(invocation: Gio.DBusMethodInvocation) -> None:
    """Drop the reference that the bindings leak; nothing on versions that do not leak."""
    if _LEAKS:
        invocation._unref()


_LEAKS = leaks_invocations()


class _Wrapper(ObjectWrapper):  # type: ignore[misc]
    """Takes pydbus' place between Gio and our handlers."""

    __slots__ = ("_dispatcher",)

    def __init__(self, interfaces: list[Gio.DBusInterfaceInfo], dispatcher: _Dispatcher) -> None:
        # pydbus would connect signals by attribute name, without regard to the interface; we emit directly.
        super().__init__(object(), [])
        self._dispatcher = dispatcher

    def call_method(
        self,
        _connection: Gio.DBusConnection,
        sender: str,
        _path: str,
        interface: str,
        method: str,
        parameters: GLib.Variant,
        invocation: Gio.DBusMethodInvocation,
    ) -> None:
        """Called on the main loop for each call: only queues it."""
        call = _Call(sender, f"{interface}.{method}", (), invocation)
        if interface == PROPERTIES:
            call.refuse("org.freedesktop.DBus.Error.UnknownProperty", "this object has no properties")
            return
        call.arguments = tuple(parameters.unpack())
        self._dispatcher.take(call)


class _Dispatcher:
    """Worker threads that end when there is nothing to do; a flood from one sender starves nobody else."""

    def __init__(self, handlers: Mapping[str, Handler], identities: Identities, record: Record) -> None:
        self._handlers = handlers
        self._identities = identities
        self._record = record
        self._changed = threading.Condition()
        self._queue: deque[_Call] = deque()
        self._of_sender: Counter[str] = Counter()
        self._workers = 0
        self._idle = 0
        self._busy_since: dict[int, float] = {}
        self._closed = False

    def take(self, call: _Call) -> None:
        """Queue a call; refuse it if its sender or everybody asks for too much at once."""
        with self._changed:
            full = len(self._queue) >= LONGEST_QUEUE or self._of_sender[call.sender] >= CALLS_OF_ONE_SENDER
            if not full and not self._closed:
                self._of_sender[call.sender] += 1
                self._queue.append(call)
                if self._idle:
                    self._changed.notify()
                elif self._workers < WORKERS:
                    self._workers += 1
                    threading.Thread(target=self._work, name="bus", daemon=True).start()
                return
        call.refuse(UnavailableError.bus_name(), "too many calls wait for an answer; wait and try again")

    def answers(self) -> bool:
        """See BusService.answers."""
        with self._changed:
            oldest = min(self._busy_since.values(), default=None)
            stuck = len(self._busy_since) >= WORKERS and oldest is not None
        return not stuck or time.monotonic() - (oldest or 0.0) < STUCK_SECONDS

    def close(self, limit_seconds: float) -> None:
        """Refuse what waits and let what runs end."""
        with self._changed:
            self._closed = True
            waiting, self._queue = list(self._queue), deque()
            self._changed.notify_all()
        for call in waiting:
            call.refuse(UnavailableError.bus_name(), "the daemon is stopping; try again when it runs")
        with self._changed:
            self._changed.wait_for(lambda: self._workers == 0, limit_seconds)

    def _work(self) -> None:
        while (call := self._next()) is not None:
            with self._changed:
                self._busy_since[threading.get_ident()] = time.monotonic()
            self._serve(call)
            with self._changed:
                del self._busy_since[threading.get_ident()]
                self._of_sender[call.sender] -= 1
                if self._of_sender[call.sender] <= 0:
                    del self._of_sender[call.sender]
            # Otherwise the arguments of the last call would live as long as the thread waits.
            del call
        with self._changed:
            self._workers -= 1
            self._changed.notify_all()

    def _next(self) -> _Call | None:
        with self._changed:
            self._idle += 1
            try:
                self._changed.wait_for(lambda: self._queue or self._closed, IDLE_SECONDS)
                return self._queue.popleft() if self._queue else None
            finally:
                self._idle -= 1

    def _serve(self, call: _Call) -> None:
        handler = self._handlers.get(call.name)
        method = method_of(handler)
        if handler is None or method is None:
            call.refuse("org.freedesktop.DBus.Error.UnknownMethod", f"there is no {call.name}")
            return
        try:
            caller = self._identities.caller(call.sender)
            result = self._authorized(caller, call, method, handler)
        except CentralinoError as error:
            call.refuse(error.bus_name(), str(error))
        except Exception as error:
            log.exception("%s failed", call.name, extra={"fields": {"method": call.name}})
            call.refuse(
                CentralinoError.bus_name(), f"internal error: {error}; see: journalctl -u centralinod"
            )
        else:
            call.answer(result)

    def _authorized(self, caller: Caller, call: _Call, method: Method, handler: Handler) -> str | None:
        arguments = _summary(method, call.arguments)
        name = call.name.removeprefix(f"{BUS_NAME}.")
        try:
            authorize(caller, method.access, self._identities.polkit)
        except NotAuthorizedError as error:
            self._record(caller, name, arguments, f"refused: {error.message}")
            raise
        if not method.recorded:
            return handler(caller, *call.arguments)
        try:
            result = handler(caller, *call.arguments)
        except CentralinoError as error:
            self._record(caller, name, arguments, f"failed: {error}")
            raise
        except Exception:
            self._record(caller, name, arguments, "failed: internal error")
            raise
        outcome = f"job {result}" if result and re.fullmatch(r"[0-9a-f]{12}", result) else "done"
        self._record(caller, name, arguments, outcome)
        return result


def _summary(method: Method, arguments: tuple[str | int, ...]) -> Mapping[str, object]:
    try:
        return method.summary(*arguments)
    except Exception:
        log.exception("the arguments could not be summarised for the audit log")
        return {}
