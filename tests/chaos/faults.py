"""Every fault of the campaign: a row of data, and one generator that injects, lets time pass, and heals.

A generator yields once, between injecting and healing; the campaign waits there for a time drawn from the
seed. What a person would have to do after the fault stands behind the yield as well, and `person` says so.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum

from tests.chaos import story
from tests.chaos.scene import CORE, DAEMON, DATABASE, PEER, VRRP, Scene

Play = Callable[[Scene], Iterator[None]]


class Move(Enum):
    """What the fault does to the master role."""

    MUST = "the role moves"
    MUST_NOT = "the role stays"
    MAY = "either"


class Fault(StrEnum):
    """The names, as `--fault` takes them."""

    POWER_OFF_MASTER = "power-off-master"
    POWER_OFF_SLAVE = "power-off-slave"
    POWER_OFF_BOTH_TOGETHER = "power-off-both-return-together"
    POWER_OFF_BOTH_MASTER_FIRST = "power-off-both-master-returns-first"
    POWER_OFF_BOTH_SLAVE_FIRST = "power-off-both-slave-returns-first"
    FREEZE_MASTER = "freeze-master"
    FREEZE_SLAVE = "freeze-slave"
    KILL_KEEPALIVED_MASTER = "kill-keepalived-master"
    KILL_KEEPALIVED_SLAVE = "kill-keepalived-slave"
    FREEZE_KEEPALIVED_MASTER = "freeze-keepalived-master"
    FREEZE_KEEPALIVED_SLAVE = "freeze-keepalived-slave"
    KILL_DAEMON_MASTER = "kill-daemon-master"
    FREEZE_DAEMON_MASTER = "freeze-daemon-master"
    KILL_DAEMON_SLAVE = "kill-daemon-slave"
    KILL_RUNTIME_MASTER = "kill-runtime-master"
    KILL_RUNTIME_SLAVE = "kill-runtime-slave"
    FREEZE_RUNTIME_MASTER = "freeze-runtime-master"
    KILL_CORE_MASTER = "kill-core-master"
    FREEZE_CORE_MASTER = "freeze-core-master"
    FORBID_CORE_MASTER = "core-cannot-start-master"
    KILL_CORE_SLAVE = "kill-core-slave"
    KILL_DATABASE_MASTER = "kill-database-master"
    FREEZE_DATABASE_MASTER = "freeze-database-master"
    FORBID_DATABASE_MASTER = "database-cannot-start-master"
    KILL_DATABASE_SLAVE = "kill-database-slave"
    FREEZE_DATABASE_SLAVE = "freeze-database-slave"
    SERVICE_LINK_MASTER = "service-link-master"
    SERVICE_LINK_SLAVE = "service-link-slave"
    MANAGEMENT_LINK = "management-link"
    BOTH_LINKS_MASTER = "both-links-master"
    BOTH_LINKS_SLAVE = "both-links-slave"
    ONE_WAY_FROM_MASTER_LAN = "one-way-from-master-lan"
    ONE_WAY_FROM_SLAVE_LAN = "one-way-from-slave-lan"
    PARTITION_MASTER = "partition-master"
    PARTITION_SLAVE = "partition-slave"
    PARTITION_BETWEEN = "partition-between-nodes"
    GATEWAY_GONE = "gateway-gone"
    FLAPPING_SERVICE_LINK = "flapping-service-link-master"
    FLAPPING_MANAGEMENT_LINK = "flapping-management-link"
    DISK_FULL_MASTER = "disk-full-master"
    DISK_FULL_SLAVE = "disk-full-slave"
    ADDRESS_DELETED = "address-deleted"
    TREE_EMPTIED = "tree-emptied"
    TREE_UNMOUNTED = "tree-unmounted"
    REPLICA_STOPPED = "replica-stopped"
    ERRANT_WRITE = "errant-write-slave"
    OTHER_VERSION = "peer-of-another-version"
    CLOCK_STEPPED_MASTER = "clock-stepped-master"
    CLOCK_STEPPED_SLAVE = "clock-stepped-slave"
    SWITCH = "planned-switch"
    RUNTIME_KILLED_DURING_PROMOTION = "promotion-runtime-killed"
    DATABASE_KILLED_DURING_PROMOTION = "promotion-database-killed"
    POWER_OFF_DURING_SWITCH = "switch-master-power-off"
    RUNTIME_KILLED_DURING_SWITCH = "switch-runtime-killed"
    SLAVE_OFF_DURING_SWITCH = "switch-slave-power-off"
    SLAVE_OFF_DURING_SEEDING = "seeding-slave-power-off"
    MASTER_OFF_DURING_SEEDING = "seeding-master-power-off"


@dataclass(frozen=True)
class Row:
    """What a fault is expected to do.

    `hold` is the shortest and the longest time in seconds, `alarms` what somebody must have raised by the
    time the pair is healthy, `person` whether the story needs one to end well.
    """

    play: Play
    hold: tuple[float, float] = (2.0, 8.0)
    move: Move = Move.MUST_NOT
    alarms: frozenset[str] = frozenset()
    person: bool = False


def _alarms(*names: str) -> frozenset[str]:
    return frozenset(f"pair.{name}" for name in names)


def _unit(unit: str, number: signal.Signals, *, slave: bool = False) -> Play:
    return lambda scene: story.strike(scene, scene.slave if slave else scene.master, unit, number)


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
LONG = (5.0, 12.0)

FAULTS: dict[Fault, Row] = {
    Fault.POWER_OFF_MASTER: Row(story.power_off_master, LONG, Move.MUST, _alarms("peer")),
    Fault.POWER_OFF_SLAVE: Row(story.power_off_slave, LONG, alarms=_alarms("peer", "asynchronous")),
    Fault.POWER_OFF_BOTH_TOGETHER: Row(story.both_off_together, move=Move.MAY),
    Fault.POWER_OFF_BOTH_MASTER_FIRST: Row(story.both_off_master_first, LONG, Move.MAY),
    Fault.POWER_OFF_BOTH_SLAVE_FIRST: Row(story.both_off_slave_first, LONG, Move.MAY),
    Fault.FREEZE_MASTER: Row(story.freeze_master, (4.0, 12.0), Move.MUST, _alarms("peer")),
    Fault.FREEZE_SLAVE: Row(story.freeze_slave, LONG, alarms=_alarms("peer", "asynchronous")),
    Fault.KILL_KEEPALIVED_MASTER: Row(_unit(VRRP, KILL), move=Move.MAY),
    Fault.KILL_KEEPALIVED_SLAVE: Row(_unit(VRRP, KILL, slave=True)),
    Fault.FREEZE_KEEPALIVED_MASTER: Row(_unit(VRRP, STOP), move=Move.MAY),
    Fault.FREEZE_KEEPALIVED_SLAVE: Row(_unit(VRRP, STOP, slave=True)),
    Fault.KILL_DAEMON_MASTER: Row(_unit(DAEMON, KILL)),
    Fault.FREEZE_DAEMON_MASTER: Row(_unit(DAEMON, STOP)),
    Fault.KILL_DAEMON_SLAVE: Row(_unit(DAEMON, KILL, slave=True)),
    Fault.KILL_RUNTIME_MASTER: Row(_unit(PEER, KILL)),
    Fault.KILL_RUNTIME_SLAVE: Row(_unit(PEER, KILL, slave=True)),
    Fault.FREEZE_RUNTIME_MASTER: Row(_unit(PEER, STOP), (2.0, 14.0), Move.MAY),
    Fault.KILL_CORE_MASTER: Row(_unit(CORE, KILL), move=Move.MAY),
    Fault.FREEZE_CORE_MASTER: Row(_unit(CORE, STOP), (10.0, 25.0), Move.MAY),
    Fault.FORBID_CORE_MASTER: Row(story.forbid(CORE), (20.0, 45.0), Move.MUST, person=True),
    Fault.KILL_CORE_SLAVE: Row(_unit(CORE, KILL, slave=True)),
    Fault.KILL_DATABASE_MASTER: Row(_unit(DATABASE, KILL), move=Move.MAY),
    Fault.FREEZE_DATABASE_MASTER: Row(_unit(DATABASE, STOP), (4.0, 25.0), Move.MAY),
    Fault.FORBID_DATABASE_MASTER: Row(story.forbid(DATABASE), (12.0, 25.0), Move.MUST, person=True),
    Fault.KILL_DATABASE_SLAVE: Row(_unit(DATABASE, KILL, slave=True)),
    Fault.FREEZE_DATABASE_SLAVE: Row(_unit(DATABASE, STOP, slave=True), LONG, alarms=_alarms("asynchronous")),
    Fault.SERVICE_LINK_MASTER: Row(story.links("master", "lan"), LONG, Move.MUST),
    Fault.SERVICE_LINK_SLAVE: Row(story.links("slave", "lan"), LONG),
    Fault.MANAGEMENT_LINK: Row(story.links("master", "mgmt"), LONG, alarms=_alarms("peer")),
    Fault.BOTH_LINKS_MASTER: Row(story.links("master", "lan", "mgmt"), LONG, Move.MUST, _alarms("peer")),
    Fault.BOTH_LINKS_SLAVE: Row(story.links("slave", "lan", "mgmt"), LONG, alarms=_alarms("peer")),
    Fault.ONE_WAY_FROM_MASTER_LAN: Row(story.one_way("master", "lan"), LONG),
    Fault.ONE_WAY_FROM_SLAVE_LAN: Row(story.one_way("slave", "lan"), LONG),
    Fault.PARTITION_MASTER: Row(story.partition_master, LONG, Move.MUST, _alarms("peer")),
    Fault.PARTITION_SLAVE: Row(story.partition_slave, LONG, alarms=_alarms("peer", "asynchronous")),
    Fault.PARTITION_BETWEEN: Row(story.partition_between, LONG, Move.MAY, _alarms("peer")),
    Fault.GATEWAY_GONE: Row(story.gateway_gone, LONG, alarms=_alarms("gateway")),
    Fault.FLAPPING_SERVICE_LINK: Row(story.flapping("lan"), (0.5, 3.0), Move.MAY),
    Fault.FLAPPING_MANAGEMENT_LINK: Row(story.flapping("mgmt"), (0.5, 3.0)),
    Fault.DISK_FULL_MASTER: Row(story.disk_full("master"), LONG, Move.MAY, person=True),
    Fault.DISK_FULL_SLAVE: Row(story.disk_full("slave"), LONG, person=True),
    Fault.ADDRESS_DELETED: Row(story.address_deleted, (1.0, 4.0)),
    Fault.TREE_EMPTIED: Row(story.tree_emptied, (12.0, 20.0), alarms=_alarms("files"), person=True),
    Fault.TREE_UNMOUNTED: Row(story.tree_unmounted, (12.0, 20.0), alarms=_alarms("files"), person=True),
    Fault.REPLICA_STOPPED: Row(story.replica_stopped),
    Fault.ERRANT_WRITE: Row(story.errant_write, (1.0, 5.0), alarms=_alarms("database"), person=True),
    Fault.OTHER_VERSION: Row(story.other_version, LONG, alarms=_alarms("not-ready")),
    Fault.CLOCK_STEPPED_MASTER: Row(story.clock_stepped("master"), LONG, alarms=_alarms("clocks")),
    Fault.CLOCK_STEPPED_SLAVE: Row(story.clock_stepped("slave"), LONG, alarms=_alarms("clocks")),
    Fault.SWITCH: Row(story.switch, (0.5, 3.0), Move.MUST),
    Fault.RUNTIME_KILLED_DURING_PROMOTION: Row(story.during_promotion(PEER), LONG, Move.MUST),
    Fault.DATABASE_KILLED_DURING_PROMOTION: Row(story.during_promotion(DATABASE), LONG, Move.MAY),
    Fault.POWER_OFF_DURING_SWITCH: Row(story.switch_then_power_off("master"), LONG, Move.MUST),
    Fault.RUNTIME_KILLED_DURING_SWITCH: Row(story.switch_then_kill(PEER), LONG, Move.MAY),
    Fault.SLAVE_OFF_DURING_SWITCH: Row(story.switch_then_power_off("slave"), LONG, Move.MAY),
    Fault.SLAVE_OFF_DURING_SEEDING: Row(story.seeding_then_power_off("slave"), LONG),
    Fault.MASTER_OFF_DURING_SEEDING: Row(story.seeding_then_power_off("master"), LONG, Move.MAY),
}
