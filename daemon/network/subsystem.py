"""The network subsystem: settings section `network` to NetworkManager, and the truth back."""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_interface
from pathlib import Path

from daemon.errors import ApplyFailedError, CentralinoError, Problem, StorageError
from daemon.files import FileChange, apply_file_change, ensure_directory, read_text
from daemon.network import keyfile, netlink
from daemon.network.checks import check, check_pair
from daemon.network.conflicts import Conflicts
from daemon.network.manager import Manager, Standing
from daemon.network.names_and_time import SOURCES_FILE, hosts_text, own_name_text, sources_text
from daemon.network.trial import Trial
from daemon.network.truth import LIMIT_SECONDS, OBSERVE_LIMIT_SECONDS, Link, Truth, look
from daemon.places import Places
from daemon.platform import platform
from daemon.run import run
from daemon.settings import Settings
from daemon.settings.network import Interface, NetworkSection
from daemon.subsystem import Change, State

CONNECTIONS = Path("/etc/NetworkManager/system-connections")
CONFIGURATION = Path("/etc/NetworkManager/conf.d")
HOSTS_FILE = Path("/etc/hosts")
CHRONY_LIMIT_SECONDS = 10.0
ADDRESS_LIMIT_SECONDS = 5.0
SETTLE_SECONDS = 1.0

log = logging.getLogger(__name__)


class Network:
    """See daemon.subsystem.Subsystem. Below another root than `/`, only files are touched."""

    name = "network"
    sections: tuple[str, ...] = ("network",)

    def __init__(
        self,
        places: Places | None = None,
        *,
        manager: Manager | None = None,
        look: Callable[[float], Truth] = look,
        peer_trouble: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`peer_trouble` says why the peer of a pair is not seen, None if it is or if there is no pair."""
        self._places = places or Places()
        self._manager = manager or Manager()
        self._look = look
        self._connections = self._places.on_box(CONNECTIONS)
        self._dns_file = self._places.on_box(CONFIGURATION / keyfile.GLOBAL_DNS_FILE)
        self._trial = Trial(self._manager, self._look, self._places.run, peer_trouble)
        self._on_trial = False
        self._conflicts = Conflicts()

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        """Interfaces that do not exist, next hops out of reach, subnets that overlap foreign ones, addresses
        that another machine has, changes that would cut a pair in two."""
        problems = check_pair(settings)
        if self._places.is_live:
            links = self._look(LIMIT_SECONDS).links
            problems += check(settings.network, links)
            if not any(problem.fatal for problem in problems):
                problems += self._conflicts.find(settings, links)
        named = settings.network.ntp.servers or settings.network.ntp.pools
        if named and self._time_sources() is None:
            problems.append(
                Problem("network.ntp", "this box does not say where its time servers are kept", "see: status")
            )
        return problems

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        """One change for the name servers and one for each interface that differs; parents come first.

        An unknown `old` plans every interface: what is right already is only applied again.
        """
        before = keyfile.render(old.network) if old else self._profiles()
        after = keyfile.render(new.network)
        changes = []
        old_dns = keyfile.render_global_dns(old.network) if old else read_text(self._dns_file)
        if (dns := keyfile.render_global_dns(new.network)) != old_dns:
            changes.append(self._dns_change(new.network, dns))
        changes += self._names_and_time(old, new)
        removed = [name for name in before if name not in after]
        changes += [self._removal(name) for name in removed]
        for name in sorted(after, key=lambda name: (_depth(name, new.network), name)):
            if old is None or before.get(name) != after[name]:
                changes.append(self._change(name, after[name], new.network))
        return changes

    def apply(self, change: Change) -> None:
        """Write the files, let NetworkManager read them, make the device match, see that it does."""
        with self._asking(change) as standing:
            for file in change.files:
                if not file.path.parent.is_dir():
                    ensure_directory(file.path.parent)
                apply_file_change(file)
        if not self._places.is_live:
            return
        if change.detail.get("time") is True:
            self._read_time_sources()
            return
        interface = str(change.detail.get("interface", ""))
        if not interface:
            if change.detail.get("hosts") is not True:
                self._manager.read_configuration_again()
            return
        if change.detail.get("removed") is True:
            self._manager.read_profiles_again()
            return
        self._manager.read_profile(interface, change.files[0].path)
        if change.detail.get("up") is True:
            self._manager.bring_up(interface, *standing)
            self._prove(interface, change)
        else:
            self._manager.take_down(interface)

    def observe(self) -> State:
        """Links, addresses, gateways, name servers; what our profiles want and the kernel lacks is drift."""
        if not self._places.is_live:
            return State(True)
        try:
            truth = self._look(OBSERVE_LIMIT_SECONDS)
            profiles = self._profiles()
        except CentralinoError as error:
            return State(False, (f"the network cannot be seen: {error}",))
        reasons: list[str] = []
        drift: list[str] = []
        for name, text in profiles.items():
            if "autoconnect=true" not in text.splitlines():
                continue
            link = truth.links.get(name)
            if link is None:
                reasons.append(f"the interface {name} is missing")
                continue
            if not link.up:
                reasons.append(f"the interface {name} is down")
                continue
            drift += [f"{name} lacks the address {address}" for address in _lacking(text, link)]
        return State(not reasons and not drift, tuple(reasons), tuple(drift), truth.as_json())

    def trial_begins(self, changes: Sequence[Change], old: Settings, seconds: int) -> None:
        """See daemon.subsystem.Guard; whatever could cut the admin off is watched, not only our own."""
        self._on_trial = any(change.risky for change in changes)
        if self._on_trial and self._places.is_live:
            ours = any(change.subsystem == self.name for change in changes)
            self._trial.begin(old, seconds, checkpoint=ours)

    def trial_resumes(self) -> None:
        """The daemon was restarted within the trial."""
        self._on_trial = self._places.is_live and self._trial.resume()

    def trial_trouble(self, new: Settings) -> str | None:
        """Why the box must return at once."""
        return self._trial.trouble(new) if self._on_trial and self._places.is_live else None

    def trial_ends(self) -> None:
        """Kept, or returned."""
        if self._places.is_live:
            self._trial.end()

    def _profiles(self) -> dict[str, str]:
        """Interface name to the text of our profile, as they are on the disk."""
        if not self._connections.is_dir():
            return {}
        pattern = f"{keyfile.PREFIX}*{keyfile.SUFFIX}"
        return {
            path.name.removeprefix(keyfile.PREFIX).removesuffix(keyfile.SUFFIX): read_text(path) or ""
            for path in sorted(self._connections.glob(pattern))
        }

    def _file(self, interface: str, after: str | None) -> FileChange:
        path = self._connections / keyfile.file_name(interface)
        return FileChange(path, read_text(path), after, mode=0o600)

    def _dns_change(self, network: NetworkSection, after: str | None) -> Change:
        servers = ", ".join(str(server) for server in network.dns.servers)
        sentence = f"Ask the name servers {servers}" if after else "Ask the name servers that DHCP names"
        file = FileChange(self._dns_file, read_text(self._dns_file), after)
        return Change(self.name, sentence, files=(file,), risky=True)

    def _names_and_time(self, old: Settings | None, new: Settings) -> Iterator[Change]:
        """Changes of /etc/hosts and of chrony's sources; neither can cut anybody off."""
        hosts_file = self._places.on_box(HOSTS_FILE)
        hosts = read_text(hosts_file)
        if old is None or old.network.hosts != new.network.hosts:
            after = own_name_text(hosts_text(hosts, new.network.hosts), new.node.hostname)
            if after != hosts and (hosts is not None or new.network.hosts):
                names = ", ".join(entry.names[0] for entry in new.network.hosts)
                yield Change(
                    self.name,
                    f"Know {names} without DNS" if names else "Know only this node's own name without DNS",
                    files=(FileChange(hosts_file, hosts, after),),
                    detail={"hosts": True},
                )
        folder = self._time_sources()
        if folder is None:
            return
        sources_file = folder / SOURCES_FILE
        sources, after_sources = read_text(sources_file), sources_text(new.network.ntp)
        if (old is None or old.network.ntp != new.network.ntp) and sources != after_sources:
            servers = ", ".join(str(name) for name in (*new.network.ntp.servers, *new.network.ntp.pools))
            yield Change(
                self.name,
                f"Take the time from {servers}" if servers else "Take the time from the servers of the image",
                files=(FileChange(sources_file, sources, after_sources),),
                detail={"time": True},
            )

    @contextmanager
    def _asking(self, change: Change) -> Iterator[list[Standing]]:
        """Ask NetworkManager how the interface stands while the disk takes the files."""
        found: list[Standing] = []
        interface = str(change.detail.get("interface", ""))
        if not self._places.is_live or not interface or change.detail.get("up") is not True:
            yield found
            return

        def ask() -> None:
            with suppress(CentralinoError):  # it is asked again afterwards
                found.append(self._manager.standing(interface))

        asking = threading.Thread(target=ask, name="standing")
        asking.start()
        try:
            yield found
        finally:
            asking.join()

    def _time_sources(self) -> Path | None:
        """The directory of chrony's sources on this platform, None where the platform is unknown."""
        try:
            place = platform(self._places.platform_file).paths.get("chrony_sources")
        except StorageError:
            return None
        return None if place is None else self._places.on_box(place)

    def _read_time_sources(self) -> None:
        done = run(["chronyc", "reload", "sources"], limit_seconds=CHRONY_LIMIT_SECONDS, check=False)
        if done.status != 0:
            # A clock daemon that does not run reads the file when it starts.
            log.warning("chronyd did not re-read its sources: %s", (done.output + done.errors).strip())

    def _removal(self, interface: str) -> Change:
        return Change(
            self.name,
            f"Leave {interface} to the profile that the image brought",
            files=(self._file(interface, None),),
            risky=True,
            detail={"interface": interface, "removed": True},
        )

    def _change(self, name: str, text: str, network: NetworkSection) -> Change:
        interface = network.interfaces.get(name)
        up = interface is None or interface.enabled
        return Change(
            self.name,
            _sentence(name, interface, network),
            files=(self._file(name, text),),
            risky=True,
            detail={"interface": name, "up": up},
        )

    def _prove(self, interface: str, change: Change) -> None:
        """The kernel must hold every static address; raises ApplyFailedError.

        An address that somebody took away is not brought back by a re-apply that spares foreign addresses:
        NetworkManager respects the removal. It is then added here, as what the profile already says.
        """
        text = next((file.after for file in change.files if file.after), "")
        started = time.monotonic()
        added = False
        with netlink.event_socket() as events:
            while True:
                link = self._look(LIMIT_SECONDS).links.get(interface)
                if link is not None and not link.carrier:
                    return
                lacking = _lacking(text, link) if link else ["a link"]
                if not lacking:
                    return
                waited = time.monotonic() - started
                if waited > SETTLE_SECONDS and link is not None and not added:
                    added = True
                    for address in lacking:
                        run(["ip", "address", "replace", address, "dev", interface], check=False)
                if waited > ADDRESS_LIMIT_SECONDS:
                    raise ApplyFailedError(
                        f"{interface} still lacks {', '.join(lacking)} after {ADDRESS_LIMIT_SECONDS:g} s",
                        "is the address used by another machine? See: journalctl -u NetworkManager",
                    )
                select.select([events], [], [], SETTLE_SECONDS)
                netlink.drain(events)


def _lacking(text: str, link: Link) -> list[str]:
    """The static addresses of a profile's text that the link does not have."""
    wanted = [
        line.partition("=")[2] for line in text.splitlines() if line.startswith("address") and "=" in line
    ]
    return [address for address in wanted if ip_interface(address) not in link.addresses]


def _depth(name: str, network: NetworkSection) -> int:
    """0 for cards, 1 for bonds of them, 2 for VLANs on those: an order in which parents come first."""
    interface = network.interfaces.get(name)
    if interface is None or not (interface.vlan or interface.bond):
        return 0
    if interface.bond:
        return 1
    return 2


def _sentence(name: str, interface: Interface | None, network: NetworkSection) -> str:
    master = next(
        (
            other
            for other, settings in network.interfaces.items()
            if settings.bond and name in settings.bond.links
        ),
        None,
    )
    if master:
        return f"Make {name} a link of the bond {master}"
    if interface is None or not interface.enabled:
        return f"Take {name} down and keep it down"
    words = []
    for version, method in (("IPv4", interface.ipv4), ("IPv6", interface.ipv6)):
        words.append(f"{version} {method.value}")
    if interface.addresses:
        words.append("addresses " + ", ".join(address.with_prefixlen for address in interface.addresses))
    words += [f"gateway {gateway}" for gateway in (interface.gateway, interface.gateway6) if gateway]
    words += [
        f"to {route.destination} via {route.gateway}" for route in network.routes if route.interface == name
    ]
    if interface.mtu:
        words.append(f"MTU {interface.mtu}")
    kind = ""
    if interface.vlan:
        kind = f", VLAN {interface.vlan.tag} on {interface.vlan.parent}"
    elif interface.bond:
        kind = f", {interface.bond.mode.value} bond of {', '.join(interface.bond.links)}"
    return f"Set {name}{kind}: {', '.join(words)}"
