"""The settings document: defaults, refusals with every field named, migrations, scopes, text."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from pydantic.fields import FieldInfo

from daemon.errors import InvalidSettingsError, Problem
from daemon.settings import SCHEMA, Settings, dump, parse, parse_document, sections
from daemon.settings.base import Part, Scope
from daemon.settings.migrations import Document, migrate
from daemon.settings.scopes import cluster_part, scope_of, with_cluster_part
from daemon.settings.text import as_lines, difference


def refusal(document: object) -> dict[str, Problem]:
    with pytest.raises(InvalidSettingsError) as caught:
        parse_document(document)
    return {problem.path: problem for problem in caught.value.problems}


def every_field(model: type[Part], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{path}{name}", field
        for part in Part.__subclasses__():
            if part.__name__ in str(field.annotation) and part is not model:
                yield from every_field(part, f"{path}{name}.")


def test_the_empty_document_is_valid_and_is_the_default() -> None:
    assert parse("{}") == Settings()
    assert dump(Settings())["schema"] == SCHEMA


def test_a_document_survives_being_written_and_read() -> None:
    document = {
        "node": {"hostname": "pbx1", "timezone": "Europe/Rome"},
        "network": {
            "interfaces": {
                "eth0": {
                    "ipv4": "static",
                    "addresses": ["192.0.2.10/24", "2001:db8::10/64"],
                    "ipv6": "static",
                    "gateway": "192.0.2.1",
                },
                "eth0.7": {"vlan": {"parent": "eth0", "tag": 7}},
            },
            "routes": [{"destination": "198.51.100.0/24", "gateway": "192.0.2.2", "interface": "eth0"}],
        },
        "firewall": {"block": [{"network": "203.0.113.0/24", "until": "2030-01-01T00:00:00Z"}]},
        "services": {"policies": {"asterisk": {"drain_seconds": 30, "backoff_first_seconds": 0.5}}},
        "mail": {"server": "mail.example.com", "sender": "pbx@example.com", "username": "pbx"},
    }
    settings = parse_document(document)
    assert parse_document(dump(settings)) == settings


def test_every_field_and_every_section_is_described() -> None:
    for path, field in every_field(Settings):
        assert field.description, path
    for name, model in sections().items():
        assert model.scope in Scope
        assert model.__doc__, name


def test_every_problem_is_named_at_once_with_its_path_and_a_remedy() -> None:
    problems = refusal(
        {
            "node": {"hostname": "two words", "colour": "red"},
            "network": {
                "interfaces": {"eth0": {"addresses": ["300.1.1.1/24", 5], "vlan": {}}, "no good": {}}
            },
            "web": {"session_seconds": "443"},
            "mode": {"mode": "submarine"},
            "domain": {"reach_through_domain": True},
            "nonsense": 1,
        }
    )
    assert set(problems) == {
        "node.hostname",
        "node.colour",
        "network.interfaces.eth0.addresses.0",
        "network.interfaces.eth0.addresses.1",
        "network.interfaces.eth0.vlan.parent",
        "network.interfaces.eth0.vlan.tag",
        "network.interfaces.no good",
        "web.session_seconds",
        "mode.mode",
        "domain.reach_through_domain",
        "nonsense",
    }
    assert all(problem.remedy for problem in problems.values())


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"mode": {"mode": "cloud"}}, "domain.fqdn"),
        ({"mode": {"mode": "cloud"}}, "domain.public_address"),
        ({"certificates": {"source": "acme"}}, "certificates.source"),
        ({"fault_tolerance": {"enabled": True}}, "fault_tolerance.peer_address"),
        (
            {"fault_tolerance": {"shared_addresses": [{"address": "192.0.2.9/24", "interface": "eth0"}]}},
            "fault_tolerance.shared_addresses",
        ),
        ({"media": {"rtp_first_port": 30000, "rtp_last_port": 20000}}, "media.rtp_last_port"),
        ({"media": {"relay_first_port": 15000}}, "media.relay_first_port"),
        ({"media": {"rtp_first_port": 5000}}, "media.rtp_first_port"),
        ({"media": {"relay_first_port": 1025, "relay_last_port": 4000}}, "media.relay_first_port"),
        ({"media": {"rtp_first_port": 1023}}, "media.rtp_first_port"),
        # Other ports are not supported, so they cannot be asked for.
        ({"web": {"https_port": 8443}}, "web.https_port"),
        ({"console": {"ssh_port": 2222}}, "console.ssh_port"),
        ({"mail": {"server": "mail.example.com"}}, "mail.sender"),
        ({"mail": {"username": "u", "security": "none"}}, "mail.security"),
        ({"backup": {"remote_host": "b.example.com"}}, "backup.remote_user"),
        (
            {
                "services": {
                    "policies": {"web": {"backoff_first_seconds": 9.0, "backoff_longest_seconds": 2.0}}
                }
            },
            "services.policies.web.backoff_longest_seconds",
        ),
        ({"network": {"interfaces": {"e0": {"ipv4": "static"}}}}, "network.interfaces.e0.ipv4"),
        (
            {"network": {"interfaces": {"e0": {"ipv4": "static", "addresses": ["192.0.2.0/24"]}}}},
            "network.interfaces.e0.addresses.0",
        ),
        (
            {
                "network": {
                    "interfaces": {
                        "e0": {"ipv4": "static", "addresses": ["192.0.2.5/24"], "gateway": "198.51.100.1"}
                    }
                }
            },
            "network.interfaces.e0.gateway",
        ),
        (
            {
                "network": {
                    "interfaces": {
                        "e0": {"ipv4": "static", "addresses": ["192.0.2.5/24"]},
                        "e1": {"ipv4": "static", "addresses": ["192.0.2.77/25"]},
                    }
                }
            },
            "network.interfaces.e1.addresses.0",
        ),
        ({"firewall": {"support": {"networks": ["192.0.2.0/24"]}}}, "firewall.support.until"),
        ({"firewall": {"block": [{"network": "192.0.2.1/24"}]}}, "firewall.block.0.network"),
        ({"node": {"timezone": "../../etc/shadow"}}, "node.timezone"),
        ({"mail": {"password_secret": "../x"}}, "mail.password_secret"),
        ({"backup": {"folder": "/var/../etc"}}, "backup.folder"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(document: Document, path: str) -> None:
    assert path in refusal(document)


def test_a_shared_address_may_not_be_the_nodes_own() -> None:
    problems = refusal(
        {
            "network": {"interfaces": {"eth0": {"ipv4": "static", "addresses": ["192.0.2.9/24"]}}},
            "fault_tolerance": {
                "shared_addresses": [{"address": "192.0.2.9/32", "interface": "eth0", "primary": True}]
            },
        }
    )
    assert set(problems) == {"fault_tolerance.shared_addresses.0.address"}


@pytest.mark.parametrize("character", ["\n", "\x00", "\x1b", "\x7f", "\u202e", "\u2028", "\ud800", "\u200b"])
def test_no_string_may_hold_a_control_or_invisible_character(character: str) -> None:
    problems = refusal({"console": {"banner": f"a{character}b"}, "web": {"session_seconds": 0}})
    assert set(problems) == {"console.banner", "web.session_seconds"}
    assert f"U+{ord(character):04X}" in problems["console.banner"].message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '"x"',
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        "{'a': 1}",
        "[" * 100_000,
        '{"a":' * 50 + "1" + "}" * 50,
        '{"a": ' + "9" * 5000 + "}",
        '{"web": {"session_seconds": 1e999}}',
    ],
)
def test_what_is_no_document_is_refused_without_a_crash(text: str) -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        parse(text)
    assert caught.value.problems


def test_hostile_keys_are_shown_short_and_printable() -> None:
    problems = refusal({"\x1b[31m" + "x" * 500: 1})
    (path,) = problems
    assert path.isprintable()
    assert len(path) <= 64


def test_a_newer_schema_is_refused_with_a_remedy() -> None:
    problems = refusal({"schema": SCHEMA + 1, "node": {"hostname": "x y"}})
    assert set(problems) == {"schema"}
    assert "update this appliance" in problems["schema"].remedy


@pytest.mark.parametrize("number", [0, -1, "1", True, 1.5, None])
def test_a_schema_that_is_no_number_is_refused(number: object) -> None:
    assert set(refusal({"schema": number})) == {"schema"}


def test_migrations_run_in_order_one_step_at_a_time() -> None:
    def one_to_two(document: Document) -> Document:
        moved = dict(document)
        moved["node"] = {"hostname": moved.pop("name")}
        return moved

    def two_to_three(document: Document) -> Document:
        node = document["node"]
        assert isinstance(node, dict)
        return {**document, "node": {**node, "timezone": "UTC"}}

    steps = {1: one_to_two, 2: two_to_three}
    migrated = migrate({"schema": 1, "name": "pbx1"}, target=3, migrations=steps)
    assert migrated == {"schema": 3, "node": {"hostname": "pbx1", "timezone": "UTC"}}
    assert migrate({"schema": 3, "node": {}}, target=3, migrations=steps) == {"schema": 3, "node": {}}


def test_a_missing_migration_is_an_error_not_a_guess() -> None:
    with pytest.raises(InvalidSettingsError, match="no way leads from schema 1 to 2"):
        migrate({"schema": 1}, target=2, migrations={})


def test_the_slave_takes_cluster_scope_and_keeps_its_own() -> None:
    master = parse_document(
        {
            "node": {"hostname": "first"},
            "domain": {"fqdn": "pbx.example.com"},
            "fault_tolerance": {"enabled": True, "peer_address": "192.0.2.2", "virtual_router_id": 77},
        }
    )
    slave = parse_document(
        {"node": {"hostname": "second"}, "fault_tolerance": {"enabled": True, "peer_address": "192.0.2.1"}}
    )
    part = cluster_part(master)
    assert "node" not in part
    merged = with_cluster_part(slave, part)
    assert merged.node.hostname == "second"
    assert str(merged.fault_tolerance.peer_address) == "192.0.2.1"
    assert merged.fault_tolerance.virtual_router_id == 77
    assert merged.domain.fqdn == "pbx.example.com"


def test_cluster_settings_of_another_schema_are_refused() -> None:
    with pytest.raises(InvalidSettingsError):
        with_cluster_part(Settings(), {**cluster_part(Settings()), "schema": SCHEMA + 1})


def test_fields_may_have_another_scope_than_their_section() -> None:
    assert scope_of("fault_tolerance", "peer_address") is Scope.NODE
    assert scope_of("fault_tolerance", "witness") is Scope.CLUSTER


def test_the_difference_names_only_what_differs() -> None:
    before, after = dump(Settings()), dump(parse('{"node": {"hostname": "pbx1"}}'))
    lines = difference(before, after, "old", "new").splitlines()
    assert '-  hostname: "centralino"' in lines
    assert '+  hostname: "pbx1"' in lines
    assert sum(line.startswith(("+", "-")) for line in lines) == 4
    assert difference(before, before, "old", "new") == ""


def test_lists_and_tables_as_lines() -> None:
    value = {"a": [{"b": 1, "c": [2, 3]}, 4], "d": {}, "e": "x\u00e8"}
    assert list(as_lines(value)) == [
        "a:",
        "  - b: 1",
        "    c:",
        "      - 2",
        "      - 3",
        "  - 4",
        "d: {}",
        'e: "x\u00e8"',
    ]


def test_the_schema_is_json_and_marks_scopes() -> None:
    schema = Settings.model_json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
