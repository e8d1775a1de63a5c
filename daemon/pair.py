"""The subsystem of a pair: settings section `fault_tolerance` to the file that the role runtime reads.

The runtime (`centralino-peer.service`) is a process of its own. Nothing of `fault_tolerance` is imported
here: a box without a pair pays for none of it.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path

from daemon.errors import CentralinoError, ConflictError, Problem
from daemon.files import FileChange, apply_file_change, ensure_directory, read_text
from daemon.network import netlink
from daemon.places import Places
from daemon.run import run
from daemon.settings import Settings, dump, parse_document
from daemon.settings.base import Address
from daemon.settings.fault_tolerance import SharedAddress
from daemon.settings.reach import WorkMode
from daemon.subsystem import Change, JsonObject, State

PAIR_FILE = Path("/var/lib/centralino/fault-tolerance/pair.json")
UNIT = "centralino-peer.service"
LOOK_LIMIT_SECONDS = 1.0
SYSTEMCTL_LIMIT_SECONDS = 30.0

InterfaceAddress = IPv4Interface | IPv6Interface


class FaultToleranceSubsystem:
    """See daemon.subsystem.Subsystem. `runtime` is what the runtime says of itself, None while it is away."""

    name = "fault_tolerance"
    sections: tuple[str, ...] = ("fault_tolerance",)

    def __init__(
        self, places: Places, program: str, runtime: Callable[[], JsonObject | None] = lambda: None
    ) -> None:
        self._places = places
        self._program = program
        self._runtime = runtime

    @property
    def _file(self) -> Path:
        return self._places.on_box(PAIR_FILE)

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        """Shared addresses lie on interfaces that exist, in subnets that this node is in."""
        section = settings.fault_tolerance
        if not self._places.is_live or not (section.enabled or section.shared_addresses):
            return []
        problems: list[Problem] = []
        cloud = settings.mode.mode is WorkMode.CLOUD
        if section.enabled and not cloud and not section.shared_addresses:
            problems.append(
                Problem(
                    "fault_tolerance.shared_addresses",
                    "is empty: a pair on a LAN needs an address that moves",
                    "run: centralino fault-tolerance configure --shared ADDRESS/PREFIX@INTERFACE",
                )
            )
        if cloud and section.shared_addresses:
            problems.append(
                Problem(
                    "fault_tolerance.shared_addresses",
                    "a cloud has no address that moves by itself",
                    "remove them, or use mode standard",
                )
            )
        rows = {row.index: row.name for row in netlink.links(LOOK_LIMIT_SECONDS)}
        names = set(rows.values())
        where = {str(row.address): rows.get(row.index, "") for row in netlink.addresses(LOOK_LIMIT_SECONDS)}
        problems += cuts(settings, _table_of(read_text(self._file)), where)
        for number, shared in enumerate(section.shared_addresses):
            path = f"fault_tolerance.shared_addresses.{number}"
            if shared.interface not in names:
                problems.append(
                    Problem(f"{path}.interface", f"there is no {shared.interface}", "see: ip link")
                )
            elif shared.primary and own_address_beside(shared) is None:
                problems.append(
                    Problem(
                        f"{path}.address",
                        f"this node has no address of {shared.address.network} on {shared.interface}",
                        "give it one: centralino network set",
                    )
                )
        return problems

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        """One change: the runtime starts, reads its file anew, or ends."""
        section = new.fault_tolerance
        before = read_text(self._file)
        if not section.enabled:
            if before is None:
                return []
            sentence = "Dissolve the pair: this node serves alone from now on."
            return [self._change(sentence, before, None)]
        try:
            after = json.dumps(self.table(new), indent=1, sort_keys=True) + "\n"
        except CentralinoError:
            if old is None:
                # Before the network is up nothing better is known than what stands there.
                return []
            raise
        if before == after:
            return []
        verb = "Watch" if before is None else "Go on watching"
        return [self._change(f"{verb} the peer {section.peer_address} and share what moves.", before, after)]

    def _change(self, sentence: str, before: str | None, after: str | None) -> Change:
        file = FileChange(self._file, before, after, mode=0o600)
        return Change(self.name, sentence, files=(file,), restarts=(UNIT,))

    def apply(self, change: Change) -> None:
        """Write the file, then let the runtime read it."""
        ensure_directory(self._file.parent, 0o700)
        for file in change.files:
            apply_file_change(file)
        if self._places.is_live:
            restart_runtime()

    def observe(self) -> State:
        """What the runtime says; a pair whose runtime is away is not healthy."""
        if not self._file.exists():
            return State(True, facts={"role": "standalone"})
        found = self._runtime()
        if found is None:
            return State(False, (f"{UNIT} does not answer; see: journalctl -u {UNIT}",), facts={"role": None})
        return State(True, facts=found)

    def table(self, settings: Settings) -> JsonObject:
        """The contents of pair.json; see fault_tolerance.pair. Raises ConflictError if the box has no way
        to the peer or no address beside the shared one."""
        section = settings.fault_tolerance
        if section.peer_address is None:
            raise ConflictError("the pair has no peer address", "run: centralino fault-tolerance pair PEER")
        own = section.management_address or link_address(section.peer_address)
        ordered = sorted(section.shared_addresses, key=lambda shared: not shared.primary)
        own_service: Address = own
        if ordered:
            beside = own_address_beside(ordered[0])
            if beside is None:
                raise ConflictError(
                    f"this node has no address of {ordered[0].address.network} on {ordered[0].interface}",
                    "give it one: centralino network set",
                )
            own_service = beside.ip
        return {
            "own": str(own),
            "peer": str(section.peer_address),
            "port": section.peer_port,
            "own_service": str(own_service),
            "peer_service": str(section.peer_service_address or section.peer_address),
            "shared": [{"address": str(shared.address), "interface": shared.interface} for shared in ordered],
            "router": section.virtual_router_id,
            "adverts": section.profile.name,
            "gateway": None if section.gateway is None else str(section.gateway),
            "witness": None if section.witness is None else str(section.witness),
            "cloud": settings.mode.mode is WorkMode.CLOUD,
            "public_address": None
            if settings.domain.public_address is None
            else str(settings.domain.public_address),
            "kilobytes_per_second": section.replication_kilobytes_per_second,
            "version": self._program,
            "schema": settings.schema_number,
        }

    def pairing_facts(
        self, settings: Settings, peer: Address | None, shared: Sequence[JsonObject]
    ) -> JsonObject:
        """What the other node must know and check before the two are a pair. `shared` are the shared
        addresses of the asking node, for one that has none yet."""
        document = dump(settings)
        table = document["fault_tolerance"]
        assert isinstance(table, dict)  # noqa: S101 - the shape of our own schema
        if not table["shared_addresses"]:
            asked = {**document, "fault_tolerance": {**table, "shared_addresses": [*shared]}}
            settings = parse_document(asked)
        section = settings.fault_tolerance
        addresses = section.shared_addresses
        primary = next((entry for entry in addresses if entry.primary), None)
        service = None if primary is None else own_address_beside(primary)
        if primary is not None and service is None:
            raise ConflictError(
                f"{socket.gethostname()} has no address of {primary.address.network} on {primary.interface}",
                "give it one, or share an address of a subnet that both nodes are in",
            )
        link = section.management_address or (None if peer is None else link_address(peer))
        if link is None:
            link = None if service is None else service.ip
        return {
            "hostname": settings.node.hostname,
            "machine": (read_text(self._places.on_box("/etc/machine-id")) or "").strip(),
            "version": self._program,
            "schema": settings.schema_number,
            "mode": settings.mode.mode.value,
            "wall": time.time(),
            "link_address": None if link is None else str(link),
            "service_address": None if service is None else str(service),
            "fault_tolerance": table,
        }


def cuts(settings: Settings, standing: JsonObject, where: Mapping[str, str]) -> list[Problem]:
    """Own addresses that the peer knows this node by, and that the new settings take away.

    `standing` is the pair.json in force, `where` address to interface as it is now. Only interfaces that the
    settings name can be judged. An end of the peer link may move if the same change says where to
    (`management_address`); the address for VRRP may not, for the peer's own settings name it.
    """
    section, named = settings.fault_tolerance, settings.network.interfaces
    if not section.enabled or not standing:
        return []
    kept = {str(a.ip) for entry in named.values() if entry.enabled for a in entry.addresses}
    own, service = str(section.management_address or standing["own"]), str(standing["own_service"])
    problems = []
    for address, remedy in {
        own: "name the new one in the same change (fault_tolerance.management_address)",
        service: "dissolve the pair first: centralino fault-tolerance unpair",
    }.items():
        interface = where.get(address, "")
        if interface in named and named[interface].addresses and address not in kept:
            problems.append(
                Problem(
                    f"network.interfaces.{interface}.addresses",
                    f"{address} goes away, by which the peer knows this node; that cuts the pair",
                    f"keep it beside the new one, or {remedy}",
                )
            )
    return problems


def _table_of(text: str | None) -> JsonObject:
    """What pair.json says; empty without one, or with one that cannot be read."""
    try:
        found = json.loads(text or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def restart_runtime() -> None:
    """Let the runtime begin, go on by the new file, or (without a pair) end. Raises CommandFailedError."""
    run(["systemctl", "restart", UNIT], limit_seconds=SYSTEMCTL_LIMIT_SECONDS)


def own_address_beside(shared: SharedAddress) -> InterfaceAddress | None:
    """This node's own address on the interface of a shared one, in its subnet."""
    indexes = {row.index for row in netlink.links(LOOK_LIMIT_SECONDS) if row.name == shared.interface}
    for row in netlink.addresses(LOOK_LIMIT_SECONDS):
        if (
            row.index in indexes
            and row.address in shared.address.network
            and row.address != shared.address.ip
            and row.prefix_length != row.address.max_prefixlen
        ):
            return ip_interface(f"{row.address}/{row.prefix_length}")
    return None


def link_address(peer: Address) -> Address:
    """The own address from which the peer is reached. Raises ConflictError if there is no way to it."""
    route = netlink.route_to(peer)
    if route is None or route.source is None:
        raise ConflictError(f"this node has no way to {peer}", "look at the network of both nodes")
    return route.source
