"""What centralinod tells the role runtime of the PBX core."""

from __future__ import annotations

import pytest

from daemon.pair_words import core_failed
from daemon.services.model import Health

ALARM = {"service.asterisk", "disk.full"}


def row(health: Health, name: str = "asterisk") -> dict[str, object]:
    return {"name": name, "health": health.value, "healthy": health.good}


@pytest.mark.parametrize("health", [Health.DOWN, Health.HUNG, Health.WAITING, Health.STOPPED])
def test_a_core_service_that_is_not_well_and_alarmed_cannot_run(health: Health) -> None:
    assert core_failed([row(Health.HEALTHY, "mariadb"), row(health)], ALARM)
    assert not core_failed([row(health)], set())
    assert not core_failed([row(health, "nginx")], {"service.nginx"})


@pytest.mark.parametrize("health", [Health.UNKNOWN, Health.STARTING, Health.HEALTHY, Health.SUSPECT])
def test_an_old_alarm_of_one_that_starts_or_works_is_no_failure(health: Health) -> None:
    """A daemon that comes back has the alarm from its file before it has asked the service."""
    assert not core_failed([row(health)], ALARM)
