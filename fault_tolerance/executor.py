"""Promotion and demotion: steps with time limits, off the loop, demotion never behind promotion.

Promotion, first what callers wait for: database writable, SIP open, addresses claimed; then trunks and files.
A node that leaves its database closed for a moment, see drawn_away.py, opens SIP before it as far as it can.
Demotion, first what does harm: addresses away and SIP closed, both verified in the kernel, then the database
read-only, verified; what cannot be verified fails, and the role machine reboots the node.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from daemon.errors import CentralinoError, CommandFailedError
from daemon.run import run
from fault_tolerance import addresses, silence
from fault_tolerance.contracts import DatabaseReplica, FileReplica
from fault_tolerance.keepalived import Held
from fault_tolerance.pbx import Pbx
from fault_tolerance.verdicts import Verdicts
from fault_tolerance.view import Work

DATABASE_LIMIT_SECONDS = 10.0
READ_ONLY_LIMIT_SECONDS = 5.0
RELEASE_SECONDS = 1.0
VERIFY_SECONDS = 3.0
POLL_SECONDS = 0.02
PATIENCE_SECONDS = 2.0
HOOK_LIMIT_SECONDS = 60.0
FOLLOW_LIMIT_SECONDS = 30.0

log = logging.getLogger(__name__)


class _SupersededError(Exception):
    """Another order came meanwhile."""


class Executor:
    """One order at a time; a newer one makes the older stop at its next step. `on_change` may be called from
    any thread."""

    def __init__(
        self,
        shared: Sequence[Held],
        verdicts: Verdicts,
        database: DatabaseReplica,
        files: FileReplica,
        pbx: Pbx,
        on_change: Callable[[], None],
        hook: Callable[[str], None] | None = None,
    ) -> None:
        self._shared = tuple(shared)
        self._verdicts = verdicts
        self._database = database
        self._files = files
        self._pbx = pbx
        self._on_change = on_change
        self._hook = hook
        self._lock = threading.Lock()
        self._number = 0
        self._thread: threading.Thread | None = None
        self._work = Work.IDLE
        self.report: list[tuple[str, float]] = []
        self.failure = ""

    @property
    def work(self) -> Work:
        """How far the last promotion or demotion is."""
        return self._work

    def rest(self) -> None:
        """Forget the result of the last order."""
        with self._lock:
            if self._work is not Work.RUNNING:
                self._work = Work.IDLE

    def promote(self, epoch: int, writes_after_seconds: float, *, close_first: bool = False) -> None:
        """Begin to serve, and to take writes that much later, also if the database does so now and must
        `close_first`; returns at once."""
        not_before = time.monotonic() + writes_after_seconds
        self._begin("promotion", lambda step: self._promote(step, epoch, not_before, close_first=close_first))

    def demote(self) -> None:
        """Begin to be silent; returns at once."""
        self._begin("demotion", self._demote)

    def follow(self, epoch: int) -> None:
        """Replicate from the peer; a failure is the replications' own obstacle. Returns at once."""
        threading.Thread(target=self._follow, args=(epoch,), name="follow", daemon=True).start()

    def background(self, name: str, work: Callable[[], object]) -> None:
        """Do something that may wait, whose result nobody needs and whose failure is only logged."""

        def safely() -> None:
            try:
                work()
            except CentralinoError as error:
                log.warning("%s: %s", name, error)
            except Exception:
                log.exception("%s failed", name)

        threading.Thread(target=safely, name=name, daemon=True).start()

    def _begin(self, name: str, work: Callable[[Callable[[str], None]], None]) -> None:
        with self._lock:
            self._number += 1
            number, before = self._number, self._thread
            self._work = Work.RUNNING
            self._thread = threading.Thread(
                target=self._run, args=(number, before, name, work), name=name, daemon=True
            )
            self._thread.start()

    def _run(
        self,
        number: int,
        before: threading.Thread | None,
        name: str,
        work: Callable[[Callable[[str], None]], None],
    ) -> None:
        if before is not None:
            # A step that hangs must not hold up a demotion.
            before.join(PATIENCE_SECONDS)
        began = last = time.monotonic()
        report: list[tuple[str, float]] = []

        def step(done: str) -> None:
            nonlocal last
            now = time.monotonic()
            report.append((done, now - last))
            last = now
            if number != self._number:
                raise _SupersededError

        result, failure = Work.DONE, ""
        try:
            work(step)
        except _SupersededError:
            log.warning("the %s was overtaken by another order", name)
            return
        except Exception as error:
            result, failure = Work.FAILED, str(error)
            if not isinstance(error, CentralinoError):
                log.exception("the %s failed", name)
        with self._lock:
            if number != self._number:
                return
            self._work, self.report, self.failure = result, report, failure
        steps = ", ".join(f"{done} {seconds * 1000:.0f} ms" for done, seconds in report)
        if failure:
            log.error("the %s failed: %s (%s)", name, failure, steps)
        else:
            log.info("the %s took %.0f ms: %s", name, (time.monotonic() - began) * 1000, steps)
        self._on_change()

    def _promote(
        self, step: Callable[[str], None], epoch: int, not_before: float, *, close_first: bool
    ) -> None:
        step("begun")
        if close_first:
            self._database.make_read_only(READ_ONLY_LIMIT_SECONDS)
            step("database closed")

        def database_is_ready() -> None:
            step("database ready")
            if time.monotonic() < not_before:
                silence.open_but_for_registrations()
                self.background("PBX", self._pbx.open)
                step("SIP open but for registrations")

        self._database.make_writable(DATABASE_LIMIT_SECONDS, not_before, database_is_ready)
        step("database writable")
        silence.open_sip()
        step("SIP open")
        self._verdicts.write(may_hold=True)
        step("addresses claimed")
        if self._hook is not None:
            self._hook("promote")
            step("public address moved")
        self.background("files", lambda: self._files.send(epoch))
        self.background("trunks", self._pbx.open)

    def _demote(self, step: Callable[[str], None]) -> None:
        self._verdicts.write(may_hold=False, serving=False)
        # All at once: whichever hangs, the others are done.
        closing = _Later(self._close_sip)
        reading = _Later(lambda: self._database.make_read_only(READ_ONLY_LIMIT_SECONDS))
        self._release_addresses()
        step("addresses released")
        closing.result(VERIFY_SECONDS, "SIP could not be closed")
        step("SIP closed")
        reading.result(READ_ONLY_LIMIT_SECONDS + VERIFY_SECONDS, "the database could not be made read-only")
        step("database read-only")
        self.background("files", self._files.stop)
        self.background("trunks", self._pbx.close)

    def _release_addresses(self) -> None:
        """keepalived does it when it reads the verdict; one that does not is helped. Raises if they stay."""
        deadline = time.monotonic() + RELEASE_SECONDS
        while left := addresses.held_now(self._shared):
            if time.monotonic() > deadline:
                log.warning("keepalived has not released the shared addresses; they are removed")
                addresses.remove(left)
                break
            time.sleep(POLL_SECONDS)
        if left := addresses.held_now(self._shared):
            raise CommandFailedError(
                f"the shared addresses stay: {', '.join(str(h.address.ip) for h in left)}"
            )

    @staticmethod
    def _close_sip() -> None:
        silence.close()
        if not silence.is_closed():
            raise CommandFailedError("SIP is still open")

    def _follow(self, epoch: int) -> None:
        try:
            self._database.follow(FOLLOW_LIMIT_SECONDS)
            self._files.receive(epoch)
        except CentralinoError as error:
            log.warning("this node cannot follow the master yet: %s", error)
        except Exception:
            log.exception("this node cannot follow the master")
        self._on_change()


class _Later:
    """Work in a thread whose result is asked for later."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._error = error

    def result(self, limit_seconds: float, otherwise: str) -> None:
        self._thread.join(limit_seconds)
        if self._thread.is_alive():
            raise CommandFailedError(f"{otherwise} within {limit_seconds:g} s")
        if self._error is not None:
            raise CommandFailedError(f"{otherwise}: {self._error}")


def provider_hook(path: Path, arguments: Sequence[str]) -> Callable[[str], None]:
    """A hook that moves a public address; the contract is in docs/fault-tolerance.md."""

    def call(verb: str) -> None:
        run([str(path), verb, *arguments], limit_seconds=HOOK_LIMIT_SECONDS)

    return call


def reboot() -> None:
    """Without goodbye: what cannot be verified must not go on. The watchdog is the net below."""
    log.critical("this node reboots at once")
    try:
        run(["systemctl", "reboot", "--force", "--force"], limit_seconds=10.0)
    except CentralinoError as error:
        log.critical("the reboot failed: %s", error)
        Path("/proc/sysrq-trigger").write_text("b")
