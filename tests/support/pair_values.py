"""The two nodes of tests that need no box: `PAIR`, to be changed by `dataclasses.replace`."""

from __future__ import annotations

from ipaddress import ip_address

from fault_tolerance.keepalived import Adverts
from fault_tolerance.pair import Pair

PAIR = Pair(
    own=ip_address("10.78.0.11"),
    peer=ip_address("10.78.0.12"),
    port=22,
    own_service=ip_address("10.77.0.11"),
    peer_service=ip_address("10.77.0.12"),
    shared=(),
    router=51,
    adverts=Adverts.STANDARD,
    gateway=None,
    witness=None,
    cloud=False,
    public_address=None,
    kilobytes_per_second=1000,
    version="1",
    schema=1,
)
