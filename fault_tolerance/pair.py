"""The pair as the role runtime knows it: one JSON file that centralinod writes, read without pydantic.

The runtime is a process of its own, and a small one; what it needs of the settings is in `pair.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path

from daemon.errors import StorageError
from fault_tolerance.keepalived import Adverts, Held

Address = IPv4Address | IPv6Address

STATE = Path("/var/lib/centralino/fault-tolerance")
RUN = Path("/run/centralino-peer")
# Its name is what SELinux lets keepalived write to.
VRRP_RUN = Path("/run/keepalived-centralino")
PAIR_FILE = STATE / "pair.json"
KEEPALIVED_FILE = STATE / "keepalived.conf"
KEY_FILE = STATE / "key"
KNOWN_HOSTS = STATE / "known_hosts"
AUTHORIZED_KEYS = Path("/etc/ssh/centralino-peer.keys")
USER = "centralino-peer"
HOST_KEYS = Path("/etc/ssh")


@dataclass(frozen=True)
class Pair:
    """Who the two nodes are. `own` and `peer` are the ends of the peer link; `own_service` and
    `peer_service` those of VRRP, on the interface of the primary shared address. `gateway` None means the
    default gateway. `cloud`: no shared addresses, roles by hand or by `hook`."""

    own: Address
    peer: Address
    port: int
    own_service: Address
    peer_service: Address
    shared: tuple[Held, ...]
    router: int
    adverts: Adverts
    gateway: Address | None
    witness: Address | None
    cloud: bool
    public_address: Address | None
    kilobytes_per_second: int
    version: str
    schema: int

    @property
    def dials(self) -> bool:
        """Whether this node opens the one connection; the other one waits for it."""
        return int(self.own) < int(self.peer)

    @property
    def second(self) -> bool:
        """True on exactly one of the two nodes."""
        return int(self.own_service) > int(self.peer_service)

    @property
    def interface(self) -> str:
        """The interface of the primary shared address, "" in cloud mode."""
        return self.shared[0].interface if self.shared else ""


def as_json(pair: Pair) -> dict[str, object]:
    """What `from_json` reads."""
    return {
        "own": str(pair.own),
        "peer": str(pair.peer),
        "port": pair.port,
        "own_service": str(pair.own_service),
        "peer_service": str(pair.peer_service),
        "shared": [{"address": str(held.address), "interface": held.interface} for held in pair.shared],
        "router": pair.router,
        "adverts": pair.adverts.name,
        "gateway": None if pair.gateway is None else str(pair.gateway),
        "witness": None if pair.witness is None else str(pair.witness),
        "cloud": pair.cloud,
        "public_address": None if pair.public_address is None else str(pair.public_address),
        "kilobytes_per_second": pair.kilobytes_per_second,
        "version": pair.version,
        "schema": pair.schema,
    }


def from_json(table: Mapping[str, object]) -> Pair:
    """Raises ValueError, KeyError or TypeError for a table that `as_json` did not make."""
    shared = table["shared"]
    if not isinstance(shared, list):
        raise TypeError("shared is no list")
    return Pair(
        own=ip_address(str(table["own"])),
        peer=ip_address(str(table["peer"])),
        port=int(str(table["port"])),
        own_service=ip_address(str(table["own_service"])),
        peer_service=ip_address(str(table["peer_service"])),
        shared=tuple(Held(ip_interface(row["address"]), str(row["interface"])) for row in shared),
        router=int(str(table["router"])),
        adverts=Adverts[str(table["adverts"])],
        gateway=_optional(table["gateway"]),
        witness=_optional(table["witness"]),
        cloud=table["cloud"] is True,
        public_address=_optional(table["public_address"]),
        kilobytes_per_second=int(str(table["kilobytes_per_second"])),
        version=str(table["version"]),
        schema=int(str(table["schema"])),
    )


def read(path: Path = PAIR_FILE) -> Pair | None:
    """The pair, None if this node has none. Raises StorageError for a file that cannot be used."""
    try:
        return from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} cannot be used: {error}", "run: systemctl restart centralinod, which writes it anew"
        ) from error


def _optional(value: object) -> Address | None:
    return None if value is None else ip_address(str(value))
