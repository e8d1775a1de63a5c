"""A connection of the peer that was ended and stays, and the peer's next one waits for its end.

Where a reader of the log is turned away at once, as by a log that is damaged, MariaDB (seen in 10.11.19) can
lose the call that wakes the receiver of confirmations: the reader waits for the receiver to let go of it
(`Ack_receiver::remove_slave`), the receiver sleeps until a replica comes (`wait_for_slave_connection`), and
the replica that comes waits for the old reader (`kill_zombie_dump_threads`). KILL does not help, to switch
confirmations off and on does: it ends the receiver.
"""

from __future__ import annotations

from fault_tolerance.database.session import REPLICA_USER, Session

ENDED = "SELECT ID AS id FROM information_schema.PROCESSLIST WHERE USER = %s AND COMMAND = 'Killed'"


class Stuck:
    """Remembers which connections had been ended when it was asked before."""

    def __init__(self) -> None:
        self._before: frozenset[object] = frozenset()

    def judge(self, own: Session) -> bool:
        """Whether one of them is still there; an ended one takes milliseconds to go, so ask once a second."""
        ended = frozenset(row["id"] for row in own.rows(ENDED, (REPLICA_USER,)))
        still, self._before = bool(ended & self._before), ended
        return still
