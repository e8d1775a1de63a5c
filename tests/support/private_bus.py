"""A D-Bus of a test's own: a real dbus-daemon that lets everybody own, send and receive everything."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from pathlib import Path

from appliance.lab_host import wait_for

LIMIT_SECONDS = 30.0
CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>
<allow receive_sender="*"/></policy></busconfig>
"""


def open_directory() -> Path:
    """A directory that other users may enter, unlike pytest's own; the caller removes it."""
    directory = Path(tempfile.mkdtemp(prefix="centralino-bus-"))
    directory.chmod(0o755)
    return directory


def start_bus(directory: Path) -> subprocess.Popen[bytes]:
    """The running bus, listening on `directory`/bus; the caller ends it. Raises LabTimeoutError."""
    path = directory / "bus"
    configuration = directory / "bus.conf"
    configuration.write_text(CONFIGURATION.format(socket=path))
    process = subprocess.Popen(["dbus-daemon", f"--config-file={configuration}", "--nofork"])

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == 0

    wait_for(listens, LIMIT_SECONDS, "the start of the bus", interval_seconds=0.02)
    return process
