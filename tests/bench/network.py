"""How long a network change takes, from the command to its proof: ours beside NetworkManager's own tool."""

from __future__ import annotations

from appliance.lab import Node
from appliance.lab_host import wait_for
from tests.bench.rows import Row, median

ADDRESS = "10.77.0.11/24"
TIMES_PEER = 1.5
PROFILE = "centralino-eth0"
INTERPRETER = "/opt/centralino/venv/bin/python"
# The daemon's part alone: from the call to the end of its job, on a connection that is there already.
ASK = """
import json, sys, time
from daemon.cli.client import SETTINGS, Client
client = Client()
document = client.read_object(SETTINGS, "Get", "")["settings"]
document["network"]["interfaces"]["eth0"]["mtu"] = int(sys.argv[1])
begun = time.monotonic()
job = client.watch_job(client.call(SETTINGS, "Apply", json.dumps(document), "{}"))
print(time.monotonic() - begun)
assert job["state"] == "done", job
"""


# What a careful script does with NetworkManager's own tool: change, re-apply, see that the kernel has it.
BARE = """
set -e
shown=$1 profile=$2
shift 2
nmcli connection modify "$profile" "$@"
nmcli device reapply eth0 > /dev/null
until ip address show dev eth0 | grep -qF "$shown"; do sleep 0.01; done
"""
WIRE_MILLISECONDS = 100
HELPER = "daemon.settings.worker"
RESTS_WITHIN_SECONDS = 60.0


def measure(node: Node, runs: int = 15) -> list[Row]:
    """Median wall time of changes in place, in turns; two rounds warm up.

    Ours checks, plans, writes durably, re-applies, asks the gateway, and leaves the change to be confirmed
    (the confirming is not measured).
    """
    _set(node, "--address", ADDRESS, "--gateway", "10.77.0.1", "--ipv6", "off", "--confirm", "0")
    seen: dict[str, list[float]] = {}
    for turn in range(runs + 2):
        times = {
            "mtu": _set(node, "--mtu", str(1400 + turn)),
            "bare mtu": _bare(node, f"mtu {1300 + turn} ", "802-3-ethernet.mtu", f"{1300 + turn}"),
            "address": _set(node, "--address", ADDRESS, "--address", f"10.77.0.{50 + turn}/24"),
            "bare address": _bare(node, f"inet 10.77.0.{150 + turn}/", *_probed(f"10.77.0.{150 + turn}/24")),
            "inside": _ask(node, 1350 + turn),
        }
        if turn >= 2:
            for name, seconds in times.items():
                seen.setdefault(name, []).append(seconds * 1000)
    found = {name: median(values) or 0.0 for name, values in seen.items()}
    first = []
    for turn in range(3):
        wait_for(lambda: not _helper_runs(node), RESTS_WITHIN_SECONDS, "the end of the settings helper")
        first.append(_set(node, "--mtu", str(1450 + turn)) * 1000)
    name = "`nmcli connection modify`, `nmcli device reapply`, `ip address show`"
    rule = f"{TIMES_PEER} x peer"
    note = (
        "with the checks of gateway, SSH sessions and both journals' fsyncs; the peer does none of that; "
        "what is not the daemon's part is the start of the command line"
    )
    waits = f"both ask the wire for {WIRE_MILLISECONDS} ms whether the new address is free"
    rests = "the program that checks settings ends after 20 s and has to be started"
    mtu, address = found["bare mtu"], found["bare address"]
    return [
        Row(
            "network change, set to verified",
            found["mtu"],
            mtu,
            name,
            "ms",
            runs,
            TIMES_PEER * mtu,
            rule,
            note,
        ),
        Row("network change, the daemon's part of it", found["inside"], mtu, name, "ms", runs, note=note),
        Row("network change, the first after a while", median(first), mtu, name, "ms", 3, note=rests),
        Row(
            "new address, set to verified",
            found["address"],
            address,
            name,
            "ms",
            runs,
            TIMES_PEER * address,
            rule,
            waits,
        ),
    ]


def _set(node: Node, *words: str) -> float:
    seconds = node.run(["centralino", "network", "set", "eth0", *words, "--yes", "--json"]).seconds
    node.run(["centralino", "config", "confirm"], check=False)
    return seconds


def _ask(node: Node, mtu: int) -> float:
    seconds = float(node.run([INTERPRETER, "-c", ASK, str(mtu)]).output)
    node.run(["centralino", "config", "confirm"])
    return seconds


def _bare(node: Node, shown: str, *settings: str) -> float:
    return node.run(["sh", "-c", BARE, "sh", shown, PROFILE, *settings]).seconds


def _probed(address: str) -> tuple[str, ...]:
    """NetworkManager too asks the wire for so long whether the address is free (RFC 5227)."""
    return "+ipv4.addresses", address, "ipv4.dad-timeout", f"{WIRE_MILLISECONDS}"


def _helper_runs(node: Node) -> bool:
    return node.run(["pgrep", "-f", HELPER], check=False).ok
