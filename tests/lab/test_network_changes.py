"""Network changes as an admin makes them: over SSH, with a real session that must live or come back."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lab import LOGS, Client, Lab, Node
from appliance.lab_host import Result, wait_for
from appliance.lab_network import enter

pytestmark = pytest.mark.lab

UNIT = "centralinod.service"
GATEWAY = "10.77.0.1"
STATIC = ("--address", "10.77.0.11/24", "--gateway", GATEWAY, "--ipv6", "off")


class Admin:
    """An SSH session of root from the lan, kept open: each line that goes in must come back."""

    def __init__(self, client: Client, node: Node, directory: Path) -> None:
        self.key = directory / "key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True, timeout=30
        )
        node.run(["mkdir", "-p", "-m", "700", "/root/.ssh"])
        node.run(["tee", "/root/.ssh/authorized_keys"], input_text=self.key.with_suffix(".pub").read_text())
        self._client, self._target = client, node.address()
        self._session = subprocess.Popen(
            self._ssh("cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.lives(20), "the session did not begin"

    def _ssh(self, *words: str) -> list[str]:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        flags = [word for option in options for word in ("-o", option)]
        command = ["ssh", *flags, "-i", str(self.key), f"root@{self._target}", *words]
        return enter(self._client.namespace.name, command)

    def run(self, *words: str, limit_seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """One command over a session of its own, as an admin types it."""
        return subprocess.run(
            self._ssh(*words), capture_output=True, text=True, timeout=limit_seconds, check=False
        )

    def lives(self, limit_seconds: float) -> bool:
        """Whether the one session that was opened first still echoes."""
        assert self._session.stdin and self._session.stdout
        word = f"{time.monotonic()}\n".encode()
        self._session.stdin.write(word)
        self._session.stdin.flush()
        ends = time.monotonic() + limit_seconds
        heard = b""
        while (left := ends - time.monotonic()) > 0:
            if select.select([self._session.stdout], [], [], left)[0]:
                part = self._session.stdout.read1(4096)
                if not part:
                    return False
                heard += part
                if heard.endswith(word):
                    return True
        return False

    def close(self) -> None:
        self._session.kill()
        self._session.wait()


@pytest.fixture(scope="module")
def lab_of_one(
    lab_root: Path,
    code: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Lab]:
    with Lab(lab_root, tmp_path_factory.mktemp("network") / "lab") as lab:
        lab.add_node(binds=code)
        lab.add_client("desk")
        lab.power_on_all()
        lab.node("node1").wait_active(UNIT)
        yield lab
        if request.session.testsfailed:
            lab.save_logs(LOGS / "network-changes")


@pytest.fixture(scope="module")
def node(lab_of_one: Lab) -> Node:
    made = lab_of_one.node("node1")
    assert centralino(made, "network", "set", "eth0", *STATIC, "--yes").ok
    assert centralino(made, "config", "confirm").ok
    return made


@pytest.fixture
def admin(lab_of_one: Lab, node: Node, tmp_path: Path) -> Iterator[Admin]:
    made = Admin(lab_of_one.clients["desk"], node, tmp_path)
    yield made
    made.close()


def centralino(node: Node, *words: str) -> Result:
    return node.run(["centralino", *words], check=False, limit_seconds=120)


def addresses(node: Node, interface: str = "eth0") -> set[str]:
    links = json.loads(node.run(["ip", "-json", "-4", "address", "show", "dev", interface]).output)
    return {f"{entry['local']}/{entry['prefixlen']}" for link in links for entry in link["addr_info"]}


def newest(node: Node) -> dict[str, str]:
    return dict(json.loads(centralino(node, "config", "history", "--json").output)[0])


def test_a_wrong_gateway_returns_within_seconds_and_names_it(node: Node, admin: Admin) -> None:
    begun = time.monotonic()
    done = admin.run("centralino network set eth0 --gateway 10.77.0.99 --yes")
    assert done.returncode == 7, done.stdout + done.stderr
    assert "put back: the gateway 10.77.0.99 does not answer on eth0" in done.stderr
    assert time.monotonic() - begun < 20  # and not the 60 s of an unconfirmed change
    assert f"default via {GATEWAY}" in node.run(["ip", "route"]).output
    assert admin.lives(10)
    assert newest(node)["state"] == "rolled_back"


def test_a_dead_name_server_returns_too(node: Node, admin: Admin) -> None:
    done = admin.run("centralino network dns 10.77.0.98 --yes")
    assert "no name server answers (10.77.0.98)" in done.stderr
    assert admin.lives(10)


def test_a_wrong_address_cuts_the_session_and_it_comes_back_by_itself(node: Node, admin: Admin) -> None:
    change = ("--address", "10.99.0.11/24", "--gateway", "none", "--confirm", "8", "--yes")
    assert centralino(node, "network", "set", "eth0", *change).ok
    assert addresses(node) == {"10.99.0.11/24"}
    assert not admin.lives(2)
    wait_for(lambda: addresses(node) == {"10.77.0.11/24"}, 30, "the old address")
    assert admin.lives(40), "the very same TCP connection must go on"
    assert newest(node)["reason"] == "was not confirmed in time"


def test_a_daemon_killed_meanwhile_still_returns(node: Node, admin: Admin) -> None:
    change = ("--address", "10.99.0.12/24", "--gateway", "none", "--confirm", "10", "--yes")
    assert centralino(node, "network", "set", "eth0", *change).ok
    node.signal_unit(UNIT, signal.SIGKILL)
    wait_for(lambda: addresses(node) == {"10.77.0.11/24"}, 40, "the old address")
    assert admin.lives(40)
    assert newest(node)["state"] == "rolled_back"


def test_a_daemon_that_died_before_it_looked_looks_when_it_is_back(
    node: Node, admin: Admin, lab_of_one: Lab
) -> None:
    assert centralino(node, "network", "set", "eth0", "--mtu", "1400", "--confirm", "600", "--yes").ok
    node.run(["systemctl", "stop", UNIT])
    lab_of_one.partition(["gateway"], ["node1"])
    try:
        node.run(["systemctl", "start", UNIT])
        wait_for(lambda: newest(node)["state"] == "rolled_back", 40, "the early return")
    finally:
        lab_of_one.heal()
    assert newest(node)["reason"] == f"was not kept: the gateway {GATEWAY} does not answer on eth0"
    assert admin.lives(10)


def test_networkmanagers_own_checkpoint_returns_when_the_daemon_stays_dead(node: Node, admin: Admin) -> None:
    change = ("--address", "10.99.0.13/24", "--gateway", "none", "--confirm", "5", "--yes")
    assert centralino(node, "network", "set", "eth0", *change).ok
    node.run(["systemctl", "stop", UNIT])
    try:
        wait_for(lambda: addresses(node) == {"10.77.0.11/24"}, 60, "NetworkManager's return")
        assert node.run(["systemctl", "is-active", UNIT], check=False).output.strip() == "inactive"
        assert admin.lives(60)
    finally:
        node.run(["systemctl", "start", UNIT])
    wait_for(lambda: newest(node)["state"] == "rolled_back", 30, "the daemon's own account of it")
    assert centralino(node, "status", "--wait", "60").ok


def test_a_confirmed_change_leaves_no_checkpoint_behind(node: Node) -> None:
    assert centralino(node, "network", "set", "eth0", "--mtu", "1400", "--confirm", "60", "--yes").ok
    checkpoints = [
        *("busctl", "get-property", "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"),
        *("org.freedesktop.NetworkManager", "Checkpoints"),
    ]
    assert node.run(checkpoints).output.startswith("ao 1")
    assert centralino(node, "config", "confirm").ok
    assert node.run(checkpoints).output.strip() == "ao 0"
    assert node.run(["cat", "/sys/class/net/eth0/mtu"]).output.strip() == "1400"
    assert centralino(node, "network", "set", "eth0", "--mtu", "none", "--confirm", "0", "--yes").ok


def test_a_shared_address_outlives_the_change_and_the_return(node: Node) -> None:
    node.run(["ip", "address", "add", "10.77.0.200/32", "dev", "eth0", "noprefixroute"])
    try:
        change = ("--address", "10.77.0.11/24", "--address", "10.77.0.31/24", "--yes")
        assert centralino(node, "network", "set", "eth0", *change).ok
        assert addresses(node) == {"10.77.0.11/24", "10.77.0.31/24", "10.77.0.200/32"}
        assert centralino(node, "config", "return").ok
        assert addresses(node) == {"10.77.0.11/24", "10.77.0.200/32"}
        assert newest(node)["reason"] == "was taken back by root"
    finally:
        node.run(["ip", "address", "delete", "10.77.0.200/32", "dev", "eth0"])


@pytest.mark.parametrize("taken", ["10.77.0.1/24", "fd77::1/64"])
def test_an_address_of_another_machine_is_refused(node: Node, taken: str) -> None:
    family = ("--ipv6", "static") if ":" in taken else ("--address", "10.77.0.11/24")
    refused = centralino(node, "network", "set", "eth0", *family, "--address", taken, "--yes")
    assert refused.status == 3
    assert f"{taken.partition('/')[0]} is in use already on eth0 by 02:4c:4d:00:00:01" in refused.errors


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("set", "eth0", "--gateway", "192.0.2.1"), "192.0.2.1 is outside every subnet of this interface"),
        (("set", "eth1", "--address", "10.77.0.50/25"), "overlaps 10.77.0.0/24 on eth0"),
        (("set", "eth7", "--dhcp"), "there is no such interface; this box has: eth0, eth1"),
        (
            ("route", "add", "198.51.100.0/24", "--via", "192.0.2.1", "-i", "eth0"),
            "outside every subnet of eth0",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_its_remedy(
    node: Node, words: tuple[str, ...], sentence: str
) -> None:
    refused = centralino(node, "network", *words, "--yes")
    assert refused.status == 3, refused.output + refused.errors
    assert sentence in refused.errors


def test_a_pair_is_not_cut_in_two(node: Node) -> None:
    pair = json.dumps(
        {
            "enabled": True,
            "peer_address": "10.77.0.12",
            "management_address": "10.77.0.11",
            "shared_addresses": [{"address": "10.77.0.200/24", "interface": "eth0", "primary": True}],
        }
    )
    moved = json.dumps({"ipv4": "static", "ipv6": "off", "addresses": ["10.99.0.11/24"]})
    values = (f"fault_tolerance={pair}", f"network.interfaces.eth0={moved}")
    refused = centralino(node, "config", "set", *values, "--dry-run")
    assert refused.status == 3
    assert (
        "10.77.0.200 (fault_tolerance.shared_addresses.0) is outside every subnet of eth0" in refused.errors
    )
    assert "10.77.0.11 is no address of this node any more" in refused.errors


def test_a_pulled_cable_is_an_alarm_at_once_and_over_when_it_is_back(node: Node) -> None:
    assert centralino(
        node,
        "network",
        "set",
        "eth1",
        "--address",
        "10.78.0.11/24",
        "--ipv6",
        "off",
        "--confirm",
        "0",
        "--yes",
    ).ok

    def alarms() -> set[str]:
        state = json.loads(centralino(node, "status", "--json").output)
        return {alarm["id"] for alarm in state["alarms"]}

    assert "network.eth1" not in alarms()
    node.link_down("mgmt")
    wait_for(lambda: "network.eth1" in alarms(), 5, "the alarm")
    node.link_up("mgmt")
    wait_for(lambda: "network.eth1" not in alarms(), 5, "the end of the alarm")


def test_the_name_is_known_without_dns(node: Node) -> None:
    assert centralino(node, "network", "hostname", "pbx7", "--yes").ok
    assert node.run(["getent", "hosts", "pbx7"]).output.split() == ["127.0.1.1", "pbx7"]
    assert node.run(["hostname"]).output.strip() == "pbx7"


def test_time_servers_replace_those_of_the_image(node: Node) -> None:
    assert centralino(node, "network", "ntp", GATEWAY, "--yes").ok
    wait_for(lambda: GATEWAY in node.run(["chronyc", "-n", "sources"]).output, 10, "chrony's new source")
    assert len(node.run(["chronyc", "-n", "sources"]).output.splitlines()) == 3
    assert centralino(node, "network", "ntp", "--default", "--yes").ok


def test_a_reboot_meanwhile_returns(node: Node, lab_of_one: Lab, tmp_path: Path) -> None:
    change = ("--address", "10.99.0.14/24", "--gateway", "none", "--confirm", "600", "--yes")
    assert centralino(node, "network", "set", "eth0", *change).ok
    node.power_off()
    node.power_on()
    node.wait_active(UNIT)
    wait_for(lambda: addresses(node) == {"10.77.0.11/24"}, 40, "the old address")
    assert newest(node)["reason"] == "was not confirmed before the reboot"
    again = Admin(lab_of_one.clients["desk"], node, tmp_path)
    assert again.lives(10)
    again.close()


def test_without_dhcp_the_box_serves_long_before_a_minute(
    lab_root: Path, code: dict[str, str], tmp_path: Path
) -> None:
    """NetworkManager's own wait is a minute; nothing here needs an address to start."""
    with Lab(lab_root, tmp_path / "lab") as lab:
        fresh = lab.add_node(binds=code, addressing="none")
        fresh.power_on(120)
        fresh.wait_active("asterisk.service", 50)
        fresh.wait_active("nginx.service", 50)
        devices = fresh.run(["nmcli", "-g", "DEVICE,CONNECTION", "device"]).output.splitlines()
        assert {"eth0:any-card", "eth1:any-card"} <= set(devices)
        assert "NetworkManager-wait-online" not in fresh.run(["systemctl", "--failed", "--plain"]).output
