"""The telephony data on both nodes: MariaDB always, MongoDB where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import NotFoundError
from daemon.platform import Platform, platform

if TYPE_CHECKING:
    from fault_tolerance.contracts import DatabaseReplica, PeerChannel
    from fault_tolerance.pair import Pair

STATE = Path("/var/lib/centralino/fault-tolerance/database")
RUN = Path("/run/centralino-database")
MONGODB, MONGODB_CONFIG = "mongodb", "mongodb_config"


def build(pair: Pair, channel: PeerChannel) -> DatabaseReplica:
    """The database of this node as half of a pair, or both of them. Raises CentralinoError."""
    box = platform()
    relational = _relational(pair, channel, box)
    if not has_mongodb(box):
        return relational
    from fault_tolerance.database import mongo
    from fault_tolerance.database.both import BothDatabases

    own, peer = (mongo.host(address) for address in (pair.own, pair.peer))
    unit = box.units[MONGODB]
    documents = mongo.connect(mongo.LOCAL, own, peer)
    return BothDatabases(relational, documents, lambda: mongo.stop(unit), lambda: mongo.start(unit))


def has_mongodb(box: Platform) -> bool:
    """Whether this box has MongoDB: the platform names it, and somebody has installed and configured it."""
    configuration = box.paths.get(MONGODB_CONFIG)
    return MONGODB in box.units and configuration is not None and configuration.is_file()


def _relational(pair: Pair, channel: PeerChannel, box: Platform) -> DatabaseReplica:
    import pwd

    from fault_tolerance.database.replica import MariaDb
    from fault_tolerance.database.server import Server
    from fault_tolerance.database.session import REPLICA_USER
    from fault_tolerance.database.settings import server_id

    owner = box.users["mariadb"]
    try:
        reader, owner_entry = pwd.getpwnam(REPLICA_USER), pwd.getpwnam(owner)
    except KeyError as error:
        raise NotFoundError(
            f"the system user of the replication is missing: {error}", "reinstall the payload"
        ) from error
    return MariaDb(
        Server(
            socket=box.paths["mariadb_socket"],
            home=box.paths["mariadb_data"],
            configuration=box.paths["mariadb_config"],
            unit=box.units["mariadb"],
            owner=owner,
            owner_id=owner_entry.pw_uid,
            user=reader.pw_uid,
            group=reader.pw_gid,
            number=server_id(pair.own, pair.peer),
            state=STATE,
            run=RUN,
        ),
        channel,
    )


def dissolve(box: Platform | None = None, limit_seconds: float = 10.0) -> None:
    """This node stands alone again: its data stays and is writable. Raises CentralinoError."""
    from fault_tolerance.database import settings
    from fault_tolerance.database.closing import DURABLE
    from fault_tolerance.database.session import session

    known = box or platform()
    settings.remove(known.paths["mariadb_config"])
    with session(known.paths["mariadb_socket"], limit_seconds) as own:
        own.do(
            "STOP SLAVE",
            "RESET SLAVE ALL",
            "SET GLOBAL rpl_semi_sync_slave_enabled = OFF",
            "SET GLOBAL rpl_semi_sync_master_enabled = OFF",
            "DELETE FROM centralino_pair.lineage",
            *DURABLE,
            "SET GLOBAL read_only = OFF",
        )
