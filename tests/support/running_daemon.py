"""The daemon on a private bus, for tests: a real dbus-daemon, the real program, pydbus underneath."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gi.repository import Gio, GLib

from appliance.lab_host import wait_for
from daemon.bus import BUS_NAME, OBJECT_PATH, connect
from tests.support.private_bus import LIMIT_SECONDS, open_directory, start_bus

CALL_LIMIT_MILLISECONDS = 20_000


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

        wait_for(ended, LIMIT_SECONDS, f"the end of job {job}", interval_seconds=0.02)
        return found


class Running:
    """The bus and the daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        (self.root / "etc/centralino").mkdir(parents=True)
        self.open = open_directory()
        self.address = f"unix:path={self.open}/bus"
        self.bus = start_bus(self.open)
        self.daemon: subprocess.Popen[bytes] | None = None

    def start(self, *prefix: str, **environment: str) -> None:
        program = [sys.executable, "-m", "daemon.main", "--bus", self.address, "--root", str(self.root)]
        self.daemon = subprocess.Popen(
            [*prefix, *program],
            env={**os.environ, **environment},
            stderr=(self.directory / "log").open("ab"),
        )
        client = Client(self.address)
        wait_for(lambda: client.bus.dbus.NameHasOwner(BUS_NAME), LIMIT_SECONDS, "the daemon's name")
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
