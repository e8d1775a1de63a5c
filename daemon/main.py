"""`centralinod`: puts the parts together, runs the main loop, tells systemd, ends cleanly."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from pathlib import Path

# pydantic looks for plugins by reading the metadata of every installed package; we have none.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from daemon.daemon import Daemon
from daemon.errors import CentralinoError
from daemon.journal import start_logging
from daemon.places import Places

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit codes are those of daemon.errors; 0 after SIGTERM."""
    parser = argparse.ArgumentParser("centralinod", description="The Centralino appliance daemon.")
    parser.add_argument(
        "--bus", default="system", metavar="system|session|ADDRESS", help="the bus to answer on"
    )
    parser.add_argument(
        "--root", type=Path, default=Path("/"), help="use files below this directory and touch no live system"
    )
    parser.add_argument("--debug", action="store_true", help="log more")
    options = parser.parse_args(arguments)
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


if __name__ == "__main__":
    sys.exit(main())
