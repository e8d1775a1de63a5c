"""The daemon's life on a bus: its end and return, a second one, a bus, a disk and a log that fail it."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lab_host import wait_for
from daemon.clock import Clock
from tests.support.private_bus import LIMIT_SECONDS
from tests.support.running_daemon import Client, Running


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.close()


def test_it_ends_cleanly_and_goes_on_where_it_was(own: Running) -> None:
    own.start()
    client = Client(own.address)
    client.finished(client.call("Settings1.Apply", json.dumps({"node": {"hostname": "kept"}}), "{}"))
    assert own.stop() == 0
    assert "Traceback" not in own.log()
    own.start()
    answer = Client(own.address).read("Settings1.Get", "node.hostname")
    assert answer == {"revision": 2, "settings": "kept"}


def test_killed_while_unconfirmed_it_still_returns(own: Running) -> None:
    own.start()
    client = Client(own.address)
    client.finished(
        client.call("Settings1.Apply", json.dumps({"node": {"hostname": "risky"}}), '{"confirm_seconds": 3}')
    )
    assert (own.root / "etc/hostname").read_text() == "risky\n"
    own.stop(signal.SIGKILL)
    own.start()
    wait_for(lambda: (own.root / "etc/hostname").read_text() == "centralino\n", LIMIT_SECONDS, "the return")
    client = Client(own.address)
    wait_for(lambda: client.call("Settings1.History", 1).find("rolled_back") > 0, LIMIT_SECONDS, "the record")


def test_a_second_daemon_does_not_take_the_name(own: Running) -> None:
    own.start()
    second = subprocess.run(
        [sys.executable, "-m", "daemon.main", "--bus", own.address, "--root", str(own.directory / "other")],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert second.returncode == 9
    assert "does another centralinod run?" in second.stderr
    assert Client(own.address).read("Jobs1.List") is not None


def test_a_bus_that_goes_away_ends_the_daemon_with_an_error(own: Running) -> None:
    own.start()
    own.bus.kill()
    assert own.daemon is not None
    assert own.daemon.wait(LIMIT_SECONDS) == 9


def test_a_damaged_disk_is_a_reason_not_a_crash(own: Running) -> None:
    own.start()
    client = Client(own.address)
    client.finished(client.call("Settings1.Apply", json.dumps({"node": {"hostname": "one"}}), "{}"))
    own.stop(signal.SIGKILL)
    (own.root / "var/lib/centralino/revisions/00000002.json").write_bytes(b"\0" * 100)
    own.start()
    status = Client(own.address).read("System1.Status")
    assert isinstance(status, dict)
    assert (status["healthy"], status["revision"]) == (False, 1)
    assert any("revision 2 cannot be used" in reason for reason in status["reasons"])
    assert (own.root / "etc/hostname").read_text() == "centralino\n"


def test_a_log_that_cannot_be_written_is_a_reason_and_calls_go_on(own: Running) -> None:
    logs = own.root / "var/log"
    logs.mkdir(parents=True)
    (logs / "centralino").write_text("in the way")
    own.start()
    client = Client(own.address)
    client.call("Settings1.SetSecret", "mail", "x", "")
    status = client.read("System1.Status")
    assert isinstance(status, dict)
    assert any("audit log goes to the journal" in reason for reason in status["reasons"])
    assert '"method": "Settings1.SetSecret"' in own.log()


def test_systemd_is_told(own: Running) -> None:
    path = own.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(LIMIT_SECONDS)
        own.start(NOTIFY_SOCKET=str(path), WATCHDOG_USEC="500000")
        heard = ""
        with contextlib.suppress(TimeoutError):
            while heard.count("WATCHDOG=1") < 2:
                heard += listener.recv(4096).decode() + "\n"
        assert own.stop() == 0
        listener.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                heard += listener.recv(4096).decode() + "\n"
    assert heard.startswith(("READY=1\nSTATUS=revision", "STATUS=revision"))
    assert "READY=1" in heard
    assert "STOPPING=1" in heard


def test_the_clock_counts_and_names_the_boot(tmp_path: Path) -> None:
    marker = tmp_path / "run" / "boot"
    clock = Clock(marker)
    assert clock.seconds() <= clock.seconds()
    first = clock.boot()
    assert first
    assert Clock(marker).boot() == first
    marker.unlink()
    assert clock.boot() not in ("", first)
    (tmp_path / "file").write_text("")
    assert Clock(tmp_path / "file" / "boot").boot() == ""
