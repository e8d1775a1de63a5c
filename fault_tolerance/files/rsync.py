"""rsync as this package uses it: argument lists, runs that can be paused, what it says. Options of 3.1.3.

Source: rsync(1) of 3.1.3, as AlmaLinux 8 ships it; tests hold every option against that list.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

from daemon.errors import CommandFailedError, UnavailableError
from fault_tolerance.files.trees import OURS, PARTIAL, REMOVED
from fault_tolerance.process import end, pipe, start

SILENCE_SECONDS = 30
# rsync(1), "EXIT VALUES": files vanished before they were sent; deletions stopped at the limit.
VANISHED, LIMIT_REACHED = 24, 25
# A file of the list could not be read: usually gone again. The next pass knows.
PARTIAL_ERROR = 23

_BYTES = re.compile(rb"Total bytes sent: ([\d,.]+)")
# `     32,768  42%   31.25MB/s    0:00:07`; behind the last byte stands the time that it took.
_MOVING = re.compile(rb"\s*([\d,.]+)\s+(\d{1,3})%\s+\S+/s\s+(\d+):(\d\d):(\d\d)")

Said = Callable[[bytes], None]


def options(shell: Sequence[str], kilobytes_per_second: int) -> list[str]:
    """What every transfer has. The limit is in KB of 1000 bytes, rsync's unit is 1024."""
    limit = [f"--bwlimit={max(1, kilobytes_per_second * 1000 // 1024)}"] if kilobytes_per_second else []
    return [
        "rsync",
        "-lptgoD",
        f"--rsh={quoted(shell)}",
        f"--timeout={SILENCE_SECONDS}",
        f"--partial-dir={PARTIAL}",
        f"--exclude={OURS}*",
        *limit,
    ]


def batch(common: Sequence[str], source: str, target: str) -> list[str]:
    """Send the paths that standard input names, separated by NUL; what vanished meanwhile is left out."""
    return [
        *common,
        "--dirs",
        "--from0",
        "--files-from=-",
        "--ignore-missing-args",
        "--stats",
        source,
        target,
    ]


def deletions(common: Sequence[str], source: str, target: str) -> list[str]:
    """Delete at the peer the paths that standard input names and that are not here; they are kept aside."""
    return [
        *common,
        "--dirs",
        "--from0",
        "--files-from=-",
        "--delete-missing-args",
        "--force",
        "--backup",
        f"--backup-dir={REMOVED}",
        "--stats",
        source,
        target,
    ]


def whole(
    common: Sequence[str], source: str, target: str, *, most_deletions: int, checksum: bool
) -> list[str]:
    """Make the peer's tree equal to this one; what goes or is overwritten is kept aside."""
    return [
        *common,
        "--recursive",
        "--delete-delay",
        f"--max-delete={most_deletions}",
        "--backup",
        f"--backup-dir={REMOVED}",
        *(["--checksum"] if checksum else []),
        # With the whole list known first, the share and the time are those of all files.
        "--no-inc-recursive",
        "--info=progress2",
        "--stats",
        source,
        target,
    ]


def rehearsal(common: Sequence[str], source: str, target: str) -> list[str]:
    """What `whole` would do, one line a path, `del.` before those that would be deleted."""
    return [*common, "--recursive", "--delete", "--dry-run", "--out-format=%o %n", source, target]


def kept_open(client: Sequence[str], control: Path) -> list[str]:
    """An SSH client whose connection stays for the next one: each batch of files is spared the handshake.

    Source: ssh_config(5), ControlMaster; of an option that is given twice the first counts.
    """
    kept = ("ControlMaster=auto", f"ControlPath={control}", f"ControlPersist={SILENCE_SECONDS}")
    return [client[0], *(word for option in kept for word in ("-o", option)), *client[1:]]


def close_kept(client: Sequence[str], control: Path) -> list[str]:
    """The command that ends such a connection."""
    return [client[0], "-O", "exit", "-o", f"ControlPath={control}", *client[1:]]


def quoted(words: Sequence[str]) -> str:
    """Words for rsync's own splitting of `--rsh`, which knows quotes and no escapes. Raises ValueError."""
    for word in words:
        if "'" in word:
            raise ValueError(f"{word!r} cannot be given to rsync")
    return " ".join(f"'{word}'" if re.search(r"[\s\"]", word) or not word else word for word in words)


@dataclass(frozen=True)
class Transfer:
    """What a run did: bytes sent, and whether every path that was asked for arrived."""

    sent: int
    complete: bool


class Run:
    """One running rsync; `pause` and `resume` stop and continue it with its connection."""

    def __init__(self, arguments: Sequence[str], paths: Iterable[str] | None = None) -> None:
        self._process: Popen[bytes] = start(
            arguments, stdin=DEVNULL if paths is None else PIPE, stdout=PIPE, stderr=PIPE
        )
        self._began = time.monotonic()
        self._still_since: float | None = None
        self._still_seconds = 0.0
        self._turn = threading.Lock()
        self._errors: list[str] = []
        self._threads = [threading.Thread(target=self._read_errors, daemon=True)]
        if paths is not None:
            text = b"".join(os.fsencode(path) + b"\0" for path in paths)
            self._threads.append(threading.Thread(target=self._write, args=(text,), daemon=True))
        for thread in self._threads:
            thread.start()

    def wait(self, said: Said = lambda _line: None) -> Transfer:
        """Hear it to its end. Raises UnavailableError when it broke off, CommandFailedError when refused."""
        sent = 0
        output = pipe(self._process.stdout)
        for line in _lines(output.fileno()):
            said(line)
            if found := _BYTES.search(line):
                sent = int(re.sub(rb"[,.]", b"", found.group(1)))
        status = self._process.wait()
        for thread in self._threads:
            thread.join(2)
        output.close()
        pipe(self._process.stderr).close()
        if status in (0, VANISHED, LIMIT_REACHED, PARTIAL_ERROR):
            return Transfer(sent, status == 0)
        told = self._errors[0] if self._errors else f"rsync ended with status {status}"
        if status in (1, 2, 4, 5):
            raise CommandFailedError(f"the files could not be sent: {told}")
        raise UnavailableError(f"the sending of files broke off: {told}")

    def pause(self) -> None:
        """Stand still."""
        with self._turn:
            if self._still_since is None:
                self._still_since = time.monotonic()
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        with self._turn:
            if self._still_since is not None:
                self._still_seconds += time.monotonic() - self._still_since
                self._still_since = None
            self._signal(signal.SIGCONT)

    def moved_seconds(self) -> float:
        """How long it has run so far, without the time that it stood still."""
        with self._turn:
            now = time.monotonic()
            still = self._still_seconds + (0.0 if self._still_since is None else now - self._still_since)
            return now - self._began - still

    def end(self) -> None:
        """Break off; what came so far stays with the peer for the next run."""
        self.resume()
        end(self._process)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _read_errors(self) -> None:
        for line in pipe(self._process.stderr):
            self._errors = [*self._errors[:9], line.decode(errors="replace").strip()]

    def _write(self, text: bytes) -> None:
        stream = pipe(self._process.stdin)
        with suppress(OSError):  # it ended before it had read everything
            stream.write(text)
        with suppress(OSError):
            stream.close()


@dataclass(frozen=True)
class Moving:
    """How far a run is: share done (0..1), bytes so far, seconds that remain."""

    share: float
    sent: int
    remaining_seconds: int

    def sentence(self) -> str:
        """For people. In its first moment rsync knows no time yet."""
        text = f"{self.sent / 1e6:.1f} MB sent"
        return f"{text}, about {self.remaining_seconds} s remain" if self.remaining_seconds else text


def moving(line: bytes) -> Moving | None:
    """What a line of `--info=progress2` says, None for another one."""
    found = _MOVING.match(line)
    if found is None:
        return None
    share = int(found[2]) / 100
    hours, minutes, seconds = (int(found[number]) for number in (3, 4, 5))
    left = 0 if share >= 1 else hours * 3600 + minutes * 60 + seconds
    return Moving(share, int(re.sub(rb"[,.]", b"", found[1])), left)


def _lines(descriptor: int) -> Iterable[bytes]:
    """Lines that end with a newline or, as progress does, with a carriage return."""
    rest = b""
    while block := os.read(descriptor, 65536):
        *lines, rest = re.split(rb"[\r\n]", rest + block)
        yield from lines
    if rest:
        yield rest
