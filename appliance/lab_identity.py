"""What makes a node itself, written into its tree before the first boot: name, machine id, addresses."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from appliance.lab_network import Segment

# The host's clock is not the node's to set, so chrony runs as a pure observer, which its unit forbids.
CLOCK_UNITS = ("chrony.service", "chronyd.service")
OBSERVING_CLOCK = """[Unit]
ConditionCapability=
[Service]
EnvironmentFile=
Environment="DAEMON_OPTS=-x" "OPTIONS=-x"
"""
# A process put into the node from outside that ignores SIGTERM holds up the last step of a shutdown for
# this long; systemd's own 90 s are longer than a test waits. Units keep the limits that they name.
SHORT_END = """[Manager]
DefaultTimeoutStopSec=20s
"""
KEYFILE = """[connection]
id={interface}
uuid={uuid}
type=ethernet
interface-name={interface}

[ipv4]
{ipv4}

[ipv6]
{ipv6}
"""


def write_name(tree: Path, name: str, machine_id: uuid.UUID) -> None:
    """Give the tree a host name and, if its image already has a machine id, another one."""
    (tree / "etc/hostname").write_text(f"{name}\n")
    file = tree / "etc/machine-id"
    if file.is_file() and len(file.read_text().strip()) == 32:
        file.write_text(f"{machine_id.hex}\n")


def shorten_shutdown(tree: Path) -> None:
    """Do not wait a minute and a half for processes that will not end."""
    folder = tree / "etc/systemd/system.conf.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lab.conf").write_text(SHORT_END)


def let_clock_observe(tree: Path) -> None:
    """Let chrony run without the right to set the clock."""
    for unit in CLOCK_UNITS:
        folder = tree / f"etc/systemd/system/{unit}.d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lab.conf").write_text(OBSERVING_CLOCK)


def write_connections(
    tree: Path, number: int, segments: Sequence[Segment], identity: uuid.UUID, *, dhcp: bool
) -> None:
    """Write NetworkManager's profiles: static addresses of host `number`, or DHCP on the lan."""
    folder = tree / "etc/NetworkManager/system-connections"
    folder.mkdir(parents=True, exist_ok=True)
    for segment in segments:
        ipv4 = f"method=manual\naddress1={segment.address(number)}/{segment.ipv4.prefixlen}"
        ipv6 = f"method=manual\naddress1={segment.address6(number)}/{segment.ipv6.prefixlen}"
        if segment.name == "lan":
            ipv4 += f"\ngateway={segment.address(1)}\ndns={segment.address(1)}"
            ipv6 += f"\ngateway={segment.address6(1)}"
            if dhcp:
                ipv4, ipv6 = "method=auto", "method=auto"
        file = folder / f"{segment.interface}.nmconnection"
        own = uuid.uuid5(identity, segment.name)
        file.write_text(KEYFILE.format(interface=segment.interface, uuid=own, ipv4=ipv4, ipv6=ipv6))
        file.chmod(0o600)
