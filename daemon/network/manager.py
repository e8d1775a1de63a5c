"""NetworkManager over D-Bus: read profiles again, re-apply a device in place, activate, disconnect.

A device that runs our profile is changed by `Device.Reapply` with flag 1 (preserve external addresses, since
1.40.10): a shared address that keepalived added stays. Activation, which drops such addresses, happens only
where another profile, or none, is active.
Source: https://networkmanager.dev/docs/api/1.40/spec.html
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.connections import keep
from daemon.errors import ApplyFailedError, UnavailableError
from daemon.network.keyfile import profile_uuid

if TYPE_CHECKING:
    from gi.repository import Gio

BUS_NAME = "org.freedesktop.NetworkManager"
ROOT = "/org/freedesktop/NetworkManager"
SETTINGS = f"{ROOT}/Settings"
NOTHING = "/"

CALL_LIMIT_SECONDS = 10.0
ACTIVATION_LIMIT_SECONDS = 45.0
POLL_SECONDS = 0.02

REAPPLY_PRESERVE_EXTERNAL = 1
# Of CheckpointCreate: what came to be since goes away again, and other people's checkpoints are left alone.
CHECKPOINT_FLAGS = 2 | 4 | 8
RELOAD_CONFIGURATION = 1
RELOAD_RESOLVER = 2


class DeviceState(IntEnum):
    """The steps of NMDeviceState that matter here."""

    UNKNOWN = 0
    UNMANAGED = 10
    UNAVAILABLE = 20
    DISCONNECTED = 30
    ACTIVATED = 100
    FAILED = 120


class _RefusedError(Exception):
    """NetworkManager answered with an error: its D-Bus name and message."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message


@dataclass(frozen=True)
class Standing:
    """NetworkManager's object for an interface, "" for none, and the profile that it runs."""

    device: str = ""
    profile: str = ""


class Manager:
    """NetworkManager on the system bus; every call has a time limit. May be used from any thread."""

    def __init__(self) -> None:
        self._connection: Gio.DBusConnection | None = None

    def read_profile(self, interface: str, file: Path) -> None:
        """Take over one profile's file; the device stays as it is. Raises ApplyFailedError for a bad one."""
        try:
            taken = self._call(SETTINGS, f"{BUS_NAME}.Settings", "LoadConnections", "(as)", ([str(file)],))[0]
        except _RefusedError as error:
            raise UnavailableError(
                f"NetworkManager did not read its profiles: {error.message}",
                "see: journalctl -u NetworkManager",
            ) from None
        if taken is not True:
            raise ApplyFailedError(
                f"NetworkManager refuses the profile of {interface}", "see: journalctl -u NetworkManager"
            )

    def read_profiles_again(self) -> None:
        """Take over what changed in the profiles' files; devices stay as they are."""
        try:
            self._call(SETTINGS, f"{BUS_NAME}.Settings", "ReloadConnections", "()", ())
        except _RefusedError as error:
            raise UnavailableError(
                f"NetworkManager did not read its profiles: {error.message}",
                "see: journalctl -u NetworkManager",
            ) from None

    def read_configuration_again(self) -> None:
        """Take over what changed in conf.d, and write resolv.conf. Raises UnavailableError."""
        try:
            self._call(ROOT, BUS_NAME, "Reload", "(u)", (RELOAD_CONFIGURATION | RELOAD_RESOLVER,))
        except _RefusedError as error:
            raise UnavailableError(
                f"NetworkManager did not read its configuration: {error.message}",
                "see: journalctl -u NetworkManager",
            ) from None

    def standing(self, interface: str) -> Standing:
        """What an interface runs now. Raises UnavailableError."""
        device = self._device(interface) or ""
        return Standing(device, self._active_uuid(device) if device else "")

    def bring_up(self, interface: str, standing: Standing | None = None) -> None:
        """Make the device match our profile; waits until it does. `standing` is what it has run up to now.

        A device without a cable is left to NetworkManager, which brings it up when there is one. Raises
        ApplyFailedError with NetworkManager's reason.
        """
        uuid = profile_uuid(interface)
        known = standing or self.standing(interface)
        try:
            if known.device and known.profile == uuid and self._reapply(known.device):
                return
            device = self._device(interface)
            state = self._state(device) if device else DeviceState.DISCONNECTED
            if state == DeviceState.UNMANAGED:
                raise ApplyFailedError(
                    f"NetworkManager does not manage {interface}", f"see: nmcli device show {interface}"
                )
            if state == DeviceState.UNAVAILABLE:
                return
            profile = self._text(SETTINGS, f"{BUS_NAME}.Settings", "GetConnectionByUuid", uuid)
            self._call(ROOT, BUS_NAME, "ActivateConnection", "(ooo)", (profile, device or NOTHING, NOTHING))
        except _RefusedError as error:
            raise ApplyFailedError(
                f"{interface} could not be brought up: {error.message}", "see: journalctl -u NetworkManager"
            ) from None
        self._wait_until_up(interface, uuid)

    def take_down(self, interface: str) -> None:
        """Disconnect a device; one that does not exist is fine. Raises ApplyFailedError."""
        device = self._device(interface)
        if device is None or self._state(device) <= DeviceState.DISCONNECTED:
            return
        try:
            self._call(device, f"{BUS_NAME}.Device", "Disconnect", "()", ())
        except _RefusedError as error:
            raise ApplyFailedError(
                f"{interface} could not be taken down: {error.message}", "see: journalctl -u NetworkManager"
            ) from None

    def create_checkpoint(self, seconds: int) -> str:
        """Have NetworkManager return by itself after `seconds`, unless the checkpoint is destroyed before.

        Returns its object path. Raises UnavailableError.
        """
        try:
            answer = self._call(ROOT, BUS_NAME, "CheckpointCreate", "(aouu)", ([], seconds, CHECKPOINT_FLAGS))
        except _RefusedError as error:
            raise UnavailableError(f"NetworkManager makes no checkpoint: {error.message}") from None
        return str(answer[0])

    def destroy_checkpoint(self, path: str) -> None:
        """Keep what is; one that is gone already is fine. Raises UnavailableError."""
        with suppress(_RefusedError):
            self._call(ROOT, BUS_NAME, "CheckpointDestroy", "(o)", (path,))

    def _reapply(self, device: str) -> bool:
        """False when the change is of a kind that only a new activation can bring about."""
        try:
            self._call(
                device, f"{BUS_NAME}.Device", "Reapply", "(a{sa{sv}}tu)", ({}, 0, REAPPLY_PRESERVE_EXTERNAL)
            )
        except _RefusedError as error:
            if error.name.endswith((".IncompatibleConnection", ".NotActive")):
                return False
            if "flags" in error.message.lower():
                # Without the flag it would take away shared addresses: better nothing than that.
                raise ApplyFailedError(
                    "this NetworkManager cannot change an interface and spare the addresses of others",
                    "update it to 1.40.10 or newer",
                ) from None
            raise
        return True

    def _wait_until_up(self, interface: str, uuid: str) -> None:
        deadline = time.monotonic() + ACTIVATION_LIMIT_SECONDS
        while True:
            device = self._device(interface)
            state = self._state(device) if device else DeviceState.UNKNOWN
            if device and state == DeviceState.ACTIVATED and self._active_uuid(device) == uuid:
                return
            if device and self._property(device, f"{BUS_NAME}.Device.Wired", "Carrier") is False:
                return  # DHCP goes on when there is a cable
            if state == DeviceState.FAILED or time.monotonic() > deadline:
                waited = f"within {ACTIVATION_LIMIT_SECONDS:g} s" if state != DeviceState.FAILED else "at all"
                raise ApplyFailedError(
                    f"{interface} did not come up {waited}",
                    "check the cable and, for DHCP, the server; see: journalctl -u NetworkManager",
                )
            time.sleep(POLL_SECONDS)

    def _device(self, interface: str) -> str | None:
        try:
            return self._text(ROOT, BUS_NAME, "GetDeviceByIpIface", interface)
        except _RefusedError:
            return None

    def _state(self, device: str) -> int:
        value = self._property(device, f"{BUS_NAME}.Device", "State")
        return value if isinstance(value, int) else DeviceState.UNKNOWN

    def _active_uuid(self, device: str) -> str:
        active = self._property(device, f"{BUS_NAME}.Device", "ActiveConnection")
        if not isinstance(active, str) or active == NOTHING:
            return ""
        return str(self._property(active, f"{BUS_NAME}.Connection.Active", "Uuid") or "")

    def _property(self, path: str, interface: str, name: str) -> object:
        """A property, or None when the object is gone."""
        try:
            values = self._call(path, "org.freedesktop.DBus.Properties", "Get", "(ss)", (interface, name))
        except _RefusedError:
            return None
        return values[0]

    def _text(self, path: str, interface: str, method: str, argument: str) -> str:
        return str(self._call(path, interface, method, "(s)", (argument,))[0])

    def _call(
        self, path: str, interface: str, method: str, signature: str, arguments: tuple[object, ...]
    ) -> tuple[object, ...]:
        from gi.repository import Gio, GLib

        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = keep(Gio.bus_get_sync(Gio.BusType.SYSTEM, None))
            answer = self._connection.call_sync(
                BUS_NAME,
                path,
                interface,
                method,
                GLib.Variant(signature, arguments),
                None,
                Gio.DBusCallFlags.NONE,
                int(CALL_LIMIT_SECONDS * 1000),
                None,
            )
        except GLib.Error as error:
            name = Gio.DBusError.get_remote_error(error) or ""
            if not name.startswith(BUS_NAME):
                raise UnavailableError(
                    f"NetworkManager does not answer: {error.message}", "see: systemctl status NetworkManager"
                ) from None
            raise _RefusedError(name, error.message.removeprefix(f"GDBus.Error:{name}: ")) from None
        values: tuple[object, ...] = answer.unpack()
        return values
