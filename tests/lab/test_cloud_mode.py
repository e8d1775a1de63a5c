"""Domain and work mode on a node behind NAT 1:1: DNS, nginx, Asterisk, coturn, a phone behind its own NAT.

The world: the lab's gateway translates 203.0.113.10 to the node and back; `home` is a network of its own
behind a router that masquerades to 203.0.113.60; `peer` has the public address 203.0.113.50.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.lab import LOGS, Client, Lab, Node
from appliance.lab_host import Result, execute, wait_for
from appliance.lab_network import enter
from appliance.lab_sip import SCENARIOS, add_phone
from tests.support.shielded_box import phone

pytestmark = pytest.mark.lab

UNIT = "centralinod.service"
GATEWAY = "10.77.0.1"
NAME, PUBLIC, HOME, PEER = "pbx.example.com", "203.0.113.10", "203.0.113.60", "203.0.113.50"
EDGE_CLIENT = '{"edge": "edge.example.com", "key": "abc"}\n'
TRANSLATION = """
table ip cloud {{
    chain in {{ type nat hook prerouting priority -100; ip daddr {public} dnat to {node}; }}
    chain out {{
        type nat hook postrouting priority 100;
        ip saddr {node} ip daddr 203.0.113.0/24 snat to {public};
    }}
}}
"""
MASQUERADE = """
table ip home {{
    chain out {{ type nat hook postrouting priority 100; ip saddr 192.168.50.0/24 snat to {home}; }}
}}
"""


@dataclass
class World:
    lab: Lab
    node: Node
    inside: Client
    peer: Client
    home: str  # the namespace of the phone at home
    names: subprocess.Popen[bytes]

    def centralino(self, *words: str) -> Result:
        return self.node.run(["centralino", *words], check=False, limit_seconds=120)


def serve_names(client: Client, address: str) -> subprocess.Popen[bytes]:
    options = [
        *("--keep-in-foreground", "--conf-file=/dev/null", "--bind-interfaces", "--no-resolv", "--no-hosts"),
        *("--local=/#/", "--user=root", "--log-facility=-", "--pid-file=", "--interface=eth0"),
    ]
    return client.start(["dnsmasq", *options, f"--host-record={NAME},{address}"], "names")


def make_home(lab: Lab, router: Client) -> str:
    """A network behind a router that masquerades; returns the namespace of its only phone."""
    home = lab.network.namespace("home")
    here = router.namespace.name
    execute(["ip", "netns", "add", home])
    link = ["ip", "-n", here, "link", "add", "inner", "type", "veth", "peer", "name", "eth0", "netns", home]
    execute(link)
    for words in (
        ["-n", here, "addr", "add", f"{HOME}/32", "dev", "eth0"],
        ["-n", here, "addr", "add", "192.168.50.1/24", "dev", "inner"],
        ["-n", here, "link", "set", "inner", "up"],
        ["-n", home, "addr", "add", "192.168.50.2/24", "dev", "eth0"],
        ["-n", home, "link", "set", "lo", "up"],
        ["-n", home, "link", "set", "eth0", "up"],
        ["-n", home, "route", "add", "default", "via", "192.168.50.1"],
    ):
        execute(["ip", *words])
    execute(enter(here, ["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]))
    execute(enter(here, ["nft", "-f", "-"]), input_text=MASQUERADE.format(home=HOME))
    return home


@pytest.fixture(scope="module")
def world(
    lab_root: Path,
    code: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[World]:
    with Lab(lab_root, tmp_path_factory.mktemp("cloud") / "lab") as lab:
        lab.add_node(binds=code)
        clients = {name: lab.add_client(name) for name in ("inside", "names", "peer", "router")}
        lab.power_on_all()
        node = lab.node("node1")
        node.wait_active(UNIT)
        gateway = lab.network.namespace("gateway")
        execute(["ip", "-n", clients["peer"].namespace.name, "addr", "add", f"{PEER}/32", "dev", "eth0"])
        for address, client in ((PEER, "peer"), (HOME, "router")):
            execute(["ip", "-n", gateway, "route", "add", f"{address}/32", "via", clients[client].address()])
        rules = TRANSLATION.format(public=PUBLIC, node=node.address())
        execute(enter(gateway, ["nft", "-f", "-"]), input_text=rules)
        home = make_home(lab, clients["router"])
        names = serve_names(clients["names"], PUBLIC)
        made = World(lab, node, clients["inside"], clients["peer"], home, names)
        static = ("--address", "10.77.0.11/24", "--gateway", "10.77.0.1", "--ipv6", "off", "--confirm", "0")
        assert made.centralino("network", "set", "eth0", *static, "--yes").ok
        dns = ("dns", clients["names"].address(), "--confirm", "0", "--yes")
        assert made.centralino("network", *dns).ok
        assert made.centralino("status", "--wait", "90").ok
        yield made
        if request.session.testsfailed:
            lab.save_logs(LOGS / "cloud")


def coturn(world: World) -> str:
    return world.node.run(["systemctl", "is-active", "coturn"], check=False).output.strip()


def test_cloud_mode_is_refused_without_its_preconditions(world: World) -> None:
    refused = world.centralino("mode", "set", "cloud", "--yes")
    assert refused.status == 3
    assert "domain.fqdn: is needed in cloud mode" in refused.errors
    assert "domain.public_address: is needed in cloud mode" in refused.errors
    private = ["domain.fqdn=" + NAME, "domain.public_address=192.168.7.1", "mode.mode=cloud", "--yes"]
    refused = world.centralino("config", "set", *private)
    assert refused.status == 3
    assert "192.168.7.1 is no public address" in refused.errors
    assert f"{NAME} leads to {PUBLIC} inside, which is no address of this box" in refused.errors
    unknown = ["domain.fqdn=no.example.com", f"domain.public_address={PUBLIC}", "mode.mode=cloud", "--yes"]
    refused = world.centralino("config", "set", *unknown)
    assert "no.example.com does not exist for the name servers of this box" in refused.errors


def test_split_dns_is_explained_and_not_refused(world: World) -> None:
    looked = world.centralino("domain", "set", NAME, "--public-address", PUBLIC, "--dry-run")
    assert looked.ok
    assert "phones here go out and in again through the router" in looked.output
    assert "split DNS" in looked.output


def test_the_domain_reaches_asterisk_and_the_plan_says_what_it_costs(world: World) -> None:
    words = ("domain", "set", NAME, "--public-address", PUBLIC, "--public-resolver", "10.77.0.97")
    plan = json.loads(world.centralino(*words, "--dry-run", "--json").output)["plan"]
    assert plan["restarts"] == ["asterisk.service"]
    assert "no call is up now" in next(c["sentence"] for c in plan["changes"] if c["restarts"])
    done = world.centralino(*words, "--yes")
    assert done.ok, done.errors
    assert "could not be checked" not in done.output  # asked of outside only where it matters
    shown = world.node.run(["asterisk", "-rx", "pjsip show transport udp"]).output
    assert f"external_media_address     : {PUBLIC}" in shown
    assert "local_net                  : 10.77.0.0/255.255.255.0" in shown
    assert world.centralino("status", "--wait", "60").ok


def test_a_phone_inside_hears_the_own_address(world: World, tmp_path: Path) -> None:
    account = add_phone(world.node, "1002")
    accounts = tmp_path / "accounts.csv"
    accounts.write_text(
        f"SEQUENTIAL\n1002;[authentication username=1002 password={account.password}];600;18000\n"
    )
    log = tmp_path / "messages.log"
    sipp = [
        *(
            "sipp",
            f"{world.node.address()}:5060",
            "-sf",
            str(SCENARIOS / "lab_call.xml"),
            "-inf",
            str(accounts),
        ),
        *("-m", "1", "-i", world.inside.address(), "-nostdin", "-d", "500", "-timeout", "20s"),
        *("-trace_msg", "-message_file", str(log)),
    ]
    assert world.inside.run(sipp, check=False, limit_seconds=30).ok
    answer = log.read_text(errors="replace").partition("SIP/2.0 200 OK")[2]
    assert f"c=IN IP4 {world.node.address()}" in answer
    assert PUBLIC not in answer.partition("BYE")[0]


def test_reaching_through_the_domain_sends_browsers_to_the_name(world: World) -> None:
    assert world.centralino("domain", "set", "--reach-through-domain", "--confirm", "0", "--yes").ok
    address = world.node.address()

    def head(path: str, host: str = address) -> str:
        ask = ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "--max-time", "5"]
        return world.inside.run([*ask, "-H", f"Host: {host}", f"https://{address}{path}"]).output

    # nginx's old workers answer for a moment longer.
    wait_for(lambda: head("/x?y=1") == f"302 https://{NAME}/x?y=1", 10, "the redirect")
    assert head("/", NAME).startswith("200")
    assert head("/health").startswith("200")
    assert world.centralino("domain", "set", "--reach-by-address", "--confirm", "0", "--yes").ok
    wait_for(lambda: head("/").startswith("200"), 10, "the end of the redirect")


def test_the_whole_plan_of_the_switch_is_shown_with_what_it_deletes(world: World) -> None:
    world.node.run(["mkdir", "-p", "-m", "700", "/etc/centralino/edge"])
    world.node.run(["tee", "/etc/centralino/edge/client.json"], input_text=EDGE_CLIENT)
    shown = world.centralino("mode", "set", "cloud", "--dry-run")
    assert shown.ok, shown.errors
    for sentence in (
        "Delete the configuration of the edge client",
        "deletes /etc/centralino/edge/client.json",
        "Every phone must be provisioned again",
        "Start coturn",
        "is self-signed",
        "could not be checked: the name server 10.77.0.97 does not answer",
    ):
        assert sentence in shown.output, sentence
    assert "abc" not in shown.output  # the edge client's key


def test_the_switch_brings_the_relay_and_history_takes_it_back(world: World) -> None:
    switched = world.centralino("mode", "set", "cloud", "--yes")
    assert switched.ok, switched.errors
    assert not world.node.path("/etc/centralino/edge/client.json").exists()
    wait_for(lambda: coturn(world) == "active", 20, "coturn")
    assert world.centralino("config", "return").ok
    assert world.node.run(["cat", "/etc/centralino/edge/client.json"]).output == EDGE_CLIENT
    wait_for(lambda: coturn(world) == "inactive", 20, "the end of coturn")
    assert "lt-cred-mech" in world.node.run(["cat", "/etc/turnserver.conf"]).output


def test_cloud_mode_stays_when_it_is_confirmed(world: World) -> None:
    assert world.centralino("mode", "set", "cloud", "--yes").ok
    assert world.centralino("config", "confirm").ok
    assert world.centralino("status", "--wait", "60").ok
    modes = world.node.run(
        ["stat", "-c", "%a %U", "/etc/turnserver.conf", "/etc/centralino/secrets/turn"]
    ).output
    assert modes.splitlines() == ["600 turnserver", "600 root"]
    secret = world.node.run(["cat", "/etc/centralino/secrets/turn"]).output
    commands = world.node.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).output
    everything = world.node.run(["journalctl", "--no-pager"]).output + commands
    everything += world.centralino("config", "show").output + world.centralino("audit").output
    assert len(secret) == 64
    assert secret not in everything


def test_a_phone_behind_nat_hears_the_public_address(world: World, tmp_path: Path) -> None:
    account = add_phone(world.node, "1001")
    accounts = tmp_path / "accounts.csv"
    accounts.write_text(
        f"SEQUENTIAL\n1001;[authentication username=1001 password={account.password}];600;18000\n"
    )
    log = tmp_path / "messages.log"
    sipp = [
        *("sipp", f"{PUBLIC}:5060", "-sf", str(SCENARIOS / "lab_call.xml"), "-inf", str(accounts)),
        *("-m", "1", "-i", "192.168.50.2", "-nostdin", "-d", "500", "-timeout", "20s", "-timeout_error"),
        *("-trace_msg", "-message_file", str(log)),
    ]
    done = execute(enter(world.home, sipp), check=False, limit_seconds=30)
    heard = log.read_text(errors="replace")
    answer = heard[heard.index("SIP/2.0 200 OK") :]
    assert done.ok, heard[-2000:]
    assert f"c=IN IP4 {PUBLIC}" in answer
    assert f"Contact: <sip:{PUBLIC}:5060>" in answer
    assert world.node.address() not in answer.partition("a=rtpmap")[0]


def test_a_phone_is_admitted_from_a_new_address_once_it_has_authenticated(world: World) -> None:
    account, stranger = add_phone(world.node, "1003"), "203.0.113.51"

    def comes_from(address: str) -> None:
        words = ["ip", "route", "replace", f"{PUBLIC}/32", "via", GATEWAY, "src", address]
        world.peer.run(words)

    def known() -> str:
        return world.node.run(["nft", "list", "set", "inet", "centralino", "phones4"]).output

    gateway = world.lab.network.namespace("gateway")
    world.peer.run(["ip", "address", "replace", f"{stranger}/32", "dev", "eth0"])
    execute(["ip", "-n", gateway, "route", "replace", f"{stranger}/32", "via", world.peer.address()])
    comes_from(PEER)
    assert PEER not in known()
    answered = phone(world.peer, "register", PUBLIC, account.number, account.password)
    assert answered["statuses"] == [200]
    wait_for(lambda: PEER in known(), 10, "the phone's address in the kernel's set")
    # More at once than the kernel lets a stranger send.
    assert len(phone(world.peer, "burst", PUBLIC, "150")["statuses"]) > 120  # type: ignore[arg-type]
    comes_from(stranger)
    assert len(phone(world.peer, "burst", PUBLIC, "150")["statuses"]) < 100  # type: ignore[arg-type]
    assert stranger not in known()


def allocate(world: World, user: str, password: str, peer: str, *options: str) -> Result:
    """Relay five packets to a peer that sends them back."""
    words = ["turnutils_uclient", *options, "-n", "5", "-m", "1", "-r", "3480", "-u", user, "-w", password]
    return world.inside.run([*words, "-e", peer, world.node.address()], check=False, limit_seconds=60)


def test_the_relay_serves_whoever_has_credentials_of_now(world: World) -> None:
    world.peer.start(["turnutils_peer", "-L", PEER, "-p", "3480"], "peer")
    made = json.loads(
        world.centralino("domain", "turn-credentials", "alice", "--seconds", "120", "--json").output
    )
    assert made["uris"][0] == f"turn:{NAME}:3478?transport=udp"
    for options in ((), ("-t",)):
        good = allocate(world, made["username"], made["password"], PEER, *options)
        assert good.ok, good.output + good.errors
        assert "Total lost packets 0 (0.000000%)" in good.output + good.errors
    assert not allocate(world, made["username"], "wrong", PEER).ok


def test_credentials_that_have_ended_are_refused(world: World) -> None:
    secret = world.node.run(["cat", "/etc/centralino/secrets/turn"]).output
    user = f"{int(time.time()) - 5}:alice"
    password = base64.b64encode(hmac.new(secret.encode(), user.encode(), hashlib.sha1).digest()).decode()
    refused = allocate(world, user, password, PEER)
    assert not refused.ok
    assert "Cannot complete Allocation" in refused.output + refused.errors


@pytest.mark.parametrize("forbidden", ["10.77.0.1", "127.0.0.1", "192.168.50.2", "169.254.169.254"])
def test_the_relay_is_no_door_into_private_networks(world: World, forbidden: str) -> None:
    made = json.loads(world.centralino("domain", "turn-credentials", "mallory", "--json").output)
    refused = allocate(world, made["username"], made["password"], forbidden)
    assert not refused.ok
    assert "403 (Forbidden IP)" in refused.output + refused.errors


def test_the_relay_speaks_tls_on_its_one_port(world: World) -> None:
    ask = ["timeout", "10", "openssl", "s_client", "-connect", f"{world.node.address()}:3478"]
    certificate = "/etc/centralino/tls/box.crt"
    subject = world.node.run(["openssl", "x509", "-in", certificate, "-noout", "-subject"]).output.strip()
    for _ in range(4):
        assert subject in world.inside.run(ask, check=False, input_text="").output


def test_standard_mode_again_stops_the_relay_and_brings_the_edge_client_back(world: World) -> None:
    assert world.centralino("mode", "set", "standard", "--confirm", "0", "--yes").ok
    assert world.node.run(["cat", "/etc/centralino/edge/client.json"]).output == EDGE_CLIENT
    listening = world.node.run(["ss", "-Hlntu"]).output
    assert ":3478" not in listening
    assert world.centralino("status", "--wait", "60").ok
