"""Supervision on real services: what dies, hangs, is stopped or cannot start, on a booted appliance."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.lab import Client, Lab, Node
from appliance.lab_host import wait_for
from appliance.lab_sip import OptionsProber, add_phone, call_echo, welcome_prober
from tests.lab.conftest import FAILED

pytestmark = pytest.mark.lab

ASTERISK, MARIADB, NGINX, DAEMON = (
    f"{name}.service" for name in ("asterisk", "mariadb", "nginx", "centralinod")
)
# Requirement for a hang; for a crash, what systemd's own fallback in the unit would need.
HANG_LIMIT = 6.0
FALLBACK_SECONDS = 5.0
PATIENCE = 40.0
BROKEN = "/etc/nginx/centralino.d/broken.conf"


class Box:
    """A booted appliance with its command line."""

    def __init__(self, lab: Lab, node: Node) -> None:
        self.lab = lab
        self.node = node
        self.client: Client = lab.add_client("probe")
        welcome_prober(node, self.client)

    def status(self) -> dict[str, object]:
        return json.loads(self.node.run(["centralino", "status", "--json"], check=False).output or "{}")

    def service(self, name: str) -> dict[str, object]:
        services = self.status().get("services", [])
        assert isinstance(services, list)
        return next((service for service in services if service["name"] == name), {})

    def pid(self, unit: str) -> int:
        return int(self.node.run(["systemctl", "show", "-p", "MainPID", "--value", unit]).output)

    def until(self, wish: Callable[[], object], what: str, limit: float = PATIENCE) -> None:
        wait_for(wish, limit, what, interval_seconds=0.2)

    def until_well(self, limit: float = PATIENCE) -> None:
        self.until(lambda: self.status().get("healthy"), "the appliance being healthy", limit)

    def until_health(self, name: str, health: str) -> dict[str, object]:
        self.until(lambda: self.service(name).get("health") == health, f"{name} being {health}")
        return self.service(name)

    def replaced(self, unit: str, number: signal.Signals) -> float:
        """Send the signal and wait until another process works healthily; the seconds until then."""
        old = self.pid(unit)
        moment = self.node.signal_unit(unit, number)
        self.until(lambda: self.pid(unit) not in (0, old), f"another {unit}")
        seconds = time.monotonic() - moment
        self.until_well()
        return seconds

    def alarms(self) -> list[str]:
        alarms = self.status().get("alarms", [])
        assert isinstance(alarms, list)
        return [alarm["id"] for alarm in alarms]


@pytest.fixture(scope="module")
def made(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Box]:
    with Lab(lab_root, tmp_path_factory.mktemp("supervision") / "lab") as lab:
        node = lab.add_node()
        lab.power_on_all()
        yield Box(lab, node)
        if request.session.stash.get(FAILED, False):
            print(f"logs: {lab.save_logs(Path('out/lab-logs/supervision'))}")


@pytest.fixture
def box(made: Box) -> Iterator[Box]:
    """The appliance, healthy before the test and again after it."""
    made.until_well()
    yield made
    # A failed test must not take the others with it; one that passed left nothing to do here.
    made.node.run(["rm", "-f", BROKEN])
    made.node.run(["systemctl", "start", ASTERISK, MARIADB, NGINX, DAEMON], check=False)
    made.until_well()


def test_every_probe_passes_against_the_real_services(box: Box) -> None:
    found = {
        probe["name"]: probe
        for name in ("asterisk", "mariadb", "nginx")
        for probe in box.service(name)["probes"]  # type: ignore[attr-defined]
    }
    assert set(found) == {"sip-options", "manager-ping", "sql-ping", "https-request"}
    assert all(probe["healthy"] for probe in found.values()), found
    assert box.service("asterisk")["live_calls"] == 0
    assert box.service("keepalived")["health"] == "off"


def test_probing_is_no_attack(box: Box) -> None:
    """The security log, from which attackers are banned, must not know the daemon's OPTIONS."""
    box.node.run(["centralino", "services", "restart", "asterisk", "--yes"])
    box.until_well()
    events = box.node.journal("-u", ASTERISK, "--since", "-2min")
    assert "InvalidAccountID" not in events
    assert "ChallengeSent" not in events


def test_dead_core_is_back_before_any_fallback(box: Box) -> None:
    with OptionsProber(box.client, box.node.address()) as prober:
        moment = box.node.signal_unit(ASTERISK, signal.SIGKILL)
        seconds = prober.first_after(moment, PATIENCE).received - moment
    assert seconds < FALLBACK_SECONDS


def test_hung_core_is_replaced_in_time(box: Box) -> None:
    with OptionsProber(box.client, box.node.address()) as prober:
        moment = box.node.signal_unit(ASTERISK, signal.SIGSTOP)
        seconds = prober.first_after(moment, PATIENCE).received - moment
    assert seconds <= HANG_LIMIT


def test_dead_database_is_back_and_the_core_goes_on(box: Box) -> None:
    core = box.pid(ASTERISK)
    assert box.replaced(MARIADB, signal.SIGKILL) < FALLBACK_SECONDS
    assert box.pid(ASTERISK) == core


def test_hung_database_is_the_reason_and_is_replaced_not_the_core(box: Box) -> None:
    core = box.pid(ASTERISK)
    box.replaced(MARIADB, signal.SIGSTOP)
    assert box.pid(ASTERISK) == core, "the core was blamed for its database"


def test_dead_and_hung_web_server_are_replaced(box: Box) -> None:
    assert box.replaced(NGINX, signal.SIGKILL) < FALLBACK_SECONDS
    box.replaced(NGINX, signal.SIGSTOP)


def test_an_end_by_itself_is_no_stop(box: Box) -> None:
    """Status 0 and no job of systemd: its own fallback would leave it dead."""
    old = box.pid(ASTERISK)
    box.node.run(["asterisk", "-rx", "core stop now"], check=False)
    box.until(lambda: box.pid(ASTERISK) not in (0, old), "another Asterisk")


def test_daemon_that_restarts_or_dies_disturbs_nothing(box: Box) -> None:
    units = (ASTERISK, MARIADB, NGINX)
    before = [box.pid(unit) for unit in units]
    box.node.run(["systemctl", "restart", DAEMON])
    box.until_well()
    box.node.signal_unit(DAEMON, signal.SIGKILL)
    box.until_well()
    assert [box.pid(unit) for unit in units] == before


def test_a_stop_by_a_person_holds_over_restarts_of_the_daemon(box: Box) -> None:
    box.node.run(["centralino", "services", "stop", "asterisk", "--drain", "0", "--yes", "--comment", "card"])
    box.node.signal_unit(DAEMON, signal.SIGKILL)
    reason = str(box.until_health("asterisk", "stopped")["reason"])
    assert "card" in reason
    assert box.pid(ASTERISK) == 0
    assert box.status()["healthy"] is False
    box.node.run(["centralino", "services", "start", "asterisk", "--yes"])
    assert box.service("asterisk")["health"] == "healthy"


def test_a_stop_by_systemctl_is_respected(box: Box) -> None:
    box.node.run(["systemctl", "stop", NGINX])
    assert "systemctl" in str(box.until_health("nginx", "stopped")["reason"])
    box.node.run(["systemctl", "start", NGINX])
    box.until_health("nginx", "healthy")


def test_a_restart_by_systemctl_is_nobodys_trouble(box: Box) -> None:
    before = box.service("asterisk")["restarts"]
    box.node.run(["systemctl", "restart", ASTERISK])
    box.until_well()
    assert box.service("asterisk")["restarts"] == before


def test_what_cannot_start_is_alarmed_tried_on_and_comes_back_by_itself(box: Box) -> None:
    box.node.run(["mkdir", "-p", "/etc/nginx/centralino.d"])
    box.node.run(["tee", BROKEN], input_text="no such directive;\n")
    box.node.signal_unit(NGINX, signal.SIGKILL)
    box.until(lambda: "service.nginx" in box.alarms(), "an alarm")
    service = box.service("nginx")
    assert service["health"] in ("down", "starting")
    assert any(str(reason).startswith("nginx: ") for reason in box.status()["reasons"])  # type: ignore[attr-defined]
    lines = json.loads(box.node.run(["centralino", "services", "logs", "nginx", "--json"]).output)["lines"]
    assert any(
        "no such directive" in line["message"] or "unknown directive" in line["message"] for line in lines
    )
    box.node.run(["rm", BROKEN])
    box.until_health("nginx", "healthy")


def test_a_start_that_hangs_is_replaced(box: Box) -> None:
    limit = "services.policies.asterisk.start_limit_seconds"
    drop_in = "/run/systemd/system/asterisk.service.d/hang.conf"
    # The first start hangs for good, the next one does not.
    once = "test -e /run/hung || { touch /run/hung; exec sleep infinity; }"
    before = box.service("asterisk")["restarts"]
    hang = f"[Service]\nExecStartPre=/bin/sh -c '{once}'\n"
    box.node.run(["centralino", "config", "set", limit, "5", "--yes"])
    box.node.run(["install", "-d", str(Path(drop_in).parent)])
    box.node.run(["tee", drop_in], input_text=hang)
    box.node.run(["systemctl", "daemon-reload"])
    try:
        box.node.run(["systemctl", "--no-block", "restart", ASTERISK])
        box.until(lambda: box.node.run(["test", "-e", "/run/hung"], check=False).ok, "the start that hangs")
        began = time.monotonic()
        box.until(lambda: box.service("asterisk").get("restarts") != before, "another start")
        box.until_well()
        journal = box.node.run(["journalctl", "-u", DAEMON, "-o", "cat", "--since", "-2min"]).output
        assert "asterisk is hung: its start did not end within 5 s; it is being replaced" in journal
        print(f"a start that hangs for good was healthy {time.monotonic() - began:.1f} s after it began")
    finally:
        box.node.run(["rm", "-f", drop_in, "/run/hung"])
        box.node.run(["systemctl", "daemon-reload"])
        box.node.run(["centralino", "config", "unset", limit, "--yes"])
    box.until_well()


def test_a_wrong_manager_password_is_said_and_ends_no_calls(box: Box) -> None:
    secret = "/etc/centralino/secrets/asterisk-ami"
    right = box.node.run(["cat", secret]).output
    core = box.pid(ASTERISK)
    box.node.run(["tee", secret], input_text="wrong\n")
    try:
        # The kept connection is logged in already; a new daemon logs in anew.
        box.node.run(["systemctl", "restart", DAEMON])
        reason = str(box.until_health("asterisk", "degraded")["reason"])
    finally:
        box.node.run(["tee", secret], input_text=right)
    assert "login refused" in reason
    assert "wrong" not in reason
    box.until_well()
    assert box.pid(ASTERISK) == core


def test_a_stop_waits_for_calls_and_the_deadline_is_firm(box: Box) -> None:
    phone = add_phone(box.node, "201")
    other = box.lab.add_client("phone")
    core = box.pid(ASTERISK)
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(call_echo, other, phone, box.node.address(), hold_seconds=8.0)
        box.until(lambda: box.service("asterisk").get("live_calls") == 1, "a live call")
        stop = ["centralino", "services", "stop", "asterisk", "--drain", "60", "--yes"]
        stopping = pool.submit(lambda: box.node.run(stop, limit_seconds=90))
        box.until(lambda: "live call" in jobs_of(box), "the progress of the drain")
        assert box.pid(ASTERISK) == core, "the call is up"
        call.result()
        stopping.result()
    assert box.pid(ASTERISK) == 0
    box.node.run(["centralino", "services", "start", "asterisk", "--yes"])
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(call_echo, other, phone, box.node.address(), hold_seconds=25.0)
        box.until(lambda: box.service("asterisk").get("live_calls") == 1, "a live call")
        began = time.monotonic()
        box.node.run(["centralino", "services", "restart", "asterisk", "--drain", "2", "--yes"])
        assert time.monotonic() - began < 20.0
        assert box.pid(ASTERISK) != core
        call.exception()


def jobs_of(box: Box) -> str:
    return box.node.run(["centralino", "jobs", "list", "--json"]).output


def test_nothing_is_restarted_while_the_box_shuts_down(made: Box) -> None:
    """The last test: the node is off afterwards. The daemon stops last, so it sees every service go."""

    def words() -> str:
        # Off, the node's disk can be read only once the kernel has let go of it.
        return wait_for(lambda: made.node.journal("-b", "-u", DAEMON, "-o", "cat"), PATIENCE, "its journal")

    made.until_well()
    before = words()
    made.node.run(["systemctl", "poweroff"], check=False)
    made.until(lambda: not made.node.powered, "the end of the node")
    after = words().removeprefix(before)
    assert "the box is shutting down" in after
    assert "being started" not in after
    assert "being replaced" not in after
    assert "stopped by" not in after, "a shutdown is no stop by a person"
