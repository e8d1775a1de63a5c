"""What the peer starts here through its connection: a stream to the database, or a copy of it.

    python -I -m fault_tolerance.database.serve SOCKET DATA

writes one line of JSON (`bytes`: about how much will follow; `state`: a position that the copy includes) and
then the copy as mbstream archive to standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from daemon.errors import CentralinoError, NotFoundError, UnavailableError
from fault_tolerance.database import door
from fault_tolerance.database.session import session

STREAM, SEED = "stream", "seed"
LIMIT_SECONDS = 10.0
# A database that was ended by somebody is back before that.
AWAY_SECONDS = 60.0
RETRY_SECONDS = 0.5


def argv(words: Sequence[str], socket: Path, data: Path, user: int, group: int, run: Path) -> list[str]:
    """The program for the peer's words, run by root; `user` and `group` are those of REPLICA_USER, `run` is
    where the door remembers who goes through it.

    Raises NotFoundError for words that it does not know.
    """
    enter = [sys.executable, "-I", "-S", door.__file__, str(run), *words]
    match list(words):
        case ["stream"]:
            # The server asks the kernel who holds the other end of its socket: this user, who may only
            # read the log of changes.
            drop = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
            return [*enter, *drop, "socat", "-t", "2", "STDIO", f"UNIX-CONNECT:{socket}"]
        case ["seed"]:
            backup = [sys.executable, "-I", "-m", "fault_tolerance.database.serve", str(socket), str(data)]
            return [*enter, *backup]
        case _:
            raise NotFoundError("the peer asked for something that the database does not offer")


def main(arguments: Sequence[str]) -> int:
    """Announce the copy, then become mariadb-backup, with the least claim to processor and disk.

    Returns only when that fails."""
    socket, data = Path(arguments[0]), Path(arguments[1])
    try:
        state = _state(socket)
    except CentralinoError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    header = json.dumps({"bytes": size(data), "state": state}) + "\n"
    os.write(1, header.encode())
    backup = [
        "mariadb-backup",
        "--no-defaults",
        "--backup",
        "--stream=mbstream",
        "--user=root",
        f"--socket={socket}",
        f"--datadir={data}",
        "--target-dir=/var/tmp",
    ]
    words = ["nice", "-n", "15", "ionice", "-c", "3", *backup]
    try:
        os.execvp(words[0], words)  # noqa: S606  the same as starting it, without a process in between
    except OSError as error:
        sys.stderr.write(f"{words[0]} could not be started: {error.strerror}\n")
    return 1


def _state(socket: Path) -> str:
    """Where the server stands; one that hangs up, as while it restarts, is asked again for a while."""
    limit = time.monotonic() + AWAY_SECONDS
    while True:
        try:
            with session(socket, LIMIT_SECONDS) as own:
                # Whoever has the copy reads on in a new log, and not behind what may be wrong in an old one.
                own.do("FLUSH LOCAL BINARY LOGS")
                return own.text("SELECT @@gtid_binlog_state")
        except UnavailableError:
            if time.monotonic() > limit:
                raise
            time.sleep(RETRY_SECONDS)


def size(directory: Path) -> int:
    """Bytes of the files below a directory, without the log of changes, which is not copied."""
    total = 0
    pending = [directory]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
                    elif not entry.name.startswith(("centralino-bin", "centralino-relay")):
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue  # the database removes files as it likes
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
