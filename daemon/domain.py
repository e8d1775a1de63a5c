"""The name and public address under which the appliance is reached (settings `domain`, `media`; S-NW-01)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

from daemon import dns
from daemon.domain_checks import Address, Ask, Facts, check_address, check_names, see
from daemon.errors import ApplyFailedError, CentralinoError, CommandFailedError, Problem
from daemon.files import FileChange, apply_file_change, read_text
from daemon.network.truth import LIMIT_SECONDS, InterfaceAddress, Truth, look
from daemon.places import Places
from daemon.platform import Platform
from daemon.reach_files import nginx_text, pjsip_text, rtp_text
from daemon.run import run
from daemon.settings import Settings
from daemon.settings.network import AddressMethod
from daemon.subsystem import Change, State

Network = IPv4Network | IPv6Network
Restart = Callable[[str], None]

NGINX_FILE = "centralino.d/50-domain.conf"
PJSIP_FILE = "pjsip.d/50-domain.conf"
RTP_FILE = "rtp.conf"
RELOAD_LIMIT_SECONDS = 20.0
RESTART_LIMIT_SECONDS = 60.0
RELOAD_RTP = "module reload res_rtp_asterisk"

log = logging.getLogger(__name__)


class Domain:
    """See daemon.subsystem.Subsystem. Below another root than `/`, only files are touched."""

    name = "domain"
    sections: tuple[str, ...] = ("domain", "media")

    def __init__(
        self,
        places: Places,
        platform: Platform,
        settings: Callable[[], Settings],
        *,
        live_calls: Callable[[], int | None] = lambda: None,
        restart: Restart | None = None,
        look: Callable[[float], Truth] = look,
        ask: Ask = dns.ask,
    ) -> None:
        """`settings` are those in force, `live_calls` how many calls a restart of Asterisk would cut (None:
        unknown), `restart` restarts a supervised service by its name and waits until it works."""
        self._places = places
        self._units = platform.units
        self._asterisk_group = platform.users["asterisk"]
        self._nginx = places.on_box(platform.paths["nginx_config"])
        self._asterisk = places.on_box(platform.paths["asterisk_config"])
        self._asterisk_binary = platform.paths["asterisk_binary"]
        self._settings = settings
        self._live_calls = live_calls
        self._restart = restart or self._restart_unit
        self._look = look
        self._ask = ask

    # --- the four functions -------------------------------------------------------------------------------

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        """The public address is plausible, and DNS leads to the box, inside and outside."""
        if not self._places.is_live or _judged(settings) == _judged(self._settings()):
            return []  # what was let through stays; DNS is not asked for every other change
        problems = list(check_address(settings))
        if settings.domain.fqdn is not None:
            problems += check_names(settings, self.facts(settings))
        return problems

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        """The web server's name, Asterisk's outer address, its media ports."""
        truth = self._truth()
        changes = []
        if web := self._web_change(old, new):
            changes.append(web)
        if signalling := self._signalling_change(old, new, truth):
            changes.append(signalling)
        if media := self._media_change(old, new, truth, restarts=signalling is not None):
            changes.insert(-1 if signalling else len(changes), media)
        return changes

    def apply(self, change: Change) -> None:
        """Write the files; then the program that reads them."""
        for file in change.files:
            if not file.path.parent.is_dir() and file.after is None:
                continue
            apply_file_change(file)
        if not self._places.is_live:
            return
        match change.detail.get("then"):
            case "reload nginx":
                self._reload_nginx()
            case "restart asterisk":
                self._restart("asterisk")
            case "reload media":
                command = [str(self._asterisk_binary), "-rx", RELOAD_RTP]
                run(command, limit_seconds=RELOAD_LIMIT_SECONDS, check=False)

    def observe(self) -> State:
        """Files that are not what the settings say are drift."""
        settings = self._settings()
        try:
            truth = self._truth()
            expected = {
                self._nginx / NGINX_FILE: nginx_text(settings),
                self._asterisk / PJSIP_FILE: pjsip_text(settings, local_networks(settings, truth)),
            }
            drift = tuple(
                f"{path} is not what the settings say"
                for path, text in expected.items()
                if path.parent.is_dir() and read_text(path) != text
            )
        except CentralinoError as error:
            return State(False, (f"the domain cannot be seen: {error}",))
        domain = settings.domain
        facts = {
            "fqdn": domain.fqdn,
            "public_address": str(domain.public_address) if domain.public_address else None,
            "reach_through_domain": domain.reach_through_domain,
            "local_networks": [str(network) for network in local_networks(settings, truth)],
        }
        return State(not drift, drift=drift, facts=facts)

    # --- for others ---------------------------------------------------------------------------------------

    def facts(self, settings: Settings) -> Facts:
        """Own addresses, and what the name servers inside and outside say now. Takes seconds at worst."""
        truth = self._truth()
        own: set[Address] = {address.ip for link in truth.links.values() for address in link.addresses}
        own |= {
            address.ip
            for interface in settings.network.interfaces.values()
            for address in interface.addresses
        }
        own |= {shared.address.ip for shared in settings.fault_tolerance.shared_addresses}
        name = settings.domain.fqdn
        if name is None:
            return Facts(frozenset(own))
        servers = settings.network.dns.servers or tuple(_addresses(truth.name_servers))
        inside = see(name, servers, self._ask)
        return Facts(frozenset(own), inside, see(name, settings.domain.public_resolvers, self._ask))

    # ------------------------------------------------------------------------------------------------------

    def _truth(self) -> Truth:
        return self._look(LIMIT_SECONDS) if self._places.is_live else Truth()

    def _web_change(self, old: Settings | None, new: Settings) -> Change | None:
        path = self._nginx / NGINX_FILE
        before, after = read_text(path), nginx_text(new)
        if after == (nginx_text(old) if old else before):
            return None
        name = new.domain.fqdn
        if name is None:
            sentence = "Serve the web interface under every name"
        elif new.domain.reach_through_domain:
            sentence = f"Send everybody who opens the web interface to https://{name}"
        else:
            sentence = f"Serve the web interface as {name}, and under addresses as before"
        return Change(
            self.name,
            sentence,
            files=(FileChange(path, before, after),),
            reloads=(self._units["nginx"],),
            risky=new.domain.reach_through_domain,
            detail={"then": "reload nginx"},
        )

    def _signalling_change(self, old: Settings | None, new: Settings, truth: Truth) -> Change | None:
        path = self._asterisk / PJSIP_FILE
        before, after = read_text(path), pjsip_text(new, local_networks(new, truth))
        known = pjsip_text(old, local_networks(old, truth)) if old else before
        if after == known:
            return None
        calls = self._live_calls()
        cut = "live calls, whose number is not known, end" if calls is None else f"{calls} live calls end"
        what = (
            f"Name {new.domain.public_address} to phones and trunks outside"
            if after
            else "Name the box's own address to all phones and trunks"
        )
        return Change(
            self.name,
            f"{what}. Asterisk takes this by a restart: {'no call is up now' if calls == 0 else cut}",
            files=(FileChange(path, before, after, mode=0o640, group=self._asterisk_group),),
            restarts=(self._units["asterisk"],),
            drops_calls=calls != 0,
            detail={"then": "restart asterisk"},
        )

    def _media_change(
        self, old: Settings | None, new: Settings, truth: Truth, *, restarts: bool
    ) -> Change | None:
        path = self._asterisk / RTP_FILE
        before, after = read_text(path), rtp_text(new, _own_addresses4(new, truth))
        known = rtp_text(old, _own_addresses4(old, truth)) if old else before
        if after == known or not path.parent.is_dir():
            return None
        return Change(
            self.name,
            f"Send and take audio on UDP ports {new.media.rtp_first_port} to {new.media.rtp_last_port}",
            files=(FileChange(path, before, after, mode=0o640, group=self._asterisk_group),),
            detail={} if restarts else {"then": "reload media"},
        )

    def _reload_nginx(self) -> None:
        unit = self._units["nginx"]
        try:
            run(["nginx", "-t", "-q"], limit_seconds=RELOAD_LIMIT_SECONDS)
        except CommandFailedError as error:
            raise ApplyFailedError(f"the web server refuses its new name: {error.message}") from None
        # A server that does not run reads the file when it starts.
        run(["systemctl", "try-reload-or-restart", unit], limit_seconds=RELOAD_LIMIT_SECONDS)

    def _restart_unit(self, service: str) -> None:
        run(["systemctl", "try-restart", self._units[service]], limit_seconds=RESTART_LIMIT_SECONDS)


def certificate_names(settings: Settings) -> tuple[str, ...]:
    """The names that a certificate of this box must cover, the domain first."""
    first = (settings.domain.fqdn,) if settings.domain.fqdn else ()
    return tuple(dict.fromkeys((*first, *settings.certificates.names)))


def local_networks(settings: Settings, truth: Truth) -> tuple[Network, ...]:
    """Networks reached without NAT: those of the settings, else the subnets of the interfaces.

    Of an interface with static addresses the settings count, so that a change of both goes together; of the
    others what they have now.
    """
    if settings.domain.local_networks:
        return settings.domain.local_networks
    found: list[Network] = []
    for address in _interface_addresses(settings, truth):
        public = address.ip == settings.domain.public_address
        if not public and address.network.prefixlen < address.network.max_prefixlen:
            found.append(address.network)
    return tuple(sorted(set(found), key=lambda network: (network.version, network)))


def _interface_addresses(settings: Settings, truth: Truth) -> Iterator[InterfaceAddress]:
    named = settings.network.interfaces
    for interface in named.values():
        if interface.enabled:
            yield from interface.addresses
    for name, link in truth.links.items():
        known = named.get(name)
        if known is not None and (not known.enabled or known.ipv4 is AddressMethod.STATIC):
            continue
        for address in link.addresses:
            if not address.ip.is_link_local:
                yield address


def own_addresses(settings: Settings, truth: Truth) -> list[Address]:
    """The box's addresses as they are after the settings are applied, without link-local ones.

    IPv4 first, and within a family first those by which the box reaches the Internet.
    """
    gateways: set[Address] = set(_addresses([line.split()[0] for line in truth.gateways]))
    for interface in settings.network.interfaces.values():
        gateways |= {gateway for gateway in (interface.gateway, interface.gateway6) if gateway}
    far = {
        address.ip: not any(gateway in address.network for gateway in gateways)
        for address in _interface_addresses(settings, truth)
    }
    return sorted(far, key=lambda address: (address.version, far[address], int(address)))


def _own_addresses4(settings: Settings, truth: Truth) -> list[IPv4Address]:
    return [address for address in own_addresses(settings, truth) if isinstance(address, IPv4Address)]


def _addresses(texts: Sequence[str]) -> list[Address]:
    found: list[Address] = []
    for text in texts:
        try:
            found.append(ip_address(text.partition("%")[0]))
        except ValueError:
            log.warning("resolv.conf names %s, which is no address", text)
    return found


def _judged(settings: Settings) -> tuple[object, ...]:
    return settings.domain, settings.mode, settings.network.dns
