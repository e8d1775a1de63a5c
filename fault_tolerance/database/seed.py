"""A copy of the peer's database takes the place of this node's: received aside, prepared, then renamed.

Until the database starts anew nothing of the old one is touched, so that every step may be interrupted and
repeated; what an interrupted one left is thrown away by the next. The renaming itself is done by
/usr/libexec/centralino/make-database at the start of the database.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

from daemon.errors import CancelledError, StorageError, UnavailableError
from daemon.files import write_file
from daemon.run import run
from fault_tolerance.contracts import Progress
from fault_tolerance.database.gtid import GtidState, parse
from fault_tolerance.database.serve import size
from fault_tolerance.database.session import Session
from fault_tolerance.database.wreck import put_away
from fault_tolerance.process import end, pipe, start

MARKER = "centralino-seed.json"
LOOK_SECONDS = 0.5
STALL_SECONDS = 60.0
PREPARE_LIMIT_SECONDS = 3600.0
SPARE_BYTES = 64 << 20
RECEIVED_SHARE = 0.85  # of the whole work, when everything has come


@dataclass(frozen=True)
class Seeding:
    """Where and from whom. `home` holds `data`; `owner` is the database's user."""

    home: Path
    owner: str
    command: Sequence[str]

    @property
    def data(self) -> Path:
        """What the database uses."""
        return self.home / "data"

    @property
    def unused(self) -> bool:
        """Whether `data` is a copy that no server has come up with yet."""
        return (self.data / MARKER).exists()

    @property
    def staging(self) -> Path:
        """What is being received."""
        return self.home / "data.seed"

    @property
    def ready(self) -> Path:
        """What the next start of the database takes."""
        return self.home / "data.seeded"

    @property
    def old(self) -> Path:
        """What was there before."""
        return self.home / "data.old"


def receive(seeding: Seeding, progress: Progress, cancelled: threading.Event) -> None:
    """Bring the copy as far as `ready`. Raises CancelledError, StorageError, UnavailableError or
    CommandFailedError, and then this node's own data is as it was."""
    shutil.rmtree(seeding.staging, ignore_errors=True)
    put_away(seeding.old)  # of a copy that took its place and never served
    progress(0.0, "asking the peer for a copy of its database")
    state = _fetch(seeding, progress, cancelled)
    progress(RECEIVED_SHARE, "making the copy consistent")
    prepare = ["mariadb-backup", "--no-defaults", "--prepare", f"--target-dir={seeding.staging}"]
    run(["nice", "-n", "5", *prepare], limit_seconds=PREPARE_LIMIT_SECONDS)
    whole = state.joined(copied_position(seeding.staging))
    write_file(seeding.staging / MARKER, json.dumps({"state": str(whole)}) + "\n", mode=0o640)
    run(["chown", "-R", f"{seeding.owner}:", str(seeding.staging)])
    run(["sync", "-f", str(seeding.staging)], limit_seconds=600)
    if cancelled.is_set():
        raise CancelledError("the copying of the database was cancelled")
    shutil.rmtree(seeding.ready, ignore_errors=True)
    seeding.staging.rename(seeding.ready)
    run(["sync", "-f", str(seeding.home)], limit_seconds=600)


def finish(seeding: Seeding, own: Session) -> bool:
    """Tell a server that started with a copy where in history it stands; False if it has no news of one."""
    marker = seeding.data / MARKER
    try:
        state = parse(str(json.loads(marker.read_text())["state"]))
    except FileNotFoundError:
        return False
    own.do(
        "STOP SLAVE",
        "RESET SLAVE ALL",
        "RESET MASTER",
        f"SET GLOBAL gtid_binlog_state = '{state}'",
        f"SET GLOBAL gtid_slave_pos = '{state.position_text}'",
    )
    marker.unlink()
    put_away(seeding.old)
    return True


def copied_position(directory: Path) -> GtidState:
    """The position at which a prepared copy stands. Raises StorageError if the copy does not say so."""
    for name in ("mariadb_backup_binlog_info", "xtrabackup_binlog_info"):
        path = directory / name
        if path.exists():
            words = path.read_text().split()
            return parse(words[2]) if len(words) > 2 else GtidState()
    raise StorageError(
        "the copy of the database does not say at which position it was taken", "copy it again"
    )


def _fetch(seeding: Seeding, progress: Progress, cancelled: threading.Event) -> GtidState:
    source = start(seeding.command, stdout=PIPE, stderr=PIPE)
    extract: Popen[bytes] | None = None
    try:
        total, state = _header(source, cancelled)
        free = os.statvfs(seeding.home)
        needed = total + SPARE_BYTES
        if free.f_bavail * free.f_frsize < needed:
            raise StorageError(
                f"{seeding.home} has no room for a copy of the peer's database, which needs "
                f"{needed / 1e6:.0f} MB",
                "make room on that disk",
            )
        seeding.staging.mkdir(mode=0o700)
        extract = start(["mbstream", "-x", "-C", str(seeding.staging)], stdin=source.stdout, stderr=PIPE)
        pipe(source.stdout).close()
        _wait(seeding, source, extract, total, progress, cancelled)
    finally:
        for process in (source, extract):
            if process is not None:
                end(process)
                for stream in (process.stdout, process.stderr):
                    if stream is not None:
                        stream.close()
    return state


def _header(source: Popen[bytes], cancelled: threading.Event) -> tuple[int, GtidState]:
    """The line before the archive, byte by byte, so that the archive's first byte stays in the pipe."""
    line, stream = b"", pipe(source.stdout).fileno()
    while not line.endswith(b"\n") and len(line) < 65536:
        while not select.select([stream], [], [], LOOK_SECONDS)[0]:
            if cancelled.is_set():
                raise CancelledError("the copying of the database was cancelled")
        byte = os.read(stream, 1)
        if not byte:
            source.wait(10)
            raise UnavailableError(f"the peer gives no copy of its database: {_told(source)}")
        line += byte
    table = json.loads(line)
    return int(table["bytes"]), parse(str(table["state"]))


def _wait(
    seeding: Seeding,
    source: Popen[bytes],
    extract: Popen[bytes],
    total: int,
    progress: Progress,
    cancelled: threading.Event,
) -> None:
    began = last_growth = time.monotonic()
    before = 0
    told = _Collector(source)
    while extract.poll() is None:
        if cancelled.wait(LOOK_SECONDS):
            raise CancelledError("the copying of the database was cancelled")
        now, here = time.monotonic(), size(seeding.staging)
        if here != before:
            before, last_growth = here, now
        elif now - last_growth > STALL_SECONDS:
            raise UnavailableError(f"nothing came from the peer for {STALL_SECONDS:.0f} s")
        share = min(1.0, here / max(1, total))
        progress(share * RECEIVED_SHARE, _sentence(here, total, share, now - began))
    if extract.returncode != 0:
        raise StorageError(f"the copy could not be written to {seeding.staging}: {_told(extract)}")
    if source.wait(30) != 0:
        raise UnavailableError(f"the copy of the peer's database broke off: {told.end()}")


def _sentence(here: int, total: int, share: float, seconds: float) -> str:
    text = f"{here / 1e6:.0f} of about {max(here, total) / 1e6:.0f} MB received"
    if share < 0.02 or seconds < 2:
        return text
    return f"{text}, about {seconds * (1 - share) / share:.0f} s remain"


class _Collector:
    """Reads what a program says, so that it never waits for a reader; keeps the end of it."""

    def __init__(self, process: Popen[bytes]) -> None:
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._thread.start()

    def _read(self, process: Popen[bytes]) -> None:
        for line in pipe(process.stderr):
            self._lines = [*self._lines[-4:], line.decode(errors="replace").strip()]

    def end(self) -> str:
        """The last line."""
        self._thread.join(5)
        return self._lines[-1] if self._lines else "it said nothing"


def _told(process: Popen[bytes]) -> str:
    lines = pipe(process.stderr).read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
