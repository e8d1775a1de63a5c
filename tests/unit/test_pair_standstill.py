"""A slave that stood still has heard nothing because it did not listen: that is nobody's silence."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import cast

import pytest

from fault_tolerance.heartbeat import INTERVAL_SECONDS, SILENCE_SECONDS
from fault_tolerance.keepalived import Adverts
from fault_tolerance.restraint import DEAF_SECONDS, Restraint
from fault_tolerance.runtime import Runtime
from fault_tolerance.view import Role, Vrrp


def after_a_pause(role: Role, seconds: float, adverts: Adverts = Adverts.STANDARD) -> SimpleNamespace:
    """What of a runtime this is about, when its loop did not run for so long; keepalived says master."""
    runtime = SimpleNamespace(
        role=role,
        pair=SimpleNamespace(adverts=adverts, cloud=False),
        vrrp=SimpleNamespace(state=Vrrp.MASTER),
        restraint=Restraint(),
        heard=None,
    )
    Runtime._note_pause(cast(Runtime, runtime), seconds)
    return runtime


def vrrp(runtime: SimpleNamespace) -> Vrrp:
    return Runtime._vrrp(cast(Runtime, runtime))


def test_a_frozen_slave_does_not_take_its_own_silence_for_the_masters() -> None:
    runtime = after_a_pause(Role.SLAVE, 10.0)
    assert vrrp(runtime) is Vrrp.BACKUP
    assert runtime.restraint.deaf(time.monotonic())
    assert not runtime.restraint.deaf(time.monotonic() + DEAF_SECONDS)


def test_a_frozen_master_is_judged_by_what_is() -> None:
    assert vrrp(after_a_pause(Role.MASTER, 10.0)) is Vrrp.MASTER


@pytest.mark.parametrize("adverts", list(Adverts))
def test_no_pause_is_long_enough_to_look_like_silence_and_too_short_to_be_seen(adverts: Adverts) -> None:
    for hundredths in range(300):
        pause = hundredths / 100
        # The last word may have come a whole interval before the pause.
        looks_silent = pause + INTERVAL_SECONDS[adverts] >= SILENCE_SECONDS[adverts]
        assert not looks_silent or vrrp(after_a_pause(Role.SLAVE, pause, adverts)) is Vrrp.BACKUP
