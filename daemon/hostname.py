"""The node's name and time zone (settings section `node`)."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from daemon.errors import CommandFailedError, Problem, StorageError
from daemon.files import FileChange, apply_file_change, read_text, write_link
from daemon.network.names_and_time import hosts_text, own_name_text
from daemon.places import Places
from daemon.run import run
from daemon.settings import Settings
from daemon.subsystem import Change, State

ZONES = Path("/usr/share/zoneinfo")
NAME_FILE = "/etc/hostname"
HOSTS_FILE = "/etc/hosts"
ZONE_LINK = "/etc/localtime"
# Some distributions keep the zone's name in a text file too; it is kept in step where it exists.
ZONE_FILE = "/etc/timezone"
LIMIT_SECONDS = 10.0


class Hostname:
    """/etc/hostname and the kernel's name, /etc/localtime."""

    name = "node"
    sections = ("node",)

    def __init__(self, places: Places) -> None:
        self._places = places

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        """The zone must be one that this box knows."""
        zone = settings.node.timezone
        if zone == "UTC" or self._places.on_box(ZONES / zone).is_file():
            return []
        return [Problem("node.timezone", f"{zone} is not known here", "see: timedatectl list-timezones")]

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        """One change for the name, one for the zone."""
        changes: list[Change] = []
        name, zone = new.node.hostname, new.node.timezone
        hosts = self._hosts(new)
        known = {self._stored_name(), current_hostname(self._places)}
        if old.node.hostname != name if old is not None else known != {name} or hosts.before != hosts.after:
            changes.append(
                Change(
                    self.name,
                    f"Name this node {name}.",
                    files=(self._file(NAME_FILE, name), hosts),
                    detail={"hostname": name},
                )
            )
        if old.node.timezone != zone if old is not None else current_timezone(self._places) != zone:
            files = (self._file(ZONE_FILE, zone),) if self._places.on_box(ZONE_FILE).exists() else ()
            changes.append(
                Change(self.name, f"Set the time zone to {zone}.", files=files, detail={"timezone": zone})
            )
        return changes

    def apply(self, change: Change) -> None:
        """Files first, they are what survives; then the running kernel."""
        for file in change.files:
            apply_file_change(file)
        if isinstance(zone := change.detail.get("timezone"), str):
            write_link(self._places.on_box(ZONE_LINK), f"..{ZONES / zone}")
        if isinstance(name := change.detail.get("hostname"), str) and current_hostname(self._places) != name:
            run(["hostnamectl", "set-hostname", name], limit_seconds=LIMIT_SECONDS)
            # hostnamed rewrote the file without syncing it; and one that saw our file may have done nothing.
            for file in change.files:
                apply_file_change(file)
            if current_hostname(self._places) != name:
                raise CommandFailedError(
                    f"the kernel still calls this node {current_hostname(self._places)}", "see: hostnamectl"
                )

    def observe(self) -> State:
        """The names in the file and in the kernel."""
        try:
            facts = {
                "hostname": current_hostname(self._places),
                "stored": self._stored_name(),
                "timezone": current_timezone(self._places),
            }
        except StorageError as error:
            return State(False, (str(error),))
        drift: tuple[str, ...] = ()
        if facts["hostname"] != facts["stored"]:
            drift = (f"the kernel calls this node {facts['hostname']}, {NAME_FILE} says {facts['stored']}",)
        return State(True, drift=drift, facts=facts)

    def _file(self, path: str, value: str) -> FileChange:
        place = self._places.on_box(path)
        return FileChange(place, read_text(place), f"{value}\n")

    def _hosts(self, settings: Settings) -> FileChange:
        """The file whole: one change may rename the node and change network.hosts, which is written later."""
        place = self._places.on_box(HOSTS_FILE)
        before = read_text(place)
        text = hosts_text(before, settings.network.hosts)
        return FileChange(place, before, own_name_text(text, settings.node.hostname))

    def _stored_name(self) -> str:
        return (read_text(self._places.on_box(NAME_FILE)) or "").strip()


def current_hostname(places: Places) -> str:
    """What the kernel calls this node; below another root, what the file there says."""
    if places.is_live:
        return socket.gethostname()
    return (read_text(places.on_box(NAME_FILE)) or "").strip()


def current_timezone(places: Places) -> str:
    """The zone that /etc/localtime names."""
    try:
        target = str(places.on_box(ZONE_LINK).readlink())
    except OSError:
        return "UTC"
    return target.partition("/zoneinfo/")[2].removeprefix("Etc/").removeprefix("posix/") or "UTC"
