"""The last step before the peer is served: ends what is left of its last connection of this kind, becomes the
program.

    python -I -S door.py DIRECTORY KIND program ...

A peer that lost its power or its network leaves a connection behind that nobody closes before TCP gives up.
MariaDB (seen in 10.11.19) must never meet such a one when the peer connects anew: to end it, the server waits
for word on it while it holds the lock that every new session of every client needs. A copy that nobody reads
holds the lock of backups. So the new connection ends the old one first. A program of few imports, because the
peer waits for it.
"""

import os
import signal
import sys


def begun(process: str) -> str:
    """When a process began, in ticks since boot: with its number that names it for ever; "" if it is gone."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def end_others(directory: str, kind: str) -> None:
    """End every process that is named so; whatever else has got its number since is left alone."""
    for name in os.listdir(directory):  # noqa: PTH208
        named, _, process = name.rpartition("-")
        if named != kind or not process.isdigit():
            continue
        path = f"{directory}/{name}"
        try:
            with open(path, encoding="ascii") as file:  # noqa: PTH123
                known = file.read().strip()
            if known and known == begun(process):
                os.kill(int(process), signal.SIGKILL)
            os.unlink(path)  # noqa: PTH108
        except OSError:
            continue  # another one was faster


def main(words: list[str]) -> int:
    """Returns only when the program does not start."""
    directory, kind, *program = words
    end_others(directory, kind)
    own = str(os.getpid())
    with open(f"{directory}/{kind}-{own}", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(begun(own))
    try:
        os.execvp(program[0], program)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"{program[0]} could not be started: {error.strerror}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
