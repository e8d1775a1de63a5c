"""Settings of cluster scope from the master to its slave: when they are offered, and when they are taken.

Only a master offers, only a slave takes, only over a link that is up, only with the same schema, and never
from an older epoch: a master of yesterday overwrites nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fault_tolerance.heartbeat import Heartbeat
from fault_tolerance.view import Role

Table = dict[str, object]


@dataclass
class Core:
    """What centralinod says: whether the PBX core cannot run here, live calls, the cluster's settings."""

    failed: bool = False
    calls: int | None = None
    digest: str = ""
    document: Table | None = None
    core_unit: str = "asterisk.service"


def offer(core: Core, role: Role, epoch: int, schema: int, heard: Heartbeat | None) -> Table | None:
    """The message to the peer, None if there is nothing to say. `heard` is None while the link is down."""
    if role is not Role.MASTER or heard is None or core.document is None or not core.digest:
        return None
    if heard.role is not Role.SLAVE or heard.schema != schema or heard.cluster == core.digest:
        return None
    return {
        "type": "settings",
        "epoch": epoch,
        "schema": schema,
        "digest": core.digest,
        "document": core.document,
    }


def refusal(
    table: Mapping[str, object], core: Core, role: Role, epoch: int, schema: int, heard: Heartbeat | None
) -> str | None:
    """Why the message is not taken, None if it is."""
    offered = table.get("epoch")
    if role is not Role.SLAVE or heard is None or heard.role is not Role.MASTER:
        return "only a slave takes settings, from its master"
    if not isinstance(offered, int) or offered < epoch:
        return "they are of an older epoch"
    if table.get("schema") != schema or not isinstance(table.get("document"), dict):
        return "they are of another schema"
    if table.get("digest") == core.digest:
        return "they are in force already"
    return None
