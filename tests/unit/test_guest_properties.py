"""vApp properties: read from an OVF environment, checked, made the settings of the first start."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.errors import CentralinoError
from daemon.first_settings import first_settings
from daemon.guest_properties import GuestProperties, first_interface, parse_environment
from daemon.places import Places
from daemon.platform import Platform

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKeysAreMadeOfThis admin@example"
ENVIRONMENT = """<?xml version="1.0" encoding="UTF-8"?>
<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1"
    xmlns:oe="http://schemas.dmtf.org/ovf/environment/1" oe:id="" xmlns:ve="http://www.vmware.com/schema/ovfenv">
  <PlatformSection><Kind>VMware ESXi</Kind></PlatformSection>
  <PropertySection>
    <Property oe:key="centralino.hostname" oe:value="PBX.example.org"/>
    <Property oe:key="centralino.address" oe:value="192.0.2.10/24"/>
    <Property oe:key="centralino.gateway" oe:value="192.0.2.1"/>
    <Property oe:key="centralino.dns" oe:value="192.0.2.53, 192.0.2.54"/>
    <Property oe:key="centralino.ssh_key" oe:value=""/>
    <Property oe:key="other.hostname" oe:value="no"/>
  </PropertySection>
</Environment>
"""
Run = Callable[[dict[str, str]], tuple[Places, list[str]]]


@pytest.fixture
def apply(tmp_path: Path) -> Run:
    (tmp_path / "etc").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "etc/passwd").write_text(f"admin:x:{os.getuid()}:{os.getgid()}::/home:/bin/bash\n")
    paths = {"networkmanager_connections": Path("/etc/NetworkManager/system-connections")}
    box = Platform(name="test", version="1", units={}, users={}, paths=paths)

    def run(answers: dict[str, str]) -> tuple[Places, list[str]]:
        said: list[str] = []
        GuestProperties(Places(tmp_path), box, interface=lambda: "eth0", say=said.append).apply(answers)
        return Places(tmp_path), said

    return run


def test_reads_only_our_answered_properties() -> None:
    assert parse_environment(ENVIRONMENT) == {
        "hostname": "PBX.example.org",
        "address": "192.0.2.10/24",
        "gateway": "192.0.2.1",
        "dns": "192.0.2.53, 192.0.2.54",
    }


@pytest.mark.parametrize("text", ["<Environment", "<!DOCTYPE x [<!ENTITY a 'b'>]><x/>", " " + "x" * 300_000])
def test_refuses_what_is_no_environment(text: str) -> None:
    with pytest.raises(CentralinoError, match="OVF environment"):
        parse_environment(text)


def test_no_environment_changes_nothing(apply: Run, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert parse_environment("") == {}
    assert apply({})[1] == []
    assert sorted(tmp_path.rglob("*")) == before


def test_answers_become_the_first_settings(apply: Run) -> None:
    places, said = apply(parse_environment(ENVIRONMENT))
    assert said == []
    settings, _, trouble = first_settings(places)
    assert trouble is None
    assert settings.node.hostname == "pbx"
    interface = settings.network.interfaces["eth0"]
    assert [str(address) for address in interface.addresses] == ["192.0.2.10/24"]
    assert str(interface.gateway) == "192.0.2.1"
    assert [str(server) for server in settings.network.dns.servers] == ["192.0.2.53", "192.0.2.54"]
    assert places.on_box("/etc/hostname").read_text() == "pbx\n"


def test_network_manager_has_the_address_before_the_daemon_runs(apply: Run) -> None:
    places, _ = apply({"address": "192.0.2.10/24", "gateway": "192.0.2.1"})
    file = places.on_box("/etc/NetworkManager/system-connections/centralino-eth0.nmconnection")
    assert "192.0.2.10/24" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_an_ipv6_address(apply: Run) -> None:
    places, said = apply({"address": "2001:db8::10/64", "gateway": "2001:db8::1"})
    assert said == []
    interface = first_settings(places)[0].network.interfaces["eth0"]
    assert str(interface.gateway6) == "2001:db8::1"


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ({"address": "192.0.2.300/24"}, "192.0.2.300/24"),
        ({"address": "192.0.2.10"}, "no prefix length"),
        ({"address": "192.0.2.10/24", "gateway": "198.51.100.1"}, "outside every subnet"),
        ({"address": "192.0.2.10/24", "dns": "dns.example"}, "dns.example"),
        ({"hostname": "not_a_name"}, "hostname"),
        ({"ssh_key": "-----BEGIN OPENSSH PRIVATE KEY-----"}, "no public key"),
    ],
)
def test_a_wrong_answer_is_named_and_left_out(answers: dict[str, str], complaint: str, apply: Run) -> None:
    places, said = apply(answers)
    assert len(said) == 1
    assert complaint in said[0]
    assert not places.initial_settings.exists()
    assert not places.on_box("/home/.ssh/authorized_keys").exists()


def test_what_the_image_brought_is_kept(apply: Run, tmp_path: Path) -> None:
    (tmp_path / "etc/centralino").mkdir()
    Places(tmp_path).initial_settings.write_text(json.dumps({"node": {"timezone": "Europe/Rome"}}))
    places, _ = apply({"hostname": "pbx"})
    node = first_settings(places)[0].node
    assert (node.hostname, node.timezone) == ("pbx", "Europe/Rome")


def test_the_key_is_added_once(apply: Run, tmp_path: Path) -> None:
    for _ in range(2):
        apply({"ssh_key": KEY})
    file = tmp_path / "home/.ssh/authorized_keys"
    assert file.read_text() == KEY + "\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_first_card_by_name(tmp_path: Path) -> None:
    for name, real in (("lo", False), ("eth1", True), ("eth0", True), ("bond0", False)):
        (tmp_path / name).mkdir()
        if real:
            (tmp_path / name / "device").mkdir()
    assert first_interface(tmp_path) == "eth0"
    assert first_interface(tmp_path / "missing") is None
