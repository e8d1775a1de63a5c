"""What was answered when the OVA was deployed (vApp properties), made the settings of the first start.

VMware hands the answers to the guest as an OVF environment (DSP0243, section "OVF Environment"), which
open-vm-tools reads. Runs once, before NetworkManager and first boot, by a unit that only disk images have; on
any other hypervisor nothing happens. An answer that is wrong is named in the log and left out: the box then
starts with DHCP rather than not at all.
"""

from __future__ import annotations

import json
import os
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

from daemon.errors import CentralinoError, InvalidSettingsError, NotFoundError
from daemon.files import ensure_directory, read_text, write_file
from daemon.network.keyfile import file_name, render
from daemon.places import Places
from daemon.platform import Platform, platform
from daemon.run import run
from daemon.settings import parse_document

ADMIN = "admin"
PREFIX = "centralino."
LARGEST_ENVIRONMENT = 256 * 1024
INTERFACE_LIMIT_SECONDS = 15.0
NETWORK_CLASS = Path("/sys/class/net")
KEY_KINDS = ("ssh-ed25519 ", "ssh-rsa ", "ecdsa-sha2-nistp", "sk-ssh-ed25519@", "sk-ecdsa-sha2-")


def vmware_environment() -> str:
    """The OVF environment as text, empty if this machine was not deployed with one."""
    done = run(["vmtoolsd", "--cmd", "info-get guestinfo.ovfEnv"], check=False)
    return done.output if done.status == 0 else ""


def parse_environment(text: str) -> dict[str, str]:
    """Our properties that were answered, without their class: `{"hostname": "pbx.example.org"}`.

    Raises CentralinoError if the text is no OVF environment.
    """
    if not text.strip():
        return {}
    if len(text) > LARGEST_ENVIRONMENT or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise CentralinoError("the OVF environment is too long or declares entities", "deploy the OVA again")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - entities are refused above
    except ElementTree.ParseError as error:
        raise CentralinoError(f"the OVF environment is no XML: {error}", "deploy the OVA again") from error
    found: dict[str, str] = {}
    for element in root.iter():
        if element.tag.rpartition("}")[2] != "Property":
            continue
        values = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        key, value = values.get("key", ""), values.get("value", "").strip()
        if key.startswith(PREFIX) and value:
            found[key.removeprefix(PREFIX)] = value
    return found


def first_interface(directory: Path = NETWORK_CLASS) -> str | None:
    """The first network card by name; virtual links have no device."""
    try:
        names = sorted(path.name for path in directory.iterdir() if (path / "device").exists())
    except OSError:
        return None
    return names[0] if names else None


def wait_for_interface(limit_seconds: float = INTERFACE_LIMIT_SECONDS) -> str | None:
    """The first card, as soon as its driver has found it."""
    deadline = time.monotonic() + limit_seconds
    while (name := first_interface()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return name


@dataclass
class GuestProperties:
    """One run over one root directory; what is not a file there is injected."""

    places: Places
    platform: Platform
    interface: Callable[[], str | None] = wait_for_interface
    say: Callable[[str], None] = field(default=lambda text: print(text, flush=True))

    def apply(self, answers: Mapping[str, str]) -> None:
        """Write the initial settings, the card's profile and the first user's key."""
        document = self._initial()
        if "hostname" in answers:
            self._set_host_name(document, answers["hostname"])
        network = self._network(answers)
        if network is not None:
            document["network"] = {**document.get("network", {}), **network}
        if document:
            self._store(document)
        if "ssh_key" in answers:
            self._add_key(answers["ssh_key"])

    def _initial(self) -> dict[str, Any]:
        text = read_text(self.places.initial_settings)
        try:
            document = json.loads(text) if text else {}
        except ValueError:
            document = {}
        return document if isinstance(document, dict) else {}

    def _set_host_name(self, document: dict[str, Any], name: str) -> None:
        label = name.partition(".")[0].lower()
        attempt = {**document, "node": {**document.get("node", {}), "hostname": label}}
        if self._refused(attempt, "hostname"):
            return
        document["node"] = attempt["node"]
        write_file(self.places.on_box("/etc/hostname"), label + "\n")

    def _network(self, answers: Mapping[str, str]) -> dict[str, Any] | None:
        address = answers.get("address")
        if address is None:
            return None
        name = self.interface()
        if name is None:
            self.say("No network card was found; the answers about the network are left out.")
            return None
        try:
            found = ip_interface(address)
            gateway = answers.get("gateway")
            servers = [part for part in answers.get("dns", "").replace(",", " ").split() if ip_address(part)]
            settings: dict[str, Any] = {"addresses": [str(found)]}
            settings["ipv4" if found.version == 4 else "ipv6"] = "static"
            if found.version == 6:
                settings["ipv4"] = "off"
            if gateway:
                settings["gateway" if found.version == 4 else "gateway6"] = str(ip_address(gateway))
        except ValueError as error:
            self.say(f"The answers about the network are left out: {error}.")
            return None
        network = {"interfaces": {name: settings}, "dns": {"servers": servers}}
        if "/" not in address:
            self.say(
                f"The answers about the network are left out: {address} has no prefix length, as in /24."
            )
            return None
        return None if self._refused({"network": network}, "network") else network

    def _refused(self, document: Mapping[str, Any], what: str) -> bool:
        try:
            parse_document(dict(document))
        except InvalidSettingsError as error:
            self.say(f"The answers about the {what} are left out: {error}.")
            return True
        return False

    def _store(self, document: dict[str, Any]) -> None:
        ensure_directory(self.places.configuration)
        write_file(
            self.places.initial_settings, json.dumps(document, indent=2, sort_keys=True) + "\n", mode=0o600
        )
        if "network" not in document:
            return
        # The daemon applies the settings later; without this the first boot would still ask for DHCP.
        connections = self.places.on_box(self.platform.paths["networkmanager_connections"])
        ensure_directory(connections, 0o700)
        for name, text in render(parse_document(document).network).items():
            write_file(connections / file_name(name), text, mode=0o600)

    def _add_key(self, key: str) -> None:
        if not key.startswith(KEY_KINDS) or "\n" in key:
            self.say("The SSH key is left out: it is no public key in one line, as in a .pub file.")
            return
        try:
            home, user, group = self._account()
        except NotFoundError as error:
            self.say(f"The SSH key is left out: {error.message}.")
            return
        directory = home / ".ssh"
        ensure_directory(directory, 0o700)
        file = directory / "authorized_keys"
        lines = (read_text(file) or "").splitlines()
        if key not in lines:
            write_file(file, "\n".join([*lines, key]) + "\n", mode=0o600)
        # sshd reads them as that user.
        for path in (directory, file):
            os.chown(path, user, group, follow_symlinks=False)

    def _account(self) -> tuple[Path, int, int]:
        """Home, user and group number of the first user, by the root's own list of users."""
        for line in (read_text(self.places.on_box("/etc/passwd")) or "").splitlines():
            fields = line.split(":")
            if fields[0] == ADMIN and len(fields) > 5:
                return self.places.on_box(fields[5]), int(fields[2]), int(fields[3])
        raise NotFoundError(f"there is no user {ADMIN}")


def main() -> int:
    """Entry point of the unit."""
    try:
        answers = parse_environment(vmware_environment())
        GuestProperties(Places(), platform()).apply(answers)
    except CentralinoError as error:
        print(f"The answers of the deployment could not be used: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Answers of the deployment that were used: {', '.join(sorted(answers)) or 'none'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
