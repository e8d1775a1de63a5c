"""Domain and work mode: what DNS must say, what nginx, Asterisk and coturn are told, the table of modes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import pwd
import tomllib
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from daemon import work_modes
from daemon.dns import Answer, RecordType
from daemon.domain import Domain, certificate_names, local_networks, own_addresses
from daemon.domain_checks import Address, Facts, View, check_address, check_names, see
from daemon.errors import ApplyFailedError, Problem, UnavailableError
from daemon.mode import Mode
from daemon.network.truth import Link, Truth
from daemon.places import Places
from daemon.platform import Platform
from daemon.reach_files import nginx_text, pjsip_text, rtp_text
from daemon.settings import Settings
from daemon.settings.reach import WorkMode
from daemon.subsystem import Change, Subsystem
from daemon.turn import FORBIDDEN_PEERS, coturn_text, credentials, with_secret, without_secret

REPOSITORY = Path(__file__).resolve().parents[2]
NAME, PUBLIC, OWN = "pbx.example.com", "203.0.113.10", "10.0.0.5"
TRUTH = Truth(
    {"eth0": Link("eth0", addresses=(ip_interface("10.0.0.5/24"), ip_interface("fe80::5/64")))},
    ("10.0.0.1 via eth0",),
)


def settings(mode: str = "standard", **domain: object) -> Settings:
    document = {"domain": domain, "mode": {"mode": mode}}
    return Settings.model_validate_json(json.dumps(document))


def cloud(**more: object) -> Settings:
    return settings("cloud", **{"fqdn": NAME, "public_address": PUBLIC, **more})


def view(*addresses: str, aliases: tuple[str, ...] = (), code: int = 0) -> View:
    found = tuple(ip_address(address) for address in addresses)
    return View((ip_address("10.0.0.53"),), True, code, found, aliases)


def names(wanted: Settings, inside: View, outside: View = View()) -> list[Problem]:  # noqa: B008
    return list(check_names(wanted, Facts(frozenset({ip_address(OWN)}), inside, outside)))


# --- what DNS must say --------------------------------------------------------------------------------------


def test_a_name_that_leads_here_needs_no_word_in_standard_mode() -> None:
    assert names(settings(fqdn=NAME), view(OWN)) == []


def test_cloud_mode_takes_the_public_address_inside_and_outside() -> None:
    assert names(cloud(), view(PUBLIC), view(PUBLIC)) == []
    assert names(cloud(), view(OWN), view(PUBLIC)) == []  # split DNS as it should be


@pytest.mark.parametrize(
    ("inside", "sentence"),
    [
        (View(), "this box has no name server"),
        (View((ip_address("10.0.0.53"),)), "no name server of this box answers (10.0.0.53)"),
        (view(code=3), f"{NAME} does not exist for the name servers of this box"),
        (view(), f"{NAME} has no address"),
        (view("198.51.100.9"), "leads to 198.51.100.9 inside, which is no address of this box"),
    ],
)
def test_what_cloud_mode_refuses_standard_mode_only_warns_of(inside: View, sentence: str) -> None:
    refused = names(cloud(), inside, view(PUBLIC))
    assert [problem.fatal for problem in refused] == [True]
    assert sentence in refused[0].sentence()
    assert refused[0].remedy
    warned = names(settings(fqdn=NAME), inside)
    assert [problem.fatal for problem in warned] == [False]
    sent_there = names(settings(fqdn=NAME, reach_through_domain=True), inside, view(PUBLIC))
    assert sent_there[0].fatal


def test_the_way_round_through_the_router_is_explained() -> None:
    (warning,) = names(settings(fqdn=NAME, public_address=PUBLIC), view(PUBLIC))
    assert not warning.fatal
    assert "split DNS" in warning.remedy


@pytest.mark.parametrize(
    ("outside", "fatal", "sentence"),
    [
        (View(), False, "domain.public_resolvers names nobody to ask"),
        (View((ip_address("9.9.9.9"),), reason="no answer in time"), False, "could not be checked"),
        (view(), True, "has no address on the Internet"),
        (view("198.51.100.7"), True, f"leads to 198.51.100.7, not to {PUBLIC}"),
    ],
)
def test_outside_in_cloud_mode(outside: View, fatal: bool, sentence: str) -> None:
    (problem,) = names(cloud(), view(PUBLIC), outside)
    assert problem.fatal is fatal
    assert sentence in problem.sentence()


def test_an_alias_to_an_edge_is_right_in_standard_mode() -> None:
    wanted = settings(fqdn=NAME, public_address=PUBLIC, reach_through_domain=True)
    (problem,) = names(wanted, view(OWN), view("198.51.100.7", aliases=("edge.example.net",)))
    assert not problem.fatal
    assert "(by the alias edge.example.net)" in problem.message
    assert "right if that is your edge" in problem.message


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "192.168.1.1", "100.64.0.1", "127.0.0.1", "169.254.1.1", "fd00::1", "fe80::1"]
)
def test_an_address_that_nobody_can_reach_is_refused_in_cloud_mode(address: str) -> None:
    (refused,) = check_address(cloud(public_address=address))
    assert refused.fatal
    (warned,) = check_address(settings(public_address=address))
    assert not warned.fatal


def test_a_public_address_by_dhcp_is_not_static() -> None:
    document = json.loads(cloud().model_dump_json(by_alias=True))
    document["domain"]["public_address"] = "8.8.4.4"
    document["network"]["interfaces"] = {"eth0": {"ipv4": "dhcp", "addresses": ["8.8.4.4/24"]}}
    (problem,) = check_address(Settings.model_validate_json(json.dumps(document)))
    assert "whose addresses come by DHCP" in problem.message
    assert "centralino network set eth0 --address 8.8.4.4/LENGTH" in problem.remedy


def test_the_next_server_is_asked_when_one_is_silent() -> None:
    def ask(_name: str, kind: RecordType, server: Address) -> Answer:
        if server == ip_address("10.0.0.53"):
            raise UnavailableError("silent")
        return Answer(0, (ip_address("10.0.0.5"),) if kind is RecordType.A else ())

    servers = (ip_address("10.0.0.53"), ip_address("10.0.0.54"))
    assert see(NAME, servers, ask).addresses == (ip_address("10.0.0.5"),)
    assert not see(NAME, servers[:1], ask).answered


# --- what is written ----------------------------------------------------------------------------------------


def test_nginx_sends_to_the_name_only_when_told() -> None:
    assert nginx_text(settings()) is None
    assert "return" not in (nginx_text(settings(fqdn=NAME)) or "")
    told = nginx_text(settings(fqdn=NAME, reach_through_domain=True)) or ""
    assert f"return 302 https://{NAME}$request_uri;" in told


def test_each_transport_is_told_the_public_address() -> None:
    assert pjsip_text(settings(fqdn=NAME), []) is None
    text = pjsip_text(cloud(), local_networks(cloud(), TRUTH)) or ""
    for transport in ("udp", "tcp", "tls"):
        block = text.partition(f"[{transport}](+)\n")[2].partition("\n\n")[0]
        assert block.splitlines()[0] == f"external_signaling_address = {PUBLIC}"
        assert "local_net = 10.0.0.0/24" in block


def test_static_addresses_to_come_count_and_not_those_of_now() -> None:
    document = {"network": {"interfaces": {"eth0": {"ipv4": "static", "addresses": ["10.9.0.5/24"]}}}}
    wanted = Settings.model_validate_json(json.dumps(document))
    assert [str(network) for network in local_networks(wanted, TRUTH)] == ["10.9.0.0/24"]
    named = settings(local_networks=["192.168.0.0/16"])
    assert [str(network) for network in local_networks(named, TRUTH)] == ["192.168.0.0/16"]


def test_the_address_towards_the_gateway_comes_first() -> None:
    document = {
        "network": {
            "interfaces": {
                "eth0": {"ipv4": "static", "addresses": ["10.1.0.5/24"]},
                "eth1": {"ipv4": "static", "addresses": ["10.2.0.5/24"], "gateway": "10.2.0.1"},
            }
        }
    }
    wanted = Settings.model_validate_json(json.dumps(document))
    assert [str(address) for address in own_addresses(wanted, Truth())] == ["10.2.0.5", "10.1.0.5"]


def test_ice_offers_the_public_address_in_cloud_mode_alone() -> None:
    own = [ip_address("10.0.0.5")]
    assert f"10.0.0.5 => {PUBLIC},include_local_address" in rtp_text(cloud(), own)  # type: ignore[arg-type]
    assert "ice_host" not in rtp_text(settings(public_address=PUBLIC), own)  # type: ignore[arg-type]


def test_the_names_of_a_certificate() -> None:
    document = {"domain": {"fqdn": NAME}, "certificates": {"names": ["www.example.com", NAME]}}
    assert certificate_names(Settings.model_validate_json(json.dumps(document))) == (NAME, "www.example.com")


# --- the TURN server ----------------------------------------------------------------------------------------


def test_credentials_are_those_of_the_rest_scheme() -> None:
    made = credentials("s3cret", "alice", 60, 1_000_000.7)
    assert made.username == "1000060:alice"
    expected = hmac.digest(b"s3cret", b"1000060:alice", hashlib.sha1)
    assert made.password == base64.b64encode(expected).decode()


def test_coturn_maps_one_to_one_and_relays_into_no_private_network() -> None:
    own = [ip_address("10.0.0.5")]
    text = coturn_text(cloud(), own, Path("/c"), Path("/k"), "mark")
    assert f"external-ip={PUBLIC}/10.0.0.5\n" in text
    assert "min-port=20001\nmax-port=30000\n" in text
    assert "use-auth-secret\n" in text
    assert f"realm={NAME}\n" in text
    assert "denied-peer-ip=10.0.0.0-10.255.255.255\n" in text
    assert "allowed-peer-ip=10.0.0.5\n" in text
    # coturn takes a range that begins and ends with "any" for every address there is.
    assert "::" not in FORBIDDEN_PEERS
    direct = coturn_text(cloud(), [ip_address(PUBLIC)], Path("/c"), Path("/k"), "mark")
    assert "external-ip" not in direct


def test_no_shown_configuration_holds_the_secret() -> None:
    text = coturn_text(cloud(), [], Path("/c"), Path("/k"), "mark")
    assert without_secret(with_secret(text, "s3cret")) == text


# --- the mode below a root of its own -----------------------------------------------------------------------


@pytest.fixture
def box(tmp_path: Path) -> tuple[Places, Platform]:
    """A root with the directories that the packages bring."""
    table = tomllib.loads((REPOSITORY / "appliance" / "platforms" / "debian12.toml").read_text())["box"]
    paths = {name: Path(path) for name, path in table["paths"].items()}
    places = Places(tmp_path)
    for directory in (
        paths["nginx_config"],
        paths["asterisk_config"] / "pjsip.d",
        Path("/var/lib/centralino"),
    ):
        places.on_box(directory).mkdir(parents=True)
    places.on_box(paths["nginx_config"] / "centralino.d").mkdir()
    # The services' accounts are not on this host; whoever runs the test stands for them.
    user = pwd.getpwuid(os.getuid()).pw_name
    accounts = dict.fromkeys(table["users"], user)
    return places, Platform("debian12", "12", table["units"], paths, accounts)


def carry_out(subsystem: Subsystem, old: Settings | None, new: Settings) -> list[Change]:
    changes = list(subsystem.plan(old, new))
    for change in changes:
        subsystem.apply(change)
        if not change.deletes and "edge" not in change.sentence:
            subsystem.apply(change)  # twice equals once
    return changes


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", [Domain, Mode])
def test_forth_and_back_leaves_what_was(
    box: tuple[Places, Platform], kind: type[Domain] | type[Mode]
) -> None:
    places, known = box
    now = [settings()]
    subsystem = kind(places, known, lambda: now[0])
    assert isinstance(subsystem, Subsystem)
    carry_out(subsystem, None, settings())
    before = files(places.root)
    there = cloud(reach_through_domain=True)
    assert carry_out(subsystem, settings(), there)
    now[0] = there
    assert files(places.root) != before
    assert subsystem.plan(there, there) == subsystem.plan(None, there) == []
    assert subsystem.observe().healthy
    carry_out(subsystem, there, settings())
    now[0] = settings()
    left = files(places.root)
    left.pop("etc/centralino/secrets/turn", None)  # made once, kept for the next time
    assert left == before


def test_a_restart_of_asterisk_is_announced_with_the_calls_that_end(box: tuple[Places, Platform]) -> None:
    places, known = box
    for calls, sentence, drops in ((0, "no call is up now", False), (3, "3 live calls end", True)):
        domain = Domain(places, known, settings, live_calls=lambda calls=calls: calls)
        (change,) = [change for change in domain.plan(settings(), cloud()) if change.restarts]
        assert change.restarts == ("asterisk.service",)
        assert sentence in change.sentence
        assert change.drops_calls is drops


def test_the_edge_client_is_deleted_by_name_and_comes_back(box: tuple[Places, Platform]) -> None:
    places, known = box
    edge = places.on_box("/etc/centralino/edge/client.json")
    edge.parent.mkdir(parents=True)
    edge.write_text('{"key": "abc"}')
    mode = Mode(places, known, settings)
    changes = carry_out(mode, settings(), cloud())
    deleting = next(change for change in changes if change.deletes)
    assert deleting.deletes == (str(edge),)
    assert deleting.risky
    assert "abc" not in json.dumps([change.as_json() for change in changes])
    assert not edge.exists()
    carry_out(mode, cloud(), settings())
    assert edge.read_text() == '{"key": "abc"}'
    assert edge.stat().st_mode & 0o777 == 0o600


def test_no_credentials_without_a_relay(box: tuple[Places, Platform]) -> None:
    places, known = box
    with pytest.raises(ApplyFailedError, match="no TURN server"):
        Mode(places, known, settings).turn_credentials("alice", 60, 0.0)
    mode = Mode(places, known, cloud)
    carry_out(mode, settings(), cloud())
    assert mode.turn_credentials("alice", 60, 100.0).username == "160:alice"


def test_the_defaults_are_written_for_provisioning(box: tuple[Places, Platform]) -> None:
    places, known = box
    carry_out(Mode(places, known, settings), settings(), cloud())
    written = json.loads((places.state / "mode-defaults.json").read_text())
    assert written["mode"] == "cloud"
    assert written["defaults"]["sip_transport"] == "TLS"


def test_every_default_of_the_requirements_is_in_the_table() -> None:
    """S-WM-02 and S-WM-03 name eight; each has both values, and the switch's effects are S-WM-04 and 05."""
    keys = [default.key for default in work_modes.DEFAULTS]
    assert len(keys) == len(set(keys))
    assert {
        "user_password", "sip_password", "provisioning", "sip_transport", "ice", "peer_to_peer_media", "turn",
        "smart_working",
    } <= set(keys)  # fmt: skip
    assert all(default.standard and default.cloud for default in work_modes.DEFAULTS)
    for mode, requirement in ((WorkMode.CLOUD, "S-WM-04"), (WorkMode.STANDARD, "S-WM-05")):
        assert {effect.requirement for effect in work_modes.effects(mode)} == {requirement}
