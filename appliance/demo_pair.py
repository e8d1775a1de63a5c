"""Second part of the demonstration: two nodes become a pair, and the master loses its power."""

from __future__ import annotations

import time
from pathlib import Path

from appliance.demo_steps import Facts, Steps
from appliance.lab import Lab
from appliance.lab_failover import Failure, Onlookers, bring_dialplan, same_rows
from appliance.lab_host import LabError
from appliance.lab_pair import add_two, make_pair, power_on, role


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
        slave = pair.other(master)
        steps.say("a pair", f"{facts['pair_seconds']:.1f} s until {slave.name} was a ready slave")
        with steps.step(f"register a phone, write rows, then cut the power of {master.name}, the master"):
            seen = Onlookers(pair, master).fail_over(master)
        _tell(seen, steps, facts)
        with steps.step(f"power {master.name} on again"):
            began = time.monotonic()
            master.power_on(120)
            pair.wait_healthy()
            facts["return_seconds"] = time.monotonic() - began
            if role(master) != "slave":
                raise LabError(f"{master.name} returned as {role(master)}, not as slave")
            rows = same_rows(pair)
        steps.say(f"{master.name} came back", f"a ready slave {facts['return_seconds']:.1f} s after power-on")
        steps.say("rows in both databases", f"{rows}, the same")


def _tell(seen: Failure, steps: Steps, facts: Facts) -> None:
    """Print and keep what was seen. Raises LabError if something was lost that must be kept."""
    facts["address_seconds"] = seen.address_seconds
    facts["sip_seconds"] = seen.sip_seconds
    facts["register_again_seconds"] = seen.register_seconds
    facts["database_seconds"] = seen.database_seconds
    facts["rows_acknowledged"] = seen.rows_acknowledged
    facts["rows_lost"] = seen.rows_lost
    facts["registrations_kept"] = int(seen.registration_kept)
    for what, seconds in (
        ("the shared address answered", seen.address_seconds),
        ("SIP answered OPTIONS", seen.sip_seconds),
        ("a registration was accepted", seen.register_seconds),
        ("a row was acknowledged", seen.database_seconds),
    ):
        steps.say(what, f"{seconds:.2f} s after the power was cut")
    times = "once" if seen.registrations == 1 else f"{seen.registrations} times"
    steps.say(
        "the phone",
        f"registered {times}, before; called after, {seen.frames_echoed} frames of sound came back",
    )
    steps.say("rows", f"{seen.rows_acknowledged} acknowledged, {seen.rows_lost} of them lost")
    if seen.rows_lost or not seen.registration_kept:
        raise LabError("the failover lost what it must keep; see above")
