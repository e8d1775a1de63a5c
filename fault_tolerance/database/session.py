"""Sessions with this node's MariaDB, over its socket and as root, and with the peer's through the peer link.

Every session has time limits of its own: a server that hangs costs its caller no more than those.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import CommandFailedError, UnavailableError

if TYPE_CHECKING:
    from types import ModuleType

    from pymysql.connections import Connection
    from pymysql.cursors import Cursor

Value = str | int | float | bytes | None
Row = dict[str, Value]

REPLICA_USER = "centralino-replica"
# For TLS and passwords, of which a socket has none: 13 of the 15 MB that PyMySQL takes in a resident process.
NOT_NEEDED = ("_hashlib", "cryptography", "ssl")


@cache
def library() -> ModuleType:
    """PyMySQL without what it does not need here; it is made to go on where that is missing."""
    hidden = [name for name in NOT_NEEDED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import pymysql
    finally:
        for name in hidden:
            del sys.modules[name]
    return pymysql


class Session:
    """One connection; not for two threads at once. Statements raise UnavailableError when the server does
    not answer, CommandFailedError when it refuses."""

    def __init__(self, connection: Connection[Cursor], name: str) -> None:
        self._connection = connection
        self._name = name

    def rows(self, statement: str, values: tuple[Value, ...] = ()) -> list[Row]:
        """What a statement returns, one mapping a row."""
        pymysql = library()
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                names = [column[0] for column in cursor.description or ()]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except pymysql.err.OperationalError as error:
            number = error.args[0] if error.args else 0
            if isinstance(number, int) and 1000 <= number < 2000:
                raise CommandFailedError(
                    f"{self._name} refused `{statement[:80]}`: {error.args[-1]}"
                ) from error
            raise UnavailableError(f"{self._name} does not answer: {error.args[-1]}") from error
        except pymysql.err.InterfaceError as error:
            raise UnavailableError(f"{self._name} does not answer: the session has ended") from error
        except pymysql.err.MySQLError as error:
            raise CommandFailedError(f"{self._name} refused `{statement[:80]}`: {error}") from error
        except (OSError, ValueError, AttributeError) as error:
            raise UnavailableError(f"{self._name} does not answer: {error}") from error

    def do(self, *statements: str) -> None:
        """Statements that return nothing, in order."""
        for statement in statements:
            self.rows(statement)

    def value(self, statement: str) -> Value:
        """The first column of the first row, None without rows."""
        for row in self.rows(statement):
            return next(iter(row.values()))
        return None

    def text(self, statement: str) -> str:
        """`value` as text, "" without rows."""
        found = self.value(statement)
        return found.decode() if isinstance(found, bytes) else "" if found is None else str(found)

    def number(self, statement: str) -> int:
        """`value` as a whole number, 0 without rows."""
        return int(self.text(statement) or 0)

    def variables(self, pattern: str) -> Mapping[str, str]:
        """Status variables whose names are LIKE the pattern."""
        rows = self.rows("SHOW GLOBAL STATUS LIKE %s", (pattern,))
        return {str(row["Variable_name"]): str(row["Value"]) for row in rows}

    def end(self) -> None:
        """Close it, whatever state it is in."""
        with suppress(Exception):
            self._connection.close()


def connect(socket: Path, limit_seconds: float) -> Session:
    """A session with this node's server as root. Raises UnavailableError."""
    return _connect("the database", limit_seconds, "root", socket=str(socket))


def connect_through(port: int, limit_seconds: float) -> Session:
    """A session with the peer's server through a forwarded port. Raises UnavailableError."""
    return _connect("the peer's database", limit_seconds, REPLICA_USER, port=port)


def _connect(
    name: str, limit_seconds: float, user: str, *, socket: str | None = None, port: int = 0
) -> Session:
    pymysql = library()
    limit = max(1, round(limit_seconds))
    try:
        connection = pymysql.connect(
            host="127.0.0.1",
            unix_socket=socket,
            port=port,
            user=user,
            connect_timeout=limit,
            read_timeout=limit,
            write_timeout=limit,
            autocommit=True,
            charset="utf8mb4",
        )
    except (pymysql.err.MySQLError, OSError) as error:
        raise UnavailableError(f"{name} cannot be reached: {error.args[-1]}") from error
    return Session(connection, name)


@contextmanager
def session(socket: Path, limit_seconds: float) -> Iterator[Session]:
    """`connect` for the length of a block."""
    made = connect(socket, limit_seconds)
    try:
        yield made
    finally:
        made.end()
