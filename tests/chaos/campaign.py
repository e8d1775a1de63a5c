"""The campaign: two booted nodes made a pair by their command line, faults drawn from a seed, audits."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.lab import LOGS, Client, Lab, Node
from appliance.lab_host import LabError, wait_for
from appliance.lab_pair import SHARED, PairOfNodes, boot_two, make_pair
from appliance.lab_sip import add_phone, welcome_prober
from appliance.platform_data import load_platform
from tests.chaos import audits
from tests.chaos.audits import Outcome
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.load import PORT, Load
from tests.chaos.observe import HOME, PYTHON, Observer, programs
from tests.chaos.scene import MESSAGES, PEER, Scene
from tests.support.shifted_clock import shift_clock

FORMING_SECONDS = 180.0
UNIT = f"""\
[Unit]
StartLimitIntervalSec=0
[Service]
User=asterisk
ExecStart={PYTHON} {HOME}/node_load.py {SHARED} {PORT} %H {{socket}} {MESSAGES}
Restart=always
RestartSec=200ms
[Install]
WantedBy=multi-user.target
"""
TABLES = """\
CREATE TABLE chaos_rows (n BIGINT PRIMARY KEY, node VARCHAR(16) NOT NULL);
CREATE TABLE chaos_files (n BIGINT PRIMARY KEY, node VARCHAR(16) NOT NULL);
CREATE TABLE chaos_errant (n BIGINT);
"""


def draw(seed: int, count: int, chosen: Sequence[Fault] = ()) -> list[Fault]:
    """The faults of a campaign: each of the chosen ones once, in a random order, then anew."""
    chance = random.Random(seed)
    found: list[Fault] = []
    while len(found) < count:
        turn = list(chosen or Fault)
        chance.shuffle(turn)
        found += turn
    return found[:count]


@dataclass
class Stage:
    """A pair with its load and its observers."""

    pair: PairOfNodes
    observers: dict[str, Observer]
    load: Load
    probe: Client

    def master(self) -> Node | None:
        """The node that says that it is master."""
        for node in self.pair.nodes:
            said = self.observers[node.name].latest()
            if said is not None and said.role == "master":
                return node
        return None

    def scene(self, chance: random.Random) -> Scene:
        """The stage as it is now. Raises LabError without a master."""
        master = self.master()
        if master is None:
            raise LabError("no node is master")
        slave = self.pair.other(master)
        return Scene(self.pair, self.observers, self.load, self.probe, chance, master, slave, hold)


def hold(seconds: float) -> None:
    """A fault lasts: time is part of it."""
    time.sleep(seconds)


@contextmanager
def stage(root: Path, directory: Path) -> Iterator[Stage]:
    """Boot, pair, and begin the load; ends everything with the block."""
    database_socket = str(load_platform("debian12").box.paths["mariadb_socket"])
    with Lab(root, directory) as lab, contextlib.ExitStack() as cleanup:
        pair = boot_two(lab)
        make_pair(pair)
        for node in pair.nodes:
            node.run(["mkdir", "-p", HOME])
            for name, text in programs().items():
                node.run(["tee", f"{HOME}/{name}"], input_text=text)
            node.run(
                ["tee", "/etc/systemd/system/chaos-load.service"],
                input_text=UNIT.format(socket=database_socket),
            )
            node.run(["systemctl", "daemon-reload"])
            # So that its clock can be stepped while it runs.
            shift_clock(node, "run", 0)
            node.run(["systemctl", "restart", PEER])
        observers = {node.name: Observer(node, database_socket) for node in pair.nodes}
        for observer in observers.values():
            cleanup.callback(observer.close)
        load = Load(pair.probe, lab.add_client("phone"), lab.add_client("watcher"))
        made = Stage(pair, observers, load, pair.probe)
        wait_for(lambda: made.master() is not None, FORMING_SECONDS, "a master")
        scene = made.scene(random.Random(0))
        wait_for(lambda: not scene.trouble(), FORMING_SECONDS, f"a healthy pair: {scene.describe()}")
        scene.sql(scene.master, TABLES)
        welcome_prober(scene.master, pair.probe)
        load.account = add_phone(scene.master, "1001")
        # The prober never authenticates, so the shield would block it when the database, and with it every
        # account, is away for a moment. A phone that has registered is spared anyway.
        done = scene.ask(scene.master, "firewall", "allow", pair.probe.address(), "--yes")
        if not done.ok:
            raise LabError(f"the prober could not be allowed: {done.output}{done.errors}")
        # The slave takes settings over within seconds, not at once: a fault in between would undo this one.
        allowed = ("config", "show", "firewall.allow")
        wait_for(
            lambda: all(made.probe.address() in scene.ask(node, *allowed).output for node in pair.nodes),
            60,
            "the settings of the master at its slave",
            interval_seconds=1.0,
        )
        for node in pair.nodes:
            node.run(["systemctl", "enable", "--now", "chaos-load"])
        cleanup.enter_context(load)
        wait_for(lambda: len(load.rows) > 20 and load.registered and load.files, 60, "rows, files, a phone")
        yield made


def run_one(stage: Stage, fault: Fault, seed: int, number: int, logs: Path = LOGS / "chaos") -> Outcome:
    """Inject one fault into a healthy pair, heal, audit. Logs of the nodes are kept if anything is wrong."""
    row = FAULTS[fault]
    chance = random.Random(f"{seed}/{number}/{fault}")
    outcome = Outcome(fault, str(seed), number)
    scene = stage.scene(chance)
    began = time.monotonic()
    outcome.hold_seconds = round(chance.uniform(*row.hold), 2)
    for observer in stage.observers.values():
        observer.forget()
    try:
        play = row.play(scene)
        next(play)
        hold(outcome.hold_seconds)
        next(play, None)
        if audits.pair_heals(scene, outcome):
            healed = time.monotonic()
            master = audits.role_moves_as_it_should(scene, outcome, row)
            audits.one_holder(scene, outcome, master, began)
            audits.one_writable(scene, outcome, began)
            audits.core_open_at_the_master_only(scene, outcome, master)
            audits.rows_are_there(scene, outcome, master, began)
            audits.files_are_there(scene, outcome, master, began)
            audits.alarms_came_and_went(scene, outcome, row, began)
            audits.silences(scene, outcome, began, healed)
            # Automatic moves are counted for an hour; a person who has looked says so by a role.
            for node in stage.pair.nodes:
                scene.ask(node, "fault-tolerance", "role", scene.role(node), "--yes")
    except Exception as error:
        # Whatever it is, the other faults must still be tried; a pair that was left broken is replaced.
        outcome.failures.append(f"the fault could not be played to its end: {error!r}; {scene.describe()}")
        outcome.healthy_seconds = 0.0
    outcome.notes = scene.notes + stage.load.trouble
    outcome.seconds = round(time.monotonic() - began, 1)
    if outcome.failures:
        kept = stage.pair.lab.save_logs(logs / f"{seed}-{number}-{fault}")
        outcome.notes.append(f"logs: {kept}")
    return outcome


def run(
    root: Path,
    directory: Path,
    seed: int,
    faults: Sequence[Fault],
    tell: Callable[[Outcome], None],
    limit_seconds: float = float("inf"),
) -> list[Outcome]:
    """Run faults one after the other; a pair that does not heal is replaced by a new one. No fault begins
    after the limit."""
    began, outcomes, left = time.monotonic(), [], list(enumerate(faults))
    while left and time.monotonic() - began < limit_seconds:
        with stage(root, directory) as made:
            while left and time.monotonic() - began < limit_seconds:
                number, fault = left.pop(0)
                outcome = run_one(made, fault, seed, number)
                outcomes.append(outcome)
                tell(outcome)
                if not outcome.healthy_seconds:
                    break
    return outcomes
