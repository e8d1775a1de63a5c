"""Reboot, power off, and the passwords of the people who log in."""

from __future__ import annotations

import grp
import logging
import pwd
import re
from collections.abc import Callable
from enum import StrEnum

from daemon.authorization import ADMIN_GROUP, OPERATOR_GROUP
from daemon.errors import InvalidSettingsError, NotFoundError, Problem, UnavailableError
from daemon.files import remove_file
from daemon.places import Places
from daemon.run import run
from daemon.subsystem import JsonObject

log = logging.getLogger(__name__)

FIRST_USER = "admin"
SHORTEST_PASSWORD = 10
LONGEST_PASSWORD = 256
PASSWORD_LIMIT_SECONDS = 20.0
POWER_LIMIT_SECONDS = 30.0
CHARACTER_CLASSES = (r"[a-z]", r"[A-Z]", r"[0-9]", r"[^A-Za-z0-9]")

Progress = Callable[[float | None, str], None]
Drain = Callable[[int, Progress], None]


class MaintenanceVerb(StrEnum):
    """What can be done with the whole box."""

    REBOOT = "reboot"
    POWEROFF = "poweroff"


class Maintenance:
    """`drain` waits for live calls to end; None where nothing can be drained."""

    def __init__(self, places: Places, drain: Drain | None = None) -> None:
        self._places = places
        self._drain = drain

    def plan(self, verb: MaintenanceVerb, drain_seconds: int) -> JsonObject:
        """The dry run: `sentence`, `drops_calls`, `notes`."""
        notes = [f"Live calls get {drain_seconds} s to end."] if drain_seconds else []
        if verb is MaintenanceVerb.POWEROFF:
            notes.append("It stays off until somebody switches it on.")
        sentence = "Reboot the box." if verb is MaintenanceVerb.REBOOT else "Power off the box."
        return {"sentence": sentence, "drops_calls": True, "notes": notes}

    def carry_out(
        self, verb: MaintenanceVerb, drain_seconds: int, comment: str, progress: Progress
    ) -> JsonObject:
        """Drain, then ask systemd. Raises UnavailableError off the box, CommandFailedError."""
        if not self._places.is_live:
            raise UnavailableError(f"this is not a whole box, there is nothing to {verb}", "run it on a box")
        if drain_seconds and self._drain is not None:
            progress(None, "waiting for calls to end")
            self._drain(drain_seconds, progress)
        progress(None, f"asking systemd to {verb}")
        log.warning("%s was asked for: %s", verb, comment or "no comment given")
        run(["systemctl", "--no-block", verb.value], limit_seconds=POWER_LIMIT_SECONDS)
        return {"asked": verb.value}

    def set_password(self, user: str, password: str) -> None:
        """Change a login user's password. Raises NotFoundError (no such user of ours),
        InvalidSettingsError (the password is too weak), CommandFailedError."""
        if not _is_login_user(user):
            raise NotFoundError(
                f"{user[:64]!r} is no user of this appliance",
                f"users are {FIRST_USER} and the members of {ADMIN_GROUP} and {OPERATOR_GROUP}",
            )
        problems = password_problems(user, password)
        if problems:
            raise InvalidSettingsError(problems)
        if not self._places.is_live:
            raise UnavailableError("this is not a whole box, it has no passwords", "run it on a box")
        # chpasswd reads from stdin, so the password is in no process list.
        run(["chpasswd"], input_text=f"{user}:{password}\n", limit_seconds=PASSWORD_LIMIT_SECONDS)
        if user == FIRST_USER:
            remove_file(self._places.first_password)


def password_problems(user: str, password: str) -> list[Problem]:
    """Why a password is refused, every reason at once (S-SE-01, S-SE-05)."""
    problems: list[Problem] = []
    remedy = f"use {SHORTEST_PASSWORD} characters of three kinds, or 16 characters"
    if not password.isprintable():
        problems.append(Problem("password", "holds control characters", "leave them out"))
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        problems.append(
            Problem("password", f"must have {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters", remedy)
        )
    kinds = sum(bool(re.search(kind, password)) for kind in CHARACTER_CLASSES)
    if kinds < 3 and len(password) < 16:
        problems.append(Problem("password", "is made of too few kinds of characters", remedy))
    if len(set(password)) < 5:
        problems.append(Problem("password", "has fewer than 5 different characters", remedy))
    if user.lower() in password.lower():
        problems.append(Problem("password", "holds the user's name", remedy))
    return problems


def _is_login_user(user: str) -> bool:
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        return False
    if entry.pw_uid == 0:
        return False
    members: set[str] = {FIRST_USER}
    for group in (ADMIN_GROUP, OPERATOR_GROUP):
        try:
            found = grp.getgrnam(group)
        except KeyError:
            continue
        members.update(found.gr_mem)
        if entry.pw_gid == found.gr_gid:
            members.add(user)
    return user in members
