"""A pair under eyes: phones and a writer on the lan, and what they saw when its master failed or handed over.

All of them use the shared address alone. One phone registers once, over UDP, and is called after the failure
without having registered again; another one begins a registration each 50 ms; OPTIONS and echo are asked, and
numbered rows are committed, all the time.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass

from appliance.lab import Node
from appliance.lab_host import LabError, wait_for
from appliance.lab_pair import SHARED, PairOfNodes, centralino, role
from appliance.lab_phone import Deskphone, Registrar
from appliance.lab_sip import OptionsProber, add_phone, call_echo, welcome_prober
from appliance.lab_watch import (
    LONG_SILENCE_SECONDS,
    EchoProber,
    RowWriter,
    first_after,
    make_table,
    rows_of,
    serve_rows,
)

LIMIT_SECONDS = 30.0
ROWS_BEFORE = 200
ROWS_AFTER = 100
CALL_SECONDS = 3.0
# A site's numbers: whoever is registered can be called.
DIALPLAN = "[internal]\nexten => _1XXX,1,Dial(PJSIP/${EXTEN},20)\n same => n,Hangup()\n"
DIALPLAN_FILE = "/etc/asterisk/extensions.d/lab.conf"


@dataclass(frozen=True)
class Failure:
    """Seconds from the cut of the power to the first answer of each kind, and what was kept."""

    address_seconds: float
    sip_seconds: float
    register_seconds: float
    database_seconds: float
    rows_acknowledged: int
    rows_lost: int
    registrations: int
    frames_echoed: int
    called_from: str

    @property
    def registration_kept(self) -> bool:
        """Whether the phone was called, with sound, and had registered only once."""
        return self.registrations == 1 and self.frames_echoed > 0


@dataclass(frozen=True)
class Handover:
    """A planned switch: the longest times without an answer, in seconds, and the rows."""

    sip_seconds: float
    address_seconds: float
    rows_acknowledged: int
    rows_lost: int


def bring_dialplan(node: Node) -> None:
    """Phones may call each other; for a node that is off."""
    node.prepare()
    node.disk.mount()
    try:
        file = node.path(DIALPLAN_FILE)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(DIALPLAN)
    finally:
        node.disk.unmount()


class Onlookers:
    """The clients of one pair; makes their accounts and the rows' table on its master."""

    def __init__(self, pair: PairOfNodes, master: Node) -> None:
        self.pair = pair
        lab = pair.lab
        self._desk, self._office = lab.add_client("desk"), lab.add_client("office")
        self._called, self._caller, self._anew = (
            add_phone(master, number) for number in ("1001", "1002", "1003")
        )
        welcome_prober(master, pair.probe)

    def fail_over(self, master: Node) -> Failure:
        """Cut the master's power. Raises LabError when one of them waits for longer than half a minute."""
        with ExitStack() as stack:
            phone, options, echo, writer, registrar = self._enter(stack, master)
            registrar.wait_answers(3)
            moment = master.power_off()
            address = echo.first_after(moment, LIMIT_SECONDS)
            answers = options.answers
            what = f"an answer to OPTIONS from {SHARED}"
            sip = first_after(
                lambda: [answer.received for answer in answers],
                *(moment, LIMIT_SECONDS, what, LONG_SILENCE_SECONDS),
            )
            register = registrar.first_after(moment, LIMIT_SECONDS)
            database = writer.first_after(moment, LIMIT_SECONDS)
            number = self._called.number
            call = call_echo(self._office, self._caller, SHARED, number=number, hold_seconds=CALL_SECONDS)
            writer.wait_answers(ROWS_AFTER)
        lost = set(writer.acknowledged) - rows_of(self.pair.other(master))
        return Failure(
            *(address, sip, register, database, len(writer.acknowledged), len(lost)),
            *(phone.registrations, call.media.echoed, ", ".join(phone.callers)),
        )

    def switch(self, master: Node) -> Handover:
        """Hand the role to the other node as an administrator does. Raises LabError if it does not move."""
        other = self.pair.other(master)
        with ExitStack() as stack:
            _, options, echo, writer, _ = self._enter(stack, master)
            began = time.monotonic()
            done = centralino(master, "fault-tolerance", "switch", "--yes", "--json").check()
            wait_for(lambda: role(other) == "master", LIMIT_SECONDS, f"the move ({json.loads(done.output)})")
            echo.wait_answers(100)
            writer.wait_answers(ROWS_AFTER)
            ended = time.monotonic()
            silences = (options.longest_silence(began, ended), echo.longest_gap(began))
        lost = set(writer.acknowledged) - rows_of(other)
        return Handover(*silences, len(writer.acknowledged), len(lost))

    def _enter(
        self, stack: ExitStack, master: Node
    ) -> tuple[Deskphone, OptionsProber, EchoProber, RowWriter, Registrar]:
        """All of them at work, each with answers."""
        make_table(master)
        self.pair.start_echo()
        for node in self.pair.nodes:
            serve_rows(node, SHARED)
        probe = self.pair.probe
        phone = stack.enter_context(Deskphone(self._desk, self._called, SHARED))
        phone.register()
        options = stack.enter_context(OptionsProber(probe, SHARED))
        echo = stack.enter_context(EchoProber(probe, SHARED))
        writer = stack.enter_context(RowWriter(probe, SHARED))
        registrar = stack.enter_context(Registrar(self._office, self._anew, SHARED))
        writer.wait_answers(ROWS_BEFORE)
        echo.wait_answers(100)
        wait_for(lambda: options.answers, LIMIT_SECONDS, f"an answer to OPTIONS from {SHARED}")
        return phone, options, echo, writer, registrar


def same_rows(pair: PairOfNodes) -> int:
    """How many rows both nodes hold, when they hold the same; LabError otherwise."""
    first, second = (rows_of(node) for node in pair.nodes)
    if first != second:
        raise LabError(f"the nodes hold {len(first)} and {len(second)} rows, and not the same")
    return len(first)
