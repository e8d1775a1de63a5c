"""Who a sender on the bus is, as the bus vouches for it, and what polkit says of them."""

from __future__ import annotations

import logging
import pwd
import threading
from collections import OrderedDict
from pathlib import Path

from gi.repository import Gio, GLib

from daemon.authorization import Caller, groups_of
from daemon.errors import UnavailableError

log = logging.getLogger(__name__)

CALL_LIMIT_MILLISECONDS = 5000
REMEMBERED = 256
NO_LOGIN = 2**32 - 1

BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
POLKIT = (
    "org.freedesktop.PolicyKit1",
    "/org/freedesktop/PolicyKit1/Authority",
    "org.freedesktop.PolicyKit1.Authority",
)
POLKIT_IS_AWAY = ("org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner")


class Identities:
    """Safe for threads. A unique bus name is never used twice, so user ids are remembered by it."""

    def __init__(self, connection: Gio.DBusConnection, *, ask_polkit: bool) -> None:
        self._connection = connection
        self._ask_polkit = ask_polkit
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[int, str]] = OrderedDict()

    def caller(self, sender: str) -> Caller:
        """Who is behind a unique name; groups are looked up anew for each call.

        Raises UnavailableError if the sender has left the bus.
        """
        with self._lock:
            known = self._known.get(sender)
        if known is None:
            credentials = self._credentials(sender)
            known = credentials["UnixUserID"], _login(credentials.get("ProcessID"))
            with self._lock:
                self._known[sender] = known
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        uid, login = known
        name, groups = groups_of(uid)
        return Caller(sender, uid, name, groups, login)

    def polkit(self, caller: Caller, action: str) -> bool:
        """Whether polkit grants the action at once; no agent is asked, an absent polkit grants nothing."""
        if not self._ask_polkit:
            return False
        subject = ("system-bus-name", {"name": GLib.Variant("s", caller.sender)})
        parameters = GLib.Variant("((sa{sv})sa{ss}us)", (subject, action, {}, 0, ""))
        try:
            answer = self._connection.call_sync(
                *POLKIT,
                "CheckAuthorization",
                parameters,
                GLib.VariantType("((bba{ss}))"),
                Gio.DBusCallFlags.NONE,
                CALL_LIMIT_MILLISECONDS,
                None,
            )
        except GLib.Error as error:
            if Gio.DBusError.get_remote_error(error) not in POLKIT_IS_AWAY:
                log.warning("polkit did not answer, %s is refused: %s", caller.name, error.message)
            return False
        return bool(answer.unpack()[0][0])

    def _credentials(self, sender: str) -> dict[str, int]:
        """What the bus knows of a caller: `UnixUserID`, and `ProcessID` where it is known."""
        try:
            answer = self._connection.call_sync(
                *BUS,
                "GetConnectionCredentials",
                GLib.Variant("(s)", (sender,)),
                GLib.VariantType("(a{sv})"),
                Gio.DBusCallFlags.NONE,
                CALL_LIMIT_MILLISECONDS,
                None,
            )
        except GLib.Error as error:
            raise UnavailableError(f"the bus does not know who calls: {error.message}") from error
        found = {name: value for name, value in answer.unpack()[0].items() if isinstance(value, int)}
        if "UnixUserID" not in found:
            raise UnavailableError("the bus does not know who calls: it names no user")
        return found


def _login(process: int | None) -> str:
    """The user that logged in before `sudo`, by the kernel's audit id; for the records only."""
    if process is None:
        return ""
    try:
        uid = int(Path(f"/proc/{process}/loginuid").read_text())
        return "" if uid == NO_LOGIN else pwd.getpwuid(uid).pw_name
    except (OSError, ValueError, KeyError):
        return ""
