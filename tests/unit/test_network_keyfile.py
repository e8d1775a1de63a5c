"""Settings in, NetworkManager profiles out; golden files lie in golden_network/.

`UPDATE_GOLDEN=1` writes them anew, for a reader to look through.
"""

from __future__ import annotations

import json
import os
from ipaddress import ip_address
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from daemon.network import Network, keyfile
from daemon.network.names_and_time import hosts_text, own_name_text, sources_text
from daemon.network.netlink import (
    IFF_LOWER_UP,
    IFF_UP,
    LOOPBACK,
    OPERATIONAL_UP,
    AddressRow,
    LinkRow,
    route_to,
)
from daemon.network.truth import (
    Link,
    Truth,
    links_from,
    look,
    parse_routes4,
    parse_routes6,
    read_name_servers,
)
from daemon.places import Places
from daemon.run import run
from daemon.settings import Settings
from daemon.settings.network import NetworkSection
from daemon.subsystem import Subsystem

GOLDEN = Path(__file__).parent / "golden_network"
EXAMPLE = NetworkSection.model_validate_json((GOLDEN / "settings.json").read_text())


def section(**fields: object) -> Settings:
    return Settings.model_validate_json(json.dumps({"network": fields}))


def test_golden_profiles() -> None:
    found = {keyfile.file_name(name): text for name, text in keyfile.render(EXAMPLE).items()}
    found[keyfile.GLOBAL_DNS_FILE] = keyfile.render_global_dns(EXAMPLE) or ""
    if os.environ.get("UPDATE_GOLDEN"):
        for name, text in found.items():
            (GOLDEN / name).write_text(text)
    expected = {path.name: path.read_text() for path in GOLDEN.iterdir() if path.name != "settings.json"}
    assert found == expected


def test_a_profile_keeps_its_identity() -> None:
    assert keyfile.profile_uuid("eth0") == keyfile.profile_uuid("eth0") != keyfile.profile_uuid("eth1")


def test_name_servers_of_dhcp_stay_but_search_domains_are_added() -> None:
    settings = section(interfaces={"eth0": {}}, dns={"search": ["example.com"]})
    assert keyfile.render_global_dns(settings.network) is None
    assert keyfile.render(settings.network)["eth0"].count("dns-search=example.com;") == 2


def test_a_gateway_without_an_own_address_becomes_a_route() -> None:
    text = keyfile.render(section(interfaces={"eth0": {"gateway": "192.0.2.1"}}).network)["eth0"]
    assert "route1=0.0.0.0/0,192.0.2.1\n" in text and "gateway=" not in text


names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")


@given(st.dictionaries(names, st.sampled_from([{}, {"enabled": False}, {"mtu": 1400}]), max_size=6))
def test_every_profile_is_an_ini_file_of_its_own(interfaces: dict[str, object]) -> None:
    import configparser

    files = keyfile.render(section(interfaces=interfaces).network)
    assert set(files) == set(interfaces)
    for name, text in files.items():
        parsed = configparser.ConfigParser(interpolation=None, delimiters=("=",))
        parsed.read_string(text)
        assert parsed["connection"]["interface-name"] == name
        assert "/" not in keyfile.file_name(name)


# --- host entries and time servers --------------------------------------------------------------------------


@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_hosts_of_others_stay(current: str) -> None:
    entries = section(hosts=[{"address": "192.0.2.7", "names": ["pbx2.example.com", "pbx2"]}]).network.hosts
    with_ours = hosts_text(current, entries)
    assert "192.0.2.7\tpbx2.example.com pbx2\n" in with_ours
    assert hosts_text(with_ours, entries) == with_ours
    without = hosts_text(with_ours, ())
    assert without == current or without == current + "\n"


def test_a_block_that_was_cut_is_replaced() -> None:
    entries = section(hosts=[{"address": "192.0.2.7", "names": ["pbx2"]}]).network.hosts
    cut = hosts_text("127.0.0.1 localhost\n", entries).partition("# END")[0]
    assert hosts_text(cut, ()) == "127.0.0.1 localhost\n"
    assert "localhost" in hosts_text(None, entries)


def test_time_sources() -> None:
    ntp = section(
        ntp={"servers": ["192.0.2.123", "time.example.com"], "pools": ["pool.example.com"]}
    ).network.ntp
    assert sources_text(ntp).splitlines()[1:] == [
        "server 192.0.2.123 iburst",
        "server time.example.com iburst",
        "pool pool.example.com iburst maxsources 4",
    ]
    assert sources_text(section().network.ntp).splitlines()[1:] == ["pool pool.ntp.org iburst maxsources 4"]


def test_the_node_finds_its_own_name_without_dns() -> None:
    named = own_name_text("127.0.0.1\tlocalhost\n::1 localhost\n", "pbx1")
    assert named == "127.0.0.1\tlocalhost\n127.0.1.1\tpbx1\n::1 localhost\n"
    assert own_name_text(named, "pbx1") == named
    assert own_name_text(named, "pbx2") == named.replace("pbx1", "pbx2")
    assert own_name_text("127.0.1.1 old.example.com old", "pbx1") == "127.0.1.1\tpbx1\n"
    assert own_name_text("", "pbx1") == "127.0.1.1\tpbx1\n"
    assert "localhost" in own_name_text(None, "pbx1")


# --- the subsystem below a root of its own ------------------------------------------------------------------


def below(tmp_path: Path) -> Network:
    network = Network(Places(tmp_path))
    assert isinstance(network, Subsystem)
    return network


def apply_all(network: Network, old: Settings | None, new: Settings) -> list[str]:
    changes = network.plan(old, new)
    for change in changes:
        assert change.risky
        network.apply(change)
        network.apply(change)  # twice equals once
    return [change.sentence for change in changes]


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_forth_and_back_leaves_nothing(tmp_path: Path) -> None:
    network = below(tmp_path)
    empty = Settings()
    one = section(
        interfaces={"eth0": {"ipv4": "static", "addresses": ["192.0.2.10/24"], "gateway": "192.0.2.1"}},
        dns={"servers": ["192.0.2.53"]},
    )
    sentences = apply_all(network, empty, one)
    assert sentences == [
        "Ask the name servers 192.0.2.53",
        "Set eth0: IPv4 static, IPv6 automatic, addresses 192.0.2.10/24, gateway 192.0.2.1",
    ]
    profile = tmp_path / "etc/NetworkManager/system-connections/centralino-eth0.nmconnection"
    assert profile.stat().st_mode & 0o777 == 0o600
    assert network.plan(one, one) == []
    assert apply_all(network, one, empty) == [
        "Ask the name servers that DHCP names",
        "Leave eth0 to the profile that the image brought",
    ]
    assert files(tmp_path) == {}


def test_an_unknown_past_plans_everything_and_removes_what_is_not_wanted(tmp_path: Path) -> None:
    network = below(tmp_path)
    two = section(interfaces={"eth0": {}, "eth1": {}})
    one = section(interfaces={"eth1": {}})
    apply_all(network, None, two)
    foreign = tmp_path / "etc/NetworkManager/system-connections/other.nmconnection"
    foreign.write_text("[connection]\n")
    apply_all(network, None, one)
    assert sorted(path.name for path in foreign.parent.iterdir()) == [
        "centralino-eth1.nmconnection",
        foreign.name,
    ]


def test_parents_come_before_what_stands_on_them(tmp_path: Path) -> None:
    settings = Settings(network=EXAMPLE)
    order = [change.detail.get("interface") for change in below(tmp_path).plan(Settings(), settings)]
    assert order == [None, "eth0", "eth1", "eth2", "eth3", "eth4", "bond0", "bond0.20"]


# --- reading the kernel -------------------------------------------------------------------------------------

ROWS = [
    LinkRow(1, "lo", LOOPBACK, IFF_UP, "", 65536, 0, ""),
    LinkRow(2, "eth0", 1, IFF_UP | IFF_LOWER_UP, "02:00:00:00:00:01", 1500, OPERATIONAL_UP, "veth"),
    LinkRow(3, "eth1", 1, 0, "02:00:00:00:00:02", 1500, 2, ""),
]
ADDRESSES = [
    AddressRow(1, ip_address("127.0.0.1"), 8, False),
    AddressRow(2, ip_address("192.0.2.10"), 24, False),
    AddressRow(2, ip_address("2001:db8::10"), 64, False),
    AddressRow(2, ip_address("2001:db8::bad"), 64, True),
]

ROUTES4 = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
ppp0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""
ZERO = "0" * 32
ROUTES6 = f"""\
{ZERO} 00 {ZERO} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0
20010db8000000000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     eth0
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo
"""


def test_links_are_read() -> None:
    links = links_from(ROWS, ADDRESSES)
    assert list(links) == ["eth0", "eth1"]
    assert [str(address) for address in links["eth0"].addresses] == ["192.0.2.10/24", "2001:db8::10/64"]
    assert links["eth0"].up and links["eth0"].carrier and links["eth0"].kind == "veth"
    assert not links["eth1"].up and links_from([], []) == {}


def test_the_kernel_says_the_same_to_us_and_to_its_own_tool() -> None:
    told = json.loads(run(["ip", "-json", "-details", "address", "show"]).output)
    expected = {
        entry["ifname"]: (
            entry["mtu"],
            entry["address"],
            "LOWER_UP" in entry["flags"],
            [f"{known['local']}/{known['prefixlen']}" for known in entry["addr_info"] if "local" in known],
        )
        for entry in told
        if entry.get("link_type") != "loopback"
    }
    seen = {
        name: (
            link.mtu,
            link.hardware_address,
            link.carrier,
            [address.with_prefixlen for address in link.addresses],
        )
        for name, link in look().links.items()
    }
    assert seen == expected


def test_the_way_to_this_machine_itself_is_its_loopback() -> None:
    way = route_to(ip_address("127.0.0.1"))
    assert way is not None and (way.index, way.gateway) == (1, None)


def test_gateways_and_name_servers_are_read(tmp_path: Path) -> None:
    assert parse_routes4(ROUTES4) == ["192.0.2.1 via eth0"]
    assert parse_routes6(ROUTES6) == ["fe80::1 via eth0"]
    assert parse_routes4("") == parse_routes6("") == []
    file = tmp_path / "resolv.conf"
    file.write_text("# nameserver 9.9.9.9\nnameserver 192.0.2.53\nsearch x\nnameserver\n")
    assert read_name_servers(file) == ("192.0.2.53",)
    assert read_name_servers(tmp_path / "none") == ()


def test_truth_is_json() -> None:
    truth = Truth(links_from(ROWS, ADDRESSES), ("192.0.2.1 via eth0",), ("192.0.2.53",))
    assert json.loads(json.dumps(truth.as_json()))["interfaces"][0]["addresses"] == [
        "192.0.2.10/24",
        "2001:db8::10/64",
    ]
    assert Link("x").as_json()["addresses"] == []
