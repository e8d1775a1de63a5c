"""The loop of `centralino-peer`: facts in, one decision, actions out. Level-triggered, nothing here waits.

Five times a second, and whenever anything changes, the view is built anew and `roles.decide` asked; so a lost
or repeated event changes nothing, and an event storm is one decision. What may wait runs in the executor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import time
from collections.abc import Callable

from daemon.errors import CentralinoError, StorageError
from daemon.run import run
from fault_tolerance import cluster, silence, sip_source
from fault_tolerance.address_guard import AddressGuard
from fault_tolerance.claims import Claims
from fault_tolerance.contracts import DatabaseReplica, FileReplica
from fault_tolerance.drawn_away import NOTICED_SECONDS, DrawnAway, writes_after
from fault_tolerance.executor import DATABASE_LIMIT_SECONDS, Executor, reboot
from fault_tolerance.facts import Facts, newer_mastery, obstacles
from fault_tolerance.handover import Handover, see_taken_over
from fault_tolerance.hearing import Hearing
from fault_tolerance.heartbeat import INTERVAL_SECONDS, Heartbeat, Pace, decode, encode
from fault_tolerance.pair import RUN, STATE, VRRP_RUN, Pair
from fault_tolerance.pbx import Pbx
from fault_tolerance.peer_link import PeerLink, Table
from fault_tolerance.provider import Provider
from fault_tolerance.restraint import ASK_AFTER_SECONDS, FENCE_SECONDS, Restraint
from fault_tolerance.roles import Action, Decision, address_verdict, decide
from fault_tolerance.sights import HURRY_SECONDS, ThirdParty
from fault_tolerance.sights import INTERVAL_SECONDS as SIGHT_SECONDS
from fault_tolerance.state import RoleState
from fault_tolerance.verdicts import Verdicts
from fault_tolerance.view import SERVING, Link, Obstacle, Rank, Role, Sight, View, Vrrp, Wish, Work
from fault_tolerance.vrrp import Keepalived

STEPPED_DOWN_SECONDS = 10.0
SLOW_SECONDS = 1.75  # centralinod's thread looks each 2 s if it was told nothing: it wakes once for both
# Of two that serve, the one that came last leaves the other one the time to notice that it was replaced.
LATECOMER_SECONDS = 3.0
LONG_AWAY_SECONDS = 5.0
# Two nodes that have just met may each think the other one unfit, by words from before the meeting.
ACQUAINTED_BEATS = 4
# A database that recovers from a power loss may take so long; then the peer goes on without it.
DATABASE_START_SECONDS = 60.0
# An epoch cannot be written to a full disk, and a database does not go on with one.
LEAST_FREE_BYTES = 16 << 20
STEPS_AT_ONCE = 6

log = logging.getLogger(__name__)


class Runtime:
    """One node of a pair. `run` returns when `stop` was called."""

    def __init__(
        self,
        pair: Pair,
        database: DatabaseReplica,
        files: FileReplica,
        pbx: Pbx,
        selector: selectors.BaseSelector,
        *,
        hook: Callable[[str], None] | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_alive: Callable[[], None] = lambda: None,
        on_cluster: Callable[[Table], None] = lambda _document: None,
        on_secrets: Callable[[], None] = lambda: None,
        restart: Callable[[], None] = reboot,
    ) -> None:
        self.pair = pair
        self._database, self._files, self._pbx = database, files, pbx
        self._selector = selector
        self._hook = hook
        self._on_change, self._reboot = on_change, restart
        self._on_alive = on_alive
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self.state = RoleState(STATE, RUN)
        self.exchange = cluster.Exchange(on_cluster, on_secrets)
        self.core = self.exchange.core
        self.verdicts = Verdicts(VRRP_RUN)
        self.link = PeerLink(pair, selector, self._message, RUN / "met")
        self.vrrp = Keepalived(pair, selector, self.changed)
        self.gateway = ThirdParty("gateway", pair.gateway, selector, default_gateway=True)
        self.witness = ThirdParty("witness", pair.witness, selector)
        self.executor = Executor(pair.shared, self.verdicts, database, files, pbx, self.wake, hook)
        self.guard = AddressGuard(pair, selector, self.executor.background, self.changed)
        self.addresses = self.guard.addresses
        self.claims = Claims(pair, selector, self.changed)
        self.drawn_away = DrawnAway(pair, selector, self.changed, self.guard.announce_soon)
        self.hearing = Hearing()
        self.restraint = Restraint()
        self.wish, self.forced, self.maintenance = Wish.NONE, False, False
        self.shutting_down = self.disk_full = False
        self.reason = ""
        self.obstacles: frozenset[Obstacle] = frozenset()
        self.role = Role.JOINING
        self.since = time.monotonic()
        self._pace = Pace(INTERVAL_SECONDS[pair.adverts], answers=pair.dials)
        self._changed, self._followed, self._stopping, self._hurried = True, False, False, False
        self._stepped_down_until = 0.0
        # Two nodes that both cannot must not pass the role to and fro.
        self._can_serve = True
        self._handover = Handover()
        self._link_state, self._link_since = Link.NEVER, 0.0
        self._synchronous: bool | None = None
        self._told: tuple[str, frozenset[Obstacle]] = "", frozenset()
        self.provider = Provider(hook, self.executor.background, self.wake)

    # --- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up the role of this boot, or begin as joining or off. Raises CentralinoError."""
        resumed = self.state.role_of_this_boot()
        self.verdicts.adopt()
        # A runtime that hung, or a node that was frozen, and that systemd killed.
        away = resumed is Role.MASTER and self.state.unwatched_for() > LONG_AWAY_SECONDS
        if away:
            log.warning("nobody watched this master for a while: it may have been replaced")
            resumed = Role.DEMOTING if self._lost_addresses() else Role.PROMOTING
        if resumed in (Role.MASTER, Role.SLAVE):
            self.role = resumed
        elif resumed is Role.PROMOTING:
            self.role = resumed
            patience = FENCE_SECONDS if away else NOTICED_SECONDS
            self.executor.promote(self.state.durable.epoch, patience, close_first=away)
        elif resumed is Role.DEMOTING:
            self.role = resumed
            self.executor.demote()
        else:
            self.role = Role.OFF if self.state.durable.off else Role.JOINING
            self.verdicts.write(may_hold=False, serving=False)
            silence.close()
        if self.role is Role.MASTER:
            self.executor.background("database", lambda: self._database.make_writable(DATABASE_LIMIT_SECONDS))
            self._send_files()
        elif self.role is Role.SLAVE:
            self._followed = True
            self.executor.follow(self.state.durable.epoch)
        log.info("this node begins as %s, epoch %d", self.role.value, self.state.durable.epoch)
        self.state.note_role(self.role)
        if not self.pair.cloud:
            self.vrrp.start()
        self.executor.background("source of SIP", lambda: sip_source.apply(self.pair))

    def _lost_addresses(self) -> bool:
        self.addresses.look()
        return bool(self.pair.shared) and not self.addresses.held

    def run(self) -> None:
        """Loop until `stop`."""
        now = sight = slow = time.monotonic()
        while not self._stopping:
            before = time.monotonic()
            self._note_pause(before - now)
            hurried = self._must_know_soon()
            if hurried and not self._hurried:
                # What the gateway answers from now on shall tell of the peer and of nothing before.
                self.guard.announce_once()
            self._hurried = hurried
            if hurried:
                sight = min(sight, before + HURRY_SECONDS[self.pair.adverts])
            # The moment at which a silent peer counts as lost is one at which to decide; looks come with the
            # next beat, because each waking costs as much as a look.
            beat, lonely = self._pace.next, self._lonely_for()
            asks = beat if lonely is None else self.drawn_away.due(lonely)
            due_at = min(beat, asks, sight if hurried else beat, self.link.silent_at or beat)
            limit = 0.0 if self._changed else max(0.0, due_at - before)
            for key, _ in self._selector.select(limit):
                key.data()
            now = time.monotonic()
            self._note_pause(now - before - limit)
            due = self._pace.is_due(now)
            if now >= sight and (due or hurried):
                # On average in time, though never between two beats.
                sight = max(sight, now - SIGHT_SECONDS) + SIGHT_SECONDS
                self._look(now)
            if due or lonely is not None:
                settled = self.role is Role.MASTER and now - self.since > LATECOMER_SECONDS
                self.drawn_away.look(now, self.gateway.target, serving=settled, lonely_for=lonely)
            if now >= slow and due:
                slow = now + SLOW_SECONDS
                self._look_slowly()
            if self._changed or due or self.link.state is not self._link_state:
                self._changed = False
                self._judge(now)
            if due:
                self._pace.spoke(now)
                self.link.look()
                self._beat()
                self._notice_database()
            self.guard.announce_due(now)

    def _falls_silent(self) -> bool:
        silent = self.link.silent_for()
        return silent is not None and silent > 1.5 * INTERVAL_SECONDS[self.pair.adverts]

    def _must_know_soon(self) -> bool:
        """Whether the peer is falling silent: a node that is cut off must know it before silence has meaning.
        As master it closes its database before the slave opens its own, as slave it leaves its own closed."""
        return self._falls_silent() and self.role in SERVING | {Role.SLAVE} and self.link.state is Link.UP

    def _lonely_for(self) -> float | None:
        """How long a master has not heard its peer, also before that counts as lost: the gateway may send to
        the peer by then. None for everybody else, and while the peer speaks."""
        if self.role is not Role.MASTER or self.pair.cloud:
            return None
        if self._link_state is not Link.UP:
            return time.monotonic() - self._link_since
        return 0.0 if self._falls_silent() else None

    def stop(self) -> None:
        """End the loop; the role stays for the next runtime of this boot."""
        self._stopping = True
        self.wake()

    def shut_down(self, limit_seconds: float = 15.0) -> None:
        """The box goes down: hand over first, while D-Bus, database and network still work."""
        self.shutting_down = True
        if self.role in SERVING:
            log.info("this node shuts down and hands over")
            self._beat()
            self._enter(Role.DEMOTING)
            self.executor.demote()
            self._write_verdict(self.view())
            deadline = time.monotonic() + limit_seconds
            while self.executor.work is Work.RUNNING and time.monotonic() < deadline:
                time.sleep(0.05)
            self._enter(Role.JOINING)
            see_taken_over(self.link, self._selector, self._beat, lambda: self.heard)
        self.verdicts.write(may_hold=False, serving=False)
        self._beat()

    def close(self, *, stop_vrrp: bool) -> None:
        """Let go of everything."""
        self.link.close()
        self.vrrp.close(stop=stop_vrrp and not self.pair.cloud)
        self.addresses.close()
        self.claims.close()
        self.drawn_away.close()
        self.gateway.close()
        self.witness.close()
        self._database.close()
        self._files.close()

    def wake(self) -> None:
        """From any thread: look again now."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"!")

    def changed(self) -> None:
        """From the loop: judge again."""
        self._changed = True

    def _woken(self) -> None:
        try:
            os.read(self._wake_read, 512)
        except BlockingIOError:
            return
        self._changed = True

    def ask(self, wish: Wish, *, forced: bool) -> None:
        """An administrator's wish; it stays until it is reached or replaced."""
        reached = wish.value == self.role.value or (wish is Wish.SLAVE and self.role is Role.JOINING)
        # A wish that is reached must not lie in wait for the next change of roles.
        self.wish, self.forced = (Wish.NONE if reached else wish), forced
        if wish is not Wish.NONE:
            self._stepped_down_until = 0.0
            self.state.forget_moves()
        self._changed = True

    def ask_back(self) -> None:
        """Ask the master to hand the role to this node (the way back of a rehearsal)."""
        self.link.send_table({"type": "handback"})

    # --- facts --------------------------------------------------------------------------------------------

    @property
    def heard(self) -> Heartbeat | None:
        """The peer's last heartbeat, also when it is silent by now."""
        return self.hearing.heard

    def rank(self) -> Rank:
        """Who comes first when nobody is master."""
        priority = 1 if self.pair.second or (self.pair.cloud and not self.pair.dials) else 2
        return Rank(self.state.durable.mastered, self._database.position(), priority)

    def facts(self) -> Facts:
        """Everything that can be an obstacle."""
        return Facts(
            role=self.role,
            rank=self.rank(),
            link=self.link.state,
            heard=self.heard,
            gateway=self.gateway.sight,
            witness=self.witness.sight,
            carrier=self.pair.cloud or self.addresses.carrier,
            version=self.pair.version,
            schema=self.pair.schema,
            database=self._database.state(),
            database_starting=time.monotonic() - self.since < DATABASE_START_SECONDS,
            database_answers=self._database.heartbeat().get("answers") is not False,
            files=self._files.state(),
            core_failed=self.core.failed,
            disk_full=self.disk_full,
            maintenance=self.maintenance,
            stepped_down=time.monotonic() < self._stepped_down_until,
            moves=self.state.moves_in_last_hour(),
            shutting_down=self.shutting_down,
            manual=self.pair.cloud and self._hook is None,
            handed_over=self._handover.open and self.link.state is Link.LOST,
        )

    def view(self) -> View:
        """What `decide` looks at."""
        facts, now = self.facts(), time.monotonic()
        self.obstacles = obstacles(facts)
        vrrp = self._vrrp()
        self.restraint.note_vrrp(vrrp, now)
        return View(
            role=self.role,
            epoch=self.state.durable.epoch,
            rank=facts.rank,
            link=facts.link,
            peer=None if self.heard is None else self.heard.peer,
            vrrp=vrrp,
            gateway=facts.gateway,
            witness=self.witness.sight,
            obstacles=self.obstacles,
            wish=self.wish,
            forced=self.forced,
            work=self.executor.work,
            core_failed=self.core.failed or self.disk_full,
            yielding=self.restraint.yielding(now) and facts.link is Link.UP,
            peer_claims=self.claims.standing,
            drawn_away=self.drawn_away.standing,
            handed_over=facts.handed_over,
            acquainted=now - self._link_since > ACQUAINTED_BEATS * INTERVAL_SECONDS[self.pair.adverts],
        )

    def _vrrp(self) -> Vrrp:
        if not self.pair.cloud:
            deaf = self.role is Role.SLAVE and self.restraint.deaf(time.monotonic())
            return Vrrp.BACKUP if deaf and self.vrrp.state is Vrrp.MASTER else self.vrrp.state
        # Without VRRP the provider is the second signal; without its hook there is none.
        return Vrrp.MASTER if self.role in SERVING or self.provider.peer_is_dead else Vrrp.BACKUP

    # --- the loop's parts ---------------------------------------------------------------------------------

    def _note_pause(self, seconds: float) -> None:
        """The loop did not run for so long."""
        serving = self.role in SERVING and self.heard is not None
        if self.restraint.note_pause(seconds, time.monotonic(), self.pair.adverts, serving=serving):
            self._changed = True

    def _look(self, now: float) -> None:
        self.gateway.ask()
        self.witness.ask()
        if self.pair.cloud:
            self.guard.look(now, wanted=False, serving=False)
            return
        self.vrrp.look()
        self.guard.look(now, wanted=self.vrrp.state is Vrrp.MASTER, serving=self.role in SERVING)
        if self.vrrp.frozen:
            self.vrrp.kill()
        self.claims.listen(self.role in SERVING and self.link.state is not Link.UP)

    def _look_slowly(self) -> None:
        self._on_alive()
        self.state.note_watch()
        self.disk_full = self.state.free_bytes() < LEAST_FREE_BYTES
        if self.role in (Role.MASTER, Role.SLAVE, Role.JOINING) and not self._pbx.settled:
            serving = self.role is Role.MASTER
            self.executor.background("PBX", lambda: self._pbx.look(serving=serving))
        if not self.pair.cloud and self.vrrp.state is Vrrp.DOWN:
            self.executor.background("keepalived", self.vrrp.restart)
        mastered = newer_mastery(self.facts()) if self._followed else None
        if mastered is not None:
            self._keep(lambda: self.state.change(mastered=mastered))
        self._send_cluster()
        self.guard.look_for_duplicates(time.monotonic(), master=self.role is Role.MASTER)
        if self.pair.cloud:
            ready = self.role is Role.SLAVE and not self.obstacles
            self.provider.look(self.link.state, self.link.silent_for(), ready=ready)
        self._on_change()

    def _send_cluster(self) -> None:
        heard = self.heard if self.link.state is Link.UP else None
        message = cluster.offer(self.core, self.role, self.state.durable.epoch, self.pair.schema, heard)
        if message is not None:
            self.link.send_table(message)

    def _beat(self) -> None:
        beat = Heartbeat(
            role=self.role,
            epoch=self.state.durable.epoch,
            rank=self.rank(),
            obstacles=self.obstacles,
            version=self.pair.version,
            schema=self.pair.schema,
            wall=time.time(),
            holds=bool(self.addresses.held),
            cluster=self.core.digest,
            secrets=self.core.secrets,
            witness_lost=self.witness.sight is Sight.LOST,
            calls=self.core.calls,
            database=self._database.heartbeat(),
            files=self._files.heartbeat(),
        )
        self.link.send(encode(beat))

    def _message(self, table: Table) -> None:
        kind = table.get("type")
        try:
            if kind == "beat":
                self._take_beat(decode(table))
            elif kind == "settings":
                epoch, schema = self.state.durable.epoch, self.pair.schema
                self.exchange.take(table, self.role, epoch, schema, self.heard)
            elif kind == "handback" and self.role is Role.MASTER:
                log.info("the peer asks for the role back")
                self.ask(Wish.SLAVE, forced=False)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("the peer said something that this version does not understand: %s", error)

    def _take_beat(self, beat: Heartbeat) -> None:
        before = self.heard
        # A slave that has the addresses asks whether this node lives.
        self._pace.heard(asks=beat.holds and beat.role not in SERVING and self.role in SERVING)
        news = self.hearing.take(beat) or (self.restraint.waits_for_word and self.role not in SERVING)
        if news or self.link.state is not self._link_state:
            self._changed = True
        if before is not None and before.holds and not beat.holds and self.role in SERVING:
            self.guard.announce_soon(time.monotonic())  # clients may go on to ask the other one
        failed = before is not None and before.role is Role.PROMOTING and beat.role not in SERVING
        if failed and self._can_serve:
            # It had its chance and did not come up: the way is free again.
            self._stepped_down_until = 0.0
        self._handover.heard(peer_writes=beat.database.get("writable") is True)
        self._database.heard(dict(beat.database))
        self._files.heard(dict(beat.files))
        self.exchange.heard(self.role, self.state.durable.epoch, beat)

    def _judge(self, now: float) -> None:
        self._notice_link(now)
        for _ in range(STEPS_AT_ONCE):
            view = self.view()
            if self.forced and self.wish is Wish.NONE and view.sees_anybody:
                self.forced = False
            self._write_verdict(view)
            decision = decide(view)
            if (decision.reason, self.obstacles) != self._told:
                self._told = decision.reason, self.obstacles
                self.reason = decision.reason
                self._on_change()
            if not self._carry_out(decision, view):
                return

    def _notice_database(self) -> None:
        """Commits that are on this node alone are told of at once: what is acknowledged now may be lost."""
        synchronous = self._database.state().synchronous
        if synchronous is not self._synchronous:
            self._synchronous = synchronous
            self._on_change()

    def _notice_link(self, now: float) -> None:
        state = self.link.state
        if state is self._link_state:
            return
        log.info("the peer link is %s", state.value)
        self._link_state, self._link_since = state, now
        if state is not Link.UP:
            self.restraint.link_lost()
        else:
            # After a heal the last announcement may have been the other node's.
            self.guard.announce_soon(now)
        self._on_change()

    def _write_verdict(self, view: View) -> None:
        if self.pair.cloud:
            return
        refusal = address_verdict(view)
        fenced = self.restraint.fenced(view, self.hearing.spoken, time.monotonic())
        # A new priority makes a backup wait anew, and one that does not preempt has no use for it: it is
        # raised when the addresses are here.
        holds = self.vrrp.said is Vrrp.MASTER
        try:
            self.verdicts.write(
                may_hold=refusal is None and not fenced,
                serving=self.role in SERVING and holds and not fenced,
            )
        except OSError as error:
            log.error("the verdict could not be written: %s", error)

    def _carry_out(self, decision: Decision, view: View) -> bool:
        """True if an edge was taken and the next decision should be asked for."""
        edge = decision.edge
        if edge is None:
            for action in decision.actions:
                self._act(action, view)
            return False
        if Action.NEW_EPOCH in edge.actions:
            newest = max(view.epoch, view.peer.epoch if view.peer else 0) + 1
            moved = edge.name == "master_dead"
            if not self._keep(lambda: self.state.change(epoch=newest, moved=moved)):
                return False
        if edge.target is view.role and Action.ADOPT_EPOCH in edge.actions and view.peer is not None:
            seen = view.peer.epoch
            if not self._keep(lambda: self.state.change(epoch=seen)):
                return False  # else this edge would be taken again and again
        log.warning("%s -> %s: %s (%s)", view.role.value, edge.target.value, edge.reason, edge.name)
        if edge.name in ("promoted", "promotion_failed"):
            self._can_serve = edge.name == "promoted"
        self._handover.took(edge, link_up=view.link_up)
        if edge.name == "demoted":
            self._stepped_down_until = time.monotonic() + STEPPED_DOWN_SECONDS
        if edge.target is not view.role:
            self.executor.rest()
        self._enter(edge.target)
        for action in edge.actions:
            self._act(action, view)
        self._write_verdict(self.view())
        self._beat()
        self._on_change()
        return True

    def _enter(self, role: Role) -> None:
        if role is not self.role:
            self.role, self.since = role, time.monotonic()
            self._followed = False
            self._keep(lambda: self.state.note_role(role))

    def _act(self, action: Action, view: View) -> None:
        peer = view.peer
        match action:
            case Action.RECORD_MASTERY:
                self._keep(lambda: self.state.change(mastered=self.state.durable.epoch))
            case Action.ADOPT_EPOCH if peer is not None:
                self._keep(lambda: self.state.change(epoch=peer.epoch))
            case Action.PROMOTE:
                self.guard.announce_once()
                patience = 0.0 if self.pair.cloud else writes_after(view)
                self.executor.promote(self.state.durable.epoch, patience)
            case Action.DEMOTE:
                self.executor.demote()
            case Action.FOLLOW:
                self._followed = True
                self.executor.follow(self.state.durable.epoch)
                self.executor.background("trunks", self._pbx.close)
            case Action.SEND_FILES:
                self._send_files()
            case Action.STOP_SERVICES:
                self._keep(lambda: self.state.change(off=True))
                self._unit("stop")
            case Action.START_SERVICES:
                self._keep(lambda: self.state.change(off=False))
                self._unit("start")
            case Action.YIELD_ADDRESSES:
                now = time.monotonic()
                if view.link is Link.UP and self.restraint.hold_back(self.hearing.spoken, now):
                    self._changed = True
                if self.restraint.waits_for_word:
                    self._pace.no_later_than(now + ASK_AFTER_SECONDS)
            case Action.CLAIM_ADDRESSES:
                self.guard.announce_soon(time.monotonic())
            case Action.REBOOT:
                self._reboot()
            case Action.CLEAR_WISH:
                self.wish = Wish.NONE
            case _:
                pass

    def _send_files(self) -> None:
        self.executor.background("files", lambda: self._files.send(self.state.durable.epoch))

    def _unit(self, verb: str) -> None:
        unit = self.core.core_unit
        self.executor.background(
            f"{verb} the PBX core",
            lambda: run(["systemctl", "--no-block", verb, unit], limit_seconds=10.0),
        )

    def _keep(self, write: Callable[[], None]) -> bool:
        """False, with a line in the journal, if the disk refuses; it is tried again with the next look."""
        try:
            write()
        except StorageError as error:
            log.error("the role could not be recorded: %s", error)
            return False
        except CentralinoError as error:
            log.error("%s", error)
            return False
        return True
