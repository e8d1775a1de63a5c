"""MongoDB, where it is installed: a replica set of two members whose slave has no vote until it is promoted.

Two members have no majority without each other, so MongoDB's own elections cannot decide: the role machine
does. Forced reconfiguration may roll back writes that the other member acknowledged; it is called only after
the fence, by a node that the role machine promotes. Not run against a real server: see docs/replication.md.
Source: MongoDB manual, "replSetReconfig", "replSetStepDown", "replSetFreeze", "hello".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from daemon.errors import UnavailableError
from daemon.run import run

SET_NAME = "centralino"
ROUND_SECONDS = 0.1
# Longer than any maintenance; the reconfiguration by the new master ends it.
FREEZE_SECONDS = 86400
NOT_YET_INITIALIZED = 94
PORT = 27017
LOCAL = f"mongodb://127.0.0.1:{PORT}/"
ANSWER_MILLISECONDS = 1000
UNIT_LIMIT_SECONDS = 3.0
START_LIMIT_SECONDS = 60.0

Document = Mapping[str, object]


class Commands(Protocol):
    """What of `pymongo.MongoClient.admin` is used."""

    def command(self, name: str, value: object = 1, **arguments: object) -> Document:
        """Run a command; raises what pymongo raises."""
        ...


class MongoDb:
    """`own` and `peer` are `host:port` as both nodes reach them."""

    def __init__(
        self,
        commands: Commands,
        own: str,
        peer: str,
        failure: type[Exception],
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._commands = commands
        self._own = own
        self._peer = peer
        self._failure = failure
        self._clock = clock
        self._wait = wait

    def make_writable(self, limit_seconds: float) -> None:
        """`claim`, and wait. Raises UnavailableError when it does not become primary."""
        self.claim()
        self._until(True, limit_seconds, "MongoDB did not become primary")

    def claim(self) -> None:
        """This member alone votes from now on, by force; it elects itself. Raises UnavailableError."""
        config = self._config()
        if config is None:
            self._do("replSetInitiate", initial(self._own, self._peer))
        else:
            with suppress(UnavailableError):
                self._do("replSetFreeze", 0)
            self._do("replSetReconfig", with_master(config, self._own, self._peer), force=True)

    def make_read_only(self, limit_seconds: float) -> None:
        """Step down and stay down. Raises UnavailableError when it stays primary."""
        if self.is_primary():
            # The server ends connections while it steps down: that is no failure.
            with suppress(UnavailableError):
                self._do("replSetStepDown", FREEZE_SECONDS, force=True, secondaryCatchUpPeriodSecs=0)
        with suppress(UnavailableError):
            self._do("replSetFreeze", FREEZE_SECONDS)
        self._until(False, limit_seconds, "MongoDB stayed primary")

    def lag_seconds(self) -> float | None:
        """How far the slower member is behind the faster one; None while one does not answer."""
        members = self._do("replSetGetStatus").get("members")
        moments = [
            float(getattr(member["optimeDate"], "timestamp", lambda: 0.0)())
            for member in (members if isinstance(members, list) else [])
            if isinstance(member, Mapping) and member.get("health") == 1 and "optimeDate" in member
        ]
        return max(moments) - min(moments) if len(moments) == 2 else None

    def _config(self) -> Document | None:
        try:
            found = self._commands.command("replSetGetConfig").get("config")
        except self._failure as error:
            if getattr(error, "code", None) == NOT_YET_INITIALIZED:
                return None
            raise UnavailableError(f"MongoDB does not answer: {error}") from error
        return found if isinstance(found, Mapping) else None

    def is_primary(self) -> bool:
        """Whether it takes writes. Raises UnavailableError."""
        return self._do("hello").get("isWritablePrimary") is True

    def _until(self, primary: bool, limit_seconds: float, sentence: str) -> None:
        limit = self._clock() + limit_seconds
        while True:
            with suppress(UnavailableError):
                if self.is_primary() is primary:
                    return
            if self._clock() > limit:
                raise UnavailableError(sentence, "see: journalctl -u mongod")
            self._wait(ROUND_SECONDS)

    def _do(self, name: str, value: object = 1, **arguments: object) -> Document:
        try:
            return self._commands.command(name, value, **arguments)
        except self._failure as error:
            raise UnavailableError(f"MongoDB refused {name}: {error}") from error


def initial(master: str, slave: str) -> dict[str, object]:
    """The configuration of a new set."""
    return {"_id": SET_NAME, "version": 1, "members": _members([master, slave], master)}


def with_master(config: Document, master: str, slave: str) -> dict[str, object]:
    """The same set with another voter. A forced one may raise the version by any number."""
    version = config.get("version")
    hosts = [slave, master] if _first_host(config) == slave else [master, slave]
    return {
        **{key: value for key, value in config.items() if key not in ("members", "version", "term")},
        "version": (version if isinstance(version, int) else 0) + 1,
        "members": _members(hosts, master),
    }


def host(address: IPv4Address | IPv6Address) -> str:
    """How the other member reaches this one."""
    return f"{address}:{PORT}" if address.version == 4 else f"[{address}]:{PORT}"


def stop(unit: str) -> None:
    """End the server for certain. Raises CommandFailedError, UnavailableError."""
    run(["systemctl", "kill", "--signal=SIGKILL", unit], limit_seconds=UNIT_LIMIT_SECONDS, check=False)
    run(["systemctl", "stop", unit], limit_seconds=UNIT_LIMIT_SECONDS)
    words = ["systemctl", "show", "--property=ActiveState", "--value", unit]
    state = run(words, limit_seconds=UNIT_LIMIT_SECONDS).output.strip()
    if state not in ("inactive", "failed"):
        raise UnavailableError(f"MongoDB could not be stopped: it is {state}", "see: journalctl -u mongod")


def start(unit: str) -> None:
    """Have it run again. Raises CommandFailedError."""
    run(["systemctl", "start", unit], limit_seconds=START_LIMIT_SECONDS)


def connect(uri: str, own: str, peer: str) -> MongoDb:
    """With pymongo, which is imported only here. Raises UnavailableError when it is not installed."""
    import importlib

    try:
        pymongo = importlib.import_module("pymongo")
        errors = importlib.import_module("pymongo.errors")
    except ImportError as error:
        raise UnavailableError("pymongo is not installed", "install it, or remove MongoDB") from error
    names = ("serverSelectionTimeoutMS", "connectTimeoutMS", "socketTimeoutMS")
    limits = dict.fromkeys(names, ANSWER_MILLISECONDS)
    client = pymongo.MongoClient(uri, directConnection=True, **limits)
    return MongoDb(client.admin, own, peer, errors.PyMongoError)


def _members(hosts: Sequence[str], master: str) -> list[dict[str, object]]:
    return [
        {"_id": number, "host": host, "votes": int(host == master), "priority": int(host == master)}
        for number, host in enumerate(hosts)
    ]


def _first_host(config: Document) -> object:
    members = config.get("members")
    first = members[0] if isinstance(members, list) and members else {}
    return first.get("host") if isinstance(first, Mapping) else None
