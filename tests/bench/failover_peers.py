"""Who else can move an address between the same two nodes: keepalived alone, and Pacemaker with corosync.

Our own runtime rests meanwhile and the firewall is off. Both are measured like the pair: from the power-off
of the node that holds the address to the first echo.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from appliance.lab import Node
from appliance.lab_host import wait_for
from appliance.lab_pair import SHARED, PairOfNodes
from appliance.lab_watch import EchoProber, serve_echo

LIMIT_SECONDS = 60.0
STEADY_SECONDS = 3.0
OURS = ("centralinod", "centralino-peer", "centralino-vrrp")
PACEMAKER_PACKAGES = ("pacemaker", "corosync", "resource-agents", "pacemaker-cli-utils")
PACEMAKER_UNITS = ("corosync", "pacemaker")
BARE = """\
global_defs {{
    vrrp_version 3
    vrrp_rt_priority 50
}}
vrrp_instance bare {{
    state BACKUP
    nopreempt
    interface eth0
    virtual_router_id 77
    priority {priority}
    advert_int {adverts}
    unicast_src_ip {own}
    unicast_peer {{
        {peer}
    }}
    virtual_ipaddress {{
        {shared}/32 dev eth0 noprefixroute
    }}
}}
"""
# What corosync.conf(5) and votequorum(5) need for two nodes, and nothing else: every time limit is stock.
COROSYNC = """\
totem {{
    version: 2
    cluster_name: peer
}}
nodelist {{
    node {{
        ring0_addr: {first}
        name: {first_name}
        nodeid: 1
    }}
    node {{
        ring0_addr: {second}
        name: {second_name}
        nodeid: 2
    }}
}}
quorum {{
    provider: corosync_votequorum
    two_node: 1
}}
logging {{
    to_syslog: yes
}}
"""
ADDRESS = """\
<primitive id="address" class="ocf" provider="heartbeat" type="IPaddr2">
  <instance_attributes id="address-attributes">
    <nvpair id="address-ip" name="ip" value="{shared}"/>
    <nvpair id="address-mask" name="cidr_netmask" value="24"/>
    <nvpair id="address-nic" name="nic" value="eth0"/>
  </instance_attributes>
  <operations>
    <op id="address-monitor" name="monitor" interval="10s"/>
  </operations>
</primitive>
"""


def seconds_to_echo(pair: PairOfNodes, holder: Node) -> float:
    """Power the holder off; seconds to the first echo of the other one."""
    with EchoProber(pair.probe, SHARED) as prober:
        prober.wait_answers(50)
        return prober.first_after(holder.power_off(), LIMIT_SECONDS)


def measure_bare(pair: PairOfNodes, adverts: float, runs: int) -> list[float]:
    """keepalived alone, with the given seconds between adverts."""
    return _measure(pair, runs, lambda node: _start_bare(pair, node, adverts))


def measure_pacemaker(pair: PairOfNodes, runs: int) -> list[float]:
    """Pacemaker and corosync, stock settings but for fencing, of which there is no device here."""
    for node in pair.nodes:
        _start_pacemaker(pair, node)
    wait_for(lambda: _online(pair.first) == 2, LIMIT_SECONDS, "two nodes in Pacemaker's cluster")
    for name in ("stonith-enabled=false", "no-quorum-policy=ignore"):
        key, _, value = name.partition("=")
        pair.first.run(["crm_attribute", "--type=crm_config", f"--name={key}", f"--update={value}"])
    resource = ADDRESS.format(shared=SHARED)
    pair.first.run(["cibadmin", "--create", "--scope=resources", "--xml-pipe"], input_text=resource)
    return _measure(pair, runs, lambda node: _start_pacemaker(pair, node))


def _measure(pair: PairOfNodes, runs: int, start: Callable[[Node], None]) -> list[float]:
    found = []
    for _ in range(runs):
        for node in pair.nodes:
            _rest(node)
            start(node)
            serve_echo(node, SHARED)
        # Both must know each other: a failure before that is another story.
        wait_for(lambda: _settled(pair), LIMIT_SECONDS, "both nodes in the peer's cluster")
        holder = _steady_holder(pair)
        found.append(seconds_to_echo(pair, holder))
        holder.power_on(120)
    for node in pair.nodes:
        node.run(["systemctl", "stop", "bare-keepalived", *reversed(PACEMAKER_UNITS)], check=False)
        node.run(["ip", "address", "flush", "to", SHARED], check=False)
        node.run(["systemctl", "start", *reversed(OURS)], check=False)
    return found


def _rest(node: Node) -> None:
    node.run(["systemctl", "stop", *OURS], check=False, limit_seconds=90)
    node.run(["nft", "flush", "ruleset"])


def _steady_holder(pair: PairOfNodes) -> Node:
    """The one node that has held the address alone for as long as any takeover could be under way."""
    since, before = time.monotonic(), pair.holders()

    def steady() -> bool:
        nonlocal since, before
        now = pair.holders()
        if len(now) != 1 or now != before:
            since, before = time.monotonic(), now
        return time.monotonic() - since > STEADY_SECONDS

    wait_for(steady, LIMIT_SECONDS, "one steady holder of the address")
    return before[0]


def _settled(pair: PairOfNodes) -> bool:
    running = pair.first.run(["systemctl", "is-active", "pacemaker"], check=False).output.strip() == "active"
    return not running or all(_online(node) == 2 for node in pair.nodes)


def _start_bare(pair: PairOfNodes, node: Node, adverts: float) -> None:
    text = BARE.format(
        priority=100 if node is pair.first else 99,
        adverts=adverts,
        own=node.address(),
        peer=pair.other(node).address(),
        shared=SHARED,
    )
    node.run(["tee", "/run/bare.conf"], input_text=text)
    node.run(["systemctl", "stop", "bare-keepalived"], check=False)
    command = ["keepalived", "--dont-fork", "--vrrp", "--log-console", "--no-syslog"]
    files = ["--use-file=/run/bare.conf", "--pid=/run/bare.pid", "--vrrp_pid=/run/bare-vrrp.pid"]
    node.run(["systemd-run", "--unit=bare-keepalived", *command, *files])


def _start_pacemaker(pair: PairOfNodes, node: Node) -> None:
    _rest(node)
    text = COROSYNC.format(
        first=pair.first.address(),
        first_name=pair.first.name,
        second=pair.second.address(),
        second_name=pair.second.name,
    )
    node.run(["tee", "/etc/corosync/corosync.conf"], input_text=text)
    node.run(["systemctl", "start", *PACEMAKER_UNITS], limit_seconds=90)


def _online(node: Node) -> int:
    """How many nodes Pacemaker calls online, seen from one of them."""
    shown = node.run(["crm_mon", "--one-shot", "--output-as=xml"], check=False).output
    return shown.count('online="true"')
