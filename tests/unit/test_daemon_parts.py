"""Jobs, audit log, journal, sd_notify, authorization, passwords, host name: each on its own."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.audit import KEPT_FILES, AuditLog
from daemon.authorization import Access, Caller, allows, authorize, groups_of, method_of, reads, writes
from daemon.bus import introspection, methods_of_interface
from daemon.errors import (
    CancelledError,
    CentralinoError,
    ConflictError,
    InvalidSettingsError,
    NotAuthorizedError,
    NotFoundError,
    Problem,
    UnavailableError,
)
from daemon.hostname import Hostname
from daemon.jobs import Job, JobHandle, Jobs, JobState, error_as_json
from daemon.journal import JournalHandler, encode, fields_of
from daemon.log_retention import LogRetention, rendered
from daemon.maintenance import Maintenance, MaintenanceVerb, password_problems
from daemon.notify import ServiceManagerLink
from daemon.places import Places
from daemon.settings import Settings, parse

LIMIT_SECONDS = 20.0


# --- jobs -------------------------------------------------------------------------------------------------


def test_a_job_runs_reports_and_keeps_its_result() -> None:
    seen: list[tuple[JobState, float | None]] = []
    jobs = Jobs(lambda job: seen.append((job.state, job.progress)))

    def work(handle: JobHandle) -> object:
        handle.progress(0.5, "halfway")
        return {"answer": 42}

    job = jobs.submit("think", "maria", work, lane="a")
    assert jobs.wait(LIMIT_SECONDS)
    shown = jobs.get(job.identifier).as_json()
    assert (shown["state"], shown["result"], shown["message"]) == ("done", {"answer": 42}, "halfway")
    assert next(state for state, _ in seen) is JobState.QUEUED
    assert (JobState.RUNNING, 0.5) in seen


def test_one_at_a_time_in_a_lane_and_lanes_beside_each_other() -> None:
    jobs = Jobs()
    gate, started = threading.Event(), threading.Event()
    order: list[str] = []

    def slow(_handle: JobHandle) -> None:
        started.set()
        gate.wait(LIMIT_SECONDS)
        order.append("slow")

    jobs.submit("slow", "", slow, lane="a")
    assert started.wait(LIMIT_SECONDS)
    jobs.submit("next", "", lambda _handle: order.append("next"), lane="a")
    done = threading.Event()
    jobs.submit("other", "", lambda _handle: (order.append("other"), done.set()), lane="b")
    assert done.wait(LIMIT_SECONDS)
    assert order == ["other"]
    gate.set()
    assert jobs.wait(LIMIT_SECONDS)
    assert order == ["other", "slow", "next"]


def test_cancelling_what_waits_and_what_runs() -> None:
    jobs = Jobs()
    gate, started = threading.Event(), threading.Event()

    def patient(handle: JobHandle) -> None:
        started.set()
        gate.wait(LIMIT_SECONDS)
        handle.progress(0.9, "almost")

    running = jobs.submit("patient", "", patient, lane="a")
    waiting = jobs.submit("waiting", "", patient, lane="a")
    assert started.wait(LIMIT_SECONDS)
    jobs.cancel(waiting.identifier)
    assert waiting.state is JobState.CANCELLED
    jobs.cancel(running.identifier)
    gate.set()
    assert jobs.wait(LIMIT_SECONDS)
    assert running.state is JobState.CANCELLED
    with pytest.raises(ConflictError):
        jobs.cancel(running.identifier)
    with pytest.raises(NotFoundError):
        jobs.cancel("unknown")


def test_failures_are_errors_with_names_and_the_lane_goes_on() -> None:
    jobs = Jobs()

    def refuse(_handle: JobHandle) -> None:
        raise InvalidSettingsError([Problem("a.b", "is wrong", "correct it")])

    def crash(_handle: JobHandle) -> None:
        raise ZeroDivisionError("oops")

    refused = jobs.submit("refuse", "", refuse, lane="a")
    crashed = jobs.submit("crash", "", crash, lane="a")
    fine = jobs.submit("fine", "", lambda _handle: 1, lane="a")
    assert jobs.wait(LIMIT_SECONDS)
    assert refused.error is not None
    assert refused.error["name"] == "org.centralino.Error.InvalidSettings"
    assert refused.error["problems"] == [Problem("a.b", "is wrong", "correct it").as_json()]
    assert crashed.error is not None
    assert "internal error: oops" in str(crashed.error["message"])
    assert fine.state is JobState.DONE


def test_the_list_stays_bounded_and_a_stopping_daemon_takes_no_work() -> None:
    jobs = Jobs()
    for _ in range(5):
        for _ in range(40):
            jobs.submit("quick", "", lambda _handle: None, lane="a")
        assert jobs.wait(LIMIT_SECONDS)
    assert len(jobs.list()) <= 140
    jobs.close()
    with pytest.raises(ConflictError, match="stopping"):
        jobs.submit("late", "", lambda _handle: None, lane="a")


def test_every_error_class_has_its_own_bus_name() -> None:
    classes = CentralinoError.__subclasses__()
    assert len({kind.bus_name() for kind in classes}) == len(classes)
    assert error_as_json(CancelledError("stopped"))["exit_code"] == CancelledError.exit_code


# --- audit ------------------------------------------------------------------------------------------------


def test_the_audit_log_is_readable_newest_first_and_rotates(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "log" / "audit.jsonl", maximum_bytes=2000)
    for number in range(100):
        audit.record(who="maria", uid=1, method="X", arguments={"n": number}, outcome="done")
    entries = audit.entries(30)
    assert [entry["arguments"] for entry in entries] == [{"n": number} for number in range(99, 69, -1)]
    files = sorted(file.name for file in audit.path.parent.iterdir())
    assert files == [
        "audit.jsonl",
        *(f"audit.jsonl.{number}" for number in range(1, KEPT_FILES + 1)),
    ] or files == [f"audit.jsonl.{number}" for number in range(1, KEPT_FILES + 1)]
    assert all(file.stat().st_size < 2300 for file in audit.path.parent.iterdir())
    assert oct(audit.path.parent.stat().st_mode)[-3:] == "750"


def test_hostile_and_huge_arguments_make_one_short_line(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.jsonl")
    audit.record(
        who="m",
        uid=1,
        method="X",
        arguments={"a": "x\ny" * 10_000, "b": ["z" * 999] * 999, "c": {1}},
        outcome="o" * 999,
    )
    text = audit.path.read_text()
    assert text.count("\n") == 1
    assert len(text) < 20_000
    assert audit.entries(10)[0]["who"] == "m"


def test_a_damaged_line_is_left_out(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.jsonl")
    audit.path.write_text('{"who": "a"}\n{"who": \n[]\n{"who": "b"}\n')
    assert [entry["who"] for entry in audit.entries(10)] == ["b", "a"]


def test_a_full_disk_sends_entries_to_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audit = AuditLog(tmp_path / "audit.jsonl")
    real = os.write

    def full(_handle: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    audit.record(who="m", uid=1, method="Settings1.Apply", arguments={}, outcome="done")
    assert audit.trouble is not None
    assert "Settings1.Apply" in caplog.text
    monkeypatch.setattr(os, "write", real)
    audit.record(who="m", uid=1, method="Settings1.Apply", arguments={}, outcome="done")
    assert audit.trouble is None


# --- journal and systemd ----------------------------------------------------------------------------------


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "socket"))
        made.settimeout(LIMIT_SECONDS)
        yield made


def test_records_become_journal_datagrams(listener: socket.socket, tmp_path: Path) -> None:
    handler = JournalHandler(tmp_path / "socket")
    record = logging.LogRecord("daemon.x", logging.WARNING, "/a.py", 7, "one %s", ("two",), None, "f")
    record.fields = {"job": "j1"}
    handler.emit(record)
    lines = listener.recv(9999).decode().splitlines()
    assert "MESSAGE=one two" in lines
    assert "PRIORITY=4" in lines
    assert "CENTRALINO_JOB=j1" in lines


def test_values_with_newlines_are_length_prefixed() -> None:
    assert encode({"MESSAGE": "a\nb"}) == b"MESSAGE\n\x03\x00\x00\x00\x00\x00\x00\x00a\nb\n"
    assert encode({"MESSAGE": "\ud800"}) == b"MESSAGE=\\ud800\n"


def test_tracebacks_are_part_of_the_message() -> None:
    try:
        raise ValueError("inner")
    except ValueError as error:
        information = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "a.py", 1, "failed", (), information)
    assert "ValueError: inner" in fields_of(record)["MESSAGE"]


def test_a_journal_that_goes_away_does_not_stop_anybody(
    listener: socket.socket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = JournalHandler(tmp_path / "socket")
    listener.close()
    handler.emit(logging.LogRecord("x", logging.ERROR, "a.py", 1, "still said", (), None))
    assert "still said" in capfd.readouterr().err


def test_notify_speaks_the_protocol(listener: socket.socket, tmp_path: Path) -> None:
    link = ServiceManagerLink(
        {
            "NOTIFY_SOCKET": str(tmp_path / "socket"),
            "WATCHDOG_USEC": "10000000",
            "WATCHDOG_PID": str(os.getpid()),
        }
    )
    assert link.watchdog_seconds == 10
    for action, expected in (
        (lambda: link.ready("fine\nreally"), "READY=1\nSTATUS=fine really"),
        (link.alive, "WATCHDOG=1"),
        (link.stopping, "STOPPING=1\nSTATUS=stopping"),
    ):
        action()
        assert listener.recv(999).decode() == expected


def test_without_systemd_notify_is_silent() -> None:
    link = ServiceManagerLink({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
    assert link.watchdog_seconds is None
    link.ready("nobody hears")
    ServiceManagerLink({"NOTIFY_SOCKET": "/nowhere/socket", "WATCHDOG_USEC": "x"}).alive()


# --- authorization ----------------------------------------------------------------------------------------


def caller(uid: int = 1000, *groups: str) -> Caller:
    return Caller(":1.1", uid, "maria", frozenset(groups))


@pytest.mark.parametrize(
    ("who", "reading", "writing"),
    [
        (caller(0), True, True),
        (caller(1000, "centralino-admin"), True, True),
        (caller(1000, "centralino-operator"), True, False),
        (caller(1000, "users", "wheel", "sudo", "adm", "root"), False, False),
        (caller(1000), False, False),
    ],
)
def test_who_may_what(who: Caller, reading: bool, writing: bool) -> None:
    assert (allows(who, Access.READ), allows(who, Access.WRITE)) == (reading, writing)


def test_polkit_is_asked_last_and_may_grant() -> None:
    asked: list[str] = []

    def grants(_caller: Caller, action: str) -> bool:
        asked.append(action)
        return action == "org.centralino.read"

    authorize(caller(0), Access.WRITE, grants)
    assert asked == []
    authorize(caller(), Access.READ, grants)
    with pytest.raises(NotAuthorizedError, match="log in as a member of centralino-admin"):
        authorize(caller(), Access.WRITE, grants)
    assert asked == ["org.centralino.read", "org.centralino.write"]


def test_groups_come_from_the_system() -> None:
    name, groups = groups_of(0)
    assert (name, "root" in groups) == ("root", True)
    assert groups_of(4_000_000_000) == ("uid 4000000000", frozenset())


def test_every_method_of_the_interface_is_marked_read_or_write() -> None:
    from daemon.bus_api import Core, handlers

    table = handlers(Core(*[None] * 7))  # type: ignore[arg-type]
    # Interfaces of other modules come with handlers of their own; BusService refuses to start if one lacks.
    assert set(table) <= set(methods_of_interface(introspection()))
    writing = set()
    for name, handler in table.items():
        method = method_of(handler)
        assert method is not None, name
        if method.access is Access.WRITE:
            writing.add(name.removeprefix("org.centralino."))
    assert writing >= {
        "Settings1.Apply",
        "Settings1.Confirm",
        "Settings1.Repair",
        "Settings1.SetSecret",
        "Services1.Act",
        "System1.Maintenance",
        "System1.SetPassword",
        "Jobs1.Cancel",
    }


def test_a_function_without_a_mark_is_no_method() -> None:
    assert method_of(lambda: None) is None
    assert method_of(reads(lambda: None)) is not None
    assert method_of(writes(dict)(lambda: None)) is not None


# --- maintenance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "good"),
    [
        ("Correct-Horse-7", True),
        ("correcthorsebatterystaple", True),
        ("Sh0rt!", False),
        ("alllowercase", False),
        ("Aaaaaaaaaaaaaaaa1", False),
        ("My-admin-Pass1", False),
        ("With\nnewline-1A", False),
        ("x" * 300, False),
        ("", False),
    ],
)
def test_weak_passwords_are_refused(password: str, good: bool) -> None:
    problems = password_problems("admin", password)
    assert (not problems) is good
    assert not any(password and password in problem.sentence() for problem in problems)


def test_off_the_box_nothing_is_rebooted(tmp_path: Path) -> None:
    maintenance = Maintenance(Places(tmp_path))
    plan = maintenance.plan(MaintenanceVerb.POWEROFF, 30)
    assert plan["drops_calls"] is True
    with pytest.raises(UnavailableError):
        maintenance.carry_out(MaintenanceVerb.REBOOT, 0, "", lambda _fraction, _message: None)


@pytest.mark.parametrize("user", ["root", "nobody", "", "a" * 5000, "x;reboot", "admin\x00"])
def test_only_our_users_have_passwords(tmp_path: Path, user: str) -> None:
    with pytest.raises(NotFoundError):
        Maintenance(Places(tmp_path)).set_password(user, "Correct-Horse-7")


# --- small subsystems -------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for directory in ("etc", "usr/share/zoneinfo/Europe"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "usr/share/zoneinfo/Europe/Rome").write_text("TZif")
    return Places(tmp_path)


def test_name_and_zone_reach_their_files(places: Places) -> None:
    subsystem = Hostname(places)
    new = parse('{"node": {"hostname": "pbx1", "timezone": "Europe/Rome"}}')
    assert subsystem.verify(new, {}) == []
    changes = subsystem.plan(None, new)
    assert [change.sentence for change in changes] == [
        "Name this node pbx1.",
        "Set the time zone to Europe/Rome.",
    ]
    for _ in range(2):
        for change in changes:
            subsystem.apply(change)
    assert places.on_box("/etc/hostname").read_text() == "pbx1\n"
    assert str(places.on_box("/etc/localtime").readlink()) == "../usr/share/zoneinfo/Europe/Rome"
    assert subsystem.plan(None, new) == []
    assert subsystem.plan(new, new) == []
    assert len(subsystem.plan(new, Settings())) == 2
    assert subsystem.observe().facts["timezone"] == "Europe/Rome"


def test_a_zone_that_the_box_does_not_know_is_refused(places: Places) -> None:
    (problem,) = Hostname(places).verify(parse('{"node": {"timezone": "Europe/Atlantis"}}'), {})
    assert problem.path == "node.timezone"


def test_log_retention_is_a_drop_in_and_drift_is_seen(places: Places) -> None:
    audit = AuditLog(places.audit_log)
    subsystem = LogRetention(places, audit)
    new = parse('{"logs": {"journal": {"megabytes": 100, "days": 7}, "audit_megabytes": 2}}')
    for change in subsystem.plan(None, new):
        subsystem.apply(change)
    file = places.on_box("/etc/systemd/journald.conf.d/90-centralino.conf")
    assert "SystemMaxUse=100M\nMaxRetentionSec=7day\n" in file.read_text()
    assert audit.maximum_bytes == 2 * 1024 * 1024
    assert subsystem.observe().drift == ()
    file.write_text("# mine\n")
    assert len(subsystem.observe().drift) == 1
    assert [change.sentence for change in subsystem.plan(None, new)] == [
        "Keep the journal for 7 days, in at most 100 MB."
    ]
    assert rendered(Settings()) != rendered(new)


def test_jobs_as_json_are_json() -> None:
    json.dumps(Job("a", "b", "c").as_json())
