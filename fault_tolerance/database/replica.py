"""MariaDB as one half of a pair: who may write, who follows, and what a returning node does.

A keeper thread looks at the server four times a second and brings it back to its aim, whatever restarted,
stopped or changed it. Orders and keeper take turns by one lock; what the runtime's loop reads lies in memory.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from daemon.errors import CancelledError, CentralinoError, StorageError, UnavailableError
from daemon.files import ensure_directory
from daemon.run import run
from fault_tolerance.contracts import Channel, PeerChannel, Progress, ReplicaState, nothing
from fault_tolerance.database import serve, settings, wreck
from fault_tolerance.database.closing import (
    APPLY_ROUND_SECONDS,
    CONFIRMATION_MILLISECONDS,
    DURABLE,
    LAZY,
    PULSE,
    begin_log_anew,
    drain,
    fence,
    have_listeners_ask_anew,
    shut,
    turn_at_last,
    wait_for_nobody,
)
from fault_tolerance.database.door import end_others
from fault_tolerance.database.evidence import Evidence, export
from fault_tolerance.database.forward import Forward
from fault_tolerance.database.gtid import Comparison, GtidState, classify, parse
from fault_tolerance.database.look import (
    FRESH_SECONDS,
    GIVE_UP_SECONDS,
    Aim,
    Drought,
    Lag,
    Look,
    Patience,
    Said,
    errant,
    follows,
    lineage_of,
    look,
    master_state,
    slave_state,
    unanswered,
)
from fault_tolerance.database.seed import Seeding, finish, receive
from fault_tolerance.database.server import Server
from fault_tolerance.database.session import REPLICA_USER, Session, connect, connect_through, session
from fault_tolerance.database.stuck import Stuck
from fault_tolerance.view import Obstacle

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
# Looks between whole ones ask only what changes while all is well.
WHOLE_SECONDS = 1.0
RETRY_SECONDS = 1.0
# A slave takes over after about a second of silence.
STALL_SECONDS = 1.0
STALE_SECONDS = 0.5
DOUBT_SECONDS = 3.0
SHORT_LIMIT_SECONDS = 3.0
# A copy may take long, and a link come back: one that holds nobody up goes on meanwhile.
COPY_SILENCE_SECONDS = 10.0
WAITING_FOR_A_COPY = (
    "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE = 'Waiting for backup lock'"
)
RESTART_LIMIT_SECONDS = 300.0
ANSWER_LIMIT_SECONDS = 60.0


class MariaDb:
    """`contracts.DatabaseReplica`."""

    def __init__(self, server: Server, channel: PeerChannel) -> None:
        self._server = server
        self._seeding = Seeding(server.home, server.owner, channel.command(Channel.DATABASE, [serve.SEED]))
        self._forward = Forward(
            lambda: channel.command(Channel.DATABASE, [serve.STREAM]), frozenset({0, server.owner_id})
        )
        self._turn = threading.RLock()
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._aim = Aim.UNDECIDED
        self._look: Look | None = None
        self._said: Said | None = None
        self._peer_position = GtidState()
        self._lag = Lag()
        self._patience = Patience()
        self._drought, self._next_copy = Drought(), 0.0
        self._wreck = wreck.Wreck(server.unit, self._seeding.data)
        self._stuck = Stuck()
        self._note = ""
        self._kept = wreck.Kept()
        self._peer_kept = ""
        self._keep_all = False
        self._seed_wanted = False
        self._seed_failed: CentralinoError | None = None
        self._seed_share: float | None = None
        self._seed_text = ""
        self._seed_cancelled = threading.Event()
        self._watching: Session | None = None
        self._whole_due = 0.0
        self._calm = False
        self._retry_after = 0.0
        self._still_at: float | None = None
        ensure_directory(server.state, 0o700)
        ensure_directory(server.run, 0o700)
        settings.write(server.configuration, server.number)
        self._keeper = threading.Thread(target=self._keep, name="database-keeper", daemon=True)
        self._keeper.start()

    # --- orders ---------------------------------------------------------------------------------------

    def make_writable(
        self, limit_seconds: float, not_before: float = 0.0, ready: Callable[[], None] = nothing
    ) -> None:
        """See the contract. Raises UnavailableError when the relay log is not worked off in time."""
        deadline = time.monotonic() + limit_seconds
        # The keeper keeps its hands off, and the connection to a peer that may be dead ends, so that neither
        # it nor anything below waits for that peer; one that has just closed may send its last.
        self._aim = Aim.UNDECIDED
        if not self._last_words():
            self._forward.close()
        with self._turn, session(self._server.socket, limit_seconds) as own:
            self._receive_the_rest(own)
            self._forward.close()
            self._open(own, deadline, Aim.UNDECIDED, not_before, ready)
            self._aim = Aim.WRITABLE
            self._look = look(own, time.monotonic())

    def make_read_only(self, limit_seconds: float) -> None:
        """See the contract. A server that does not obey is killed: it comes back read-only."""
        deadline = time.monotonic() + limit_seconds
        # Before its turn, so that an opening that is under way ends; in its turn, so that it counts.
        self._aim = Aim.READ_ONLY
        with turn_at_last(self._turn, self._server.socket, limit_seconds / 2) as taken:
            self._aim = Aim.READ_ONLY
            try:
                if not taken:
                    raise UnavailableError("another order does not end")
                # Its session would be killed with those of the clients.
                self._end_watching()
                with session(self._server.socket, max(1.0, limit_seconds / 2)) as own:
                    shut(own, self._server.socket, deadline)
                    self._look = look(own, time.monotonic())
            except CentralinoError as error:
                log.error("the database did not become read-only (%s): it is killed", error)
                self._look = None
                settings.write(self._server.configuration, self._server.number)
                fence(self._server.unit, self._server.socket, deadline + SHORT_LIMIT_SECONDS)

    def follow(self, limit_seconds: float) -> None:
        """See the contract. While the peer is not ready yet the keeper goes on trying."""
        with self._turn:
            self._aim = Aim.FOLLOWING
            try:
                self._begin_to_follow(limit_seconds)
            except UnavailableError as error:
                self._hold(error)

    def seed_from_peer(self, progress: Progress) -> None:
        """See the contract; joins a copy that is being made already."""
        if self._aim is not Aim.FOLLOWING:
            raise UnavailableError(
                "only a slave takes a copy of its peer's database", "see: centralino fault-tolerance status"
            )
        self._seed_failed = None
        self._seed_cancelled.clear()
        self._seed_wanted = True
        self._wake.set()
        try:
            while self._seed_wanted and not self._ended.wait(LOOK_SECONDS):
                progress(self._seed_share, self._seed_text or "waiting for the database")
        except CancelledError:
            self._seed_cancelled.set()
            raise
        if self._seed_failed is not None:
            raise self._seed_failed
        progress(1.0, "the copy is in place and follows the peer")

    def close(self) -> None:
        """See the contract."""
        self._ended.set()
        self._seed_cancelled.set()
        self._wake.set()
        self._forward.close()
        self._keeper.join(SHORT_LIMIT_SECONDS * 2)

    # --- from memory ----------------------------------------------------------------------------------

    def position(self) -> int:
        """See the contract."""
        seen = self._look
        return 0 if seen is None else max(seen.state.sequence, seen.received.sequence)

    def state(self) -> ReplicaState:
        """See the contract."""
        own, said, now = self._look, self._said, time.monotonic()
        if self._aim is Aim.WRITABLE:
            found = master_state(own, said, now)
        else:
            found = slave_state(own, said, None if own is None else self._lag.milliseconds(own), now)
        obstacles = found.obstacles
        details = [self._note or found.detail]
        if own is None and (told := self._wreck.sentence(master=self._aim is Aim.WRITABLE)):
            details.append(told)
        if self._seed_share is not None:
            obstacles = frozenset({Obstacle.SEEDING})
            details = [self._seed_text]
        elif self._note and self._aim is Aim.FOLLOWING and not follows(own, said):
            obstacles |= {Obstacle.REPLICA_BROKEN}
        alarm = self._kept.sentence()
        if not alarm and self._peer_kept:
            alarm = f"what the peer alone had, or may have had, was kept there, in {self._peer_kept}"
        if alarm:
            details.append(alarm)
        text = "; ".join(details)
        return ReplicaState(obstacles, found.lag_milliseconds, found.synchronous, text, alarm)

    def heartbeat(self) -> dict[str, object]:
        """See the contract."""
        own = self._look
        if own is None:
            return {"answers": False} | self._wreck.told()
        return {
            "answers": True,
            "state": str(own.state),
            "sequence": own.state.sequence,
            "writable": own.writable,
            "synchronous": own.synchronous,
            "lag": self._lag.milliseconds(own) if self._aim is Aim.FOLLOWING else None,
            "kept": self._kept.place,
        }

    def heard(self, facts: dict[str, object]) -> None:
        """See the contract. A peer whose database does not answer keeps what it said last."""
        now, before = time.monotonic(), self._said
        if facts.get("answers") is not True:
            self._said = unanswered(before, facts.get("lacks"), now)
            return
        self._peer_kept = str(facts.get("kept", ""))[:256]
        sequence, lag = facts.get("sequence"), facts.get("lag")
        if not isinstance(sequence, int):
            return
        writable = facts.get("writable") is True
        same = before is not None and (before.writable, before.sequence) == (writable, sequence)
        self._said = Said(
            now,
            writable,
            facts.get("synchronous") is True,
            sequence,
            float(lag) if isinstance(lag, int | float) else None,
            since=before.since if same and before is not None else now,
        )
        self._lag.heard(now, sequence)
        with suppress(ValueError):
            self._peer_position = parse(str(facts.get("state", "")))

    def serve_argv(self, words: Sequence[str]) -> list[str]:
        """See the contract. Only a master gives copies of itself."""
        if list(words) == [serve.SEED] and self._aim is not Aim.WRITABLE:
            raise UnavailableError("this node is not master and gives no copy of its database")
        server = self._server
        return serve.argv(words, server.socket, self._seeding.data, server.user, server.group, server.run)

    def _open(
        self,
        own: Session,
        deadline: float,
        aim: Aim,
        not_before: float = 0.0,
        ready: Callable[[], None] = nothing,
    ) -> None:
        """Apply what was received, then allow writes, unless the aim is another one by then."""
        finish(self._seeding, own)
        drain(own, deadline)
        begin_log_anew(own)
        own.do(
            f"SET GLOBAL server_id = {self._server.number}",
            "SET GLOBAL rpl_semi_sync_slave_enabled = OFF",
            f"SET GLOBAL rpl_semi_sync_master_timeout = {CONFIRMATION_MILLISECONDS}",
            "SET GLOBAL rpl_semi_sync_master_enabled = ON",
            *DURABLE,
        )
        have_listeners_ask_anew(own)
        ready()
        while self._aim is aim and time.monotonic() < not_before:
            time.sleep(APPLY_ROUND_SECONDS)
        if self._aim is not aim:
            raise UnavailableError("the role changed while the database was being opened")
        own.do("SET GLOBAL read_only = OFF")
        if self._alone():
            wait_for_nobody(own)
        if not lineage_of(own):
            own.rows("REPLACE INTO centralino_pair.lineage (identifier) VALUES (%s)", (str(uuid.uuid4()),))
        self._note = ""
        self._seed_wanted = False
        self._still_at = None

    def _last_words(self) -> Said | None:
        """What a peer said that has just closed and may still be sending; None of any other peer."""
        said, now = self._said, time.monotonic()
        if said is None or said.writable or not said.answers or not said.still_sends(now):
            return None
        return said

    def _receive_the_rest(self, own: Session) -> None:
        """Wait for what the peer had when it closed. Raises UnavailableError if that does not come."""
        said = self._last_words()
        while said is not None:
            seen = look(own, time.monotonic(), "-")
            if not seen.configured or not said.has_more_than(seen):
                return
            if not seen.receiving or not said.still_sends(time.monotonic()):
                raise UnavailableError("the peer has closed, and not all of its transactions have come here")
            time.sleep(APPLY_ROUND_SECONDS)

    def _alone(self) -> bool:
        """Whether nobody will confirm the first commits: a peer that hands over says that it is closed."""
        said = self._said
        return said is None or said.writable or time.monotonic() - said.moment > FRESH_SECONDS

    # --- following ------------------------------------------------------------------------------------

    def _begin_to_follow(self, limit_seconds: float) -> None:
        port = self._forward.open()
        with session(self._server.socket, limit_seconds) as own:
            own.do("SET GLOBAL read_only = ON", "SET GLOBAL rpl_semi_sync_master_enabled = OFF")
            finish(self._seeding, own)
            own.do("STOP SLAVE")
            seen = look(own, time.monotonic())
            try:
                peer, lineage = self._ask_peer(port, limit_seconds)
            except UnavailableError:
                if seen.configured:
                    # A peer that dies while it is asked leaves a replica that can take over.
                    own.do("START SLAVE")
                raise
            if lineage != seen.lineage:
                self._replace(seen.state, GtidState(), "this node's data is not a copy of the peer's")
                return
            compared = classify(seen.state, peer)
            if compared in (Comparison.AHEAD, Comparison.DIVERGED):
                self._replace(
                    seen.state, peer, f"compared with the peer's, this node's data is {compared.value}"
                )
                return
            if seen.purged:
                self._replace(
                    seen.state, peer, "the peer's log does not reach back to where this node stopped"
                )
                return
            own.do(
                f"SET GLOBAL server_id = {self._server.number}",
                "RESET SLAVE ALL",
                f"SET GLOBAL gtid_slave_pos = '{seen.state.position_text}'",
                f"CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port},"
                f" MASTER_USER = '{REPLICA_USER}', MASTER_USE_GTID = slave_pos,"
                " MASTER_CONNECT_RETRY = 1, MASTER_HEARTBEAT_PERIOD = 1",
                "SET GLOBAL rpl_semi_sync_slave_enabled = ON",
                *LAZY,
                "START SLAVE",
            )
            self._note = ""
            log.info("compared with the peer's, this node's data is %s; it follows", compared.value)
            self._look = look(own, time.monotonic())

    def _ask_peer(self, port: int, limit_seconds: float) -> tuple[GtidState, str]:
        """Where the peer stands; only a writable one knows, because another may still have to apply."""
        peer = connect_through(port, limit_seconds)
        try:
            if peer.number("SELECT @@read_only") != 0:
                raise UnavailableError("the peer's database is not writable yet")
            return parse(peer.text("SELECT @@gtid_binlog_state")), lineage_of(peer)
        finally:
            peer.end()

    def _replace(self, own: GtidState, peer: GtidState, why: str) -> None:
        """Keep what only this node has, and order a copy of the peer's."""
        kept: Evidence | None = None
        if own.last:
            kept = export(self._seeding.data, self._server.evidence, own, peer)
        if kept is not None:
            log.error("%d transactions that only this node had are kept in %s", kept.transactions, kept.path)
            if kept.unreadable:
                log.error("%s cannot be read to its end: all is kept", ", ".join(kept.unreadable))
                self._keep_all = True
        self._order_copy(why)

    def _order_copy(self, why: str) -> None:
        log.warning("%s: it is copied anew", why)
        self._seed_wanted = True
        self._seed_share, self._seed_text = 0.0, f"{why}: it is copied anew"
        self._wake.set()

    def _seed(self) -> None:
        def note(share: float | None, text: str) -> None:
            self._seed_share, self._seed_text = share or 0.0, text

        self._seed_cancelled.clear()
        taken = False
        try:
            note(0.0, "asking the peer for a copy of its database")
            good = self._seeding.unused or wreck.answers(self._server.socket)
            wreck.mark(self._seeding.data, keep=self._keep_all or not good)
            if not self._seeding.ready.exists():
                receive(self._seeding, note, self._seed_cancelled)
            if self._aim is not Aim.FOLLOWING or self._ended.is_set():
                raise CancelledError("this node's role changed while its database was being copied")
            note(0.95, "starting the database with the copy")
            taken = True
            with self._turn:
                run(["systemctl", "restart", self._server.unit], limit_seconds=RESTART_LIMIT_SECONDS)
                self._begin_to_follow(ANSWER_LIMIT_SECONDS)
            self._seed_wanted = self._keep_all = False
        except CentralinoError as error:
            self._seed_failed = error
            self._hold(error)
            if not taken:
                soon = time.monotonic() + wreck.COPY_RETRY_SECONDS
                self._next_copy = min(self._next_copy, soon)
                self._wreck.not_before = min(self._wreck.not_before, soon)
            # A person's order ends with its failure; what the keeper needs it orders again.
            self._seed_wanted = False
        finally:
            self._seed_share = None

    def _replace_wreck(self) -> None:
        """Order a copy in place of a server that cannot start any more, or have the peer serve."""
        now = time.monotonic()
        if self._aim is Aim.FOLLOWING and self._wreck.judge(now, self._said):
            self._order_copy("this node's database cannot start any more")
        elif self._aim is Aim.WRITABLE:
            self._wreck.compare(now, self._said, self._peer_position)

    # --- the keeper -----------------------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            try:
                if (waited := time.monotonic() - began) > STALL_SECONDS and self._aim is Aim.WRITABLE:
                    self._stood_still(waited)
                self._end_copy_of_a_silent_peer()
                if self._seed_wanted and self._aim is Aim.FOLLOWING and not self._ended.is_set():
                    self._seed()
                if self._turn.acquire(blocking=False):
                    try:
                        self._watch()
                        self._restore_aim()
                    finally:
                        self._turn.release()
            except UnavailableError as error:
                self._lose(error)
                with suppress(CentralinoError):
                    self._replace_wreck()
            except CentralinoError as error:
                self._hold(error)
            except Exception:
                log.exception("the database could not be looked after")
                self._lose(None)

    def _end_copy_of_a_silent_peer(self) -> None:
        """A copy that nobody reads any more may hold the lock that every commit needs, until TCP gives up."""
        silent = 0.0 if self._said is None else time.monotonic() - self._said.moment
        if silent > COPY_SILENCE_SECONDS or (silent > GIVE_UP_SECONDS and self._copy_holds_up()):
            end_others(str(self._server.run), serve.SEED)

    def _copy_holds_up(self) -> bool:
        """Whether somebody waits for the lock of a copy."""
        with suppress(CentralinoError):
            return self._watching is not None and self._watching.number(WAITING_FOR_A_COPY) > 0
        return False

    def _stood_still(self, seconds: float) -> None:
        """The peer may write by now: close, and open again when it is known that it does not."""
        log.warning("this node stood still for %.1f s: no writes until it is clear who serves", seconds)
        with self._turn:
            if self._aim is Aim.WRITABLE:
                self._still_at = time.monotonic()
                with session(self._server.socket, SHORT_LIMIT_SECONDS) as own:
                    shut(own, self._server.socket, self._still_at + SHORT_LIMIT_SECONDS)

    def _may_open(self, now: float) -> bool:
        """Whether nobody else writes: the peer says so, in words that did not lie here meanwhile, or it has
        been silent for as long as the runtime needs to hear it."""
        if self._still_at is None:
            return True
        said = self._said
        if said is not None and said.moment > self._still_at + STALE_SECONDS:
            return not said.writable
        return now > self._still_at + DOUBT_SECONDS

    def _watch(self) -> None:
        if self._watching is None:
            self._watching = connect(self._server.socket, SHORT_LIMIT_SECONDS)
        before, now = self._look, time.monotonic()
        if self._calm and before is not None:
            self._calm = False
            return
        whole = before is None or now >= self._whole_due
        if whole:
            self._whole_due = now + WHOLE_SECONDS
            self._kept = wreck.find(self._server.evidence, self._server.home)
        lineage = "" if before is None else before.lineage
        seen = look(self._watching, now, lineage, None if whole else before)
        # While nothing is written, and each node hears the other, every second look is left out.
        well = seen.on_both or (seen.receiving and seen.applying)
        self._calm = well and before is not None and seen == replace(before, moment=now)
        self._look = self._patience.judge(seen)
        self._wreck.answered()
        if self._aim is Aim.FOLLOWING:
            self._drought.judge(seen, self._said)

    def _end_watching(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.end()

    def _lose(self, error: CentralinoError | None) -> None:
        self._end_watching()
        if self._look is not None and error is not None:
            log.warning("%s", error)
        self._look = None

    def _restore_aim(self) -> None:
        """The server was restarted, or somebody changed it: back to what the role asks for."""
        seen, now = self._look, time.monotonic()
        if seen is None or now < self._retry_after:
            return
        if self._aim is Aim.WRITABLE and not seen.writable:
            if not self._may_open(now):
                return
            self._retry_after = now + RETRY_SECONDS
            with session(self._server.socket, SHORT_LIMIT_SECONDS) as own:
                self._open(own, now + SHORT_LIMIT_SECONDS, Aim.WRITABLE)
        elif self._aim is Aim.WRITABLE and seen.hopeless and self._may_open(now) and self._watching:
            log.warning("commits have waited for the peer in vain: they are on this node alone now")
            self._retry_after = now + RETRY_SECONDS
            wait_for_nobody(self._watching)
        elif self._aim is Aim.WRITABLE and seen.listeners and not seen.synchronous and self._watching:
            self._retry_after = now + RETRY_SECONDS
            self._watching.do(PULSE)
        elif self._aim is Aim.WRITABLE and self._awaits_peer(seen, now) and self._watching:
            self._retry_after = now + RETRY_SECONDS
            if self._stuck.judge(self._watching):
                log.warning("a connection that the peer has left does not end: it is freed")
                wait_for_nobody(self._watching)
        elif self._aim is Aim.READ_ONLY and seen.writable:
            self.make_read_only(ANSWER_LIMIT_SECONDS)
        elif self._aim is Aim.FOLLOWING and self._strayed(seen, now):
            self._retry_after = now + RETRY_SECONDS
            self._begin_to_follow(SHORT_LIMIT_SECONDS)
        elif self._aim is Aim.FOLLOWING and self._drought.certain and now >= self._next_copy:
            self._next_copy = now + wreck.COPY_AGAIN_SECONDS
            self._replace(seen.state, self._peer_position, "the peer has more, but its log cannot be read")

    def _awaits_peer(self, seen: Look, now: float) -> bool:
        """Whether the peer is here, serves not, and nobody of it listens, nor does a commit wait for it."""
        said = self._said
        here = said is not None and not said.writable and now - said.moment <= FRESH_SECONDS
        return here and not seen.listeners and not seen.waiting

    def _strayed(self, seen: Look, now: float) -> bool:
        said = self._said
        alive = said is not None and now - said.moment < 1.0 and said.answers and said.writable
        if not alive:
            return False
        wrote = errant(seen, self._server.number, self._peer_position)
        # A server that comes back follows by itself, but confirms nothing.
        halted = not seen.configured or seen.stopped or not seen.applying or not seen.confirms
        return seen.writable or wrote or halted or bool(self._note)

    def _hold(self, error: CentralinoError) -> None:
        """Remember why this node does not follow; the keeper tries again."""
        if self._note != str(error):
            log.warning("%s", error)
        self._note = str(error)
        self._retry_after = time.monotonic() + RETRY_SECONDS
        if isinstance(error, StorageError):
            self._retry_after += 30 * RETRY_SECONDS
