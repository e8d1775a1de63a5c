"""Revisions on disk: one file each, and one head file that says which is in force and what is under way.

The head file is the intent journal. Every step of an apply is one atomic replacement of it:

    {current: 4}                                     at rest
    {current: 4, intent: {5, applying}}              revision 5 is written, the box is being changed
    {current: 4, intent: {5, unconfirmed}}           the box matches 5; without `confirm` it returns to 4
    {current: 4, intent: {5, returning}}             the box is being changed back
    {current: 5}                                     confirmed

So whatever is on the disk after a power loss names exactly one revision to return to, or to keep.
A revision's own state is written after the head and is repaired from it on the next start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import cast

from daemon import faults
from daemon.errors import InvalidSettingsError, NotFoundError, StorageError
from daemon.files import ensure_directory, read_text, remove_file, write_file
from daemon.settings import SCHEMA, Settings, dump, parse_document
from daemon.settings.migrations import Document

HEAD = "head.json"
DIGITS = 8
MODE = 0o640
MAXIMUM_COMMENT = 500


# The settings, the comment, and what was wrong (or None).
FirstSettings = Callable[[], tuple[Settings, str, str | None]]


def default_settings() -> tuple[Settings, str, str | None]:
    """The first revision of a box of which nothing is known."""
    return Settings(), "first start", None


class RevisionState(StrEnum):
    """What became of a revision."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


class Phase(StrEnum):
    """How far the change that is under way has come."""

    APPLYING = "applying"
    UNCONFIRMED = "unconfirmed"
    RETURNING = "returning"


@dataclass(frozen=True)
class Revision:
    """Who changed the settings when and why; `when` is ISO 8601 in UTC, `digest` SHA-256 of the document."""

    revision: int
    when: str
    who: str
    comment: str
    base: int
    schema: int
    digest: str
    state: RevisionState
    reason: str = ""

    def as_json(self) -> Document:
        """All fields as JSON types."""
        return {**asdict(self), "state": self.state.value}


@dataclass(frozen=True)
class Intent:
    """A change under way: from `Head.current` to `revision`.

    `deadline` is seconds of CLOCK_BOOTTIME within the boot `boot`: no step of the wall clock can move it.
    After a reboot the change returns at once; `confirm_by` is that moment on the wall clock, for people.
    """

    revision: int
    phase: Phase
    boot: str = ""
    deadline: float = 0.0
    confirm_by: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Head:
    """The revision in force. `matched` is false while the box is known to differ from it;
    `program` is the version of the program that made the box match."""

    current: int
    intent: Intent | None = None
    matched: bool = True
    program: str = ""


class RevisionStore:
    """The revisions directory. Reading is safe from every thread; the engine holds its lock to write."""

    def __init__(self, directory: Path, first: FirstSettings = default_settings) -> None:
        """Reads the directory, or makes revision 1 of `first()` in an empty one; `troubles` says what was
        damaged.

        Raises StorageError only if the directory cannot be made or written at all.
        """
        self.directory = directory
        self.troubles: list[str] = []
        self._revisions: dict[int, Revision] = {}
        self._highest = 0
        self._known: dict[int, Settings] = {}
        ensure_directory(directory, 0o750)
        self._read_revisions()
        if not self._revisions:
            self._first_revision(first)
        self.head = self._read_head()
        self._check_current()
        self._settle_states()

    def settings(self, number: int) -> Settings:
        """The settings of a revision, migrated to the present schema.

        Raises NotFoundError, StorageError (damaged) or InvalidSettingsError (no longer valid).
        """
        if number not in self._revisions:
            raise NotFoundError(f"there is no revision {number}", "see `centralino config history`")
        if (known := self._known.get(number)) is not None:
            return known
        _, document = self._read(self._file(number))
        settings = parse_document(document)
        if self._is_needed(number):
            self._known[number] = settings
        return settings

    def revision(self, number: int) -> Revision:
        """Who, when and why of one revision. Raises NotFoundError."""
        if number not in self._revisions:
            raise NotFoundError(f"there is no revision {number}", "see `centralino config history`")
        return self._revisions[number]

    def history(self, limit: int) -> list[Revision]:
        """The newest revisions first, at most `limit` of them (0: all)."""
        revisions = self._revisions.copy()
        numbers = sorted(revisions, reverse=True)
        return [revisions[number] for number in (numbers[:limit] if limit else numbers)]

    def add(
        self, settings: Settings, who: str, comment: str, state: RevisionState = RevisionState.PENDING
    ) -> Revision:
        """Write a new revision; it is not in force, nor need it last, before the head that names it is
        written. Raises StorageError."""
        document = dump(settings)
        revision = Revision(
            revision=self._highest + 1,
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            who=who,
            comment=comment[:MAXIMUM_COMMENT],
            base=self.head.current if hasattr(self, "head") else 0,
            schema=SCHEMA,
            digest=digest(document),
            state=state,
        )
        self._write(revision, document, name_lasts=False)
        self._highest = revision.revision
        self._known[revision.revision] = settings
        return revision

    def move_head(self, head: Head) -> None:
        """Replace the head, durably. Raises StorageError, the old head then stays."""
        faults.reach(f"head:{_moment(head)}:before")
        table: Document = {
            "current": head.current,
            "matched": head.matched,
            "program": head.program,
            "intent": None if head.intent is None else asdict(head.intent),
        }
        write_file(self.directory / HEAD, json.dumps(table) + "\n", mode=MODE)
        self.head = head
        # The way back needs no disk and no helper: what may be returned to or kept stays in memory.
        self._known = {number: known for number, known in self._known.items() if self._is_needed(number)}
        faults.reach(f"head:{_moment(head)}:after")

    def set_state(self, number: int, state: RevisionState, reason: str = "") -> None:
        """Record what became of a revision. Raises StorageError."""
        _, document = self._read(self._file(number))
        self._write(replace(self._revisions[number], state=state, reason=reason), document)

    def prune(self, keep: int) -> int:
        """Remove the oldest revisions beyond `keep`, never one that is needed; returns how many."""
        old = [number for number in sorted(self._revisions) if not self._is_needed(number)]
        surplus = old[: max(0, len(self._revisions) - keep)]
        for number in surplus:
            remove_file(self._file(number))
            del self._revisions[number]
        return len(surplus)

    def _is_needed(self, number: int) -> bool:
        """Whether the head names it. There is no head yet while the store is being read."""
        head: Head | None = getattr(self, "head", None)
        if head is None:
            return False
        return number == head.current or (head.intent is not None and number == head.intent.revision)

    def _file(self, number: int) -> Path:
        return self.directory / f"{number:0{DIGITS}}.json"

    def _write(self, revision: Revision, document: Document, *, name_lasts: bool = True) -> None:
        text = json.dumps(
            {"revision": revision.as_json(), "document": document}, ensure_ascii=False, indent=1
        )
        write_file(self._file(revision.revision), text + "\n", mode=MODE, name_lasts=name_lasts)
        self._revisions[revision.revision] = revision

    def _read(self, file: Path) -> tuple[Revision, Document]:
        text = read_text(file)
        if text is None:
            raise StorageError(f"{file} is missing", "choose another revision")
        try:
            table = json.loads(text)
            document = cast(Document, table["document"])
            fields = dict(table["revision"])
            revision = Revision(**{**fields, "state": RevisionState(fields["state"])})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(f"{file} is damaged", "choose another revision") from error
        if revision.revision != int(file.stem) or digest(document) != revision.digest:
            raise StorageError(f"{file} is damaged: its digest is wrong", "choose another revision")
        return revision, document

    def _read_revisions(self) -> None:
        for file in sorted(self.directory.glob("[0-9]*.json")):
            if not file.stem.isdecimal():
                continue
            self._highest = max(self._highest, int(file.stem))
            try:
                self._revisions[int(file.stem)], _ = self._read(file)
            except StorageError as error:
                self.troubles.append(error.message)

    def _first_revision(self, first: FirstSettings) -> None:
        settings, comment, trouble = first()
        if trouble is not None:
            self.troubles.append(trouble)
        revision = self.add(settings, "installation", comment, RevisionState.CONFIRMED)
        self.move_head(Head(current=revision.revision, matched=False))

    def _read_head(self) -> Head:
        file = self.directory / HEAD
        try:
            text = read_text(file)
            if text is None:
                raise StorageError(f"{file} is missing")
            table = json.loads(text)
            intent = table["intent"]
            return Head(
                current=int(table["current"]),
                matched=bool(table["matched"]),
                program=str(table["program"]),
                intent=None if intent is None else Intent(**{**intent, "phase": Phase(intent["phase"])}),
            )
        except (ValueError, KeyError, TypeError, RecursionError, StorageError):
            newest = self._newest_confirmed(below=None)
            self.troubles.append(
                f"{file} was missing or damaged; revision {newest}, the newest confirmed one, is in force"
            )
            head = Head(current=newest, matched=False)
            self.move_head(head)
            return head

    def _check_current(self) -> None:
        """If the revision in force cannot be read, fall back to the newest confirmed one that can."""
        wanted = self.head.current
        try:
            self.settings(wanted)
        except (StorageError, NotFoundError, InvalidSettingsError) as error:
            fallback = self._newest_confirmed(below=wanted)
            self.troubles.append(
                f"revision {wanted} cannot be used ({error.message}); revision {fallback} is in force"
            )
            self.move_head(Head(current=fallback, matched=False))

    def _newest_confirmed(self, below: int | None) -> int:
        for number in sorted(self._revisions, reverse=True):
            usable = self._revisions[number].state is RevisionState.CONFIRMED
            if usable and (below is None or number < below):
                try:
                    self.settings(number)
                except (StorageError, InvalidSettingsError):
                    continue
                return number
        revision = self.add(
            Settings(), "recovery", "no usable revision was left on the disk", RevisionState.CONFIRMED
        )
        return revision.revision

    def _settle_states(self) -> None:
        """Give revisions whose end was cut off by a power loss the state that the head implies."""
        under_way = self.head.intent.revision if self.head.intent is not None else None
        for number, revision in sorted(self._revisions.items()):
            if number == self.head.current and revision.state is not RevisionState.CONFIRMED:
                self.set_state(number, RevisionState.CONFIRMED)
            elif revision.state is RevisionState.PENDING and number not in (under_way, self.head.current):
                self.set_state(number, RevisionState.FAILED, "interrupted before it was in force")


def digest(document: Document) -> str:
    """SHA-256 of the document in canonical JSON."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _moment(head: Head) -> str:
    return "at-rest" if head.intent is None else head.intent.phase.value
