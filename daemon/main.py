"""`centralinod`: puts the parts together, runs the main loop, tells systemd, ends cleanly."""

from __future__ import annotations

import gc
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import daemon.lean  # noqa: F401  first: before the settings are declared
from daemon.connections import leave
from daemon.daemon import Daemon
from daemon.errors import CentralinoError
from daemon.journal import start_logging
from daemon.places import Places

log = logging.getLogger(__name__)

USAGE = """Usage: centralinod [--bus system|session|ADDRESS] [--root DIRECTORY] [--debug]

The Centralino appliance daemon.
  --bus    the bus to answer on (default: system)
  --root   use files below this directory and touch no live system
  --debug  log more
"""


@dataclass(frozen=True)
class _Options:
    bus: str = "system"
    root: Path = Path("/")
    debug: bool = False


def _options(arguments: list[str]) -> _Options | None:
    """Three options by hand: argparse would stay in memory for good. None: show the usage."""
    options = _Options()
    # `--bus=ADDRESS` too; an address such as unix:path=/run/bus has an equals sign of its own.
    rest = [part for word in arguments for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    while rest:
        match rest:
            case ["--debug", *rest]:
                options = replace(options, debug=True)
            case ["--bus", bus, *rest]:
                options = replace(options, bus=bus)
            case ["--root", root, *rest]:
                options = replace(options, root=Path(root))
            case _:
                return None
    return options


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit codes are those of daemon.errors; 0 after SIGTERM."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    if options is None:
        asked = "--help" in sys.argv[1:]
        (sys.stdout if asked else sys.stderr).write(USAGE)
        return 0 if asked else 2
    start_logging(logging.DEBUG if options.debug else logging.INFO)
    try:
        daemon = Daemon(Places(options.root.absolute()), options.bus)
    except CentralinoError as error:
        log.critical("centralinod cannot start: %s", error)
        return error.exit_code
    # What is loaded now stays for good: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    return daemon.run()


def run() -> None:
    """`centralinod` as a program."""
    leave(main())


if __name__ == "__main__":
    run()
