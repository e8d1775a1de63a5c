"""verify -> plan -> apply -> confirm, for every subsystem alike.

The engine owns the order of things and nothing else: subsystems know the box, the revision store knows the
disk. Each step is first written to the store's head (the intent journal), so after a power loss anywhere
`start` finds either the old revision or the new one in force and makes the box match it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from daemon import faults
from daemon.clock import Clock
from daemon.errors import (
    ApplyFailedError,
    CentralinoError,
    ConflictError,
    InvalidSettingsError,
    NotFoundError,
    Problem,
    StorageError,
)
from daemon.proposal import Applied, Proposal, Report
from daemon.settings import Settings, dump, parse, sections
from daemon.settings.revisions import Head, Intent, Phase, Revision, RevisionState, RevisionStore
from daemon.settings.text import difference
from daemon.subsystem import Change, Facts, Guard, JsonObject, State, Subsystem

log = logging.getLogger(__name__)

Progress = Callable[[float | None, str], None]
LONGEST_CONFIRM_SECONDS = 3600
LATE_SECONDS = 5


def no_progress(_fraction: float | None, _message: str) -> None:
    """For callers that do not watch."""


class _ReturnedError(CentralinoError):
    """The box has returned already; there is nothing left to undo."""


class Engine:
    """One change at a time; every public method may be called from any thread."""

    def __init__(
        self,
        store: RevisionStore,
        subsystems: Sequence[Subsystem],
        *,
        clock: Clock,
        program: str = "",
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`program` is this program's version: another one than last time makes `start` re-apply all.
        `on_change` is called, from any thread, after the revision in force or the pending one changed."""
        self.subsystems = tuple(subsystems)
        self._store = store
        self._program = program
        self._clock = clock
        self._listener = on_change
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._report = Report()
        self._settings = store.settings(store.head.current)
        self._by_name = {subsystem.name: subsystem for subsystem in self.subsystems}
        self._guards = [subsystem for subsystem in self.subsystems if isinstance(subsystem, Guard)]
        for number, trouble in enumerate(store.troubles):
            self._report.set(f"store.{number}", trouble)

    # --- what is true -------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings that the box has now: those of the pending revision while one waits for confirm."""
        return self._settings

    @property
    def revision(self) -> int:
        """The number that belongs to `settings`."""
        head = self._store.head
        if head.intent is not None and head.intent.phase is Phase.UNCONFIRMED:
            return head.intent.revision
        return head.current

    def pending(self) -> JsonObject | None:
        """The revision that waits for confirm: `revision`, `returns_to`, `confirm_by`, `seconds_left`."""
        head = self._store.head
        if head.intent is None or head.intent.phase is not Phase.UNCONFIRMED:
            return None
        return {
            "revision": head.intent.revision,
            "returns_to": head.current,
            "confirm_by": head.intent.confirm_by,
            "seconds_left": max(0, round(head.intent.deadline - self._clock.seconds())),
        }

    def reasons(self) -> list[str]:
        """Why settings and box may differ, or what of the history was lost; empty when all is well."""
        return list(self._report.sentences.values())

    def report(self, key: str, sentence: str | None) -> None:
        """Add (or with None remove) a reason of one's own to `reasons`."""
        if sentence is None:
            self._report.clear(key)
        else:
            self._report.set(key, sentence)

    def stored_only(self) -> list[str]:
        """Sections that no subsystem applies yet: kept and shown, without effect on the box."""
        applied = {section for subsystem in self.subsystems for section in subsystem.sections}
        applied.add("history")  # the engine itself
        return [name for name in sections() if name not in applied]

    def observe(self) -> dict[str, State]:
        """What each subsystem sees now; one that fails is itself a reason."""
        states: dict[str, State] = {}
        for subsystem in self.subsystems:
            try:
                states[subsystem.name] = subsystem.observe()
            except Exception as error:
                log.exception("%s could not look at the box", subsystem.name)
                states[subsystem.name] = State(
                    False, (f"{subsystem.name} could not look at the box: {error}; see the journal",)
                )
        return states

    def history(self, limit: int) -> list[Revision]:
        """The newest revisions first (0: all)."""
        return self._store.history(limit)

    def document(self, number: int) -> JsonObject:
        """The whole document of a revision, 0 = the one in force. Raises NotFoundError, StorageError."""
        if number == 0:
            return dump(self.settings)
        return dump(self._store.settings(number))

    def diff(self, older: int, newer: int) -> str:
        """Unified diff of two revisions, 0 = the one in force."""
        names = [f"revision {number or self.revision}" for number in (older, newer)]
        return difference(self.document(older), self.document(newer), *names)

    # --- changing it --------------------------------------------------------------------------------------

    def propose(self, text: str, base: int = 0) -> Proposal:
        """A dry run: what the document `text` (JSON) would change. Touches nothing.

        Raises InvalidSettingsError for a document that is refused by its form, ConflictError when `base` is
        not the revision in force. Problems that only the box knows are in the result.
        """
        settings = parse(text)
        self._check_base(base)
        return self._propose(settings)

    def propose_repair(self) -> Proposal:
        """What would bring drift back to the revision in force, by what each subsystem finds on the box."""
        changes = tuple(self._plan(None, self._settings))
        return Proposal(self.revision, self._settings, changes, (), "", confirmable=False)

    def repair(self, progress: Progress = no_progress) -> Proposal:
        """Bring what was changed by other hands back to the revision in force; returns what was done.

        Raises ConflictError while a change waits for confirm, ApplyFailedError if not all could be brought
        back; `retry` then tries again, also after a power loss on the way.
        """
        with self._lock:
            if self._store.head.intent is not None:
                raise ConflictError(
                    f"revision {self._store.head.intent.revision} is still {self._store.head.intent.phase}",
                    "confirm it, or wait until the box has returned",
                )
            proposal = self.propose_repair()
            if proposal.changes:
                progress(None, "repairing")
                self._move(replace(self._store.head, matched=False))
                self._match()
                if trouble := self._report.sentences.get("match"):
                    raise ApplyFailedError(trouble, "see `centralino status`")
                self._on_change()
            return proposal

    def apply(
        self,
        text: str,
        *,
        base: int = 0,
        comment: str = "",
        who: str = "",
        confirm_seconds: int | None = None,
        progress: Progress = no_progress,
    ) -> Applied:
        """Bring the box to the document `text` and store it as a new revision; blocks until done.

        Without `confirm_seconds`, a risky change waits for confirm as long as `history.confirm_seconds`
        says; 0 waits for none. Raises InvalidSettingsError, ConflictError, StorageError (nothing was
        changed) or ApplyFailedError (the old state was put back, or the message says that it was not).
        """
        settings = parse(text)
        with self._lock:
            if self._store.head.intent is not None:
                raise ConflictError(
                    f"revision {self._store.head.intent.revision} is still {self._store.head.intent.phase}",
                    "confirm it, or wait until the box has returned",
                )
            self._check_base(base)
            if not self._store.head.matched:
                self._match()
            progress(None, "checking")
            proposal = self._propose(settings)
            fatal = [problem for problem in proposal.problems if problem.fatal]
            if fatal:
                raise InvalidSettingsError(fatal)
            if settings == self._settings:
                return Applied(self.revision, None, proposal)
            seconds = self._confirm_seconds(proposal, settings, confirm_seconds)
            return self._carry_out(proposal, who, comment, seconds, progress)

    def confirm(self) -> int:
        """Keep the revision that waits; returns its number. Raises NotFoundError if none waits."""
        with self._lock:
            intent = self._store.head.intent
            if intent is None or intent.phase is not Phase.UNCONFIRMED:
                raise NotFoundError("no change waits for confirm", "it may have returned: see the history")
            self._keep(intent.revision)
            self._stop_timer()
            return intent.revision

    def return_now(self, reason: str) -> int:
        """Go back at once instead of at the deadline; returns the number of the revision that is left.

        `reason` goes on from "revision 7 ...". Raises NotFoundError if no change waits for confirm.
        """
        with self._lock:
            intent = self._store.head.intent
            if intent is None or intent.phase is not Phase.UNCONFIRMED:
                raise NotFoundError("no change waits for confirm", "see the history")
            if not self._return(intent, reason):
                raise ApplyFailedError("not all could be put back", "see `centralino status`")
            return intent.revision

    def expire(self) -> None:
        """Return to the old revision if the one that waits is past its deadline; called by the timer."""
        with self._lock:
            intent = self._store.head.intent
            if intent is None or intent.phase is not Phase.UNCONFIRMED:
                return
            left = intent.deadline - self._clock.seconds()
            if intent.boot == self._clock.boot() and left > 0:
                self._start_timer(left)
                return
            self._return(intent, "was not confirmed in time")

    def start(self) -> None:
        """After the start of the daemon: settle what a power loss cut off, and make the box match.

        Never raises for a broken subsystem: that is a reason in `reasons`, and `retry` tries again.
        """
        with self._lock:
            head = self._store.head
            intent = head.intent
            if intent is None:
                self._guard(lambda guard: guard.trial_ends())
                if not head.matched or head.program != self._program:
                    self._match()
            elif intent.phase is Phase.UNCONFIRMED and intent.boot == self._clock.boot() != "":
                self._settings = self._settings_of(intent.revision, head.current)
                self._start_timer(min(intent.deadline - self._clock.seconds(), LONGEST_CONFIRM_SECONDS))
                # The daemon may have died before it could look.
                self._guard(lambda guard: guard.trial_resumes())
                troubles: list[str] = []
                self._guard(self._look_for(troubles, self._settings))
                with contextlib.suppress(_ReturnedError):
                    self._return_if_troubled(intent, troubles)
            elif intent.phase is Phase.UNCONFIRMED:
                self._return(intent, "was not confirmed before the reboot")
            elif intent.phase is Phase.APPLYING:
                self._return(intent, "was interrupted while it was applied", RevisionState.FAILED)
            else:
                self._return(intent, intent.reason or "was interrupted while it returned")

    def needs_retry(self) -> bool:
        """Whether the box is known not to match, or a deadline has passed without a return."""
        head = self._store.head
        if head.intent is None:
            return not head.matched
        late = head.intent.deadline < self._clock.seconds() - LATE_SECONDS
        return head.intent.phase is not Phase.UNCONFIRMED or late

    def retry(self) -> None:
        """Try again to make the box match, if it is known not to; called from time to time."""
        with self._lock:
            head = self._store.head
            if head.intent is not None and head.intent.phase is Phase.UNCONFIRMED:
                self.expire()
            elif head.intent is not None and head.intent.phase is Phase.APPLYING:
                self._return(head.intent, "could not be applied", RevisionState.FAILED)
            elif head.intent is not None:
                self._return(head.intent, head.intent.reason or "was interrupted while it returned")
            elif head.intent is None and not head.matched:
                self._match()

    def stop(self) -> None:
        """Stop the timer; the deadline stays on the disk and holds for the next start."""
        with self._lock:
            self._stop_timer()

    # --- the steps ----------------------------------------------------------------------------------------

    def _check_base(self, base: int) -> None:
        if base not in (0, self.revision):
            raise ConflictError(
                f"the document was edited from revision {base}, but {self.revision} is in force",
                "read the settings again and repeat the change",
            )

    def _propose(self, settings: Settings) -> Proposal:
        facts = Facts(self.observe)
        problems: list[Problem] = []
        for subsystem in self.subsystems:
            problems += self._verify(subsystem, settings, facts)
        changes: tuple[Change, ...] = ()
        if not any(problem.fatal for problem in problems) and settings != self._settings:
            changes = tuple(self._plan(self._settings, settings))
        text = difference(
            dump(self._settings), dump(settings), f"revision {self.revision}", "the new settings"
        )
        return Proposal(self.revision, settings, changes, tuple(problems), text)

    def _verify(
        self, subsystem: Subsystem, settings: Settings, facts: Mapping[str, object]
    ) -> Sequence[Problem]:
        try:
            return subsystem.verify(settings, facts)
        except CentralinoError as error:
            return [Problem(subsystem.name, f"could not be checked: {error.message}", error.remedy)]
        except Exception as error:
            log.exception("%s could not check the settings", subsystem.name)
            return [Problem(subsystem.name, f"could not be checked: {error}", "see the journal")]

    def _plan(self, old: Settings | None, new: Settings) -> Iterable[Change]:
        for subsystem in self.subsystems:
            try:
                yield from subsystem.plan(old, new)
            except CentralinoError:
                raise
            except Exception as error:
                log.exception("%s could not plan", subsystem.name)
                raise ApplyFailedError(
                    f"{subsystem.name} could not plan: {error}", "see the journal"
                ) from error

    def _confirm_seconds(self, proposal: Proposal, settings: Settings, asked: int | None) -> int:
        if asked is not None:
            return max(0, min(asked, LONGEST_CONFIRM_SECONDS))
        return settings.history.confirm_seconds if proposal.needs_confirm else 0

    def _carry_out(
        self, proposal: Proposal, who: str, comment: str, confirm_seconds: int, progress: Progress
    ) -> Applied:
        current = self._store.head.current
        old, new = self._settings, proposal.settings
        with self._trial_begins(proposal.changes, old, confirm_seconds):
            revision = self._store.add(proposal.settings, who, comment)
            try:
                self._move(replace(self._store.head, intent=Intent(revision.revision, Phase.APPLYING)))
            except StorageError:
                self._note_state(revision.revision, RevisionState.FAILED, "the disk refused the intent")
                raise
        try:
            self._run(proposal.changes, progress)
            if confirm_seconds:
                deadline = self._clock.seconds() + confirm_seconds
                confirm_by = self._clock.wall_time_in(confirm_seconds)
                intent = Intent(
                    revision.revision, Phase.UNCONFIRMED, self._clock.boot(), deadline, confirm_by
                )
                self._settings = new
                progress(None, "checking that the box is still reached")
                troubles: list[str] = []
                with self._meanwhile(self._look_for(troubles, new)):
                    self._move(Head(current, intent, True, self._program))
                    self._start_timer(confirm_seconds)
                    self._on_change()
                self._return_if_troubled(intent, troubles)
                return Applied(revision.revision, confirm_by, proposal)
            self._settings = new
            self._keep(revision.revision)
        except _ReturnedError as error:
            raise ApplyFailedError(error.message, error.remedy) from None
        except Exception as error:
            self._settings = old
            self._undo(proposal.changes, old, new, revision.revision, error)
        return Applied(revision.revision, None, proposal)

    @contextlib.contextmanager
    def _trial_begins(self, changes: Sequence[Change], old: Settings, seconds: int) -> Iterator[None]:
        """The block writes the intent; if it could not be written, the trial ends again."""
        if not seconds:
            yield
            return
        try:
            with self._meanwhile(lambda guard: guard.trial_begins(changes, old, seconds)):
                yield
        except BaseException:
            self._guard(lambda guard: guard.trial_ends())
            raise

    @contextlib.contextmanager
    def _meanwhile(self, look: Callable[[Guard], object]) -> Iterator[None]:
        """Have the guards look at the box while the disk takes what the block writes: both stand alone.

        Both are done when the block is left.
        """
        looking = threading.Thread(target=self._guard, args=(look,), name="trial")
        looking.start()
        try:
            yield
        finally:
            looking.join()

    def _look_for(self, troubles: list[str], new: Settings) -> Callable[[Guard], object]:
        return lambda guard: troubles.append(guard.trial_trouble(new) or "")

    def _return_if_troubled(self, intent: Intent, troubles: Sequence[str]) -> None:
        """Do not wait for the deadline when the box itself sees that it is cut off."""
        if trouble := "; ".join(filter(None, troubles)):
            if self._return(intent, f"was not kept: {trouble}"):
                raise _ReturnedError(f"the old state was put back: {trouble}", "correct the settings")
            raise _ReturnedError(
                f"{trouble}, and the old state could not be put back", "see `centralino status`"
            )

    def _guard(self, do: Callable[[Guard], object]) -> None:
        # What watches over a change must not be what breaks it.
        for guard in self._guards:
            try:
                do(guard)
            except Exception:
                log.exception("a check of the change on trial failed")

    def _run(self, changes: Sequence[Change], progress: Progress) -> None:
        for number, change in enumerate(changes):
            progress(number / len(changes), change.sentence)
            faults.reach(f"change:{change.subsystem}:before")
            self._by_name[change.subsystem].apply(change)
            faults.reach(f"change:{change.subsystem}:after")

    def _undo(
        self, changes: Sequence[Change], old: Settings, new: Settings, revision: int, error: Exception
    ) -> NoReturn:
        """Put the old state back after a failed apply, then raise what says so."""
        if not isinstance(error, CentralinoError):
            log.error("revision %d could not be applied", revision, exc_info=error)
        faults.reach("undo:all:before")
        touched = list(dict.fromkeys(change.subsystem for change in reversed(changes)))
        failed = self._restore(touched, old, new)
        if failed:
            self._report.set("match", f"after revision {revision} failed, {failed}; it is tried again")
            raise ApplyFailedError(
                f"revision {revision} could not be applied: {error}, and the old state could not be put back",
                "see `centralino status`; the box keeps trying",
            ) from error
        self._end_without(revision, RevisionState.FAILED, str(error))
        if isinstance(error, StorageError):
            raise StorageError(f"nothing was changed: {error.message}", error.remedy) from error
        remedy = error.remedy if isinstance(error, CentralinoError) else "see the journal"
        message = error.message if isinstance(error, CentralinoError) else str(error)
        raise ApplyFailedError(f"the old state was put back: {message}", remedy) from error

    def _restore(self, names: Sequence[str], old: Settings, new: Settings | None) -> str:
        """Bring subsystems from `new` (None: unknown) to `old`, all of them; returns what failed, or ""."""
        failures: list[str] = []
        for name in names:
            subsystem = self._by_name[name]
            try:
                for change in subsystem.plan(new, old):
                    faults.reach(f"undo:{name}:before")
                    subsystem.apply(change)
                    faults.reach(f"undo:{name}:after")
            except Exception as first:
                log.warning("%s could not be put back at once: %s", name, first)
                try:
                    for change in subsystem.plan(None, old):
                        subsystem.apply(change)
                except Exception as second:
                    failures.append(f"{name} could not be put back: {second}")
        return "; ".join(failures)

    def _return(self, intent: Intent, reason: str, state: RevisionState = RevisionState.ROLLED_BACK) -> bool:
        """Go back to the revision in force; the box is not trusted to match what the journal says.

        False if something could not be put back; that is a reason then, and `retry` tries again.
        """
        self._stop_timer()
        log.warning(
            "revision %d %s, the box returns to revision %d",
            intent.revision,
            reason,
            self._store.head.current,
        )
        try:
            returning = replace(intent, phase=Phase.RETURNING, reason=reason)
            self._move(replace(self._store.head, intent=returning))
        except StorageError as error:
            log.warning("the return could not be journalled, it goes on: %s", error)
        old = self._settings_of(self._store.head.current, self._store.head.current)
        new = None if intent.phase is not Phase.UNCONFIRMED else self._settings
        names = [subsystem.name for subsystem in reversed(self.subsystems)]
        failed = self._restore(names, old, None if new == old else new)
        self._settings = old
        if failed:
            self._report.set("match", f"revision {intent.revision} {reason}, but {failed}; it is tried again")
        else:
            self._report.clear("match")
            self._end_without(intent.revision, state, reason)
        self._on_change()
        return not failed

    def _match(self) -> None:
        """Make the box match the revision in force, from whatever it is now."""
        current = self._store.head.current
        names = [subsystem.name for subsystem in self.subsystems]
        failed = self._restore(names, self._settings, None)
        if failed:
            self._report.set(
                "match", f"the box does not match revision {current}: {failed}; it is tried again"
            )
        else:
            self._report.clear("match")
        head = Head(current, None, not failed, self._program)
        if head != self._store.head:
            self._try_move(head)

    def _keep(self, revision: int) -> None:
        """The commit point: from here on `revision` is in force. Raises StorageError if it is not."""
        self._move(Head(revision, None, True, self._program))
        self._note_state(revision, RevisionState.CONFIRMED)
        try:
            self._store.prune(self._settings.history.keep_revisions)
        except StorageError as error:
            log.warning("old revisions could not be removed: %s", error)
        self._report.clear("match")
        self._on_change()

    def _end_without(self, revision: int, state: RevisionState, reason: str) -> None:
        self._try_move(Head(self._store.head.current, None, True, self._program))
        self._note_state(revision, state, reason)

    def _try_move(self, head: Head) -> None:
        try:
            self._move(head)
            self._report.clear("journal")
        except StorageError as error:
            self._report.set("journal", f"the settings' journal could not be written: {error}")

    def _move(self, head: Head) -> None:
        self._store.move_head(head)
        if head.intent is None:
            self._guard(lambda guard: guard.trial_ends())

    def _note_state(self, revision: int, state: RevisionState, reason: str = "") -> None:
        """For the history alone; what is in force is in the head, and the next start repairs this."""
        try:
            self._store.set_state(revision, state, reason)
        except StorageError as error:
            log.warning("the state of revision %d could not be recorded: %s", revision, error)

    def _on_change(self) -> None:
        # A listener that fails must not undo what is already in force.
        try:
            self._listener()
        except Exception:
            log.exception("the change of revision could not be told")

    def _settings_of(self, number: int, fallback: int) -> Settings:
        try:
            return self._store.settings(number)
        except CentralinoError as error:
            self._report.set(f"revision.{number}", f"revision {number} cannot be used: {error.message}")
            return self._store.settings(fallback)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = threading.Timer(max(0.0, seconds), self.expire)
        self._timer.daemon = True
        self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
