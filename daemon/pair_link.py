"""centralinod's line to the role runtime: one thread on a Unix socket that hears roles and alarms.

It lives only while this node has a pair. What the runtime needs of the daemon (the settings of cluster scope,
the digest of the secrets, whether the PBX core can run, live calls) goes the same way.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from daemon.alarms import Alarms
from daemon.errors import CentralinoError, NotFoundError, UnavailableError
from daemon.services.model import Role
from daemon.settings.messages import Severity
from daemon.subsystem import JsonObject

CONTROL = Path("/run/centralino-peer/control")
ROLE_FILE = Path("/run/centralino-peer/role")
RETRY_SECONDS = 0.5
REFRESH_SECONDS = 2.0
ANSWER_SECONDS = 5.0
FAMILY = "pair."

log = logging.getLogger(__name__)

_ROLES = {
    "master": Role.MASTER,
    "promoting": Role.MASTER,
    "off": Role.OFF,
    "standalone": Role.STANDALONE,
}


class PairLink:
    """`paired` says whether there is a pair; `core` gives what the runtime must know."""

    def __init__(
        self,
        paired: Callable[[], bool],
        core: Callable[[], JsonObject],
        alarms: Alarms,
        on_role: Callable[[], None],
        on_change: Callable[[], None],
        on_settings: Callable[[JsonObject], None],
        on_secrets: Callable[[], None],
        control: Path = CONTROL,
    ) -> None:
        self._paired = paired
        self._core = core
        self._alarms = alarms
        self._on_role, self._on_change = on_role, on_change
        self._on_settings, self._on_secrets = on_settings, on_secrets
        self._control = control
        self._state: JsonObject | None = None
        self._raised: set[str] = set()
        self._role = Role.STANDALONE
        self._sent: JsonObject = {}
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._wake = threading.Event()

    # --- for everybody ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or look again, after the settings changed; without a pair there is no thread."""
        if (
            self._paired()
            and (self._thread is None or not self._thread.is_alive())
            and not self._stopped.is_set()
        ):
            self._thread = threading.Thread(target=self._run, name="pair", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Hear no more."""
        self._stopped.set()

    def state(self) -> JsonObject | None:
        """The runtime's status, None while it is away or there is no pair."""
        return self._state

    def role(self) -> Role:
        """What services and status go by. The last word of a runtime that is away holds."""
        if not self._paired():
            return Role.STANDALONE
        if self._state is not None:
            return role_of(str(self._state.get("role", "")))
        try:
            return role_of(ROLE_FILE.read_text().strip())
        except OSError:
            return Role.SLAVE

    def role_word(self) -> str:
        """The same as the runtime calls it: also joining, promoting, demoting."""
        if self._paired() and self._state is not None:
            return str(self._state.get("role", ""))
        return self.role().value

    def peer_trouble(self) -> str | None:
        """Why the peer is not heard now, None if it is or if there is no pair."""
        if not self._paired():
            return None
        try:
            link = self.ask("status").get("link")
        except CentralinoError as error:
            return error.message
        found = link if isinstance(link, dict) else {}
        if found.get("state") == "up":
            return None
        return f"the peer {found.get('peer')} of this pair is not heard ({found.get('trouble')})"

    def ask(self, method: str, **arguments: object) -> JsonObject:
        """One request on a connection of its own. Raises what the runtime answers, or UnavailableError."""
        if not self._paired():
            raise NotFoundError("this node has no peer", "run: centralino fault-tolerance pair PEER")
        try:
            with self._connect() as connection:
                return self._request(connection.makefile("rwb"), method, arguments)
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"the role runtime went away while it was asked ({error})",
                "see: systemctl status centralino-peer",
            ) from error

    # --- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped.is_set() and self._paired():
            try:
                self._listen()
            except (OSError, ValueError, CentralinoError) as error:
                log.debug("the role runtime is away: %s", error)
            self._state = None
            self._sent = {}
            self._stopped.wait(RETRY_SECONDS)
        for identifier in tuple(self._raised):
            self._alarms.clear_alarm(identifier)
        self._raised.clear()
        self._state = None
        self._notice_role()

    def _listen(self) -> None:
        with self._connect() as connection:
            stream = connection.makefile("rwb")
            self._take(self._request(stream, "subscribe", {}))
            connection.settimeout(REFRESH_SECONDS)
            buffer = b""
            while not self._stopped.is_set() and self._paired():
                self._tell_core(connection)
                try:
                    data = connection.recv(65536)
                except TimeoutError:
                    continue
                if not data:
                    return
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._hear(json.loads(line))

    def _hear(self, message: JsonObject) -> None:
        if message.get("event") == "state":
            self._take(message)
        elif message.get("event") == "settings":
            document = message.get("document")
            if isinstance(document, dict):
                self._on_settings(document)
        elif message.get("event") == "secrets":
            self._on_secrets()

    def _take(self, message: JsonObject) -> None:
        status = message.get("status")
        if isinstance(status, dict):
            self._state = status
            self._notice_role()
        alarms = message.get("alarms")
        if isinstance(alarms, dict):
            self._take_alarms({str(name): str(sentence) for name, sentence in alarms.items()})

    def _notice_role(self) -> None:
        role = self.role()
        if role is not self._role:
            self._role = role
            log.info("this node is %s", role.value)
            self._on_role()
            self._on_change()

    def _take_alarms(self, alarms: dict[str, str]) -> None:
        for identifier in self._raised - set(alarms):
            self._alarms.clear_alarm(identifier)
        for identifier, sentence in alarms.items():
            self._alarms.raise_alarm(identifier, sentence, Severity.CRITICAL)
        standing = {alarm.identifier for alarm in self._alarms.standing()}
        for left in standing - set(alarms):
            if left.startswith(FAMILY) and left not in self._raised:
                # Of a daemon before this one.
                self._alarms.clear_alarm(left)
        self._raised = set(alarms)

    def _tell_core(self, connection: socket.socket) -> None:
        core = self._core()
        if core != self._sent:
            connection.sendall(json.dumps({"method": "core", **core}).encode() + b"\n")
            self._sent = core

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(str(self._control))
        except OSError as error:
            connection.close()
            raise UnavailableError(
                f"the role runtime does not run ({error.strerror})", "see: systemctl status centralino-peer"
            ) from error
        return connection

    @staticmethod
    def _request(stream: object, method: str, arguments: JsonObject) -> JsonObject:
        with contextlib.suppress(TimeoutError):
            stream.write(json.dumps({"id": 1, "method": method, **arguments}).encode() + b"\n")  # type: ignore[attr-defined]
            stream.flush()  # type: ignore[attr-defined]
            while line := stream.readline():  # type: ignore[attr-defined]
                answer = json.loads(line)
                if answer.get("id") != 1:
                    continue
                if "error" in answer:
                    raise _error(answer)
                result = answer.get("result")
                return result if isinstance(result, dict) else {}
        raise UnavailableError("the role runtime did not answer", "see: systemctl status centralino-peer")


def role_of(word: str) -> Role:
    """joining, demoting and what is unknown are silent: slave."""
    return _ROLES.get(word, Role.SLAVE)


def _error(answer: JsonObject) -> CentralinoError:
    kinds = {kind.__name__: kind for kind in CentralinoError.__subclasses__()}
    kind = kinds.get(str(answer.get("error")), CentralinoError)
    message, remedy = str(answer.get("message", "")), str(answer.get("remedy", ""))
    if kind.__name__ == "InvalidSettingsError":
        return CentralinoError(message, remedy)
    return kind(message, remedy)
