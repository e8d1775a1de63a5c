"""`centralino-peer`: the role runtime's process, the helpers that it and the pairing are called by.

centralino-peer run              the runtime (centralino-peer.service)
centralino-peer silence          close SIP before anything else runs, if this node has a pair
centralino-peer dial CHANNEL ... a remote shell for rsync: an SSH client to the peer
centralino-peer fetch-secrets    what the master keeps in common with this node, to standard output
centralino-peer pair|invite ...  see pairing.py; short-lived, with paramiko
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from daemon.errors import (
    CentralinoError,
    InvalidSettingsError,
    NotFoundError,
    Problem,
    UnavailableError,
)
from daemon.journal import start_logging
from daemon.notify import ServiceManagerLink
from daemon.platform import platform
from daemon.run import run
from fault_tolerance import silence, sip_source
from fault_tolerance import status as shown
from fault_tolerance.contracts import Channel, DatabaseReplica, FileReplica
from fault_tolerance.control import ControlServer, Doors, Table
from fault_tolerance.executor import provider_hook
from fault_tolerance.pair import RUN, Pair, read
from fault_tolerance.pbx import Pbx, note_role
from fault_tolerance.peer_link import SshChannel, ssh_arguments
from fault_tolerance.provider import hook_of
from fault_tolerance.resync import Resync
from fault_tolerance.runtime import Runtime
from fault_tolerance.view import SERVING, Role, Wish

AMI_SECRET = Path("/etc/centralino/secrets/asterisk-ami")
# How long the database may take to close, and a lifetime beside it.
ABORT_SECONDS, HANGING_SECONDS = 2.0, 60.0

log = logging.getLogger(__name__)


class Service:
    """The runtime with its sockets; without a pair it only waits to be invited or configured."""

    def __init__(self, pair: Pair) -> None:
        self._selector = selectors.DefaultSelector()
        self._systemd = ServiceManagerLink()
        helper = [sys.executable, "-m", "fault_tolerance.service"]
        channel = SshChannel(pair, helper)
        self._database, self._files = _replications(pair, channel)
        self._resync = Resync(self._database, self._files)
        self._pbx = Pbx(AMI_SECRET, platform().paths["asterisk_control"])
        hook = hook_of()
        arguments = [str(pair.public_address or ""), str(pair.own), str(pair.peer)]
        self.runtime = Runtime(
            pair,
            self._database,
            self._files,
            self._pbx,
            self._selector,
            hook=provider_hook(hook, arguments) if hook is not None and pair.cloud else None,
            on_change=self._tell,
            on_alive=self._systemd.alive,
            on_cluster=lambda document: self._control.tell({"event": "settings", "document": document}),
            on_secrets=lambda: self._control.tell({"event": "secrets"}),
        )
        self._arrived: list[tuple[int, int, socket.socket]] = []
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._take_arrivals)
        self._control = ControlServer(RUN / "control", self._selector, self._request)
        self._doors = Doors(RUN / "link", self._selector, self._heartbeat_arrived, self._serve)
        self._told = ""

    def run(self) -> int:
        """Until SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_arguments: self.runtime.stop())
        self._heed_the_watchdog()
        try:
            self.runtime.start()
            self._systemd.ready("the pair is watched")
            self.runtime.run()
        except _SilentTooLongError:
            time.sleep(HANGING_SECONDS)  # the thread that listens ends this process before
        self._systemd.stopping()
        down = _box_goes_down()
        if down:
            self.runtime.shut_down()
        leaving = read() is None
        self.runtime.close(stop_vrrp=down or leaving)
        if leaving:
            from fault_tolerance import database

            database.dissolve()
            silence.open_sip()
            sip_source.remove()
            self._pbx.open()
            for name in ("role", "met"):
                (RUN / name).unlink(missing_ok=True)
        self._doors.close()
        self._control.close()
        return 0

    def _heed_the_watchdog(self) -> None:
        """systemd ends a runtime that was silent for ten seconds by SIGABRT, also one on a node that was
        frozen, as soon as it thaws. The peer may be master by then: no database stays open behind it.

        A thread hears of the signal also while the main one hangs, where no handler of Python's would run.
        """
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGABRT, _leave_it_all)

        def listen() -> None:
            while signal.SIGABRT not in os.read(read_end, 64):
                pass
            try:
                self.runtime.state.forget_watch()
                if self.runtime.role in SERVING:
                    self._database.make_read_only(ABORT_SECONDS)
                log.warning("systemd ends this runtime, which was silent for too long")
            finally:
                os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=listen, name="watchdog", daemon=True).start()

    def _tell(self) -> None:
        if not self._control.subscribed:
            return
        self._control.tell(
            {
                "event": "state",
                "status": shown.status(self.runtime),
                "alarms": shown.alarms(self.runtime),
            }
        )

    def _request(self, method: str, request: Table) -> object:
        runtime = self.runtime
        match method:
            case "status":
                return shown.status(runtime)
            case "why":
                return shown.why(runtime)
            case "subscribe":
                runtime.changed()
                return {"status": shown.status(runtime), "alarms": shown.alarms(runtime)}
            case "wish":
                wish = _wish(request.get("wish"))
                runtime.ask(wish, forced=request.get("forced") is True)
                return {"wish": wish.value}
            case "handback":
                runtime.ask_back()
                return {}
            case "resync":
                return self._resync.start(
                    str(request.get("what", "all")),
                    role=runtime.role.value,
                    accept_deletions=request.get("accept_deletions") is True,
                )
            case "resync-state":
                return self._resync.state()
            case "resync-cancel":
                self._resync.cancel()
                return {}
            case "maintenance":
                runtime.maintenance = request.get("on") is True
                runtime.changed()
                return {"maintenance": runtime.maintenance}
            case "core":
                runtime.core.failed = request.get("failed") is True
                calls = request.get("calls")
                runtime.core.calls = calls if isinstance(calls, int) else None
                runtime.core.digest = str(request.get("digest", ""))
                document = request.get("document")
                runtime.core.document = document if isinstance(document, dict) else runtime.core.document
                runtime.core.core_unit = str(request.get("unit", runtime.core.core_unit))
                runtime.core.secrets = str(request.get("secrets", ""))
                names = request.get("secret_names")
                runtime.core.secret_names = tuple(map(str, names)) if isinstance(names, list) else ()
                runtime.changed()
                return {}
            case _:
                raise NotFoundError(f"the runtime knows no {method[:64]!r}")

    def _heartbeat_arrived(self, read_end: int, write_end: int, door: socket.socket) -> None:
        """From a door's thread to the loop."""
        with self._lock:
            self._arrived.append((read_end, write_end, door))
        os.write(self._wake_write, b"!")

    def _take_arrivals(self) -> None:
        os.read(self._wake_read, 512)
        with self._lock:
            arrived, self._arrived = self._arrived, []
        for connection in arrived:
            self.runtime.link.accept(*connection)

    def _serve(self, channel: Channel, words: Sequence[str], guest: bool) -> list[str]:
        if channel is Channel.DATABASE:
            return self._database.serve_argv(words)
        if channel is Channel.FILES:
            return self._files.serve_argv(words)
        if channel is Channel.SECRETS:
            if self.runtime.role is not Role.MASTER:
                raise UnavailableError("this node is not master and gives no secrets away")
            epoch, names = str(self.runtime.state.durable.epoch), self.runtime.core.secret_names
            return [sys.executable, "-I", "-m", "daemon.shared_secrets", epoch, *names]
        raise NotFoundError("this node has a peer already", "run: centralino fault-tolerance unpair")


class _SilentTooLongError(BaseException):
    """Ends the loop wherever it is; whatever it holds is released on the way."""


def _leave_it_all(*_arguments: object) -> None:
    raise _SilentTooLongError


def _replications(pair: Pair, channel: SshChannel) -> tuple[DatabaseReplica, FileReplica]:
    """Both replications of this node. Raises CentralinoError: without them there is no pair."""
    from fault_tolerance import database, files

    return database.build(pair, channel), files.build(pair, channel)


def _wish(value: object) -> Wish:
    try:
        return Wish(str(value))
    except ValueError:
        raise InvalidSettingsError(
            [Problem("role", f"{str(value)[:32]!r} is no role", "use master, slave or off")]
        ) from None


def _box_goes_down() -> bool:
    try:
        return (
            run(["systemctl", "is-system-running"], limit_seconds=5.0, check=False).output.strip()
            == "stopping"
        )
    except CentralinoError:
        return True


def _silence() -> int:
    """Before Asterisk starts: a node of a pair is silent until it is master."""
    if read() is None:
        return 0
    resumed = ""
    with contextlib.suppress(OSError):
        resumed = (RUN / "role").read_text().strip()
    if resumed not in (Role.MASTER.value, Role.PROMOTING.value):
        silence.close()
        note_role(serving=False)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; exit codes are those of daemon.errors."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        match words:
            case ["run"]:
                start_logging(logging.INFO)
                pair = read()
                if pair is None:
                    from fault_tolerance.inviting import wait_for_guest

                    return wait_for_guest()
                return Service(pair).run()
            case ["silence"]:
                return _silence()
            case ["dial", channel, *rest]:
                pair = read()
                if pair is None:
                    raise NotFoundError("this node has no peer")
                # The remote command of rsync: HOST rsync --server ...; HOST is ours to know.
                call = ssh_arguments(pair, [Channel(channel).value, *rest[1:]])
                os.execvp(call[0], call)  # noqa: S606
            case ["fetch-secrets"]:
                pair = read()
                if pair is None:
                    raise NotFoundError("this node has no peer")
                call = ssh_arguments(pair, [Channel.SECRETS.value])
                os.execvp(call[0], call)  # noqa: S606
            case [("pair" | "invite" | "greet" | "forget") as verb, *rest]:
                from fault_tolerance.pairing import command

                return command(verb, rest)
            case _:
                sys.stderr.write(f"{__doc__}\n")
                return 2
    except CentralinoError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 2


if __name__ == "__main__":
    sys.exit(main())
