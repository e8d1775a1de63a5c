"""No new calls for a while, and those that are up go on: what a switch waits with.

Asterisk's own graceful stop refuses the transfers of a call that is up as well, and ends Asterisk. So the
manager interface is listened to instead: the first channel of a call that begins is hung up with cause 34,
which SIP knows as 503, while channels that belong to a call that is up are let through. Nothing is set in
Asterisk that a crash could leave behind: when this connection ends, calls are accepted again. A dialplan that
answers at its very first step is faster than that; the caller is then hung up on instead of refused.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from daemon.errors import UnavailableError
from daemon.services.probes.asking import Deadline, ProbeError
from daemon.services.probes.manager_interface import PORT, Manager, Message

HOST = "127.0.0.1"
LIMIT_SECONDS = 5.0
RETRY_SECONDS = 0.5
POLL_SECONDS = 0.5
# 3GPP and Q.850: no circuit available; chan_pjsip answers 503.
CAUSE = "34"

log = logging.getLogger(__name__)


class NoNewCalls:
    """While in the block. `secret_file` holds the secret of the manager interface."""

    def __init__(self, secret_file: Path, host: str = HOST, port: int = PORT) -> None:
        self._listening = Manager(host, port, secret_file)
        self._counting = Manager(host, port, secret_file)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="no-new-calls", daemon=True)
        self.refused = 0

    def __enter__(self) -> NoNewCalls:
        """Raises UnavailableError when Asterisk cannot be told."""
        try:
            self._listen()
        except (OSError, EOFError, ProbeError) as error:
            self._listening.close()
            raise UnavailableError(
                f"new calls cannot be refused, for Asterisk does not answer: {error}",
                "look at it (centralino services), or switch without --drain",
            ) from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(2 * POLL_SECONDS + RETRY_SECONDS)
        self._listening.close()
        self._counting.close()

    def wait(self, seconds: float, progress: Callable[[int, float], None]) -> float:
        """Until no call is up, at most so long; `progress` gets their number and the seconds left. Returns
        the seconds waited. Calls that cannot be counted are waited for."""
        began = time.monotonic()
        while (waited := time.monotonic() - began) < seconds:
            calls = self.count()
            if calls == 0:
                break
            if calls is not None:
                progress(calls, seconds - waited)
            self._ended.wait(POLL_SECONDS)
        return time.monotonic() - began

    def count(self) -> int | None:
        """Calls that are up, None if nobody can tell."""
        deadline = Deadline(LIMIT_SECONDS)
        try:
            self._counting.connect(deadline)
            return self._counting.live_calls(deadline)
        except (OSError, EOFError, ProbeError):
            self._counting.close()
            return None

    def _listen(self) -> None:
        deadline = Deadline(LIMIT_SECONDS)
        self._listening.connect(deadline)
        answer = self._listening.action(deadline, "Events", EventMask="call")
        if answer.get("Response") != "Success":
            raise EOFError(f"events are refused ({answer.get('Message', 'no reason given')})")

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                if not self._listening.connected:
                    self._listen()
                self._take(self._listening.message(Deadline(POLL_SECONDS)))
            except TimeoutError:
                continue
            except (OSError, EOFError, ProbeError) as error:
                log.warning("Asterisk was lost while new calls are refused: %s", error)
                self._listening.close()
                self._ended.wait(RETRY_SECONDS)

    def _take(self, message: Message) -> None:
        if begins_a_call(message):
            self._listening.send(
                Deadline(LIMIT_SECONDS), "Hangup", Channel=message.get("Channel", ""), Cause=CAUSE
            )
            self.refused += 1
            log.info("a new call was refused, for this node is handing over: %s", message.get("Channel"))


def begins_a_call(message: Message) -> bool:
    """Whether an event tells of a channel that belongs to no other one."""
    return (
        message.get("Event") == "Newchannel"
        and bool(message.get("Uniqueid"))
        and message.get("Uniqueid") == message.get("Linkedid")
    )
