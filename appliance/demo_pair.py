"""Second part of the demonstration: two nodes become a pair, and the master loses its power.

Everything is seen from the lan, through the shared address: a phone that registered once, over UDP, and is
called afterwards; a client that asks by OPTIONS; one that registers; a writer that commits numbered rows.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from appliance.demo_steps import Facts, Steps
from appliance.lab import Lab, Node
from appliance.lab_host import LabError, wait_for
from appliance.lab_pair import SHARED, PairOfNodes, add_two, make_pair, power_on, role
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

TAKEOVER_LIMIT_SECONDS = 30.0
RETURN_LIMIT_SECONDS = 180.0
ROWS_BEFORE = 200
ROWS_AFTER = 100
# A site's numbers: whoever is registered can be called.
DIALPLAN = "[internal]\nexten => _1XXX,1,Dial(PJSIP/${EXTEN},20)\n same => n,Hangup()\n"
DIALPLAN_FILE = "/etc/asterisk/extensions.d/demo.conf"


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


def show_pair(root: Path, directory: Path, steps: Steps, facts: Facts) -> None:
    """Form a pair, cut the master's power under phones and a writer, and take the old master back."""
    with Lab(root, directory) as lab:
        pair = add_two(lab)
        with steps.step("boot a gateway and two nodes"):
            for node in pair.nodes:
                bring_dialplan(node)
            power_on(pair)
        with steps.step("make them a pair: configure, invite, pair"):
            began = time.monotonic()
            make_pair(pair)
            master = pair.wait_healthy()
            facts["pair_seconds"] = time.monotonic() - began
        steps.say(
            "the pair is formed", f"{facts['pair_seconds']:.1f} s until {pair.other(master).name} was ready"
        )
        _fail_over(pair, master, steps, facts)
        with steps.step(f"power {master.name} on again"):
            began = time.monotonic()
            master.power_on(120)
            pair.wait_healthy(RETURN_LIMIT_SECONDS)
            facts["return_seconds"] = time.monotonic() - began
        if role(master) != "slave":
            raise LabError(f"{master.name} returned as {role(master)}, not as slave")
        steps.say(f"{master.name} is a ready slave", f"{facts['return_seconds']:.1f} s after power-on")
        both = [rows_of(node) for node in pair.nodes]
        if both[0] != both[1]:
            raise LabError(f"the nodes hold {len(both[0])} and {len(both[1])} rows, and not the same")
        steps.say("rows on both nodes", f"{len(both[0])}, the same")


def _fail_over(pair: PairOfNodes, master: Node, steps: Steps, facts: Facts) -> None:
    lab, slave = pair.lab, pair.other(master)
    desk, office = lab.add_client("desk"), lab.add_client("office")
    with steps.step("register phones and write rows through the shared address"):
        called, caller, anew = (add_phone(master, number) for number in ("1001", "1002", "1003"))
        welcome_prober(master, pair.probe)
        make_table(master)
        pair.start_echo()
        for node in pair.nodes:
            serve_rows(node, SHARED)
    with ExitStack() as stack:
        phone = stack.enter_context(Deskphone(desk, called, SHARED))
        phone.register()
        options = stack.enter_context(OptionsProber(pair.probe, SHARED))
        echo = stack.enter_context(EchoProber(pair.probe, SHARED))
        writer = stack.enter_context(RowWriter(pair.probe, SHARED))
        registrar = stack.enter_context(Registrar(office, anew, SHARED))
        writer.wait_answers(ROWS_BEFORE)
        registrar.wait_answers(3)
        echo.wait_answers(3)
        wait_for(lambda: options.answers, 20, "an answer to OPTIONS at the shared address")
        with steps.step(f"cut the power of {master.name}, the master"):
            moment = master.power_off()
            facts["address_seconds"] = echo.first_after(moment, TAKEOVER_LIMIT_SECONDS)
            facts["sip_seconds"] = first_after(
                lambda: [answer.received for answer in options.answers],
                *(moment, TAKEOVER_LIMIT_SECONDS, f"an answer to OPTIONS at {SHARED}", LONG_SILENCE_SECONDS),
            )
            facts["register_again_seconds"] = registrar.first_after(moment, TAKEOVER_LIMIT_SECONDS)
            facts["database_seconds"] = writer.first_after(moment, TAKEOVER_LIMIT_SECONDS)
            call = call_echo(office, caller, SHARED, number=called.number)
            writer.wait_answers(ROWS_AFTER)
        sent = phone.registrations
        from_where = phone.callers
    facts["registrations_kept"] = int(sent == 1 and bool(from_where) and call.media.echoed > 0)
    facts["rows_acknowledged"] = len(writer.acknowledged)
    facts["rows_lost"] = len(set(writer.acknowledged) - rows_of(slave))
    for what, name in (
        ("the shared address answered", "address_seconds"),
        ("SIP answered OPTIONS", "sip_seconds"),
        ("the first registration was accepted", "register_again_seconds"),
        ("the first row was acknowledged", "database_seconds"),
    ):
        steps.say(what, f"{facts[name]:.2f} s after the power was cut")
    steps.say(
        "the phone that registered before",
        f"was called by another one, {call.media.echoed} frames of sound came back; "
        f"it had registered {'once' if sent == 1 else f'{sent} times'}",
    )
    steps.say("rows", f"{facts['rows_acknowledged']} acknowledged, {facts['rows_lost']} of them lost")
    if facts["rows_lost"] or not facts["registrations_kept"]:
        raise LabError("the failover lost what it must keep; see above")
