"""What must be true after every fault. Each audit waits for it, up to a limit, and says what is wrong.

Rows and files are asked of the nodes themselves, holders of the address of the wire, roles of the runtimes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from appliance.lab import Node
from appliance.lab_host import LabError, wait_for
from tests.chaos.faults import Move, Row
from tests.chaos.load import Acknowledged, double_holders, longest_gap, sip_answers
from tests.chaos.observe import Span, overlaps
from tests.chaos.scene import EVIDENCE, MESSAGES, SET_ASIDE, WRECKS, Scene

# One advert of the standard profile. From the first question that both answered to the last one: between the
# questions before and after these it may have been two intervals of asking longer.
ADVERT_SECONDS = 0.3
HEALTHY_SECONDS = 150.0
SETTLE_SECONDS = 30.0
# Files are on the peer within a second or so, not at once: docs/fault-tolerance.md says so.
FILE_LAG_SECONDS = 5.0
EVIDENCE_ROW = re.compile(r"### INSERT INTO `centralino`\.`chaos_rows`\n### SET\n###   @1=(\d+)")


@dataclass
class Outcome:
    """What one fault led to; lists are empty and counts 0 when all is well. Times in seconds."""

    fault: str
    seed: str
    number: int
    hold_seconds: float = 0.0
    seconds: float = 0.0
    healthy_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    moved: bool = False
    rows_acknowledged: int = 0
    rows_lost: int = 0
    rows_in_evidence: int = 0
    files_acknowledged: int = 0
    files_lost: int = 0
    files_set_aside: int = 0
    two_writable: list[float] = field(default_factory=list)
    two_acknowledging: list[float] = field(default_factory=list)
    two_holders: list[float] = field(default_factory=list)
    silent_sip_seconds: float = 0.0
    silent_rows_seconds: float = 0.0
    silent_registrar_seconds: float = 0.0


def pair_heals(scene: Scene, outcome: Outcome) -> bool:
    """Healthy without a human, within the limit; the time it took from the heal."""
    began = time.monotonic()
    try:
        wait_for(lambda: not scene.trouble(), HEALTHY_SECONDS, "a healthy pair", interval_seconds=0.1)
    except LabError:
        outcome.failures.append(
            f"not healthy after {HEALTHY_SECONDS:g} s: {scene.trouble()}; {scene.describe()}"
        )
        return False
    outcome.healthy_seconds = time.monotonic() - began
    return True


def role_moves_as_it_should(scene: Scene, outcome: Outcome, row: Row) -> Node:
    """Which node is master now; a failure if the role moved, or stayed, against the row."""
    master = next(node for node in scene.pair.nodes if scene.role(node) == "master")
    outcome.moved = master is not scene.master
    wanted = {Move.MUST: True, Move.MUST_NOT: False}.get(row.move, outcome.moved)
    if outcome.moved is not wanted:
        outcome.failures.append(f"{row.move.value} in this fault, but {master.name} is master now")
    return master


def one_holder(scene: Scene, outcome: Outcome, master: Node, since: float) -> None:
    """Asked from the wire: the master answers for the shared address, and nobody else."""
    hardware = scene.pair.lab.network.segments["lan"].hardware(master.specification.number)
    _eventually(
        outcome,
        "one holder of the shared address on the wire",
        lambda: scene.load.holders(time.monotonic() - 1.0) == {hardware},
        lambda: f"{scene.load.holders(time.monotonic() - 1.0)} answer, not {hardware} alone",
    )
    spans = double_holders([each for each in scene.load.arp if each[0] >= since])
    outcome.two_holders = _lengths(spans)
    if any(length > ADVERT_SECONDS for length in outcome.two_holders):
        outcome.failures.append(f"two holders were visible to a client for {outcome.two_holders} s")


def one_writable(scene: Scene, outcome: Outcome, since: float) -> None:
    """In no sample of the whole time both databases allowed writes, and never both acknowledged any."""
    first, second = (scene.observer(node).writable_spans(since) for node in scene.pair.nodes)
    outcome.two_writable = _lengths(overlaps(first, second))
    if outcome.two_writable:
        outcome.failures.append(f"both databases allowed writes for {outcome.two_writable} s")
    outcome.two_acknowledging = by_turns([each for each in scene.load.rows if each.moment >= since])
    if outcome.two_acknowledging:
        outcome.failures.append(f"both nodes acknowledged rows by turns: {outcome.two_acknowledging} s")


def rows_are_there(scene: Scene, outcome: Outcome, master: Node, since: float) -> None:
    """Every acknowledged row is in the master's database, or in an evidence file if that had been announced;
    and the slave has the same ones."""
    acknowledged = list(scene.load.rows)
    outcome.rows_acknowledged = sum(row.moment >= since for row in acknowledged)
    there = _numbers(scene, master)
    missing = [row for row in acknowledged if row.number not in there]
    kept = {number for node in scene.pair.nodes for number in _evidence(scene, node)}
    for row in missing:
        declared = scene.observers[row.node].declared_degraded(row.moment)
        if row.number in kept and declared:
            outcome.rows_in_evidence += 1
        else:
            outcome.rows_lost += 1
            where = (
                "only in an evidence file, and nobody had said so before" if row.number in kept else "nowhere"
            )
            if outcome.rows_lost <= 3:
                outcome.failures.append(
                    f"row {row.number}, acknowledged by {row.node} at {row.moment:.3f}, is {where}"
                )
    slave = scene.pair.other(master)
    wanted = {row.number for row in acknowledged} & there
    _eventually(
        outcome,
        "the same rows at the slave",
        lambda: wanted <= _numbers(scene, slave),
        lambda: f"the slave lacks {len(wanted - _numbers(scene, slave))} rows",
    )
    _forget(scene, missing)


def files_are_there(scene: Scene, outcome: Outcome, master: Node, since: float) -> None:
    """Every file that was on a disk is on both nodes with the same contents; what was younger than the lag
    when its node died may instead be kept aside there."""
    acknowledged = list(scene.load.files)
    outcome.files_acknowledged = sum(file.moment >= since for file in acknowledged)
    wanted = {f"message{file.number}.wav": file for file in acknowledged}
    lacking: dict[str, set[str]] = {}

    def complete() -> bool:
        for node in scene.pair.nodes:
            have = _digests(scene, node, MESSAGES)
            lacking[node.name] = {name for name, file in wanted.items() if have.get(name) != file.digest}
        return not lacking[master.name] and not lacking[scene.pair.other(master).name]

    try:
        wait_for(complete, SETTLE_SECONDS, "all files on both nodes", interval_seconds=1.0)
    except LabError:
        aside: set[str] = set()
        for node in scene.pair.nodes:
            aside |= {
                name
                for name, digest in _digests(scene, node, SET_ASIDE).items()
                if name in wanted and wanted[name].digest == digest
            }
        gone = lacking[master.name]
        outcome.files_set_aside = len(gone & aside)
        outcome.files_lost = len(gone - aside)
        if outcome.files_lost:
            outcome.failures.append(f"{outcome.files_lost} files are nowhere: {sorted(gone - aside)[:5]}")
        if behind := lacking[scene.pair.other(master).name] - gone:
            outcome.failures.append(f"{len(behind)} files are not at the slave: {sorted(behind)[:5]}")
        _forget(scene, [], [wanted[name] for name in gone])


def core_open_at_the_master_only(scene: Scene, outcome: Outcome, master: Node) -> None:
    """Asked from the lan, at the nodes' own addresses."""
    slave = scene.pair.other(master)
    _eventually(
        outcome,
        "SIP at the master",
        lambda: sip_answers(scene.probe, master.address(), 2.0),
        lambda: "silence",
    )
    if sip_answers(scene.probe, slave.address(), 1.0):
        outcome.failures.append(f"SIP is open at the slave {slave.name}")
    moment = time.monotonic()
    _eventually(
        outcome,
        "an OPTIONS, a REGISTER and a row through the shared address",
        lambda: (
            any(answer.sent > moment for answer in scene.load.options.answers[-50:])
            and scene.load.registered[-1:] > [moment]
            and any(row.moment > moment for row in scene.load.rows[-50:])
        ),
        lambda: (
            f"registered {time.monotonic() - (scene.load.registered or [0.0])[-1]:.0f} s ago,"
            f" {len(scene.load.options.answers)} OPTIONS answered"
        ),
    )


def alarms_came_and_went(scene: Scene, outcome: Outcome, row: Row, since: float) -> None:
    """What the fault must raise was raised by a node; a person takes evidence away; then none is left."""
    raised = {name for node in scene.pair.nodes for name in scene.observer(node).alarms_since(since)}
    if missing := row.alarms - raised:
        outcome.failures.append(f"no alarm {', '.join(sorted(missing))}; there were {sorted(raised)}")
    for node in scene.pair.nodes:
        node.run(["find", EVIDENCE, "-name", "*.sql", "-delete"], check=False)
        node.run(["sh", "-c", f"rm -rf {WRECKS}"], check=False)

    def left() -> dict[str, str]:
        found: dict[str, str] = {}
        for node in scene.pair.nodes:
            said = scene.observer(node).latest()
            found |= {"silence": node.name} if said is None else said.alarms
        return found

    _eventually(outcome, "no alarm any more", lambda: not left(), lambda: f"there are still {left()}")


def silences(scene: Scene, outcome: Outcome, begin: float, end: float) -> None:
    """How long a phone, a registration and a writer went without an answer at most."""
    outcome.silent_sip_seconds = longest_gap([a.received for a in scene.load.options.answers], begin, end)
    outcome.silent_rows_seconds = longest_gap([row.moment for row in scene.load.rows], begin, end)
    outcome.silent_registrar_seconds = longest_gap(scene.load.registered, begin, end)


def by_turns(rows: list[Acknowledged]) -> list[float]:
    """The times after which a node acknowledged again although the other one had done so meanwhile, below a
    second: no role moves there and back so fast."""
    last: dict[str, float] = {}
    found = []
    for before, row in pairwise(rows):
        last[before.node] = before.moment
        if row.node != before.node and row.node in last and row.moment - last[row.node] < 1.0:
            found.append(round(row.moment - last[row.node], 3))
    return found


# --- details ------------------------------------------------------------------------------------------------


def _eventually(outcome: Outcome, what: str, condition: Callable[[], bool], found: Callable[[], str]) -> None:
    try:
        wait_for(condition, SETTLE_SECONDS, what, interval_seconds=0.25)
    except LabError:
        outcome.failures.append(f"{what} did not come within {SETTLE_SECONDS:g} s: {found()}")


def _lengths(spans: list[Span]) -> list[float]:
    return [round(end - begin, 3) for begin, end in spans]


def _numbers(scene: Scene, node: Node) -> set[int]:
    return {int(word) for word in scene.sql(node, "SELECT n FROM chaos_rows;").output.split()}


def _evidence(scene: Scene, node: Node) -> set[int]:
    words = ["find", EVIDENCE, "-name", "*.sql", "-exec", "cat", "{}", "+"]
    text = node.run(words, check=False, limit_seconds=60).output
    decode = (
        f"for log in {WRECKS}/centralino-bin.0*; do mariadb-binlog --base64-output=decode-rows -v $log; done"
    )
    text += node.run(["sh", "-c", decode], check=False, limit_seconds=60).output
    return {int(found) for found in EVIDENCE_ROW.findall(text)}


def _digests(scene: Scene, node: Node, place: str) -> dict[str, str]:
    """Name to SHA-256 of every message below a place."""
    words = ["find", place, "-name", "message*.wav", "-exec", "sha256sum", "{}", "+"]
    lines = node.run(words, check=False, limit_seconds=60).output.splitlines()
    return {line.rpartition("/")[2]: line.split()[0] for line in lines}


def _forget(scene: Scene, rows: list[Acknowledged], files: list[Acknowledged] = []) -> None:  # noqa: B006
    """What was found missing is counted once, not after every later fault again."""
    for row in rows:
        scene.load.rows.remove(row)
    for file in files:
        scene.load.files.remove(file)
