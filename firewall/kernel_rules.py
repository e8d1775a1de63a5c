"""Our table in the kernel as a whole: checked, loaded and compared through `nft`."""

from __future__ import annotations

import hashlib

from daemon.errors import CommandFailedError
from daemon.run import run
from firewall.render import TABLE

CHECK_LIMIT_SECONDS = 30.0
LOAD_LIMIT_SECONDS = 60.0
LIST_LIMIT_SECONDS = 10.0


def refusal(script: str) -> str | None:
    """Why `nft` would refuse the script; None if it would load it. Loads nothing."""
    done = run(["nft", "-c", "-f", "-"], input_text=script, limit_seconds=CHECK_LIMIT_SECONDS, check=False)
    return None if done.status == 0 else _first_line(done.errors)


def load(script: str) -> None:
    """Load the script in one transaction: all of it or nothing. Raises CommandFailedError."""
    done = run(["nft", "-f", "-"], input_text=script, limit_seconds=LOAD_LIMIT_SECONDS, check=False)
    if done.status != 0:
        raise CommandFailedError(f"nft refuses the rules: {_first_line(done.errors)}")


def digest() -> str | None:
    """A digest of our chains and of how our sets are declared, without counters and elements.

    None if the table does not exist. Raises CommandFailedError if nft does not run.
    """
    done = run(
        ["nft", "-s", "-t", "list", "table", *TABLE.split()], limit_seconds=LIST_LIMIT_SECONDS, check=False
    )
    if done.status != 0:
        if "No such file or directory" in done.errors:
            return None
        raise CommandFailedError(f"nft cannot list the rules: {_first_line(done.errors)}")
    return hashlib.sha256(done.output.encode()).hexdigest()


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "it wrote nothing")
