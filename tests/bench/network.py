"""How long a network change takes, from the command to its proof: ours beside NetworkManager's own tool."""

from __future__ import annotations

from appliance.lab import Node
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


def measure(node: Node, runs: int = 15) -> list[Row]:
    """Median wall time of a change in place, in turns; two rounds warm up.

    Ours checks, plans, writes durably, re-applies, asks the gateway, and leaves the change to be confirmed
    (the confirming is not measured); the peer modifies its profile and re-applies it.
    """
    static = ("--address", ADDRESS, "--gateway", "10.77.0.1", "--ipv6", "off", "--confirm", "0")
    _set(node, *static)
    mtu: list[float] = []
    address: list[float] = []
    bare: list[float] = []
    inside: list[float] = []
    for turn in range(runs + 2):
        times = (
            (mtu, _set(node, "--mtu", str(1400 + turn))),
            (address, _set(node, "--address", ADDRESS, "--address", f"10.77.0.{50 + turn}/24")),
            (inside, _ask(node, 1350 + turn)),
            (bare, _bare(node, 1300 + turn)),
        )
        for seen, seconds in times:
            if turn >= 2:
                seen.append(seconds * 1000)
    peer = median(bare)
    limit = None if peer is None else TIMES_PEER * peer
    name = "`nmcli connection modify` + `nmcli device reapply`"
    rule = f"{TIMES_PEER} x peer"
    note = "with the checks of gateway, SSH sessions and both journals' fsyncs; the peer does none of that"
    waits = "the wire is asked 0.1 s whether the new address is free"
    return [
        Row("network change, set to verified", median(mtu), peer, name, "ms", runs, limit, rule, note),
        Row("network change, the daemon's part of it", median(inside), peer, name, "ms", runs, note=note),
        Row("new address, set to verified", median(address), peer, name, "ms", runs, limit, rule, waits),
    ]


def _set(node: Node, *words: str) -> float:
    seconds = node.run(["centralino", "network", "set", "eth0", *words, "--yes", "--json"]).seconds
    node.run(["centralino", "config", "confirm"], check=False)
    return seconds


def _ask(node: Node, mtu: int) -> float:
    seconds = float(node.run([INTERPRETER, "-c", ASK, str(mtu)]).output)
    node.run(["centralino", "config", "confirm"])
    return seconds


def _bare(node: Node, mtu: int) -> float:
    modify = ["nmcli", "connection", "modify", PROFILE, "802-3-ethernet.mtu", str(mtu)]
    return node.run(modify).seconds + node.run(["nmcli", "device", "reapply", "eth0"]).seconds
