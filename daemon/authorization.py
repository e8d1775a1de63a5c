"""Who may do what: decided at the edge, by the identity that the bus itself vouches for.

Reads need root or one of two groups, writes root or one group; polkit may grant more to others. The core of
the daemon knows nothing of this.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from daemon.errors import NotAuthorizedError

ADMIN_GROUP = "centralino-admin"
OPERATOR_GROUP = "centralino-operator"


class Access(StrEnum):
    """What a method needs."""

    READ = "read"
    WRITE = "write"

    @property
    def polkit_action(self) -> str:
        """The polkit action that grants this access to others."""
        return f"org.centralino.{self.value}"


@dataclass(frozen=True)
class Caller:
    """Who is at the other end: `sender` is the unique bus name, `login` the user that logged in, if known."""

    sender: str
    uid: int
    name: str
    groups: frozenset[str]
    login: str = ""

    @property
    def shown(self) -> str:
        """For histories: `admin`, or `root (admin)` after sudo."""
        return f"{self.name} ({self.login})" if self.login and self.login != self.name else self.name


def groups_of(uid: int) -> tuple[str, frozenset[str]]:
    """The user's name and the names of all groups (getgrouplist(3)); an unknown uid has no groups."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return f"uid {uid}", frozenset()
    names = set()
    for number in os.getgrouplist(user.pw_name, user.pw_gid):
        try:
            names.add(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return user.pw_name, frozenset(names)


def allows(caller: Caller, access: Access) -> bool:
    """Whether user and groups alone allow the access."""
    if caller.uid == 0 or ADMIN_GROUP in caller.groups:
        return True
    return access is Access.READ and OPERATOR_GROUP in caller.groups


def authorize(caller: Caller, access: Access, polkit: Callable[[Caller, str], bool]) -> None:
    """Return if the caller may; raises NotAuthorizedError with the way to get the right.

    `polkit` is asked only when user and groups do not suffice, and must not wait for a person.
    """
    if allows(caller, access) or polkit(caller, access.polkit_action):
        return
    needed = ADMIN_GROUP if access is Access.WRITE else f"{OPERATOR_GROUP} or {ADMIN_GROUP}"
    raise NotAuthorizedError(
        f"{caller.name} may not {access.value}", f"log in as a member of {needed}, or as root"
    )


Summary = Callable[..., dict[str, object]]
Handler = TypeVar("Handler", bound=Callable[..., object])
MARK = "centralino_method"


@dataclass(frozen=True)
class Method:
    """What the edge knows of a method: the access it needs, and what of its arguments may be recorded."""

    access: Access
    summary: Summary

    @property
    def recorded(self) -> bool:
        """Whether accepted calls are recorded too; refused ones always are."""
        return self.access is Access.WRITE


def reads(handler: Handler) -> Handler:
    """Marks a bus method that only looks: for operators and admins; recorded only when refused."""
    setattr(handler, MARK, Method(Access.READ, lambda *_arguments: {}))
    return handler


def writes(summary: Summary) -> Callable[[Handler], Handler]:
    """Marks a bus method that changes something: for admins; always recorded.

    `summary` gets the method's arguments and returns what may be recorded of them: never a secret.
    """

    def mark(handler: Handler) -> Handler:
        setattr(handler, MARK, Method(Access.WRITE, summary))
        return handler

    return mark


def method_of(handler: object) -> Method | None:
    """What `reads` or `writes` noted, None for a function that is no bus method."""
    found = getattr(handler, MARK, None)
    return found if isinstance(found, Method) else None
