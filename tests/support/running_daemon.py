"""The daemon on a private bus, for tests: a real dbus-daemon, the real program, pydbus underneath."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gi.repository import Gio, GLib

from daemon.bus import BUS_NAME, OBJECT_PATH, connect

LIMIT_SECONDS = 30.0
CALL_LIMIT_MILLISECONDS = 20_000
BUS_CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>
<allow receive_sender="*"/></policy></busconfig>
"""


def wait_for(condition: Callable[[], object], what: str, limit_seconds: float = LIMIT_SECONDS) -> None:
    end = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {limit_seconds} s"
        time.sleep(0.02)


class Client:
    """One connection of one user; the calls are those of pydbus underneath, with their error names."""

    def __init__(self, address: str) -> None:
        self.bus = connect(address)

    def call(self, name: str, *arguments: str | int) -> str:
        interface, _, method = name.partition(".")
        signature = "".join("u" if isinstance(argument, int) else "s" for argument in arguments)
        value = self.bus.con.call_sync(
            BUS_NAME,
            OBJECT_PATH,
            f"{BUS_NAME}.{interface}",
            method,
            GLib.Variant(f"({signature})", arguments),
            None,
            Gio.DBusCallFlags.NONE,
            CALL_LIMIT_MILLISECONDS,
            None,
        ).unpack()
        return str(value[0]) if value else ""

    def read(self, name: str, *arguments: str | int) -> object:
        return json.loads(self.call(name, *arguments))

    def refused(self, name: str, *arguments: str | int) -> tuple[str, str]:
        with pytest.raises(GLib.Error) as caught:
            self.call(name, *arguments)
        error = caught.value
        remote = Gio.DBusError.get_remote_error(error) or ""
        return remote.removeprefix("org.centralino.Error."), error.message

    def finished(self, job: str) -> dict[str, object]:
        found: dict[str, object] = {}

        def ended() -> bool:
            found.update(json.loads(self.call("Jobs1.Get", job)))
            return found["state"] in ("done", "failed", "cancelled")

        wait_for(ended, f"the end of job {job}")
        return found


class Running:
    """The bus and the daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        (self.root / "etc/centralino").mkdir(parents=True)
        # pytest's directories are closed to other users, and the bus is for all of them.
        self.open = Path(tempfile.mkdtemp(prefix="centralino-bus-"))
        self.open.chmod(0o755)
        self.address = f"unix:path={self.open}/bus"
        configuration = directory / "bus.conf"
        configuration.write_text(BUS_CONFIGURATION.format(socket=self.open / "bus"))
        self.bus = subprocess.Popen(["dbus-daemon", f"--config-file={configuration}", "--nofork"])
        wait_for(self.bus_listens, "the bus")
        self.daemon: subprocess.Popen[bytes] | None = None

    def bus_listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(f"{self.open}/bus") == 0

    def start(self, *prefix: str, **environment: str) -> None:
        program = [sys.executable, "-m", "daemon.main", "--bus", self.address, "--root", str(self.root)]
        self.daemon = subprocess.Popen(
            [*prefix, *program],
            env={**os.environ, **environment},
            stderr=(self.directory / "log").open("ab"),
        )
        client = Client(self.address)
        wait_for(lambda: client.bus.dbus.NameHasOwner(BUS_NAME), "the daemon's name")
        jobs = client.read("Jobs1.List")
        assert isinstance(jobs, list)
        client.finished(jobs[-1]["id"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.daemon is not None
        self.daemon.send_signal(number)
        return self.daemon.wait(LIMIT_SECONDS)

    def close(self) -> None:
        for process in (self.daemon, self.bus):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self.open)

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def audit(self) -> list[dict[str, object]]:
        file = self.root / "var/log/centralino/audit.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def memory_kilobytes(self) -> int:
        assert self.daemon is not None
        status = Path(f"/proc/{self.daemon.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found
        return int(found.group(1))
