"""keepalived itself reads the configuration without a complaint."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from fault_tolerance.keepalived import Adverts, Election, Held, render

pytestmark = pytest.mark.netns


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"centralino-vrrp-{os.getpid()}"
    for command in (
        f"ip netns add {name}",
        f"ip -n {name} link add eth0 type veth peer name far0",
        f"ip -n {name} link add eth1 type veth peer name far1",
        f"ip -n {name} address add 10.0.0.1/24 dev eth0",
        f"ip -n {name} link set eth0 up",
        f"ip -n {name} link set eth1 up",
    ):
        assert run(*command.split()).returncode == 0, command
    yield name
    run("ip", "netns", "del", name)


@pytest.mark.parametrize("adverts", Adverts)
def test_without_a_complaint(namespace: str, tmp_path: Path, adverts: Adverts) -> None:
    election = Election(
        own=ip_address("10.0.0.1"),
        peer=ip_address("10.0.0.2"),
        interface="eth0",
        shared=(
            Held(ip_interface("10.0.0.10/24"), "eth0"),
            Held(ip_interface("2001:db8::10/64"), "eth0"),
            Held(ip_interface("192.0.2.10/24"), "eth1"),
        ),
        router=51,
        adverts=adverts,
        second=True,
        directory=tmp_path,
    )
    configuration = tmp_path / "keepalived.conf"
    configuration.write_text(render(election))
    log = tmp_path / "log"
    done = run(
        *("ip", "netns", "exec", namespace, "keepalived"),
        *(f"--config-test={log}", "--use-file", str(configuration)),
    )
    complaints = log.read_text() if log.exists() else ""
    assert done.returncode == 0, done.stderr + complaints
    assert "ignoring" not in complaints + done.stderr
