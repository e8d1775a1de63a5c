"""Who this box is in Amazon's cloud: the instance ID, by the metadata service with tokens (S-IN-07)."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from daemon.errors import UnavailableError

DMI = Path("/sys/class/dmi/id")
METADATA_SERVICE = "http://169.254.169.254"
REQUEST_LIMIT_SECONDS = 2.0
PAUSE_SECONDS = 1.0
TOKEN_LIFETIME_SECONDS = 60
LARGEST_ANSWER_BYTES = 1024
INSTANCE_ID = re.compile(r"i-[0-9a-f]{8,32}")


def runs_on_ec2(dmi: Path = DMI) -> bool:
    """Whether the firmware says so: "Amazon EC2" on Nitro, a version ending in "amazon" on Xen."""
    for name in ("sys_vendor", "board_vendor", "bios_vendor", "bios_version", "product_version"):
        try:
            text = (dmi / name).read_text(errors="replace").strip().lower()
        except OSError:
            continue
        if text.startswith("amazon") or text.endswith("amazon"):
            return True
    return False


def instance_id(
    base: str = METADATA_SERVICE,
    *,
    limit_seconds: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> str:
    """Ask until the network is up: a token by PUT, then the ID with that token.

    Raises UnavailableError after `limit_seconds` without a valid answer.
    """
    deadline = clock() + limit_seconds
    while True:
        try:
            return _ask(base)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if clock() + PAUSE_SECONDS >= deadline:
                raise UnavailableError(
                    f"the metadata service at {base} gave no instance ID within {limit_seconds:g} s: {error}",
                    "enable it with tokens (IMDSv2) for this instance",
                ) from error
        pause(PAUSE_SECONDS)


def _ask(base: str) -> str:
    # No proxy of the environment may stand between the box and its own hypervisor.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    token = _read(
        opener,
        urllib.request.Request(  # noqa: S310 - the base is a constant, or a test's
            f"{base}/latest/api/token",
            method="PUT",
            headers={"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFETIME_SECONDS)},
        ),
    )
    answer = _read(
        opener,
        urllib.request.Request(  # noqa: S310
            f"{base}/latest/meta-data/instance-id", headers={"X-aws-ec2-metadata-token": token}
        ),
    )
    if not INSTANCE_ID.fullmatch(answer):
        raise ValueError("the answer is not an instance ID")
    return answer


def _read(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> str:
    with opener.open(request, timeout=REQUEST_LIMIT_SECONDS) as response:
        data: bytes = response.read(LARGEST_ANSWER_BYTES)
    return data.decode("ascii").strip()
