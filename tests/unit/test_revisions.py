"""The revisions directory: damage of any kind ends in an older revision and a sentence, never in a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.errors import NotFoundError, StorageError
from daemon.first_settings import first_settings
from daemon.places import Places
from daemon.settings import Settings, parse
from daemon.settings.revisions import HEAD, Head, Intent, Phase, RevisionState, RevisionStore

FIRST = parse('{"node": {"hostname": "first"}}')
SECOND = parse('{"node": {"hostname": "second"}}')


def filled(directory: Path) -> RevisionStore:
    """Revision 1 is the first start, 2 and 3 are confirmed, 3 is in force."""
    store = RevisionStore(directory)
    for settings in (FIRST, SECOND):
        number = store.add(settings, "maria", "a comment").revision
        store.move_head(Head(number))
        store.set_state(number, RevisionState.CONFIRMED)
    return store


def test_an_empty_directory_gets_revision_1(tmp_path: Path) -> None:
    store = RevisionStore(tmp_path / "new")
    assert (store.head.current, store.settings(1), store.troubles) == (1, Settings(), [])
    assert not store.head.matched


def test_the_installation_decides_the_first_settings(tmp_path: Path) -> None:
    (tmp_path / "etc/centralino").mkdir(parents=True)
    (tmp_path / "etc/hostname").write_text("branch.example.com\n")
    (tmp_path / "etc/localtime").symlink_to("../usr/share/zoneinfo/Europe/Rome")
    places = Places(tmp_path)
    places.initial_settings.write_text(
        '{"node": {"timezone": "Europe/Madrid"}, "web": {"session_seconds": 600}}'
    )
    store = RevisionStore(tmp_path / "new", lambda: first_settings(places))
    first = store.settings(1)
    assert (first.node.hostname, first.node.timezone) == ("branch", "Europe/Madrid")
    assert first.web.session_seconds == 600
    assert store.troubles == []


@pytest.mark.parametrize(
    "text", ["{", '{"node": {"hostname": "two words"}}', "[]", '{"schema": 99}', "[" * 9999]
)
def test_broken_first_settings_are_said_and_replaced_by_defaults(tmp_path: Path, text: str) -> None:
    (tmp_path / "etc/centralino").mkdir(parents=True)
    (tmp_path / "etc/hostname").write_text("-bad name-\n")
    places = Places(tmp_path)
    places.initial_settings.write_text(text)
    store = RevisionStore(tmp_path / "new", lambda: first_settings(places))
    assert store.settings(1) == Settings()
    assert len(store.troubles) == 1


def test_everything_is_read_back(tmp_path: Path) -> None:
    filled(tmp_path)
    store = RevisionStore(tmp_path)
    assert (store.head.current, store.settings(3), store.troubles) == (3, SECOND, [])
    newest = store.history(1)[0]
    assert (newest.who, newest.comment, newest.base, newest.state) == ("maria", "a comment", 2, "confirmed")
    assert [revision.revision for revision in store.history(0)] == [3, 2, 1]
    assert oct((tmp_path / "00000003.json").stat().st_mode)[-3:] == "640"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\x00" * 4096,
        b"null",
        b'{"revision": {}, "document": {}}',
        b"[" * 100_000,
        None,
    ],
)
def test_a_damaged_newest_revision_falls_back_to_the_one_before(tmp_path: Path, damage: bytes | None) -> None:
    filled(tmp_path)
    newest = tmp_path / "00000003.json"
    if damage is None:
        newest.unlink()
    else:
        newest.write_bytes(damage)
    store = RevisionStore(tmp_path)
    assert (store.head.current, store.settings(2)) == (2, FIRST)
    assert not store.head.matched
    assert any("revision 3 cannot be used" in trouble for trouble in store.troubles)
    # The number of the damaged one is not used again while its file is there.
    assert store.add(SECOND, "", "").revision == (3 if damage is None else 4)


def test_a_flipped_bit_in_a_document_is_noticed(tmp_path: Path) -> None:
    filled(tmp_path)
    newest = tmp_path / "00000003.json"
    newest.write_text(newest.read_text().replace('"second"', '"sekond"'))
    store = RevisionStore(tmp_path)
    assert store.head.current == 2


def test_a_revision_that_is_not_valid_any_more_falls_back(tmp_path: Path) -> None:
    filled(tmp_path)
    newest = tmp_path / "00000003.json"
    table = json.loads(newest.read_text())
    table["document"]["schema"] = 99
    from daemon.settings.revisions import digest

    table["revision"]["digest"] = digest(table["document"])
    newest.write_text(json.dumps(table))
    assert RevisionStore(tmp_path).head.current == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"current": "x"}', b"\xff\xfe", b'{"current": 3}', None])
def test_a_damaged_head_falls_back_to_the_newest_confirmed(tmp_path: Path, damage: bytes | None) -> None:
    store = filled(tmp_path)
    store.add(parse('{"node": {"hostname": "pending"}}'), "", "")
    if damage is None:
        (tmp_path / HEAD).unlink()
    else:
        (tmp_path / HEAD).write_bytes(damage)
    store = RevisionStore(tmp_path)
    assert (store.head.current, store.head.matched) == (3, False)
    assert len(store.troubles) == 1
    assert RevisionStore(tmp_path).troubles == []


def test_if_everything_is_damaged_the_defaults_are_in_force(tmp_path: Path) -> None:
    filled(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"\x00")
    store = RevisionStore(tmp_path)
    assert store.settings(store.head.current) == Settings()
    assert store.troubles


def test_a_revision_whose_end_was_cut_off_is_failed(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.add(FIRST, "", "")
    states = {revision.revision: revision.state for revision in RevisionStore(tmp_path).history(0)}
    assert states[4] is RevisionState.FAILED


def test_a_confirm_whose_record_was_cut_off_is_confirmed(tmp_path: Path) -> None:
    store = filled(tmp_path)
    number = store.add(FIRST, "", "").revision
    store.move_head(Head(number))
    assert RevisionStore(tmp_path).revision(number).state is RevisionState.CONFIRMED


def test_the_intent_survives(tmp_path: Path) -> None:
    store = filled(tmp_path)
    number = store.add(FIRST, "", "").revision
    head = Head(
        3, Intent(number, Phase.UNCONFIRMED, "boot", 12.5, "2030-01-01T00:00:00+00:00", ""), True, "1"
    )
    store.move_head(head)
    again = RevisionStore(tmp_path)
    assert again.head == head
    assert again.revision(number).state is RevisionState.PENDING


def test_pruning_keeps_the_newest_and_what_is_needed(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for _ in range(5):
        store.add(FIRST, "", "")
    assert store.prune(keep=3) == 5
    assert [revision.revision for revision in store.history(0)] == [8, 7, 3]
    assert sorted(file.name for file in tmp_path.glob("0*.json")) == [
        f"{number:08}.json" for number in (3, 7, 8)
    ]


def test_strange_files_are_left_alone(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "0notes.json").write_text("mine")
    (tmp_path / ".00000009.json.centralino-new").write_text("half")
    store = RevisionStore(tmp_path)
    assert (store.head.current, store.troubles) == (3, [])


def test_unknown_revisions_are_not_found(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for ask in (store.settings, store.revision):
        with pytest.raises(NotFoundError):
            ask(44)


def test_a_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        RevisionStore(tmp_path / "file" / "revisions")
