"""From the death or the hang of Asterisk to SIP answered again, heard from outside; beside plain systemd."""

from __future__ import annotations

import signal
import time

from appliance.demo_steps import wait_healthy
from appliance.lab import Lab, Node
from appliance.lab_host import LabTimeoutError
from appliance.lab_sip import OptionsProber, welcome_prober
from tests.bench.rows import Row, median

UNIT = "asterisk.service"
SETTLE_SECONDS = (
    65.0  # longer than the daemon's policy calls a bad spell, so each fault is the first of its spell
)
LIMIT_SECONDS = 30.0
HANG_LIMIT_SECONDS = 6.0
ALLOWED_RATIO = 1.1
PEER = "systemd `Restart=always RestartSec=100ms`"
PLAIN = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=100ms\n"


def seconds_to_answer(node: Node, prober: OptionsProber, number: signal.Signals) -> float | None:
    """Send the signal, and wait for the first answer to a request sent after it; None: none in time.

    A request that lay in the socket of a frozen process and is answered by its successor would not count as
    late: only requests sent after the signal are considered, whenever they are answered.
    """
    moment = node.signal_unit(UNIT, number)
    try:
        return prober.first_after(moment, LIMIT_SECONDS).received - moment
    except LabTimeoutError:
        return None


def measure(lab: Lab, node: Node, runs: int = 5) -> list[Row]:
    """Crash and hang under the daemon, then under plain systemd with the daemon stopped, on one node."""
    probe = lab.add_client("probe")
    welcome_prober(node, probe)
    numbers = (signal.SIGKILL, signal.SIGSTOP)
    ours: dict[signal.Signals, list[float | None]] = {number: [] for number in numbers}
    plain: dict[signal.Signals, list[float | None]] = {number: [] for number in numbers}
    with OptionsProber(probe, node.address(), interval_seconds=0.01) as prober:
        for number in numbers:
            for _ in range(runs):
                wait_healthy(node)
                time.sleep(SETTLE_SECONDS)
                ours[number].append(seconds_to_answer(node, prober, number))
        wait_healthy(node)
        node.run(["systemctl", "stop", "centralinod.service"])
        drop_in = f"/run/systemd/system/{UNIT}.d"
        node.run(["mkdir", "-p", drop_in])
        node.run(["tee", f"{drop_in}/90-plain.conf"], input_text=PLAIN)
        node.run(["systemctl", "daemon-reload"])
        for _ in range(runs):
            plain[signal.SIGKILL].append(seconds_to_answer(node, prober, signal.SIGKILL))
            node.wait_active(UNIT)
            time.sleep(2)  # past the end of start-up work, as the daemon's runs were
        plain[signal.SIGSTOP].append(seconds_to_answer(node, prober, signal.SIGSTOP))
    crash = median(plain[signal.SIGKILL])
    return [
        Row(
            "Asterisk killed (SIGKILL) to SIP OPTIONS answered",
            median(ours[signal.SIGKILL]),
            crash,
            PEER,
            "s",
            runs,
            None if crash is None else crash * ALLOWED_RATIO,
            rule="1.1 x peer",
            note="a client asks every 10 ms; each crash comes after a minute of health",
        ),
        Row(
            "Asterisk frozen (SIGSTOP) to SIP OPTIONS answered",
            median(ours[signal.SIGSTOP]),
            median(plain[signal.SIGSTOP]),
            PEER,
            "s",
            runs,
            HANG_LIMIT_SECONDS,
            note=f"plain systemd was watched once, for {LIMIT_SECONDS:.0f} s",
        ),
    ]
