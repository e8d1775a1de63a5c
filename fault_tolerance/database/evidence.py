"""What only this node has, before it is thrown away: its transactions as readable SQL in a file."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

from daemon.errors import StorageError
from daemon.files import ensure_directory
from fault_tolerance.database.gtid import Gtid, GtidState, last_common, parse
from fault_tolerance.process import end, pipe, start

# `#261124 20:07:32 server id 1  end_log_pos 512 CRC32 0x1 	GTID 0-1-17 trans`
_BEGINS = re.compile(rb"^#\d{6}\s.*\tGTID (\d+)-(\d+)-(\d+)\b")
_ENDS = (b"DELIMITER ;", b"# End of log file")
# Each table that a transaction changes: `Table_map: `centralino`.`cdr` mapped to number 27`
_CHANGES = re.compile(rb"\tTable_map: `(\w+)`\.`(\w+)` mapped")
_PULSE = {(b"centralino_pair", b"pulse")}
# What all older files hold together; it stands near the begin of each: `Gtid list [0-1-17,` `# 0-2-21]`
_OLDER = re.compile(rb"\tGtid list \[([^]]*)\]")
HEAD_BYTES = 65536
PRIVATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
DECODE = ["mariadb-binlog", "--no-defaults", "--base64-output=decode-rows", "-vv"]
HEADER = """\
-- Transactions that only this node had when it came back to its peer, and that its peer did not get.
-- Written before this node's database was replaced by a copy of the peer's.
-- Own position:  {own}
-- Peer's:        {peer}
-- Rows stand in the lines that begin with ###, as mariadb-binlog shows them; apply by hand what is missed.
"""
BROKEN = "-- Here {name} cannot be read any further.\n"


@dataclass(frozen=True)
class Evidence:
    """A file, and how many transactions it holds; `unreadable` files of the log may hold more."""

    path: Path
    transactions: int
    unreadable: tuple[str, ...] = ()


def export(data: Path, directory: Path, own: GtidState, peer: GtidState) -> Evidence | None:
    """Write every transaction of `own` that `peer` does not hold; None if the log has none.

    `data` is the data directory with the log; the server may run or not. A full disk or a power loss can end
    a file of the log in the middle of an event: what stands before it and in the other files is written.
    Raises StorageError, and then nothing must be thrown away.
    """
    logs = needed(log_files(data), peer)
    ensure_directory(directory, 0o700)
    path = directory / time.strftime("only-here-%Y%m%dT%H%M%SZ.sql", time.gmtime())
    temporary = path.with_suffix(".new")
    count, unreadable = 0, list[str]()
    try:
        with os.fdopen(os.open(temporary, PRIVATE, 0o600), "wb") as file:
            file.write(HEADER.format(own=own or "nothing", peer=peer or "nothing").encode())
            for log in logs:
                decoded = _Decoded(log, last_common(own, peer) if log is logs[0] else GtidState())
                for block in missing(decoded, peer):
                    file.writelines(block)
                    count += 1
                if not decoded.whole:
                    unreadable.append(log.name)
                    file.write(BROKEN.format(name=log.name).encode())
            file.flush()
            os.fsync(file.fileno())
        if count == 0 and not unreadable:
            temporary.unlink()
            return None
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"the transactions that only this node has could not be kept in {directory}: {error.strerror}",
            "make room there; nothing was thrown away",
        ) from error
    return Evidence(path, count, tuple(unreadable))


def lacking(data: Path, peer: GtidState) -> int | None:
    """How many transactions of the log in `data` the peer does not hold; None if the log does not tell."""
    logs, count = needed(log_files(data), peer), 0
    for log in logs:
        decoded = _Decoded(log, GtidState())
        count += sum(1 for _ in missing(decoded, peer))
        if not decoded.whole:
            return None
    return count if logs else None


def needed(logs: list[Path], peer: GtidState) -> list[Path]:
    """The files of the log that may hold what `peer` does not; older ones need not even be readable."""
    for index in range(len(logs) - 1, 0, -1):
        older = older_than(logs[index])
        if older is not None and peer.includes(older):
            return logs[index:]
    return logs


def older_than(log: Path) -> GtidState | None:
    """What the files before this one hold, None if this one does not say so."""
    process = start([*DECODE, str(log)], stdout=PIPE)
    output = pipe(process.stdout)
    try:
        found = _OLDER.search(output.read(HEAD_BYTES))
    finally:
        output.close()
        end(process)
    return None if found is None else parse(found[1].replace(b"\n#", b"").decode())


def log_files(data: Path) -> list[Path]:
    """The files of the log of changes, oldest first, as its index names them."""
    try:
        lines = (data / "centralino-bin.index").read_text().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"the log of changes in {data} cannot be read: {error.strerror}") from error
    found = (data / line.strip().removeprefix("./") for line in lines if line.strip())
    return [file for file in found if file.exists()]


def missing(lines: Iterable[bytes], peer: GtidState) -> Iterator[list[bytes]]:
    """The lines of each transaction that `peer` does not hold, but for those that hold nothing of anybody's:
    a master writes the moment into a table of its own to have the server look after confirmations."""
    for block in _transactions(lines, peer):
        if {found.groups() for line in block if (found := _CHANGES.search(line))} != _PULSE:
            yield block


def _transactions(lines: Iterable[bytes], peer: GtidState) -> Iterator[list[bytes]]:
    block: list[bytes] | None = None
    for line in lines:
        found = _BEGINS.match(line)
        if found is not None:
            if block:
                yield block
            domain, server, sequence = (int(number) for number in found.groups())
            block = None if peer.holds(Gtid(domain, sequence, server)) else []
        elif line.startswith(_ENDS):
            if block:
                yield block
            block = None
        if block is not None:
            block.append(line)
    if block:
        yield block


class _Decoded:
    """A file of the log as lines of text, and `whole` when they came to an end. A position that the file does
    not know means all of it."""

    def __init__(self, log: Path, after: GtidState) -> None:
        self._log, self._after = log, after
        self.whole = False

    def __iter__(self) -> Iterator[bytes]:
        begin = [f"--start-position={self._after.position_text}"] if self._after.last else []
        for chosen in (begin, []) if begin else ([],):
            process = start([*DECODE, *chosen, str(self._log)], stdout=PIPE)
            output = pipe(process.stdout)
            yielded = False
            try:
                for line in output:
                    yielded = yielded or _BEGINS.match(line) is not None
                    yield line
                self.whole = process.wait() == 0
            finally:
                output.close()
                end(process)
            if self.whole or yielded:
                return
