"""The firewall's figures: time to a block, a flood, twenty thousand blocked addresses; beside its peers."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from appliance.lab import Client, Lab, Node
from appliance.lab_host import LabError, wait_for
from tests.bench.rows import Row, median
from tests.support.shielded_box import PASSWORD, USER, open_account, phone, shield

PACKAGES = ("firewalld", "fail2ban", "python3-systemd", "python3-pyinotify")
# The stock filter reads a file; the image logs to the journal alone.
SECURITY_LOG = "/var/log/asterisk/messages"
JAIL = f"""
[asterisk]
enabled = true
backend = auto
logpath = {SECURITY_LOG}
maxretry = 5
findtime = 600
bantime = 600
banaction = nftables-allports
"""
FLOOD = """<?xml version="1.0" encoding="ISO-8859-1" ?>
<scenario name="flood">
  <send><![CDATA[
    OPTIONS sip:[service]@[remote_ip] SIP/2.0
    Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
    From: <sip:flood[call_number]@[remote_ip]>;tag=[call_number]
    To: <sip:[service]@[remote_ip]>
    Call-ID: [call_id]
    CSeq: 1 OPTIONS
    Max-Forwards: 70
    Contact: <sip:flood@[local_ip]:[local_port]>
    Content-Length: 0
  ]]></send>
</scenario>
"""
FLOOD_RATE = 50_000
WATCH_SECONDS = 15
BETWEEN_SECONDS = 0.02
BLOCK_LIMIT_SECONDS = 20.0
ADDRESSES = 20_000
OURS, FAIL2BAN, NOTHING = "ours", "fail2ban, stock asterisk filter", "no firewall"


def prepare(lab: Lab, node: Node) -> None:
    """An account for a phone, a log for fail2ban, and the clients; on a node that runs."""
    for name in ("phone", "attacker"):
        lab.add_client(name)
    open_account(node)
    node.run(["tee", "/etc/fail2ban/jail.d/asterisk.local"], input_text=JAIL)
    node.run(["systemctl", "stop", "fail2ban.service", "firewalld.service"], check=False)


def measure(lab: Lab, node: Node, runs: int = 5) -> list[Row]:
    """All figures of this module, on one prepared node."""
    prepare(lab, node)
    rows = _many_blocked(node, runs)
    ours_seconds = [_seconds_to_block(lab, node, _forgiven(node, lab)) for _ in range(runs)]
    before, under = {OURS: _flood(lab, node, flooded=False)}, {OURS: _flood(lab, node, flooded=True)}
    with _no_firewall(node):
        _restart_asterisk(lab, node)
        with _fail2ban(node):
            peer_seconds = [_seconds_to_block(lab, node, _unbanned(node, lab)) for _ in range(runs)]
            before[FAIL2BAN] = _flood(lab, node, flooded=False)
            under[FAIL2BAN] = _flood(lab, node, flooded=True)
            _unbanned(node, lab)()
        _restart_asterisk(lab, node)
        before[NOTHING] = _flood(lab, node, flooded=False)
        under[NOTHING] = _flood(lab, node, flooded=True)
        _restart_asterisk(lab, node)
    rows.append(
        Row(
            "fifth failed authentication to the kernel dropping its source",
            median(ours_seconds),
            median(peer_seconds),
            FAIL2BAN,
            "s",
            runs,
            0.5,
            note="five REGISTERs with a wrong password; from the last 401 to the first unanswered request",
        )
    )
    for peer in (NOTHING, FAIL2BAN):
        sent = f"{under[OURS].sent_per_second:.0f} and {under[peer].sent_per_second:.0f} requests a second"
        rows.append(
            Row(
                "phone's OPTIONS unanswered during a SIP flood",
                under[OURS].lost_percent,
                under[peer].lost_percent,
                peer,
                "%",
                1,
                1.0,
                note=f"one SIPp process, as fast as it can on the same host: {sent} (ours, peer)",
            )
        )
        rows.append(
            Row(
                "Asterisk's processor time during a SIP flood, over that without",
                under[OURS].processor / before[OURS].processor,
                under[peer].processor / before[peer].processor,
                peer,
                "x",
                1,
                1.3,
                note=(
                    f"a phone asks every {BETWEEN_SECONDS * 1000:g} ms in both, {WATCH_SECONDS} s each; an "
                    "Asterisk that was silenced and restarted in the flood counts from its restart only"
                ),
            )
        )
    return rows


class _Load:
    """What was seen while a phone asked: Asterisk's processor share, what was lost, the flood's rate."""

    def __init__(self, processor: float, statuses: list[int], sent_per_second: float) -> None:
        self.processor = processor
        self.lost_percent = 100 * statuses.count(0) / len(statuses)
        self.sent_per_second = sent_per_second


def _flood(lab: Lab, node: Node, *, flooded: bool) -> _Load:
    caller, attacker = lab.clients["phone"], lab.clients["attacker"]
    flood = None
    if flooded:
        with tempfile.NamedTemporaryFile("w", suffix=".xml", delete=False) as file:
            file.write(FLOOD)
        words = ["sipp", node.address(), "-sf", file.name, "-r", str(FLOOD_RATE), "-nostdin", "-nr"]
        flood = attacker.start([*words, "-l", "1000000", "-i", attacker.address()], "sipp.log")
        # The first answers and blocks are part of the flood, the start of the program is not.
        before = _sent(attacker)
        wait_for(lambda: _sent(attacker) > before + 100, 20, "the flood")
    try:
        began, used, sent = time.monotonic(), _processor(node), _sent(attacker)
        words = ["watch", node.address(), USER, PASSWORD, str(WATCH_SECONDS), str(BETWEEN_SECONDS)]
        seen = phone(caller, *words, limit_seconds=WATCH_SECONDS + 30)
        seconds = time.monotonic() - began
        now = _processor(node)
        # Supervision restarts an Asterisk that a flood silenced: then only the new one's time is known.
        load = (now[1] - used[1] if now[0] == used[0] else now[1]) / seconds
        rate = (_sent(attacker) - sent) / seconds
    finally:
        if flood is not None:
            flood.kill()
            flood.wait()
            Path(file.name).unlink()
    return _Load(load, _statuses(seen), rate)


def _restart_asterisk(lab: Lab, node: Node) -> None:
    """Every configuration begins with an Asterisk that answers."""
    node.run(["systemctl", "restart", "asterisk.service"], limit_seconds=90)

    def answers() -> bool:
        return _statuses(phone(lab.clients["phone"], "options", node.address(), "1", "0")) != [0]

    wait_for(answers, 60, "an Asterisk that answers")


def _seconds_to_block(lab: Lab, node: Node, forgive: Callable[[], None]) -> float | None:
    words = ["guess", node.address(), USER, "5", str(BLOCK_LIMIT_SECONDS)]
    found = phone(lab.clients["attacker"], *words, limit_seconds=BLOCK_LIMIT_SECONDS + 30)
    forgive()
    if found["statuses"] != [401] * 5:
        raise LabError(f"the attacker was to hear five times 401, not {found['statuses']}")
    seconds = float(str(found["last"]))
    return None if seconds < 0 else seconds


def _forgiven(node: Node, lab: Lab) -> Callable[[], None]:
    address = lab.clients["attacker"].address()
    return lambda: _ignored(node, "centralino", "firewall", "unblock", address, "--yes")


def _unbanned(node: Node, lab: Lab) -> Callable[[], None]:
    address = lab.clients["attacker"].address()
    return lambda: _ignored(node, "fail2ban-client", "set", "asterisk", "unbanip", address)


def _ignored(node: Node, *words: str) -> None:
    node.run(list(words), check=False, limit_seconds=60)


@contextmanager
def _no_firewall(node: Node) -> Iterator[None]:
    settings = ("firewall.enabled={}", "firewall.shield.enabled={}")

    def switch(word: str) -> None:
        words = [setting.format(word) for setting in settings]
        node.run(
            ["centralino", "config", "set", *words, "--yes", "--confirm-seconds", "3600"], limit_seconds=60
        )
        node.run(["centralino", "config", "confirm"])

    switch("false")
    try:
        yield
    finally:
        switch("true")


@contextmanager
def _fail2ban(node: Node) -> Iterator[None]:
    logger = node.run(["cat", "/etc/asterisk/logger.conf"]).output
    node.run(["tee", "/etc/asterisk/logger.conf"], input_text=f"{logger}\nmessages => notice,security\n")
    node.run(["asterisk", "-rx", "logger reload"])
    node.run(["touch", SECURITY_LOG])
    node.run(["systemctl", "restart", "fail2ban.service"], limit_seconds=60)
    ready = ["fail2ban-client", "status", "asterisk"]
    wait_for(lambda: node.run(ready, check=False).ok, 30, "fail2ban's jail")
    try:
        yield
    finally:
        node.run(["systemctl", "stop", "fail2ban.service"])
        node.run(["tee", "/etc/asterisk/logger.conf"], input_text=logger)
        node.run(["asterisk", "-rx", "logger reload"])


# Ours and nft alone in turns, in one process: plan and load of the policy against the same script as it is.
COMPARISON = """
import json, subprocess, sys, time
from pathlib import Path
from daemon.alarms import Alarms
from daemon.places import Places
from daemon.settings import Settings
from firewall.build import build
from firewall.render import render
from firewall.subsystem import Firewall

listed = Path("/root/blocked").read_text().split()
settings = Settings.model_validate_json(json.dumps({"firewall": {"blocklist": listed}}))
script = render(build(settings))
subsystem = Firewall(Places(), lambda: settings, Alarms(Path("/tmp/alarms.json")))
remove = ["nft", "-f", "-"]
gone = "add table inet centralino\\ndelete table inet centralino\\n"
times = {"load": [], "bare load": [], "reload": [], "bare reload": []}
for _ in range(int(sys.argv[1])):
    for kind in ("load", "reload"):
        if kind == "load":
            subprocess.run(remove, input=gone, text=True, check=True)
        began = time.monotonic()
        subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
        times[f"bare {kind}"].append(time.monotonic() - began)
        if kind == "load":
            subprocess.run(remove, input=gone, text=True, check=True)
        began = time.monotonic()
        for change in subsystem.plan(None, settings):
            subsystem.apply(change)
        times[kind].append(time.monotonic() - began)
print(json.dumps(times))
"""
ON_BOX_PYTHON = "/opt/centralino/venv/bin/python"


def _many_blocked(node: Node, runs: int) -> list[Row]:
    listed = "".join(f"{IPv4Address(0xC6000000 + 7 * number)}\n" for number in range(ADDRESSES))
    node.run(["tee", "/root/blocked"], input_text=listed)
    before = _resident(node, "centralinod.service")
    words = ["centralino", "firewall", "blocklist", "/root/blocked", "--yes", "--json"]
    through_all = node.run(words, limit_seconds=120).seconds
    wait_for(lambda: shield(node)["listening"] is True, 30, "the daemon's answer")
    growth = _resident(node, "centralinod.service") - before
    again = [
        node.run(["centralino", "firewall", "reload", "--yes"], limit_seconds=60).seconds for _ in range(runs)
    ]
    peer_load, peer_reload, peer_growth = _firewalld(node, runs)
    node.run(["systemctl", "stop", "centralinod.service"])
    done = node.run([ON_BOX_PYTHON, "-c", COMPARISON, str(runs)], limit_seconds=300)
    times = {kind: median(seconds) or 0.0 for kind, seconds in json.loads(done.output).items()}
    node.run(["systemctl", "start", "centralinod.service"], limit_seconds=60)
    wait_for(lambda: shield(node)["listening"] is True, 60, "the shield's connection to Asterisk")
    node.run(["tee", "/root/none"], input_text="")
    node.run(["centralino", "firewall", "blocklist", "/root/none", "--yes"], limit_seconds=120)
    what = f"{ADDRESSES} blocked addresses"
    rows = [
        Row(
            f"{what}: {kind} of the policy",
            times[kind],
            times[f"bare {kind}"],
            "`nft -f` alone",
            "s",
            runs,
            min(2.0, 1.2 * times[f"bare {kind}"]),
            "2 s and 1.2 times nft",
            "ours renders the rules, loads them with the open sessions and keeps the file for the next boot",
        )
        for kind in ("load", "reload")
    ]
    note = (
        "from the command that reads a file to settings stored and policy in force: checks, plan, history, "
        "command line and bus included; firewalld: the entries into an ipset, and its reload"
    )
    return [
        *rows,
        Row(f"{what}: new list by command", through_all, peer_load, "firewalld", "s", 1, note=note),
        Row(f"{what}: reload by command", median(again), median(peer_reload), "firewalld", "s", runs, 2.0),
        Row(f"{what}: growth of the daemon", growth, peer_growth, "firewalld", "MB", 1, 10.0),
    ]


def _firewalld(node: Node, runs: int) -> tuple[float, list[float], float]:
    node.run(["systemctl", "start", "firewalld.service"], limit_seconds=60)
    before = _resident(node, "firewalld.service")
    try:
        words = [
            "firewall-cmd",
            "--permanent",
            "--new-ipset=blocked",
            "--type=hash:ip",
            "--option=maxelem=65536",
        ]
        node.run(words, limit_seconds=60)
        entries = ["firewall-cmd", "--permanent", "--ipset=blocked", "--add-entries-from-file=/root/blocked"]
        load = node.run(entries, limit_seconds=300).seconds
        node.run(
            ["firewall-cmd", "--permanent", "--zone=drop", "--add-source=ipset:blocked"], limit_seconds=60
        )
        reload = [node.run(["firewall-cmd", "--reload"], limit_seconds=300).seconds for _ in range(runs)]
        growth = _resident(node, "firewalld.service") - before
    finally:
        node.run(["systemctl", "stop", "firewalld.service"], limit_seconds=60)
    return load + reload[0], reload, growth


def _statuses(seen: dict[str, object]) -> list[int]:
    found = seen["statuses"]
    assert isinstance(found, list)  # sip_phone.py's own answer
    return [int(status) for status in found]


def _process(node: Node, unit: str) -> str:
    return node.run(["systemctl", "show", "-p", "MainPID", "--value", unit]).output.strip()


def _resident(node: Node, unit: str) -> float:
    """Resident memory in MB."""
    status = node.run(["cat", f"/proc/{_process(node, unit)}/status"]).output
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) / 1024


def _processor(node: Node) -> tuple[str, float]:
    """Asterisk's process and the processor seconds that it has used (proc(5), utime and stime in 1/100 s)."""
    process = _process(node, "asterisk.service")
    fields = node.run(["cat", f"/proc/{process}/stat"]).output.rpartition(")")[2].split()
    return process, (int(fields[11]) + int(fields[12])) / 100


def _sent(client: Client) -> int:
    """Datagrams that a client has sent (RFC 4113, udpOutDatagrams)."""
    lines = client.run(["cat", "/proc/net/snmp"]).output.splitlines()
    names, values = [line.split() for line in lines if line.startswith("Udp:")]
    return int(values[names.index("OutDatagrams")])
