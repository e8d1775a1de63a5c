"""What supervision keeps and shows: alarms, intents, journal lines; on bad disks and with hostile text."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.alarms import LONGEST_SENTENCE, Alarm, Alarms
from daemon.errors import CommandFailedError, NotFoundError, UnavailableError
from daemon.later import LaterWriter
from daemon.run import Completed
from daemon.services import logs
from daemon.services.decision import Stop
from daemon.services.intents import Intents
from daemon.services.spells import Spell, Spells
from daemon.settings.messages import Severity

# --- alarms -----------------------------------------------------------------------------------------------


def test_alarms_outlive_the_program_and_are_told_once(tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []
    alarms = Alarms(tmp_path / "alarms.json")
    alarms.listen(lambda alarm, raised: told.append((alarm.identifier, raised)))
    alarms.raise_alarm("service.asterisk", "asterisk is dead")
    alarms.raise_alarm("service.asterisk", "asterisk is dead still", Severity.WARNING)
    alarms.raise_alarm("disk.full", "the disk is full")
    alarms.clear_alarm("nothing.known")
    assert alarms.flush()
    again = Alarms(tmp_path / "alarms.json")
    assert again.standing() == alarms.standing()
    by_name = {alarm.identifier: alarm for alarm in again.standing()}
    assert by_name["service.asterisk"].sentence == "asterisk is dead still"
    assert by_name["service.asterisk"].family == "service"
    alarms.clear_alarm("service.asterisk")
    assert told == [("service.asterisk", True), ("disk.full", True), ("service.asterisk", False)]
    assert alarms.flush()
    assert [alarm.identifier for alarm in Alarms(tmp_path / "alarms.json").standing()] == ["disk.full"]


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '[{"id": "x"}]', '[{"id":"a","sentence":"b","severity":"?"}]']
)
def test_a_damaged_board_starts_empty(tmp_path: Path, text: str) -> None:
    file = tmp_path / "alarms.json"
    file.write_text(text)
    alarms = Alarms(file)
    assert alarms.standing() == ()
    alarms.raise_alarm("a.b", "c")
    assert alarms.flush()
    assert len(Alarms(file).standing()) == 1


def test_a_disk_that_refuses_loses_no_alarm_and_holds_nobody_up(tmp_path: Path) -> None:
    alarms = Alarms(tmp_path / "missing" / "alarms.json")
    alarms.raise_alarm("disk.full", "x" * (LONGEST_SENTENCE + 5))
    assert not alarms.flush(0.1)
    (standing,) = alarms.standing()
    assert len(standing.sentence) == LONGEST_SENTENCE


def test_the_newest_text_wins_and_is_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    writer = LaterWriter(file)
    threads = [
        threading.Thread(target=lambda number=number: writer.put(str(number) * 1000)) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.put("last")
    assert writer.flush(10.0)
    assert file.read_text() == "last"


def test_an_alarm_in_json_has_what_the_command_line_shows() -> None:
    shown = Alarm("service.nginx", "nginx is down", Severity.CRITICAL, "2026-01-01T00:00:00+00:00").as_json()
    assert shown == {
        "id": "service.nginx",
        "family": "service",
        "sentence": "nginx is down",
        "severity": "critical",
        "since": "2026-01-01T00:00:00+00:00",
    }


# --- intents ----------------------------------------------------------------------------------------------


def test_stops_hold_for_one_boot(tmp_path: Path) -> None:
    file, stop = tmp_path / "stopped.json", Stop("anna", "2026-01-01T00:00:00+00:00", "card")
    intents = Intents(file, "boot-1")
    intents.record("asterisk", stop)
    intents.record("nginx", stop)
    intents.record("nginx", None)
    assert intents.flush()
    assert Intents(file, "boot-1").stops == {"asterisk": stop}
    assert Intents(file, "boot-2").stops == {}
    assert Intents(file, "").stops == {}, "a boot without a name equals no boot"


@pytest.mark.parametrize("text", ["", "[]", '{"boot": "b"}', '{"boot": "b", "stops": {"x": {"who": 1}}}'])
def test_damaged_intents_count_as_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "stopped.json"
    file.write_text(text)
    assert Intents(file, "b").stops == {}


# --- journal ----------------------------------------------------------------------------------------------


def record(message: object, cursor: str = "s=1;i=2", **fields: object) -> str:
    return json.dumps(
        {"__CURSOR": cursor, "__REALTIME_TIMESTAMP": "1767225600123456", "PRIORITY": "3", "MESSAGE": message}
        | fields
    )


class Journal:
    """Stands for journalctl: keeps the words, gives the output."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        self.words: list[str] = []

    def __call__(self, words: list[str], *, limit_seconds: float) -> Completed:
        assert limit_seconds > 0
        self.words = words
        return Completed(tuple(words), 0, "\n".join(self.lines), "")


def test_log_lines_are_given_oldest_first_with_the_place_to_go_on() -> None:
    journal = Journal(record("one", "s=1;i=1"), "not json", record("two", "s=1;i=2"))
    answer = logs.read("nginx.service", 50, "s=0;i=0", journal)
    assert [line["message"] for line in answer["lines"]] == ["one", "two"]  # type: ignore[attr-defined]
    assert answer["lines"][0] == {  # type: ignore[index]
        "when": "2026-01-01T00:00:00.123+00:00",
        "priority": "err",
        "message": "one",
    }
    assert answer["cursor"] == "s=1;i=2"
    assert "--unit=nginx.service" in journal.words
    assert "--after-cursor=s=0;i=0" in journal.words
    assert logs.read("nginx.service", 5, "s=0;i=0", Journal())["cursor"] == "s=0;i=0"


@pytest.mark.parametrize("lines", [-5, 0, 1, 10_000, 4_000_000_000])
def test_the_number_of_lines_is_bounded(lines: int) -> None:
    journal = Journal()
    logs.read("x.service", lines, "", journal)
    asked = next(word for word in journal.words if word.startswith("--lines="))
    assert 1 <= int(asked.removeprefix("--lines=")) <= logs.MOST_LINES


@pytest.mark.parametrize("cursor", ["--help", "s=1 -u x", "$(id)", "s=1\n", "x" * 600])
def test_what_is_no_cursor_reaches_no_command(cursor: str) -> None:
    journal = Journal()
    with pytest.raises(NotFoundError):
        logs.read("x.service", 5, cursor, journal)
    assert journal.words == []


def test_a_journal_that_hangs_is_said() -> None:
    def hangs(_words: list[str], *, limit_seconds: float) -> Completed:
        raise CommandFailedError(f"journalctl did not end within {limit_seconds:g} s")

    with pytest.raises(UnavailableError, match="did not end"):
        logs.read("x.service", 5, "", hangs)


@given(st.text() | st.lists(st.integers(0, 255)) | st.none() | st.integers())
def test_no_message_moves_a_terminal(message: object) -> None:
    (line,) = logs.read("x.service", 5, "", Journal(record(message)))["lines"]  # type: ignore[misc]
    text = str(line["message"])  # type: ignore[index]
    assert not any(ord(letter) < 32 and letter not in "\t\n" for letter in text)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(text) <= logs.LONGEST_LINE + 4


def test_restarts_are_remembered_for_this_boot_alone(tmp_path: Path) -> None:
    file = tmp_path / "restarts.json"
    spell = Spell(restarts=3, last_restart=17.5, in_all=9, recent=(1.0, 17.5))
    spells = Spells(file, "boot 1")
    spells.keep({"nginx": spell, "asterisk": Spell()})
    assert spells.flush()
    assert Spells(file, "boot 1").of("nginx") == spell
    assert Spells(file, "boot 1").of("asterisk") == Spell()
    assert Spells(file, "boot 2").of("nginx") == Spell()
    for broken in ("", "[]", '{"boot": "boot 1", "spells": {"nginx": {"what": 1, "recent": []}}}'):
        file.write_text(broken)
        assert Spells(file, "boot 1").of("nginx") == Spell()
