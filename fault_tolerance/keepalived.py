"""keepalived's configuration, for version 2.1.5 and later: a pure function of the pair's settings.

One VRRP instance carries every shared address, the first in its adverts and the others as excluded ones
with their own interfaces. All addresses of both families therefore move together or not at all, which a
sync group of several instances has to negotiate (and within which 2.1.5 allows no tracking weights).

Two files are tracked, so that keepalived never waits for Python:
- `verdict`: 0 lets this node hold the addresses, anything else is a fault and releases them;
- `serving`: 1 while this node is master and holds them, which raises its priority above any slave's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path

INSTANCE = "centralino"
# A backup waits for three adverts and the skew, (256 - priority) / 256 of one (RFC 9568 section 6.1), which
# serves to choose among several. There is one backup here: with 200 it waits less than with the usual 100,
# and with the standard adverts still longer than the peer link's silence.
BASE_PRIORITY = 200
SERVING_WEIGHT = 50
# Far above anything in user space that could starve it, below the kernel's own threads.
REALTIME_PRIORITY = 50
REALTIME_LIMIT_MICROSECONDS = 100_000

Address = IPv4Address | IPv6Address
InterfaceAddress = IPv4Interface | IPv6Interface


class Adverts(Enum):
    """Seconds between adverts; a peer is missed after three of them and the skew (RFC 9568 section 6.1)."""

    STANDARD = 0.3
    FAST = 0.1


@dataclass(frozen=True)
class Held:
    """One shared address and the interface that carries it."""

    address: InterfaceAddress
    interface: str

    def line(self) -> str:
        """Without its subnet route: the node's own address already has one, and NetworkManager owns that."""
        single = f"{self.address.ip}/{self.address.ip.max_prefixlen}"
        no_detection = " -nodad" if isinstance(self.address.ip, IPv6Address) else ""
        return f"{single} dev {self.interface} noprefixroute{no_detection}"


@dataclass(frozen=True)
class Election:
    """Everything that the configuration depends on; `shared` starts with the primary address.

    `second` is true on exactly one of the two nodes, so that their priorities always differ (equal ones let
    a rebooted slave take the addresses).
    """

    own: Address
    peer: Address
    interface: str
    shared: Sequence[Held]
    router: int
    adverts: Adverts
    second: bool
    directory: Path

    @property
    def verdict(self) -> Path:
        """0 or the reason number; see the module's text."""
        return self.directory / "verdict"

    @property
    def serving(self) -> Path:
        """1 while master, else 0."""
        return self.directory / "serving"

    @property
    def fifo(self) -> Path:
        """Where keepalived reports its state changes, in order."""
        return self.directory / "notify"


def render(election: Election) -> str:
    """The text of keepalived.conf; equal inputs give equal bytes."""
    advertised, *others = _of_family_first(election)
    priority = BASE_PRIORITY - (1 if election.second else 0)
    excluded = "".join(f"        {held.line()}\n" for held in others)
    excluded_block = f"    virtual_ipaddress_excluded {{\n{excluded}    }}\n" if others else ""
    interfaces = sorted({held.interface for held in election.shared} - {election.interface})
    tracked = "".join(f"        {name}\n" for name in interfaces)
    tracked_block = f"    track_interface {{\n{tracked}    }}\n" if tracked else ""
    return f"""\
# Written by centralinod from the settings; changes here are lost.
global_defs {{
    router_id {INSTANCE}
    vrrp_version 3
    vrrp_check_unicast_src
    vrrp_notify_fifo {election.fifo}
    vrrp_garp_master_delay 1
    vrrp_garp_master_repeat 5
    vrrp_garp_master_refresh 60
    vrrp_garp_master_refresh_repeat 2
    vrrp_garp_lower_prio_delay 1
    vrrp_garp_lower_prio_repeat 5
    vrrp_higher_prio_send_advert true
    vrrp_rt_priority {REALTIME_PRIORITY}
    vrrp_rlimit_rttime {REALTIME_LIMIT_MICROSECONDS}
    vrrp_no_swap
}}

vrrp_track_file verdict {{
    file "{election.verdict}"
    weight 0
    init_file 1
}}

vrrp_track_file serving {{
    file "{election.serving}"
    weight {SERVING_WEIGHT}
    init_file 0
}}

vrrp_instance {INSTANCE} {{
    state BACKUP
    nopreempt
    interface {election.interface}
    virtual_router_id {election.router}
    priority {priority}
    advert_int {election.adverts.value:g}
    unicast_src_ip {election.own}
    unicast_peer {{
        {election.peer}
    }}
    track_file {{
        verdict
        serving
    }}
{tracked_block}    virtual_ipaddress {{
        {advertised.line()}
    }}
{excluded_block}}}
"""


def _of_family_first(election: Election) -> list[Held]:
    """The advertised address must be of the adverts' own family; the primary one if it is."""
    version = election.own.version
    first = next((held for held in election.shared if held.address.version == version), None)
    if first is None:
        raise ValueError(f"no shared address is of the peer link's family (IPv{version})")
    return [first, *(held for held in election.shared if held is not first)]
