"""The master's half: what changed goes to the peer at once, the most urgent first, within the bandwidth.

Two lanes: urgent trees in one, the others in the second. While the urgent lane sends, the other one's rsync
stands still (stopped, with its connection), so one cap holds for both and nothing begun is lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from daemon.errors import CentralinoError, StorageError, UnavailableError
from fault_tolerance.contracts import Progress
from fault_tolerance.files import dial, rsync
from fault_tolerance.files.pending import FEW, Pending, refusal
from fault_tolerance.files.trees import Markers, SourceLostError, Tree, files_below
from fault_tolerance.files.watch import Watch

log = logging.getLogger(__name__)

GATHER_SECONDS = 0.05
WATCHING = "watching"
IDLE_SECONDS = 0.5
# A lane is woken by what happens; by itself it sees deletions whose time has come.
LANE_SECONDS = 1.0
RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 15.0
VERIFY_SECONDS = 3600.0
# The other lane stands still for no longer than this at a time, and then has its turn, so long.
LONGEST_PAUSE_SECONDS = 5.0
LEAST_TURN_SECONDS = 1.0


@dataclass
class Book:
    """How a tree is. `stopped` says why nothing is sent from it until a person has looked; `compare` that a
    full pass is due, and `forgiven` that this pass may delete whatever is gone."""

    tree: Tree
    pending: Pending = field(default_factory=Pending)
    stopped: str = ""
    watched: bool = False
    compare: bool = True
    checksum: bool = False
    forgiven: bool = False
    compared: float = 0.0
    share: float | None = None
    text: str = ""


class Cap:
    """Keeps what goes out within the bandwidth over several runs, whose starts rsync itself does not slow.

    While a run moves it may send at the full rate, because the others stand still; what it sent beyond that
    is a debt, which time pays off before the next run begins. Moments are monotonic.
    """

    def __init__(self, kilobytes_per_second: int) -> None:
        self._rate = kilobytes_per_second * 1000
        self._debt = 0.0
        self._moment = 0.0
        self._lock = threading.Lock()

    def wait_seconds(self, now: float) -> float:
        """How long the next run has to wait."""
        with self._lock:
            return self._left(now) / self._rate if self._rate else 0.0

    def note(self, sent: int, moved_seconds: float, now: float) -> None:
        """A run ends that has sent so many bytes while it moved for so long."""
        with self._lock:
            self._debt = self._left(now) + max(0.0, sent - moved_seconds * self._rate)
            self._moment = now

    def _left(self, now: float) -> float:
        return max(0.0, self._debt - (now - self._moment) * self._rate)


class Sender:
    """Sends from `start` to `stop`."""

    def __init__(
        self, trees: Sequence[Tree], markers: Markers, shell: Sequence[str], epoch: int, kilobytes: int
    ) -> None:
        self.books = [Book(tree) for tree in trees]
        self._markers = markers
        self._epoch = epoch
        self._common = rsync.options(shell, kilobytes)
        self._cap = Cap(kilobytes)
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._wakes = {True: threading.Event(), False: threading.Event()}
        self._runs: dict[bool, rsync.Run] = {}
        self._lanes = threading.Lock()
        self._trouble: dict[bool | str, str] = {}
        self._watch: Watch | None = None
        self._threads = [threading.Thread(target=self._listen, name="files-watch", daemon=True)]
        for urgent, name in ((True, "files-urgent"), (False, "files-bulk")):
            self._threads.append(threading.Thread(target=self._send, args=(urgent,), name=name, daemon=True))

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; returns when nothing is on its way any more."""
        self._ended.set()
        self._wake()
        for run in list(self._runs.values()):
            run.end()
        for thread in self._threads:
            thread.join(10)
        if self._watch is not None:
            self._watch.close()

    # --- what others see ------------------------------------------------------------------------------

    def lag_milliseconds(self) -> float | None:
        """The age of the oldest change that is not on the peer; None while a first pass is still due."""
        now, ages = time.monotonic(), [0.0]
        for book in self.books:
            if book.watched and not book.compared and not book.stopped:
                return None
            oldest = book.pending.oldest()
            if oldest is not None:
                ages.append((now - oldest) * 1000)
        return max(ages)

    def count(self) -> int:
        """How many paths are not on the peer."""
        return sum(book.pending.count() for book in self.books)

    def problems(self) -> list[str]:
        """Why something is not sent."""
        stopped = [f"{book.tree.name}: {book.stopped}" for book in self.books if book.stopped]
        return [*stopped, *(text for text in self._trouble.values() if text)]

    def compare_all(self) -> None:
        """Order a full pass over every tree."""
        for book in self.books:
            book.compare = True
        self._wake()

    def resynchronize(self, progress: Progress, *, forgive: bool = False, checksum: bool = True) -> None:
        """A full pass over all trees now, with progress; a tree that was stopped is judged anew. `forgive`
        accepts whatever was deleted here."""
        with self._lock:
            for book in self.books:
                book.compare, book.checksum, book.compared, book.text = True, checksum, 0.0, ""
                # The pass counts for itself what it would delete, so whoever brought files back is not held
                # up by what was counted while they were gone.
                book.forgiven, book.stopped = forgive, ""
                book.pending.forgive()
        self._wake()
        while not self._ended.wait(IDLE_SECONDS / 2):
            present = [book for book in self.books if book.watched or book.stopped]
            done = [book for book in present if book.stopped or (book.compared and not book.compare)]
            moving = next((book for book in present if book.text and book not in done), None)
            share = (len(done) + (moving.share or 0.0 if moving else 0.0)) / max(1, len(present))
            if len(done) == len(present):
                break
            progress(share, moving.text if moving else f"{len(done)} of {len(present)} trees compared")
        if self._ended.is_set():
            raise UnavailableError("this node is not master any more")
        if problems := [f"{book.tree.name}: {book.stopped}" for book in self.books if book.stopped]:
            raise SourceLostError("; ".join(problems))
        progress(1.0, "all trees are equal")

    # --- threads --------------------------------------------------------------------------------------

    def _listen(self) -> None:
        looked, watch = 0.0, self._begin_to_watch()
        while watch is not None and not self._ended.is_set():
            now = time.monotonic()
            if now - looked >= RETRY_SECONDS:
                looked = now
                for book in self.books:
                    self._begin(book, watch)
            try:
                with_events = self._read(watch)
            except (OSError, ValueError):
                return  # closed
            if with_events:
                self._wake()

    def _begin_to_watch(self) -> Watch | None:
        """Try until the kernel gives a watch, for which others may have to end; None at the end."""
        while not self._ended.is_set():
            try:
                self._watch = Watch(self.compare_all)
            except StorageError as error:
                if self._trouble.get(WATCHING) != str(error):
                    log.error("%s", error)
                self._trouble[WATCHING] = str(error)
                self._ended.wait(RETRY_SECONDS)
            else:
                self._trouble[WATCHING] = ""
                return self._watch
        return None

    def _read(self, watch: Watch) -> bool:
        # The events are noted under the lock; the waiting for them is not.
        if not watch.ready(IDLE_SECONDS):
            return False
        with self._lock:
            return watch.read(0)

    def _begin(self, book: Book, watch: Watch) -> None:
        """Watch a tree as soon as it is there, and see when it is not what it was."""
        try:
            if not self._markers.is_present(book.tree):
                return
            self._markers.check(book.tree)
            if not book.watched:
                with self._lock:
                    watch.add(book.tree, book.pending)
                    book.watched, book.compare = True, True
                self._trouble[WATCHING] = ""
                self._wake()
        except SourceLostError as error:
            self._halt(book, str(error))
        except StorageError as error:
            self._trouble[WATCHING] = str(error)
        else:
            if book.stopped and "marker" in book.stopped:
                book.stopped, book.compare, book.watched = "", True, False

    def _send(self, urgent: bool) -> None:
        wait = RETRY_SECONDS
        while not self._ended.is_set():
            if self._wakes[urgent].wait(LANE_SECONDS):
                self._wakes[urgent].clear()
                if self._ended.wait(GATHER_SECONDS):
                    return
            try:
                while not self._ended.is_set() and self._step(urgent):
                    wait = RETRY_SECONDS
                self._trouble[urgent] = ""
            except CentralinoError as error:
                if self._trouble.get(urgent) != str(error) and not self._ended.is_set():
                    log.warning("%s; it is tried again", error)
                self._trouble[urgent] = str(error)
                self._ended.wait(wait)
                wait = min(LONGEST_RETRY_SECONDS, wait * 2)
            except Exception:
                log.exception("files could not be sent")
                self._ended.wait(LONGEST_RETRY_SECONDS)

    def _step(self, urgent: bool) -> bool:
        """Send the most urgent thing there is; False when there is nothing."""
        now = time.monotonic()
        for book in (book for book in self.books if book.tree.urgent is urgent and book.watched):
            if book.stopped and not book.forgiven:
                continue
            with self._lock:
                why = None if book.compare else book.pending.refusal(now)
            if why is not None:
                self._halt(book, f"{why} below {book.tree.path}; if that was meant, run: {ACCEPT}")
                continue
            if book.compared and self._send_changes(book):
                return True
            if book.compare or now - book.compared > VERIFY_SECONDS:
                self._compare(book)
                return True
            if self._send_deletions(book, now):
                return True
        return False

    def _send_changes(self, book: Book) -> bool:
        with self._lock:
            paths = book.pending.take_changed()
        if not paths:
            return False
        try:
            self._markers.check(book.tree)
            self._run(book, rsync.batch(self._common, *self._ends(book)), paths)
        except CentralinoError as error:
            with self._lock:
                book.pending.return_changed()
            self._judge(book, error)
            return True
        with self._lock:
            book.pending.sent()
        return True

    def _send_deletions(self, book: Book, now: float) -> bool:
        with self._lock:
            paths = book.pending.take_gone(now)
        if not paths:
            return False
        try:
            self._markers.check(book.tree)
            self._run(book, rsync.deletions(self._common, *self._ends(book)), paths)
        except CentralinoError as error:
            with self._lock:
                book.pending.return_gone()
            self._judge(book, error)
            return True
        with self._lock:
            book.pending.sent()
        return True

    def _compare(self, book: Book) -> None:
        """A full pass: rehearsed first, because only so the number of deletions is known before the first."""
        forgiven, checksum, began = book.forgiven, book.checksum, time.monotonic()
        try:
            self._markers.check(book.tree)
            book.share, book.text = 0.0, f"comparing {book.tree.name}"
            deleted = 0

            def count(line: bytes) -> None:
                nonlocal deleted
                deleted += line.startswith(b"del. ")

            book.compare = False
            self._run(book, rsync.rehearsal(self._common, *self._ends(book)), None, count)
            left = sum(not directory for _, directory in files_below(book.tree.path))
            why = None if forgiven else refusal(deleted, left)
            if why is not None:
                self._halt(
                    book, f"the peer has more: {why} below {book.tree.path}; if that was meant, run: {ACCEPT}"
                )
                return

            def moving(line: bytes) -> None:
                if (found := rsync.moving(line)) is not None:
                    book.share = found.share
                    book.text = f"{book.tree.name}: {found.sentence()}"

            most = max(FEW, deleted * 2)
            words = rsync.whole(self._common, *self._ends(book), most_deletions=most, checksum=checksum)
            self._run(book, words, None, moving)
        except CentralinoError as error:
            book.compare = True
            self._judge(book, error)
            return
        book.compared, book.checksum, book.forgiven, book.stopped = began, False, False, ""
        book.share, book.text = None, ""

    def _judge(self, book: Book, error: CentralinoError) -> None:
        """A tree that is lost is stopped; whatever else is tried again by the caller."""
        if isinstance(error, SourceLostError):
            self._halt(book, str(error))
            return
        raise error

    def _halt(self, book: Book, why: str) -> None:
        if not book.stopped:
            log.error("no files are sent from the %s tree: %s", book.tree.name, why)
        book.stopped = why

    # --- running --------------------------------------------------------------------------------------

    def _run(
        self,
        book: Book,
        words: Sequence[str],
        paths: list[str] | None,
        said: Callable[[bytes], None] = lambda _line: None,
    ) -> None:
        urgent = book.tree.urgent
        if self._ended.wait(self._cap.wait_seconds(time.monotonic())):
            raise UnavailableError("the sending of files was ended")
        run = rsync.Run(words, paths)
        with self._lanes:
            self._runs[urgent] = run
            if not urgent and True in self._runs:
                run.pause()
        if self._ended.is_set():
            run.end()
        over = threading.Event()
        pauser = threading.Thread(target=self._go_first, args=(over, run), daemon=True) if urgent else None
        if pauser is not None:
            pauser.start()
        try:
            done = run.wait(said)
            self._cap.note(done.sent, run.moved_seconds(), time.monotonic())
        finally:
            over.set()
            if pauser is not None:
                pauser.join()
            with self._lanes:
                self._runs.pop(urgent, None)
                if urgent and (other := self._runs.get(False)) is not None:
                    other.resume()

    def _go_first(self, over: threading.Event, own: rsync.Run) -> None:
        """Hold the other lane's run still until the urgent one is over. When that takes long they take turns:
        never both at once, because each of them alone fills the bandwidth."""
        while not over.is_set():
            with self._lanes:
                other = self._runs.get(False)
                if other is not None:
                    other.pause()
            if over.wait(LONGEST_PAUSE_SECONDS) or other is None:
                continue
            own.pause()
            other.resume()
            over.wait(LEAST_TURN_SECONDS)
            other.pause()
            own.resume()

    def _ends(self, book: Book) -> tuple[str, str]:
        return f"{book.tree.path}/", f"{dial.HOST}:{self._epoch}/{book.tree.name}/"

    def _wake(self) -> None:
        for wake in self._wakes.values():
            wake.set()


ACCEPT = "centralino replication start --what files --accept-deletions"
