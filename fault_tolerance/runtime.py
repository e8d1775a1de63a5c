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
from fault_tolerance import addresses as kernel
from fault_tolerance import cluster, silence
from fault_tolerance.addresses import Addresses
from fault_tolerance.contracts import DatabaseReplica, FileReplica
from fault_tolerance.executor import DATABASE_LIMIT_SECONDS, Executor, reboot
from fault_tolerance.facts import Facts, obstacles
from fault_tolerance.heartbeat import INTERVAL_SECONDS, Heartbeat, decode, encode
from fault_tolerance.pair import RUN, STATE, VRRP_RUN, Pair
from fault_tolerance.pbx import Pbx
from fault_tolerance.peer_link import PeerLink, Table
from fault_tolerance.provider import Provider
from fault_tolerance.roles import Action, Decision, address_verdict, decide
from fault_tolerance.sights import INTERVAL_SECONDS as SIGHT_SECONDS
from fault_tolerance.sights import ThirdParty
from fault_tolerance.state import RoleState
from fault_tolerance.verdicts import Verdicts
from fault_tolerance.view import SERVING, Link, Obstacle, Rank, Role, Sight, View, Vrrp, Wish, Work
from fault_tolerance.vrrp import Keepalived

STEPPED_DOWN_SECONDS = 10.0
STALL_SECONDS = 0.9
FENCE_SECONDS = 3.0
SLOW_SECONDS = 2.0
ADDRESS_GRACE_SECONDS = 0.6
# After a loop that said "the link says that the master lives", listen to VRRP again: soon, then less often.
YIELD_AFTER_SECONDS = 0.05
YIELD_SECONDS = (3.0, 10.0, 30.0, 60.0)
ANNOUNCE_AFTER_SECONDS = (0.0, 1.0, 3.0)
STEPS_AT_ONCE = 6
DUPLICATE_SECONDS = 10.0

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
        self.addresses = Addresses(pair.shared, selector, self.changed)
        self.vrrp = Keepalived(pair, selector, self.changed)
        self.gateway = ThirdParty("gateway", pair.gateway, selector, default_gateway=True)
        self.witness = ThirdParty("witness", pair.witness, selector)
        self.executor = Executor(pair.shared, self.verdicts, database, files, pbx, self.wake, hook)
        self.heard: Heartbeat | None = None
        self.skew: float | None = None
        self.wish, self.forced, self.maintenance = Wish.NONE, False, False
        self.shutting_down = False
        self.reason = ""
        self.obstacles: frozenset[Obstacle] = frozenset()
        self.role = Role.JOINING
        self.since = time.monotonic()
        self._changed = True
        self._stopping = False
        self._stepped_down_until = 0.0
        self._fenced_until = 0.0
        self._yield_until = 0.0
        self._yields = 0
        self._announce: list[float] = []
        self._astray_since: float | None = None
        self._link_state = Link.NEVER
        self.duplicates: dict[str, str] = {}
        self._duplicates_due = 0.0
        self._vrrp_before = Vrrp.DOWN
        self._vrrp_master_since = 0.0
        self._followed = False
        self.provider = Provider(hook, self.executor.background, self.wake)

    # --- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up the role of this boot, or begin as joining or off. Raises CentralinoError."""
        resumed = self.state.role_of_this_boot()
        self.verdicts.adopt()
        if resumed in (Role.MASTER, Role.SLAVE):
            self.role = resumed
        elif resumed is Role.PROMOTING:
            self.role = resumed
            self.executor.promote(self.state.durable.epoch)
        elif resumed is Role.DEMOTING:
            self.role = resumed
            self.executor.demote()
        else:
            self.role = Role.OFF if self.state.durable.off else Role.JOINING
            self.verdicts.write(may_hold=False, serving=False)
            silence.close()
        if self.role is Role.MASTER:
            self.executor.background("database", lambda: self._database.make_writable(DATABASE_LIMIT_SECONDS))
            self.executor.background("files", lambda: self._files.send(self.state.durable.epoch))
        elif self.role is Role.SLAVE:
            self._followed = True
            self.executor.follow(self.state.durable.epoch)
        log.info("this node begins as %s, epoch %d", self.role.value, self.state.durable.epoch)
        self.state.note_role(self.role)
        if not self.pair.cloud:
            self.vrrp.start()

    def run(self) -> None:
        """Loop until `stop`."""
        now = time.monotonic()
        beat, sight, slow = now, now, now
        while not self._stopping:
            before = time.monotonic()
            limit = 0.0 if self._changed else max(0.0, min(beat, sight, slow) - before)
            for key, _ in self._selector.select(limit):
                key.data()
            now = time.monotonic()
            if now - before > limit + STALL_SECONDS:
                self._stalled(now - before)
            if now >= sight:
                sight = now + SIGHT_SECONDS
                self._look(now)
            if now >= slow:
                slow = now + SLOW_SECONDS
                self._look_slowly()
            due = now >= beat
            if self._changed or due:
                self._changed = False
                self._judge(now)
            if due:
                beat = now + INTERVAL_SECONDS[self.pair.adverts]
                self.link.look()
                self._beat()
            while self._announce and self._announce[0] <= now:
                self._announce.pop(0)
                self.addresses.announce()

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
        self.verdicts.write(may_hold=False, serving=False)
        self._beat()

    def close(self, *, stop_vrrp: bool) -> None:
        """Let go of everything."""
        self.link.close()
        self.vrrp.close(stop=stop_vrrp and not self.pair.cloud)
        self.addresses.close()
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
            carrier=self.pair.cloud or self.addresses.carrier,
            version=self.pair.version,
            schema=self.pair.schema,
            skew=self.skew,
            database=self._database.state(),
            database_answers=self._database.heartbeat().get("answers") is not False,
            files=self._files.state(),
            core_failed=self.core.failed,
            maintenance=self.maintenance,
            stepped_down=time.monotonic() < self._stepped_down_until,
            moves=self.state.moves_in_last_hour(),
            shutting_down=self.shutting_down,
            manual=self.pair.cloud and self._hook is None,
        )

    def view(self) -> View:
        """What `decide` looks at."""
        facts = self.facts()
        self.obstacles = obstacles(facts)
        vrrp = self._vrrp()
        if vrrp is not self._vrrp_before:
            self._vrrp_before, self._vrrp_master_since = vrrp, time.monotonic()
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
            core_failed=self.core.failed,
            yielding=time.monotonic() < self._yield_until and facts.link is Link.UP,
        )

    def _vrrp(self) -> Vrrp:
        if not self.pair.cloud:
            return self.vrrp.state
        # Without VRRP the provider is the second signal; without its hook there is none.
        return Vrrp.MASTER if self.role in SERVING or self.provider.peer_is_dead else Vrrp.BACKUP

    # --- the loop's parts ---------------------------------------------------------------------------------

    def _stalled(self, seconds: float) -> None:
        """This process, or the whole node, stood still: the peer may be master meanwhile.

        The addresses are given up until the peer has been heard, or has not been for three seconds.
        """
        log.warning("this node stood still for %.1f s", seconds)
        if self.role in SERVING and self._link_once_up:
            self._fenced_until = time.monotonic() + FENCE_SECONDS
        self._changed = True

    @property
    def _link_once_up(self) -> bool:
        return self.heard is not None

    def _look(self, now: float) -> None:
        self.gateway.ask()
        self.witness.ask()
        self.addresses.look()
        if self.pair.cloud:
            self._remove_astray(now, wanted=False)
            return
        self.vrrp.look()
        self._remove_astray(now, wanted=self.vrrp.state is Vrrp.MASTER)
        if self.vrrp.frozen:
            self.vrrp.kill()

    def _remove_astray(self, now: float, *, wanted: bool) -> None:
        """Addresses that are here while VRRP is not master are stale; missing while it is, lost."""
        wrong = self.addresses.held if not wanted else frozenset(self.addresses.missing)
        if not wrong:
            self._astray_since = None
            return
        if self._astray_since is None:
            self._astray_since = now
        if now - self._astray_since < ADDRESS_GRACE_SECONDS:
            return
        self._astray_since = None
        if not wanted:
            log.warning("shared addresses were left here although this node does not hold them; removed")
            self.executor.background("remove", lambda: kernel.remove(wrong))
        elif self.role in SERVING:
            log.warning("shared addresses were taken away by something else; put back and announced")
            self.executor.background("put back", lambda: kernel.put_back(wrong))
            self._announce_soon()

    def _look_slowly(self) -> None:
        self._on_alive()
        if self.role in SERVING or self.role is Role.SLAVE:
            self.executor.background("PBX", self._pbx.look)
        if not self.pair.cloud and self.vrrp.state is Vrrp.DOWN:
            self.executor.background("keepalived", self.vrrp.restart)
        state = self._database.state()
        heard = self.heard
        if (
            self.role is Role.SLAVE
            and self._followed
            and heard is not None
            and heard.role in SERVING
            and not state.obstacles
            and self.link.state is Link.UP
            and heard.rank.mastered > self.state.durable.mastered
        ):
            # What this node has is now the data of that mastery.
            self._keep(lambda: self.state.change(mastered=heard.rank.mastered))
        self._send_cluster()
        now = time.monotonic()
        if self.role is Role.MASTER and self.addresses.held and now >= self._duplicates_due:
            self._duplicates_due = now + DUPLICATE_SECONDS
            self.executor.background("duplicates", self._find_duplicates)
        elif self.role is not Role.MASTER:
            self.duplicates = {}
        if self.pair.cloud:
            ready = self.role is Role.SLAVE and not self.obstacles
            self.provider.look(self.link.state, self.link.silent_for(), ready=ready)
        self._on_change()

    def _find_duplicates(self) -> None:
        """Somebody else who answers for a shared address draws phones away: say so, and be louder."""
        found = kernel.duplicates(self.addresses.held)
        if found:
            log.warning("another machine answers for a shared address: %s", found)
            self.addresses.announce()
        self.duplicates = found

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
        skew = beat.wall - time.time()
        # A heartbeat can only be late, never early: the greatest of the recent differences is the truest.
        self.skew = skew if self.skew is None else max(skew, self.skew * 0.9 + skew * 0.1)
        before, self.heard = self.heard, beat
        self._database.heard(dict(beat.database))
        self._files.heard(dict(beat.files))
        self.exchange.heard(self.role, self.state.durable.epoch, beat)
        if self.link.state is not self._link_state or before is None or _differs(before, beat):
            self._changed = True

    def _judge(self, now: float) -> None:
        self._notice_link(now)
        for _ in range(STEPS_AT_ONCE):
            view = self.view()
            if self.forced and self.wish is Wish.NONE and self._seen_again(view):
                self.forced = False
            self._write_verdict(view)
            decision = decide(view)
            if decision.reason != self.reason:
                self.reason = decision.reason
                self._on_change()
            if not self._carry_out(decision, view):
                return

    def _notice_link(self, now: float) -> None:
        state = self.link.state
        if state is self._link_state:
            return
        log.info("the peer link is %s", state.value)
        self._link_state = state
        if state is not Link.UP:
            self._yield_until, self._yields = 0.0, 0
        else:
            # After a heal the last announcement may have been the other node's.
            self._announce_soon()
        self._on_change()

    @staticmethod
    def _seen_again(view: View) -> bool:
        return view.link is Link.UP or Sight.SEEN in (view.gateway, view.witness)

    def _write_verdict(self, view: View) -> None:
        if self.pair.cloud:
            return
        refusal = address_verdict(view)
        fenced = time.monotonic() < self._fenced_until
        if fenced and view.link is Link.UP and view.peer is not None and view.peer.role not in SERVING:
            self._fenced_until, fenced = 0.0, False
        try:
            self.verdicts.write(
                may_hold=refusal is None and not fenced, serving=self.role in SERVING and not fenced
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
            if not self._keep(lambda: self.state.change(epoch=newest)):
                return False
        log.warning("%s -> %s: %s (%s)", view.role.value, edge.target.value, edge.reason, edge.name)
        if edge.name == "master_dead":
            self._keep(self.state.note_move)
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
                self.executor.promote(self.state.durable.epoch)
            case Action.DEMOTE:
                self.executor.demote()
            case Action.FOLLOW:
                self._followed = True
                self.executor.follow(self.state.durable.epoch)
                self.executor.background("trunks", self._pbx.close)
            case Action.STOP_SERVICES:
                self._keep(lambda: self.state.change(off=True))
                self._unit("stop")
            case Action.START_SERVICES:
                self._keep(lambda: self.state.change(off=False))
                self._unit("start")
            case Action.YIELD_ADDRESSES:
                self._yield(view)
            case Action.CLAIM_ADDRESSES:
                self._announce_soon()
            case Action.REBOOT:
                self._reboot()
            case Action.CLEAR_WISH:
                self.wish = Wish.NONE
            case _:
                pass

    def _yield(self, view: View) -> None:
        now = time.monotonic()
        silent = self.link.silent_for()
        if silent is None or now - silent < self._vrrp_master_since + YIELD_AFTER_SECONDS:
            # Heard last before VRRP fell silent: the master may have died since. A living one is heard soon.
            return
        if view.link is Link.UP and now >= self._yield_until:
            seconds = YIELD_SECONDS[min(self._yields, len(YIELD_SECONDS) - 1)]
            self._yields += 1
            self._yield_until = now + seconds
            log.warning(
                "VRRP is silent but the peer link says that the master lives; held back %g s", seconds
            )
            self._changed = True

    def _announce_soon(self) -> None:
        if not self._announce:
            now = time.monotonic()
            self._announce = [now + seconds for seconds in ANNOUNCE_AFTER_SECONDS]

    def _unit(self, verb: str) -> None:
        unit = self.core.core_unit
        self.executor.background(
            f"{verb} the PBX core",
            lambda: _ignore(run(["systemctl", "--no-block", verb, unit], limit_seconds=10.0)),
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


def _differs(before: Heartbeat, beat: Heartbeat) -> bool:
    """What the role machine would notice; positions grow all the time and change nothing."""
    return (before.role, before.epoch, before.obstacles, before.cluster) != (
        beat.role,
        beat.epoch,
        beat.obstacles,
        beat.cluster,
    )


def _ignore(_result: object) -> None:
    """For actions whose result nobody needs."""
