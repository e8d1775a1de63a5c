"""A phone and the built appliance: it registers, hears itself, and finds its core again (S-US-03)."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest

from appliance.demo_steps import wait_healthy
from appliance.lab import Lab
from appliance.lab_host import LabError
from appliance.lab_sip import OptionsProber, add_phone, call_echo, register, welcome_prober

pytestmark = pytest.mark.lab


def test_phone_registers_calls_and_finds_its_core_again_after_crash_and_hang(lab: Lab) -> None:
    node = lab.add_node()
    phone, probe = lab.add_client("phone"), lab.add_client("probe")
    node.power_on(120)
    wait_healthy(node)
    account = add_phone(node, "1001")
    with pytest.raises(LabError, match=r"lab_register\.xml against 10\.77\.0\.11 ended with status 1"):
        register(phone, replace(account, password="wrong"), node.address())
    assert register(phone, account, node.address()) > 0
    contacts = node.run(["mysql", "-N", "centralino"], input_text="SELECT endpoint FROM ps_contacts").output
    assert contacts.split() == ["1001"]
    call = call_echo(phone, account, node.address())
    assert call.media.echoed >= 50
    welcome_prober(node, probe)
    with OptionsProber(probe, node.address()) as prober:
        assert prober.first_after(time.monotonic(), 10).status == 200
        for number in (signal.SIGKILL, signal.SIGSTOP):
            moment = node.signal_unit("asterisk.service", number)
            answer = prober.first_after(moment, 60)
            assert answer.status == 200
            # Nothing answered in between: what was measured is the successor, not the victim.
            assert prober.longest_silence(moment, answer.received + 0.001) > 0.05
            wait_healthy(node)
    assert call_echo(phone, account, node.address()).media.echoed >= 50
