"""One look at the database of this node, and what it means for the pair. The meaning is pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from daemon.errors import CommandFailedError
from fault_tolerance.contracts import ReplicaState
from fault_tolerance.database.gtid import GtidState, joined, parse
from fault_tolerance.database.session import Row, Session
from fault_tolerance.view import Obstacle

# A replica that needs longer than this to work off what it has received would delay a promotion too much.
LONGEST_LAG_MILLISECONDS = 5000.0
# What the peer said counts as fresh for so long; older words are those of a peer that died or is cut off.
FRESH_SECONDS = 1.0
REMEMBERED = 300
# What a peer had when it closed may be on its way for so long; a promotion waits for it.
ARRIVAL_SECONDS = 0.3
# Commits that wait for so long will be on one node alone, which is said before it is so. Giving up takes
# longer than a node that lost its peer needs to step down.
LATE_SECONDS = 1.0
GIVE_UP_SECONDS = 2.0
# Looks that are further apart than this do not tell what was between them: the node may have stood still.
LONGEST_BLINK_SECONDS = 1.0

# A replica that is ready and gets nothing of what its peer has: for how long, and how often it hung up.
DROUGHT_SECONDS, DROUGHT_BREAKS = 60.0, 2


class Aim(StrEnum):
    """What the database of this node shall be; the keeper brings it back there."""

    UNDECIDED = "undecided"
    WRITABLE = "writable"
    READ_ONLY = "read-only"
    FOLLOWING = "following"


@dataclass(frozen=True)
class Look:
    """`moment` is monotonic. `state` is what this node has written or applied, `received` what it has got
    from the peer and may still have to apply. A replica that is neither
    `receiving` nor `stopped` is connecting: the server tries again by itself."""

    moment: float
    writable: bool = False
    state: GtidState = field(default_factory=GtidState)
    received: GtidState = field(default_factory=GtidState)
    lineage: str = ""
    configured: bool = False
    receiving: bool = False
    stopped: bool = False
    applying: bool = False
    trouble: str = ""
    purged: bool = False
    synchronous: bool = False
    confirms: bool = True
    listeners: int = 0
    waiting: int = 0
    confirmed: int = 0
    late: bool = False
    hopeless: bool = False

    @property
    def on_both(self) -> bool:
        """Whether what is acknowledged now is on both nodes. Commits that wait long for the peer will soon be
        acknowledged without it, and that must be said before it happens."""
        return self.synchronous and not self.late


@dataclass(frozen=True)
class Said:
    """What the peer's part said, and when (monotonic); `since` is when it first said that it stands here.
    `lacks` is said by a master whose database cannot start any more: how much of its log this node lacks."""

    moment: float
    writable: bool
    synchronous: bool
    sequence: int
    lag_milliseconds: float | None = None
    answers: bool = True
    since: float = 0.0
    lacks: int | None = None

    def leaves_all_here(self, own: Look) -> bool:
        """Whether the peer's database is a wreck, and this one can stand in for it without a loss."""
        return not self.answers and self.lacks == 0 and bool(own.lineage)

    def has_more_than(self, own: Look) -> bool:
        """Whether the peer has closed, and not everything that it wrote has come here."""
        closed = self.answers and not self.writable
        return closed and self.sequence > max(own.received.sequence, own.state.sequence)

    def serves(self, now: float) -> bool:
        """Whether the peer is heard, and its database takes writes."""
        return self.answers and self.writable and now - self.moment <= FRESH_SECONDS

    def still_sends(self, now: float) -> bool:
        """Whether what is missing may be on its way: the word and the transactions travel apart."""
        return now < self.since + ARRIVAL_SECONDS


def look(session: Session, moment: float, lineage: str = "", before: Look | None = None) -> Look:
    """Ask this node's server. `lineage` is asked for only when it is not known yet; `before` is a whole look
    of a moment ago: what it says of the replica holds while nothing contradicts it, for the fifty columns of
    that answer cost more than everything else here."""
    (row,) = session.rows(
        "SELECT @@read_only AS ro, @@gtid_binlog_state AS state, @@gtid_slave_pos AS applied,"
        " @@rpl_semi_sync_master_enabled AS semi, @@rpl_semi_sync_slave_enabled AS confirms"
    )
    writable, semi = not _true(row["ro"]), _true(row["semi"])
    counters = session.variables("Rpl_semi_sync_master_%") if semi else {}
    state = joined(_text(row["state"]), _text(row["applied"]))
    commits = Look(
        moment=moment,
        writable=writable,
        state=state,
        synchronous=is_synchronous(counters),
        confirms=_true(row["confirms"]),
        listeners=int(counters.get("Rpl_semi_sync_master_clients", "0")),
        waiting=int(counters.get("Rpl_semi_sync_master_wait_sessions", "0")),
        confirmed=int(counters.get("Rpl_semi_sync_master_yes_tx", "0")),
    )
    if before is not None and _replica_holds(session, commits, before):
        return replace(
            commits,
            received=before.received,
            lineage=before.lineage,
            configured=before.configured,
            receiving=before.receiving,
            applying=before.applying,
        )
    replica = session.rows("SHOW SLAVE STATUS")
    first: Row = replica[0] if replica else {}
    return replace(
        commits,
        received=parse(_text(first.get("Gtid_IO_Pos"))),
        lineage=lineage or lineage_of(session),
        configured=bool(replica),
        receiving=_text(first.get("Slave_IO_Running")) == "Yes",
        stopped=_text(first.get("Slave_IO_Running")) == "No",
        applying=_text(first.get("Slave_SQL_Running")) == "Yes",
        trouble=_text(first.get("Last_SQL_Error")) or _text(first.get("Last_IO_Error")),
        purged=_text(first.get("Last_IO_Errno")) == "1236",
    )


def _replica_holds(session: Session, now: Look, before: Look) -> bool:
    """Whether a master still follows nobody, or a replica that had everything still receives and applies."""
    if not before.lineage or now.writable is not before.writable:
        return False
    if now.writable:
        return not before.configured
    well = before.receiving and before.applying and not before.trouble
    if not well or now.state != before.state or not now.state.includes(before.received):
        return False
    return session.variables("Slave_running").get("Slave_running") == "ON"


def is_synchronous(counters: Mapping[str, str]) -> bool:
    """Whether each commit now waits for a peer that is there."""
    return (
        counters.get("Rpl_semi_sync_master_status") == "ON"
        and int(counters.get("Rpl_semi_sync_master_clients", "0")) > 0
    )


def lineage_of(session: Session) -> str:
    """Whose data this is, "" before a pair was formed or before the schema is there."""
    try:
        return session.text("SELECT identifier FROM centralino_pair.lineage")
    except CommandFailedError:
        return ""


def errant(own: Look, own_server: int, peer: GtidState) -> bool:
    """Whether this slave has written by itself something that the peer does not have."""
    return any(gtid.server == own_server and not peer.holds(gtid) for gtid in own.state.last)


class Patience:
    """Notices commits that wait for a confirmation, while none comes at all."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._before = 0.0
        self._confirmed = 0

    def judge(self, own: Look) -> Look:
        """The look, and whether commits have waited for long, by what was seen all the time."""
        blinked = own.moment - self._before > LONGEST_BLINK_SECONDS
        self._before = own.moment
        if own.waiting == 0 or self._since is None or own.confirmed != self._confirmed or blinked:
            self._since = own.moment if own.waiting else None
            self._confirmed = own.confirmed
            return own
        waited = own.moment - self._since
        return replace(own, late=waited >= LATE_SECONDS, hopeless=waited >= GIVE_UP_SECONDS)


class Drought:
    """Notices a peer that has more, but of whose log nothing comes: it cannot be read any more.

    A full disk can leave half an event in a log. The server then sends nothing and says nothing; the replica
    hangs up after some seconds and asks anew, for ever. One large transaction takes long as well, but its
    connection holds.
    """

    def __init__(self) -> None:
        self._received = GtidState()
        self._receiving = True
        self._since: float | None = None
        self._breaks = 0
        self.certain = False

    def judge(self, own: Look, said: Said | None) -> bool:
        """Whether to wait any longer is in vain, by what was seen all the time; `certain` remembers it."""
        lacks = (
            said is not None
            and said.serves(own.moment)
            and said.sequence > max(own.received.sequence, own.state.sequence)
            and own.configured
            and own.applying
        )
        if not lacks or self._since is None or own.received != self._received:
            self._since = own.moment if lacks else None
            self._received, self._breaks = own.received, 0
        elif self._receiving and not own.receiving:
            self._breaks += 1
        self._receiving = own.receiving
        lasts = self._since is not None and own.moment - self._since >= DROUGHT_SECONDS
        self.certain = lasts and self._breaks >= DROUGHT_BREAKS
        return self.certain


class Lag:
    """How old the newest transaction is that the peer had and this node has not applied yet."""

    def __init__(self) -> None:
        self._heard: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)

    def heard(self, moment: float, sequence: int) -> None:
        """The peer stood at `sequence` at `moment`."""
        if self._heard and self._heard[-1][1] > sequence:
            self._heard.clear()  # another history
        if not self._heard or self._heard[-1][1] != sequence:
            self._heard.append((moment, sequence))

    def milliseconds(self, own: Look) -> float | None:
        """None before the peer has said anything."""
        if not self._heard:
            return None
        for moment, sequence in tuple(self._heard):
            if sequence > own.state.sequence:
                return max(0.0, (own.moment - moment) * 1000)
        return 0.0


def unanswered(before: Said | None, lacks: object, now: float) -> Said | None:
    """What holds while the peer's database does not answer: its last words, and what is said of its log."""
    known = lacks if isinstance(lacks, int) else None
    if before is None and known is None:
        return None
    last = before or Said(now, writable=True, synchronous=False, sequence=0)
    return replace(last, moment=now, lag_milliseconds=None, answers=False, lacks=known)


def follows(own: Look | None, said: Said | None) -> bool:
    """Whether the replica is in order, or there is nothing any more that it could follow."""
    if own is None:
        return False
    return (own.configured and own.applying) or (said is not None and said.leaves_all_here(own))


def slave_state(own: Look | None, said: Said | None, lag: float | None, now: float) -> ReplicaState:
    """What a slave's replica is worth at this moment.

    A peer that died says nothing any more, nor does one whose database does: then the last words count, and a
    replica whose connection went with it is as good as it was.
    """
    if own is None:
        return ReplicaState(frozenset({Obstacle.REPLICA_BROKEN}), lag, None, "the database does not answer")
    told = said is not None and said.answers and now - said.moment <= FRESH_SECONDS
    if said is not None and said.leaves_all_here(own):
        detail = "the peer's database cannot start any more, and this node holds all that its log holds"
        return ReplicaState(frozenset(), lag, None, detail)
    if not own.configured:
        return ReplicaState(
            frozenset({Obstacle.REPLICA_BROKEN}), lag, None, "the database does not replicate from the peer"
        )
    if not own.applying or (told and not own.receiving and own.trouble):
        why = own.trouble or "somebody stopped it"
        return ReplicaState(
            frozenset({Obstacle.REPLICA_BROKEN}), lag, None, f"replication stands still: {why}"
        )
    if said is None:
        return ReplicaState(
            frozenset({Obstacle.REPLICA_BEHIND}), lag, None, "the peer has not said where it stands"
        )
    if said.writable and not said.synchronous:
        return ReplicaState(
            frozenset({Obstacle.REPLICA_BEHIND}),
            lag,
            None,
            "the peer commits without waiting for this node, so it may hold newer data",
        )
    if said.has_more_than(own) and not (own.receiving and said.still_sends(now)):
        return ReplicaState(
            frozenset({Obstacle.REPLICA_BEHIND}),
            lag,
            None,
            "the peer holds transactions that did not come here",
        )
    if lag is not None and lag > LONGEST_LAG_MILLISECONDS:
        return ReplicaState(
            frozenset({Obstacle.REPLICA_BEHIND}), lag, None, f"the replica is {lag / 1000:.1f} s behind"
        )
    return ReplicaState(frozenset(), lag, None, "follows the peer")


def master_state(own: Look | None, said: Said | None, now: float) -> ReplicaState:
    """What a master can say of the peer's copy."""
    heard = said is not None and now - said.moment <= FRESH_SECONDS
    lag = said.lag_milliseconds if said is not None and heard else None
    if own is None:
        return ReplicaState(frozenset(), lag, False, "the database does not answer")
    if not own.on_both:
        return ReplicaState(
            frozenset(),
            lag,
            False,
            "the peer does not confirm commits: what is written now would be lost with this node",
        )
    detail = "each commit is on both nodes"
    if not heard:
        detail = "each commit so far is on both nodes; the peer is not heard now"
    return ReplicaState(frozenset(), lag, True, detail)


def _text(value: object) -> str:
    return "" if value is None else value.decode() if isinstance(value, bytes) else str(value)


def _true(value: object) -> bool:
    return str(value) in ("1", "ON")
