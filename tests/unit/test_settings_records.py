"""The resident daemon's light settings and pydantic's agree on every document that is accepted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from daemon.errors import InvalidSettingsError
from daemon.settings import Settings, dump, parse_document

RICH: dict[str, object] = {
    "node": {"hostname": "pbx1", "timezone": "Europe/Rome"},
    "network": {
        "interfaces": {
            "eth0": {
                "ipv4": "static",
                "ipv6": "static",
                "addresses": ["192.0.2.10/24", "2001:db8::10/64"],
                "gateway": "192.0.2.1",
                "mtu": 1400,
            },
            "eth1.7": {"ipv4": "off", "vlan": {"parent": "eth1", "tag": 7}},
        },
        "routes": [{"destination": "198.51.100.0/24", "gateway": "192.0.2.2", "interface": "eth0"}],
        "dns": {"servers": ["192.0.2.53", "2001:db8::53"], "search": ["example.com"]},
        "ntp": {"servers": ["10.0.0.1", "ntp.example.com", "2001:db8::1"]},
        "hosts": [{"address": "192.0.2.9", "names": ["printer"]}],
    },
    "mail": {"server": "10.0.0.2", "sender": "pbx@example.com"},
    "firewall": {
        "zones": {"eth0": "public"},
        "block": [
            {"network": "198.51.100.0/24", "until": "2027-01-01T00:00:00.5+02:00"},
            {"network": "2001:db8:1::/48", "until": "2027-01-01T00:00:00+00:00"},
        ],
        "rules": [{"name": "ldap", "protocol": "tcp", "first_port": 389}],
    },
    "services": {"policies": {"asterisk": {"probe_interval_seconds": 3, "failures_before_restart": 2}}},
    "fault_tolerance": {
        "enabled": True,
        "peer_address": "192.0.2.11",
        "shared_addresses": [{"address": "192.0.2.20/24", "interface": "eth0", "primary": True}],
    },
}

PROGRAM = """
import daemon.lean, json, sys
from daemon.settings import Settings, dump, restore
assert "pydantic" not in sys.modules
for line in sys.stdin:
    made = restore(json.loads(line))
    again = restore(json.loads(line))
    hash(made.network.dns)
    answer = {"dump": dump(made), "text": repr(made), "equal": made == again, "default": made == Settings()}
    print(json.dumps(answer), flush=True)
assert "pydantic" not in sys.modules
"""


@dataclass
class Resident:
    """A process that holds settings as centralinod does."""

    process: subprocess.Popen[str]

    def answer(self, document: object) -> dict[str, object]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(document) + "\n")
        self.process.stdin.flush()
        table = json.loads(self.process.stdout.readline())
        assert isinstance(table, dict)
        return table


@pytest.fixture(scope="module")
def resident() -> Iterator[Resident]:
    program = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Resident(process)
    assert process.returncode == 0


def agree(resident: Resident, checked: Settings) -> None:
    document = dump(checked)
    answer = resident.answer(document)
    assert answer["dump"] == document
    # The types of all values, with the one difference that zones of time are written in other words.
    if "until=datetime" not in repr(checked):
        assert answer["text"] == _called(checked)
    assert answer["equal"] is True
    assert answer["default"] is (checked == Settings())


def _called(value: object) -> str:
    """repr of a model, inner ones too, the way that records write it."""
    if isinstance(value, tuple):
        inside = ", ".join(_called(item) for item in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_called(item)}" for key, item in value.items()) + "}"
    if hasattr(value, "model_dump"):
        fields = type(value).model_fields  # type: ignore[attr-defined]
        inside = ", ".join(f"{name}={_called(getattr(value, name))}" for name in fields)
        return f"{type(value).__name__}({inside})"
    return repr(value)


def test_the_empty_document(resident: Resident) -> None:
    agree(resident, Settings())


def test_a_document_that_sets_much(resident: Resident) -> None:
    checked = parse_document(RICH)
    agree(resident, checked)
    assert checked.network.ntp.servers[0] == "10.0.0.1"  # text: it may be a name as well


addresses = strategies.one_of(strategies.ip_addresses(v=4), strategies.ip_addresses(v=6)).map(str)
names = strategies.from_regex(r"[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?(\.[a-z]{2,5}){0,2}", fullmatch=True)
moments = strategies.datetimes(timezones=strategies.timezones()).map(lambda moment: moment.isoformat())
documents = strategies.fixed_dictionaries(
    {
        "network": strategies.fixed_dictionaries(
            {
                "dns": strategies.fixed_dictionaries({"servers": strategies.lists(addresses, max_size=3)}),
                "ntp": strategies.fixed_dictionaries(
                    {"servers": strategies.lists(strategies.one_of(addresses, names), max_size=3)}
                ),
            }
        ),
        "firewall": strategies.fixed_dictionaries(
            {
                "block": strategies.lists(
                    strategies.fixed_dictionaries({"network": addresses, "until": moments}), max_size=3
                ),
                "trusted_networks": strategies.lists(addresses, max_size=3),
            }
        ),
        "services": strategies.fixed_dictionaries(
            {
                "policies": strategies.dictionaries(
                    strategies.sampled_from(["asterisk", "nginx"]),
                    strategies.fixed_dictionaries(
                        {
                            "probe_interval_seconds": strategies.one_of(
                                strategies.none(), strategies.integers(1, 3600), strategies.floats(0.1, 3600)
                            )
                        }
                    ),
                )
            }
        ),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents)
def test_generated_documents(resident: Resident, document: dict[str, object]) -> None:
    try:
        checked = parse_document(document)
    except InvalidSettingsError:
        return
    agree(resident, checked)
