"""`contracts.FileReplica`: sends as master, receives as slave, does neither in between."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from daemon.errors import CancelledError, CentralinoError, CommandFailedError, UnavailableError
from daemon.files import ensure_directory
from daemon.run import run as run_program
from fault_tolerance.contracts import Channel, PeerChannel, Progress, ReplicaState
from fault_tolerance.files import dial, rsync
from fault_tolerance.files.flush import Flusher, flush
from fault_tolerance.files.receiver import Gate, forget_old, running
from fault_tolerance.files.sender import Sender
from fault_tolerance.files.trees import Markers, Tree

log = logging.getLogger(__name__)

ASK_SECONDS = 0.25
SILENCE_SECONDS = 10.0
CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class _Asked:
    """A full pass that the slave asked its master for, and how far the master is."""

    token: str
    share: float = 0.0
    text: str = ""
    done: bool = False
    error: str = ""


class Files:
    """Orders may come from any thread; what the runtime's loop reads lies in memory."""

    def __init__(
        self, trees: Sequence[Tree], channel: PeerChannel, state: Path, run: Path, kilobytes: int
    ) -> None:
        self._trees = tuple(trees)
        self._channel = channel
        self._kilobytes = kilobytes
        ensure_directory(state, 0o700)
        self._markers = Markers(state)
        self._control = run / "connection"
        self._gate = Gate(run, self._trees, self._markers)
        self._flusher = Flusher(
            [tree.path for tree in self._trees],
            busy=lambda: any(Path(f"/proc/{process}").exists() for _, process, _ in running(run)),
        )
        self._turn = threading.RLock()
        self._sender: Sender | None = None
        self._receiving = False
        self._peer: dict[str, object] = {}
        self._wish = ""
        self._forgive = False
        self._pass = _Asked("")
        # A slave that began anew may have lost its power, and with it files that it had but not on its disk.
        self._life = os.urandom(4).hex()
        self._peer_life = ""

    def send(self, epoch: int) -> None:
        """See the contract."""
        with self._turn:
            self.stop()
            # From now on this node's trees are what counts.
            flush([tree.path for tree in self._trees])
            client = rsync.kept_open(self._channel.command(Channel.FILES), self._control)
            shell = [sys.executable, "-I", "-S", dial.__file__, *client]
            sender = Sender(self._trees, self._markers, shell, epoch, self._kilobytes)
            sender.start()
            self._sender = sender

    def receive(self, epoch: int) -> None:
        """See the contract."""
        with self._turn:
            if self._sender is not None:
                self.stop()
            self._gate.open(epoch)
            self._receiving = True
        forget_old(self._trees, time.time())

    def stop(self) -> None:
        """See the contract."""
        with self._turn:
            self._gate.shut()
            self._receiving = False
            sender, self._sender = self._sender, None
            if sender is not None:
                sender.stop()
                words = rsync.close_kept(self._channel.command(Channel.FILES), self._control)
                with suppress(CommandFailedError):
                    run_program(words, limit_seconds=CLOSE_SECONDS, check=False)

    def state(self) -> ReplicaState:
        """See the contract. Files are no obstacle to a promotion: telephony goes before them."""
        sender = self._sender
        if sender is not None:
            problems = sender.problems()
            count = sender.count()
            alarm = "; ".join(problems)
            detail = alarm or (f"{count} paths are on their way" if count else "all files are sent")
            return ReplicaState(frozenset(), sender.lag_milliseconds(), not problems, detail, alarm)
        if not self._receiving:
            return ReplicaState(detail="files are neither sent nor received")
        lag, problem = self._peer.get("lag"), self._peer.get("problem")
        return ReplicaState(
            lag_milliseconds=float(lag) if isinstance(lag, int | float) else None,
            detail=str(problem) if problem else "files are received from the peer",
        )

    def resynchronize(self, progress: Progress, accept_deletions: bool = False) -> None:
        """See the contract; on a slave the master is asked. `accept_deletions` lets mass deletions pass."""
        sender = self._sender
        if sender is not None:
            sender.resynchronize(progress, forgive=accept_deletions)
        elif self._receiving:
            self._ask_master(progress, accept_deletions)
        else:
            raise UnavailableError(
                "this node is neither master nor slave", "see: centralino fault-tolerance status"
            )

    def heartbeat(self) -> dict[str, object]:
        """See the contract."""
        sender = self._sender
        facts: dict[str, object] = {"life": self._life, "wish": self._wish, "forgive": self._forgive}
        if sender is not None:
            asked = self._pass
            facts |= {
                "lag": sender.lag_milliseconds(),
                "count": sender.count(),
                "problem": "; ".join(sender.problems()),
                "pass": [asked.token, asked.share, asked.text, asked.done, asked.error],
            }
        return facts

    def heard(self, facts: dict[str, object]) -> None:
        """See the contract."""
        self._peer = facts
        wish, sender = facts.get("wish"), self._sender
        life, before = str(facts.get("life", "")), self._peer_life
        if life and life != before:
            self._peer_life = life
            if before and sender is not None:
                log.info("the peer began anew: its trees are compared")
                sender.compare_all()
        if sender is not None and isinstance(wish, str) and wish and wish != self._pass.token:
            self._pass = _Asked(wish)
            forgive = facts.get("forgive") is True
            threading.Thread(target=self._serve_pass, args=(sender, wish, forgive), daemon=True).start()

    def serve_argv(self, words: Sequence[str]) -> list[str]:
        """See the contract."""
        program = self._gate.argv(words)
        self._flusher.note()
        return program

    def close(self) -> None:
        """See the contract."""
        self.stop()
        self._flusher.end()

    def _serve_pass(self, sender: Sender, token: str, forgive: bool) -> None:
        def note(share: float | None, text: str) -> None:
            self._pass = _Asked(token, share or 0.0, text)

        try:
            sender.resynchronize(note, forgive=forgive)
            self._pass = _Asked(token, 1.0, "all trees are equal", done=True)
        except CentralinoError as error:
            self._pass = _Asked(token, 0.0, "", done=True, error=str(error))

    def _ask_master(self, progress: Progress, forgive: bool) -> None:
        token = os.urandom(4).hex()
        self._forgive, self._wish = forgive, token
        heard_until = time.monotonic() + SILENCE_SECONDS
        try:
            while time.monotonic() < heard_until:
                time.sleep(ASK_SECONDS)
                said = self._peer.get("pass")
                if not isinstance(said, list) or len(said) != 5 or said[0] != token:
                    progress(None, "asking the master")
                    continue
                heard_until = time.monotonic() + SILENCE_SECONDS
                share, text, done, error = float(said[1]), str(said[2]), said[3] is True, str(said[4])
                if done and error:
                    raise CommandFailedError(error)
                progress(share, text)
                if done:
                    return
            raise UnavailableError("the master does not answer", "see: centralino fault-tolerance status")
        except CancelledError:
            log.info("the comparing goes on at the master: %s", json.dumps(token))
            raise
        finally:
            self._wish, self._forgive = "", False
