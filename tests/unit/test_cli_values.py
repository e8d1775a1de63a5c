"""Paths, typed values and YAML of the command line: pure functions, on the real schema."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from daemon.cli import yaml_text
from daemon.cli.json_types import as_object
from daemon.cli.schema import Schema, join_path, split_path
from daemon.cli.values import from_json, typed, value_at, with_value, without
from daemon.errors import InvalidSettingsError, NotFoundError, Problem
from daemon.settings import Settings

SCHEMA = Schema(Settings.model_json_schema())
DOCUMENT = Settings().model_dump(mode="json", by_alias=True)

keys = st.text(st.characters(codec="utf-8", exclude_characters='"]'), min_size=1, max_size=12)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(-1e9, 1e9) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(keys, min_size=1, max_size=5))
def test_paths_come_apart_as_they_were_put_together(parts: list[str]) -> None:
    assert split_path(join_path(parts)) == parts


@pytest.mark.parametrize("path", [".", "a..b", "a.", '"a', "a]b", ""])
def test_what_is_no_path_is_named(path: str) -> None:
    if path == "":
        assert split_path(path) == []
        return
    with pytest.raises(NotFoundError):
        SCHEMA.keys_of(path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("network.interfaces.eth0.mtu", ["network", "interfaces", "eth0", "mtu"]),
        ("network.interfaces.eth0.100.mtu", ["network", "interfaces", "eth0.100", "mtu"]),
        ('network.interfaces."eth0.100".mtu', ["network", "interfaces", "eth0.100", "mtu"]),
        ("network.interfaces[eth0.100].mtu", ["network", "interfaces", "eth0.100", "mtu"]),
        ("network.interfaces.eth0.addresses.0", ["network", "interfaces", "eth0", "addresses", "0"]),
        ("network.interfaces.eth0.100", ["network", "interfaces", "eth0.100"]),
        ("network.interfaces.eth0.vlan.tag", ["network", "interfaces", "eth0", "vlan", "tag"]),
        ("schema", ["schema"]),
    ],
)
def test_names_with_dots_are_understood(path: str, expected: list[str]) -> None:
    assert SCHEMA.keys_of(path) == expected


def test_existing_names_win_over_shorter_ones() -> None:
    document = {"network": {"interfaces": {"eth0.addresses": {}}}}
    assert SCHEMA.keys_of("network.interfaces.eth0.addresses", as_object(document))[2] == "eth0.addresses"


@pytest.mark.parametrize(
    ("path", "words", "expected"),
    [
        ("node.hostname", ["123"], "123"),
        ("node.hostname", ["null"], "null"),
        ("domain.fqdn", ["null"], None),
        ("mail.port", ["25"], 25),
        ("mail.port", ["smtp"], "smtp"),
        ("web.redirect_http", ["no"], False),
        ("web.redirect_http", ["TRUE"], True),
        ("services.policies.asterisk.probe_interval_seconds", ["0.5"], 0.5),
        ("network.dns.servers", ["192.0.2.1", "2001:db8::1"], ["192.0.2.1", "2001:db8::1"]),
        ("network.dns.servers", ["192.0.2.1"], ["192.0.2.1"]),
        ("network.dns.servers", ["[]"], []),
        ("network.dns.servers", ['["192.0.2.1"]'], ["192.0.2.1"]),
        ("certificates.expiry_alarm_days", ["30", "7"], [30, 7]),
        ("network.interfaces.eth0.vlan", ['{"parent": "eth1", "tag": 5}'], {"parent": "eth1", "tag": 5}),
        ("network.interfaces.eth0.vlan", ["null"], None),
        ("console.banner", ["$(reboot) [x] {y}"], "$(reboot) [x] {y}"),
        ("console.banner", ["{not json"], "{not json"),
        ("mail.port", ["9" * 40], "9" * 40),
    ],
)
def test_words_become_what_the_schema_wants(path: str, words: list[str], expected: object) -> None:
    value = typed(SCHEMA, SCHEMA.keys_of(path), words)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[1, 2", '{"a": ' + "[" * 50_000])
def test_bad_json_is_refused_with_a_place(text: str) -> None:
    with pytest.raises(InvalidSettingsError) as refusal:
        from_json(text, "node")
    assert refusal.value.problems[0].path == "node"


def test_values_are_put_in_and_taken_out_without_touching_the_original() -> None:
    before = json.dumps(DOCUMENT)
    changed = with_value(DOCUMENT, ["network", "interfaces", "eth0", "addresses"], ["192.0.2.1/24"])
    changed = with_value(changed, ["network", "interfaces", "eth0", "addresses", "1"], "192.0.2.2/24")
    assert value_at(changed, ["network", "interfaces", "eth0"]) == {
        "addresses": ["192.0.2.1/24", "192.0.2.2/24"]
    }
    with pytest.raises(NotFoundError):
        with_value(changed, ["network", "interfaces", "eth0", "addresses", "9"], "x")
    assert without(changed, ["network", "interfaces", "eth0"]) == DOCUMENT
    with pytest.raises(NotFoundError):
        without(DOCUMENT, ["network", "interfaces", "eth9"])
    assert json.dumps(DOCUMENT) == before


@given(json_values)
def test_yaml_reads_back_what_it_wrote(value: object) -> None:
    text = yaml_text.write(value)  # type: ignore[arg-type]
    assert yaml_text.read(text).value == value
    if "\ufeff" not in text:
        assert yaml.safe_load(text) is not ...  # any other reader of YAML takes it too


def test_the_commented_document_reads_back_and_names_its_lines() -> None:
    text = yaml_text.write(DOCUMENT, SCHEMA)
    found = yaml_text.read(text)
    assert found.value == DOCUMENT
    for path in ("node.hostname", "network.dns.servers", "certificates.expiry_alarm_days.2"):
        line = text.splitlines()[found.line_of(path)]
        assert not line.lstrip().startswith("#")
        assert path.rpartition(".")[2] in line or line.strip() == "- 7"
    assert max(len(line) for line in text.splitlines()) <= yaml_text.WIDTH + 10


def test_words_of_other_yamls_stay_text() -> None:
    text = "a: no\nb: 12:30\nc: 0x10\nd: 2024-01-01\ne: 1_000\nf: ~\ng: .inf\nh: 010\n"
    assert yaml_text.read(text).value == {
        "a": "no",
        "b": "12:30",
        "c": "0x10",
        "d": "2024-01-01",
        "e": "1_000",
        "f": None,
        "g": ".inf",
        "h": 10,
    }


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("a: 1\nb: [1, 2\n", 3, "YAML"),
        ("a: 1\na: 2\n", 2, "second time"),
        ("a: &x 1\nb: *x\n", 1, "alias"),
        ("a: !!python/object:os.system 1\n", 1, "tag"),
        ("a: !x 1\n", 1, "tag"),
        ("? [1]\n: 2\n", 1, "no text"),
        ("a: " + "[" * 40 + "]" * 40, 1, "deeply"),
        ("a: " + "[" * 4_000, 1, ""),
        ("a: \x07\n", 1, "YAML"),
        ("a: 1\n---\nb: 2\n", 2, "YAML"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(text: str, line: int, word: str) -> None:
    with pytest.raises(InvalidSettingsError) as refusal:
        yaml_text.read(text)
    problem = refusal.value.problems[0]
    assert word in problem.message
    assert problem.path == f"line {line}" or word == "alias"


@given(texts)
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        yaml_text.read(text)
    except InvalidSettingsError as refusal:
        assert refusal.problems[0].path.startswith("line ")


def test_marks_stand_above_their_line_and_go_away() -> None:
    text = "# head\nnode:\n  hostname: a b\n  zone: x\n"
    problems = [Problem("node.hostname", "is bad", "mend it"), Problem("other", "is missing")]
    marked = yaml_text.marked(text, problems, yaml_text.read(text))
    assert marked.splitlines() == [
        "#! other: is missing",
        "# head",
        "node:",
        "  #! node.hostname: is bad; mend it",
        "  hostname: a b",
        "  zone: x",
    ]
    assert yaml_text.unmarked(marked) == text
    assert yaml_text.read(marked).value == yaml_text.read(text).value


def test_every_setting_is_in_the_reference_with_a_description() -> None:
    fields = list(SCHEMA.fields())
    assert len(fields) > 100
    for field in fields:
        assert field.description, field.path
        assert field.kind and field.kind != "any", field.path
    assert {"network.interfaces.NAME.addresses", "network.routes.0.gateway"} <= {
        field.path for field in fields
    }


def test_completion_goes_one_level_further() -> None:
    assert [path for path, _ in SCHEMA.children("", DOCUMENT)] == list(DOCUMENT)
    below = SCHEMA.children("network.dns.", DOCUMENT)
    assert [path for path, _ in below] == ["network.dns.servers", "network.dns.search"]
    assert SCHEMA.children("nonsense.", DOCUMENT) == []
