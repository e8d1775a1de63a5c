"""The ruleset in a real kernel: accepted, atomic, and what it admits and keeps."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firewall.policy import Network, Policy, ShieldLimits, TimedNetwork
from firewall.ports import Mode, Protocol, Service, Zone
from firewall.render import failsafe, render

pytestmark = pytest.mark.netns


class Namespace:
    """One network namespace and a way to run things in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *arguments],
            input=script,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def load(self, script: str) -> None:
        done = self.run("nft", "-f", "-", script=script)
        assert done.returncode == 0, done.stderr

    def elements(self, name: str) -> list[object]:
        done = self.run("nft", "-j", "list", "set", "inet", "centralino", name)
        assert done.returncode == 0, done.stderr
        entry = json.loads(done.stdout)["nftables"][1]["set"]
        return list(entry.get("elem", []))


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    name = f"centralino-fw-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield Namespace(name)
    subprocess.run(["ip", "netns", "del", name], check=True)


networks = st.one_of(
    st.builds(
        lambda address, length: ip_network((int(address), length), strict=False),
        st.builds(IPv4Address, st.integers(0, 2**32 - 1)),
        st.integers(1, 32),
    ),
    st.builds(
        lambda address, length: ip_network((IPv6Address(address), length), strict=False),
        st.integers(0, 2**128 - 1),
        st.integers(1, 128),
    ),
)
several = st.lists(networks, max_size=6).map(tuple)
timed = st.lists(
    st.builds(TimedNetwork, networks, st.one_of(st.none(), st.floats(0, 1e10))),
    max_size=5,
    # One network twice with different ends would be refused; the policy's builder merges them before.
    unique_by=lambda entry: entry.network.network_address,
).map(tuple)
extra_services = st.builds(
    lambda protocol, first, width: Service("extra", protocol, first, min(first + width, 65535), "S-FW-01"),
    st.sampled_from(Protocol),
    st.integers(1, 65535),
    st.integers(0, 5000),
)
policies = st.builds(
    Policy,
    mode=st.sampled_from(Mode),
    local=several,
    trusted=several,
    management=several,
    peer=several,
    blocked=timed.map(lambda entries: tuple(TimedNetwork(entry.network) for entry in entries)),
    interfaces=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9.-]{0,13}", fullmatch=True), st.sampled_from([Zone.TRUSTED, Zone.PUBLIC])
    ),
    extra=st.lists(st.tuples(extra_services, several), max_size=4).map(tuple),
    limits=st.builds(ShieldLimits, st.integers(1, 10000), st.integers(1, 10000)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(policy=policies, session=st.builds(IPv4Address, st.integers(2**24, 2**31)))
def test_any_policy_is_accepted_and_keeps_the_session_that_applies_it(
    namespace: Namespace, policy: Policy, session: IPv4Address
) -> None:
    applying: Network = ip_network(f"{session}/32")
    script = render(Policy(**{**policy.__dict__, "session": (applying,)}))
    namespace.load(script)
    kept = json.dumps(namespace.elements("session4"))
    assert str(session) in kept
    rules = namespace.run("nft", "list", "chain", "inet", "centralino", "input").stdout.splitlines()
    admits = next(number for number, line in enumerate(rules) if "@session4" in line and "accept" in line)
    drops = [
        number for number, line in enumerate(rules) if "saddr" in line and line.rstrip().endswith("drop")
    ]
    assert all(admits < number for number in drops)


def test_a_reload_keeps_what_packets_and_the_shield_put_in(namespace: Namespace) -> None:
    namespace.load(render(Policy(Mode.CLOUD)))
    namespace.load("add element inet centralino banned4 { 203.0.113.9 timeout 600s }\n")
    namespace.load(render(Policy(Mode.STANDARD)))
    assert "203.0.113.9" in json.dumps(namespace.elements("banned4"))


def test_a_script_with_one_bad_line_changes_nothing(namespace: Namespace) -> None:
    namespace.load(render(Policy(Mode.CLOUD)))
    before = namespace.run("nft", "-s", "list", "ruleset").stdout
    done = namespace.run("nft", "-f", "-", script=render(Policy(Mode.STANDARD)) + "add rule nonsense\n")
    assert done.returncode != 0
    assert namespace.run("nft", "-s", "list", "ruleset").stdout == before


def test_other_tables_stay_untouched(namespace: Namespace) -> None:
    namespace.load("add table ip foreign\nadd chain ip foreign keep\n")
    namespace.load(render(Policy(Mode.CLOUD)))
    namespace.load(failsafe((ip_network("192.0.2.0/24"),)))
    assert namespace.run("nft", "list", "table", "ip", "foreign").returncode == 0


def test_the_failsafe_policy_replaces_a_full_one(namespace: Namespace) -> None:
    namespace.load(render(Policy(Mode.CLOUD)))
    namespace.load(failsafe((ip_network("192.0.2.0/24"),)))
    rules = namespace.run("nft", "list", "chain", "inet", "centralino", "open").stdout
    assert "accept" not in rules
    assert "192.0.2.0/24" in json.dumps(namespace.elements("management4")) or "192.0.2.0" in json.dumps(
        namespace.elements("management4")
    )
