"""Automatic certificates only where they can work (S-CE-03): each condition that fails is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from certificate_servers import NameServer, WebServer

from daemon.certificates.conditions import (
    CHALLENGE_PATH,
    Circumstances,
    Condition,
    Failing,
    failing,
    system_resolvers,
)

NAME = "pbx.example.com"
LOOPBACK = ip_address("127.0.0.1")


class World:
    """A name server, a web server over the webroot, and circumstances in which everything holds."""

    def __init__(self, webroot: Path) -> None:
        self.names = NameServer({NAME: ["127.0.0.1"]})
        self.web = WebServer(webroot)
        self.directory_trouble: str | None = None
        self.given = Circumstances(
            cloud=True,
            names=(NAME,),
            public_address=LOOPBACK,
            terms_accepted=True,
            resolvers=(LOOPBACK,),
            webroot=webroot,
            directory="https://acme.example/dir",
            http_port=self.web.port,
            dns_port=self.names.port,
        )

    def failing(self, **changes: object) -> list[Failing]:
        given = replace(self.given, **changes)  # type: ignore[arg-type]
        return list(failing(given, lambda: self.directory_trouble))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.names.close()
    made.web.close()


def kinds(found: list[Failing]) -> list[Condition]:
    assert all(one.remedy for one in found), "each says what to do"
    return [one.condition for one in found]


def test_all_hold_and_nothing_stays_in_the_webroot(world: World, tmp_path: Path) -> None:
    assert world.failing() == []
    assert list((tmp_path / CHALLENGE_PATH.strip("/")).iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "condition"),
    [
        ({"cloud": False}, Condition.MODE),
        ({"names": ()}, Condition.DOMAIN),
        ({"public_address": None}, Condition.PUBLIC_ADDRESS),
        ({"terms_accepted": False}, Condition.TERMS),
    ],
)
def test_what_the_settings_lack_is_named_before_the_network_is_asked(
    world: World, changes: dict[str, object], condition: Condition
) -> None:
    world.directory_trouble = "must not be asked"
    assert kinds(world.failing(**changes)) == [condition]


def test_all_that_the_settings_lack_is_named_at_once(world: World) -> None:
    found = world.failing(cloud=False, names=(), public_address=None, terms_accepted=False)
    assert len(found) == 4


def test_a_name_that_does_not_exist(world: World) -> None:
    world.names.records = {}
    found = world.failing()
    assert kinds(found) == [Condition.NAME_UNKNOWN]
    assert "there is no such name" in found[0].detail
    assert "A record for 127.0.0.1" in found[0].remedy


def test_a_name_without_address(world: World) -> None:
    world.names.records[NAME] = []
    assert "neither A nor AAAA" in world.failing()[0].detail


def test_a_name_that_leads_elsewhere(world: World) -> None:
    world.names.records[NAME] = ["198.51.100.7"]
    (found,) = world.failing()
    assert found.condition is Condition.NAME_ELSEWHERE
    assert found.detail == f"{NAME} is 198.51.100.7, not 127.0.0.1"


def test_a_stale_ipv6_record_beside_the_right_ipv4_one(world: World) -> None:
    world.names.records[NAME] = ["127.0.0.1", "2001:db8::7"]
    (found,) = world.failing()
    assert found.condition is Condition.NAME_ELSEWHERE
    assert "2001:db8::7" in found.detail


def test_every_further_name_is_looked_up(world: World) -> None:
    found = world.failing(names=(NAME, "www.example.com"))
    assert kinds(found) == [Condition.NAME_UNKNOWN]
    assert "www.example.com" in found[0].detail


def test_no_name_server_answers(world: World) -> None:
    world.names.close()
    unused = NameServer({})
    unused.close()
    assert kinds(world.failing(dns_port=unused.port, resolvers=())) == [Condition.NO_RESOLVER]


def test_the_web_server_of_the_box_does_not_answer(world: World) -> None:
    world.web.close()
    (found,) = world.failing()
    assert found.condition is Condition.WEB_SERVER
    assert "refused" in found.detail


def test_the_web_server_serves_another_directory(world: World) -> None:
    world.web.answer = b"hello"
    (found,) = world.failing()
    assert found.condition is Condition.WEB_SERVER
    assert "something else" in found.detail


def test_port_80_of_the_public_address_leads_to_another_machine(world: World, tmp_path: Path) -> None:
    other = WebServer(tmp_path, "127.0.0.2", world.web.port)
    other.answer = b"a router's own page"
    try:
        world.names.records[NAME] = ["127.0.0.2"]
        (found,) = world.failing(public_address=ip_address("127.0.0.2"))
    finally:
        other.close()
    assert found.condition is Condition.PORT_80
    assert found.fatal


def test_a_router_that_leads_nobody_back_is_a_warning_alone(world: World) -> None:
    world.names.records[NAME] = ["127.0.0.3"]  # nothing listens there
    (found,) = world.failing(public_address=ip_address("127.0.0.3"))
    assert found.condition is Condition.PORT_80_UNSEEN
    assert not found.fatal
    assert found.as_json()["path"] == "acme.port-80-unseen"


def test_the_service_cannot_be_reached(world: World) -> None:
    world.directory_trouble = "connection refused"
    (found,) = world.failing()
    assert found.condition is Condition.OUTBOUND
    assert "https://acme.example/dir: connection refused" in found.as_json()["message"]  # type: ignore[operator]


def test_the_name_servers_of_the_box(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# comment\nsearch lan\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver x\nnameserver\n"
    )
    assert system_resolvers(file) == (ip_address("192.0.2.1"), ip_address("fe80::1"))
    assert system_resolvers(tmp_path / "none") == ()
