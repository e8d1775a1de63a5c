"""Run one program inside a root tree: `python -m appliance.chroot [OPTION] TREE PROGRAM ARGUMENT...`.

`--overlay=OPTIONS` mounts an overlay at TREE first; with `--copy-to=DIRECTORY` TREE is copied there and
nothing is run.

To be started in mount and process namespaces of its own (`appliance.run.isolated`): it mounts what programs
expect (/proc, /sys read-only, a small /dev, empty /run and /tmp) over the tree, and all of it vanishes with
the namespace. This process stays outside the tree as process 1, so that programs inside can tell that they
are in a chroot, as in kiwi's and the installer's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
}
KEPT_VARIABLES = ("SOURCE_DATE_EPOCH", "PYGOBJECT_WITHOUT_PYCAIRO", "CFLAGS")


def mount(*arguments: str) -> None:
    """One mount; the namespace undoes it."""
    subprocess.run(("mount", *arguments), check=True, timeout=30)


def prepare(tree: Path) -> None:
    """Mount what programs inside the tree expect."""
    for name in ("proc", "sys", "dev", "run", "tmp"):
        (tree / name).mkdir(exist_ok=True)
    mount("-t", "proc", "proc", str(tree / "proc"))
    mount("-t", "sysfs", "-o", "ro", "sysfs", str(tree / "sys"))
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(tree / "run"))
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(tree / "tmp"))
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(tree / "dev"))
    for name in DEVICES:
        target = tree / "dev" / name
        target.touch()
        mount("--bind", f"/dev/{name}", str(target))
    (tree / "dev/shm").mkdir(mode=0o1777)
    (tree / "dev/fd").symlink_to("/proc/self/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (tree / "dev" / name).symlink_to(f"/proc/self/fd/{number}")


def enter(tree: Path, arguments: list[str]) -> int:
    """Run the program inside and reap everything; returns its exit status."""
    child = os.fork()
    if child == 0:
        os.chroot(tree)
        os.chdir("/")
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        try:
            os.execvpe(arguments[0], arguments, {**ENVIRONMENT, **kept})  # noqa: S606 - no shell on purpose
        except OSError as error:
            print(f"{arguments[0]}: {error.strerror}", file=sys.stderr)
            os._exit(127)
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Entry point; see the module's text."""
    words = sys.argv[1:]
    options = {}
    while words and words[0].startswith("--"):
        name, _, value = words.pop(0).partition("=")
        options[name] = value
    tree, arguments = Path(words[0]).absolute(), words[1:]
    if "--overlay" in options:
        mount("-t", "overlay", "-o", options["--overlay"], "overlay", str(tree))
    if "--copy-to" in options:
        # All that makes a tree what it is: owners, modes, times, links, extended attributes, holes.
        copy = ("cp", "--archive", "--reflink=auto", "--no-target-directory", str(tree), options["--copy-to"])
        sys.exit(subprocess.run(copy, check=False).returncode)
    prepare(tree)
    status = enter(tree, arguments)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
