"""Who may change something from the console menu, which itself runs as root without a login.

The password is checked by `unix_chkpwd`, the helper of pam_unix: it is on every box, knows the same hashes
as a login, takes the password on its standard input and never in its arguments, and opens no session. `su`
would ask root for nothing; `login` would leave the menu. What the helper does not do is done here: every
refusal makes the next one slower, and an expired password opens nothing but its own change.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from daemon.errors import UnavailableError
from daemon.run import Completed, run

ADMIN = "admin"
ADMIN_GROUP = "centralino-admin"
SEARCH = "/usr/sbin:/sbin:/usr/bin:/bin"
CHECK_LIMIT_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0

# Of security/_pam_types.h; the helper's exit status is PAM's answer.
PAM_SUCCESS = 0
PAM_NEW_AUTHTOK_REQD = 12
PAM_AUTHTOK_EXPIRED = 27


class Verdict(StrEnum):
    """What a login attempt may do."""

    GRANTED = "granted"
    MUST_CHANGE = "the password must be changed first"
    REFUSED = "login incorrect"


@dataclass
class Login:
    """Login attempts of one menu."""

    execute: Callable[..., Completed] = run
    _next_pause: float = FIRST_PAUSE_SECONDS

    def check(self, user: str, password: str) -> Verdict:
        """Judge a name and a password. Raises UnavailableError when this box cannot check passwords."""
        verdict = self._judge(user, password)
        if verdict is not Verdict.REFUSED:
            self._next_pause = FIRST_PAUSE_SECONDS
        return verdict

    def pause_seconds(self) -> float:
        """How long to hold up whoever was refused; longer each time."""
        pause, self._next_pause = self._next_pause, min(self._next_pause * 2, LONGEST_PAUSE_SECONDS)
        return pause

    def _judge(self, user: str, password: str) -> Verdict:
        if not password or "\0" in password or not may_administer(user):
            return Verdict.REFUSED
        helper = shutil.which("unix_chkpwd", path=SEARCH)
        if helper is None:
            raise UnavailableError("this box cannot check passwords here", "log in to a shell instead")
        if self._ask(helper, user, "nonull", password + "\0") != PAM_SUCCESS:
            return Verdict.REFUSED
        expiry = self._ask(helper, user, "chkexpiry", "")
        if expiry in (PAM_NEW_AUTHTOK_REQD, PAM_AUTHTOK_EXPIRED):
            return Verdict.MUST_CHANGE
        return Verdict.GRANTED if expiry == PAM_SUCCESS else Verdict.REFUSED

    def _ask(self, helper: str, user: str, option: str, text: str) -> int:
        done = self.execute(
            [helper, user, option], input_text=text, limit_seconds=CHECK_LIMIT_SECONDS, check=False
        )
        return done.status


def may_administer(user: str) -> bool:
    """Whether the user exists and is root or a member of centralino-admin."""
    try:
        entry = pwd.getpwnam(user)
        group = grp.getgrnam(ADMIN_GROUP)
    except (KeyError, ValueError):
        return False
    return entry.pw_uid == 0 or group.gr_gid in os.getgrouplist(user, entry.pw_gid)
