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
from fault_tolerance.database.gtid import Gtid, GtidState, last_common
from fault_tolerance.process import end, pipe, start

# `#261124 20:07:32 server id 1  end_log_pos 512 CRC32 0x1 	GTID 0-1-17 trans`
_BEGINS = re.compile(rb"^#\d{6}\s.*\tGTID (\d+)-(\d+)-(\d+)\b")
_ENDS = (b"DELIMITER ;", b"# End of log file")
PRIVATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
HEADER = """\
-- Transactions that only this node had when it came back to its peer, and that its peer did not get.
-- Written before this node's database was replaced by a copy of the peer's.
-- Own position:  {own}
-- Peer's:        {peer}
-- Rows stand in the lines that begin with ###, as mariadb-binlog shows them; apply by hand what is missed.
"""


@dataclass(frozen=True)
class Evidence:
    """A file, and how many transactions it holds."""

    path: Path
    transactions: int


def export(data: Path, directory: Path, own: GtidState, peer: GtidState) -> Evidence | None:
    """Write every transaction of `own` that `peer` does not hold; None if the log has none.

    `data` is the data directory with the log; the server may run or not. Raises StorageError, and then
    nothing must be thrown away.
    """
    logs = log_files(data)
    ensure_directory(directory, 0o700)
    path = directory / time.strftime("only-here-%Y%m%dT%H%M%SZ.sql", time.gmtime())
    temporary = path.with_suffix(".new")
    count = 0
    try:
        with os.fdopen(os.open(temporary, PRIVATE, 0o600), "wb") as file:
            file.write(HEADER.format(own=own or "nothing", peer=peer or "nothing").encode())
            for block in missing(_decoded(logs, last_common(own, peer)), peer):
                file.writelines(block)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        if count == 0:
            temporary.unlink()
            return None
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"the transactions that only this node has could not be kept in {directory}: {error.strerror}",
            "make room there; nothing was thrown away",
        ) from error
    return Evidence(path, count)


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
    """The lines of each transaction that `peer` does not hold."""
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


def _decoded(logs: list[Path], after: GtidState) -> Iterator[bytes]:
    """The log as text. A position that the oldest file does not know any more means all of it."""
    if not logs:
        return
    words = ["mariadb-binlog", "--no-defaults", "--base64-output=decode-rows", "-vv"]
    begin = [f"--start-position={after.position_text}"] if after.last else []
    for chosen in (begin, []) if begin else ([],):
        process = start([*words, *chosen, *(str(file) for file in logs)], stdout=PIPE)
        output = pipe(process.stdout)
        yielded = False
        try:
            for line in output:
                yielded = yielded or _BEGINS.match(line) is not None
                yield line
            if process.wait() == 0:
                return
        finally:
            output.close()
            end(process)
        if yielded:
            break
    raise StorageError(
        "mariadb-binlog could not read the log of changes to its end", "see: journalctl -u mariadb"
    )
