"""What the pair has in common, from the master to its slave: when it is offered, and when it is taken.

Settings of cluster scope travel on the peer link. Secrets and certificates do not: the heartbeat carries
their digest alone, and a slave that has others fetches them over an SSH connection of its own. Only a master
offers, only a slave takes, only over a link that is up, only with the same schema, and never from an older
epoch: a master of yesterday overwrites nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fault_tolerance.heartbeat import Heartbeat
from fault_tolerance.view import Role

Table = dict[str, object]

# The master repeats itself until what it says is in force; each attempt gets its time.
SETTINGS_SECONDS = 30.0
SECRETS_SECONDS = 10.0
# So long may the slave lack what the master has before that is an alarm.
PATIENCE_SECONDS = 60.0

log = logging.getLogger(__name__)


@dataclass
class Core:
    """What centralinod says: whether the PBX core cannot run here, live calls, the cluster's settings, the
    digest of its secrets and the names of those that the pair shares."""

    failed: bool = False
    calls: int | None = None
    digest: str = ""
    document: Table | None = None
    core_unit: str = "asterisk.service"
    secrets: str = ""
    secret_names: tuple[str, ...] = ()


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


def lacks_secrets(core: Core, role: Role, epoch: int, heard: Heartbeat | None) -> bool:
    """Whether this node should fetch what its master has."""
    return (
        role is Role.SLAVE
        and heard is not None
        and heard.role is Role.MASTER
        and heard.epoch >= epoch
        and heard.secrets not in ("", core.secrets)
    )


class Exchange:
    """This node's half of it, on the runtime's loop. `on_settings` hands settings to centralinod,
    `on_secrets` tells it to fetch secrets; that order of theirs is kept, because settings name secrets."""

    def __init__(
        self,
        on_settings: Callable[[Table], None],
        on_secrets: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.core = Core()
        self._on_settings, self._on_secrets = on_settings, on_secrets
        self._clock = clock
        self._settings_taken = ("", 0.0)
        self._secrets_asked = ("", 0.0)
        self._differ_since: float | None = None

    def heard(self, role: Role, epoch: int, heard: Heartbeat) -> None:
        """After each heartbeat of the peer."""
        now = self._clock()
        if role is not Role.MASTER or heard.role is not Role.SLAVE or heard.secrets == self.core.secrets:
            self._differ_since = None
        elif self._differ_since is None:
            self._differ_since = now
        digest, moment = self._secrets_asked
        if lacks_secrets(self.core, role, epoch, heard) and (
            heard.secrets != digest or now - moment > SECRETS_SECONDS
        ):
            self._secrets_asked = heard.secrets, now
            self._on_secrets()

    def take(self, table: Table, role: Role, epoch: int, schema: int, heard: Heartbeat | None) -> None:
        """Settings that the peer sent."""
        refused = refusal(table, self.core, role, epoch, schema, heard)
        document, digest = table.get("document"), str(table.get("digest"))
        if refused is not None:
            log.info("settings of the peer were not taken: %s", refused)
        elif isinstance(document, dict):
            now = self._clock()
            taken, moment = self._settings_taken
            if digest != taken or now - moment > SETTINGS_SECONDS:
                self._settings_taken = digest, now
                self._on_settings(document)

    @property
    def peer_lacks_secrets(self) -> bool:
        """Whether the slave has not taken over the secrets for too long."""
        since = self._differ_since
        return since is not None and self._clock() - since > PATIENCE_SECONDS
