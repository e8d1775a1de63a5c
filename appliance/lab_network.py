"""The lab's wires: a switch namespace with one bridge per segment, a gateway namespace, and cuts.

The bridges live in a namespace of their own, so nothing of the host (its firewall, its addresses, another
lab) is touched and two labs may use the same addresses. Cuts are elements of an nftables set in that
namespace: pairs (port in, port out) whose frames are dropped, so a cut may be one way only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from appliance.lab_host import ControlGroup, LabError, execute, start

NAMESPACES = Path("/run/netns")
GATEWAY = "gateway"

RULES = """
table bridge lab {
    set cut { type ifname . ifname; }
    set mute { type ifname; }
    map weak { type ifname : verdict; }
    chain loss10 { numgen random mod 100 < 10 drop; }
    chain loss30 { numgen random mod 100 < 30 drop; }
    chain loss60 { numgen random mod 100 < 60 drop; }
    chain forward {
        type filter hook forward priority 0; policy accept;
        iifname @mute drop
        oifname @mute drop
        iifname . oifname @cut drop
        iifname vmap @weak
    }
}
"""


class Loss(Enum):
    """How many frames of a weak cable are lost."""

    LIGHT = "loss10"
    HEAVY = "loss30"
    EXTREME = "loss60"


@dataclass(frozen=True)
class Segment:
    """One wire: its bridge, the interface that nodes have on it, and its addresses.

    Host number 1 is the gateway, 11 the first node, 101 the first client; from 200 on they are free for
    shared addresses.
    """

    name: str
    interface: str
    ipv4: IPv4Network
    ipv6: IPv6Network

    def address(self, number: int) -> IPv4Address:
        """The IPv4 address of a host number."""
        return self.ipv4[number]

    def address6(self, number: int) -> IPv6Address:
        """The IPv6 address of a host number (decimal digits kept: `::11` is number 11)."""
        return IPv6Address(int(self.ipv6.network_address) + int(str(number), 16))

    def hardware(self, number: int) -> str:
        """The hardware address of a host number, in the locally administered range."""
        return f"02:4c:{self.ipv4.network_address.packed[1]:02x}:00:{number >> 8:02x}:{number & 255:02x}"


LAN = Segment("lan", "eth0", IPv4Network("10.77.0.0/24"), IPv6Network("fd77::/64"))
MANAGEMENT = Segment("mgmt", "eth1", IPv4Network("10.78.0.0/24"), IPv6Network("fd78::/64"))
SEGMENTS = (LAN, MANAGEMENT)


def enter(namespace: str, arguments: Sequence[str]) -> list[str]:
    """The argument list that runs `arguments` in a network namespace."""
    return ["nsenter", f"--net={NAMESPACES / namespace}", "--", *arguments]


class Network:
    """All namespaces, bridges, ports and cuts of one lab; every name derives from the lab's name."""

    def __init__(self, lab: str, segments: Sequence[Segment] = SEGMENTS) -> None:
        self.lab = lab
        self.segments = {segment.name: segment for segment in segments}

    def namespace(self, host: str) -> str:
        """The namespace of a node, client, `gateway` or `switch`."""
        return f"{prefix(self.lab)}{host}"

    @property
    def switch(self) -> str:
        """The namespace of the bridges."""
        return self.namespace("switch")

    @staticmethod
    def port(host: str, segment: str) -> str:
        """The name of the switch's end of a host's cable."""
        return f"{host}-{segment}"

    def create(self) -> None:
        """Make the switch, its bridges and the gateway."""
        execute(["ip", "netns", "add", self.switch])
        for segment in self.segments.values():
            self._ip(
                self.switch,
                "link",
                "add",
                segment.name,
                "type",
                "bridge",
                "forward_delay",
                "0",
                "mcast_snooping",
                "0",
            )
            self._ip(self.switch, "link", "set", segment.name, "up")
        execute(enter(self.switch, ["nft", "-f", "-"]), input_text=RULES)
        self.attach(GATEWAY, 1, list(self.segments))
        for segment in self.segments.values():
            self.address(GATEWAY, segment, 1)
        execute(enter(self.namespace(GATEWAY), ["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]))

    def attach(self, host: str, number: int, segments: Sequence[str]) -> None:
        """Make a host's namespace and a cable to each segment; interfaces stay down and without address."""
        namespace = self.namespace(host)
        execute(["ip", "netns", "add", namespace])
        self._ip(namespace, "link", "set", "lo", "up")
        for name in segments:
            segment = self.segments[name]
            port = self.port(host, name)
            if len(port) > 15:
                raise LabError(f"the host name {host} is too long: {port} has more than 15 characters")
            self._ip(
                self.switch,
                *("link", "add", port, "type", "veth", "peer", "name", segment.interface),
                *("address", segment.hardware(number), "netns", namespace),
            )
            self._ip(self.switch, "link", "set", port, "master", name, "up")

    def address(self, host: str, segment: Segment, number: int, *, route: bool = False) -> None:
        """Give a host its addresses on a segment in the kernel, bring it up, and route by the gateway."""
        namespace = self.namespace(host)
        interface = ("dev", segment.interface)
        self._ip(namespace, "link", "set", segment.interface, "up")
        length, length6 = segment.ipv4.prefixlen, segment.ipv6.prefixlen
        self._ip(namespace, "addr", "add", f"{segment.address(number)}/{length}", *interface)
        self._ip(namespace, "addr", "add", f"{segment.address6(number)}/{length6}", *interface, "nodad")
        if route:
            self._ip(namespace, "route", "add", "default", "via", str(segment.address(1)))
            self._ip(namespace, "-6", "route", "add", "default", "via", str(segment.address6(1)))

    def detach(self, host: str) -> None:
        """Remove a host's namespace and with it its cables, addresses, routes and firewall rules."""
        if (NAMESPACES / self.namespace(host)).exists():
            # The namespace dies late if a dying process still holds it; its ports must be free at once.
            for name in self.segments:
                self._ip(self.switch, "link", "del", self.port(host, name), check=False)
            execute(["ip", "netns", "del", self.namespace(host)])

    def cable(self, host: str, segments: Sequence[str], *, up: bool) -> None:
        """Plug or pull the cables of a host: it sees the carrier come or go. All at one stroke."""
        state = "up" if up else "down"
        batch = "".join(f"link set {self.port(host, name)} {state}\n" for name in segments)
        execute(["ip", "-n", self.switch, "-batch", "-"], input_text=batch)

    def cut(self, pairs: Sequence[tuple[str, str]], segments: Sequence[str]) -> None:
        """Drop every frame from the first host of each pair to the second; the carrier stays."""
        self._elements(
            "add", "cut", [f'"{self.port(a, s)}" . "{self.port(b, s)}"' for a, b in pairs for s in segments]
        )

    def mute(self, host: str, segments: Sequence[str], *, muted: bool) -> None:
        """Drop every frame from and to a host, or let them pass again; the carrier stays."""
        ports = [f'"{self.port(host, name)}"' for name in segments]
        if muted or set(ports) <= set(self._list("mute")):
            self._elements("add" if muted else "delete", "mute", ports)

    def weaken(self, host: str, segments: Sequence[str], loss: Loss) -> None:
        """Lose a share of the frames that a host sends."""
        self._elements("add", "weak", [f'"{self.port(host, name)}" : jump {loss.value}' for name in segments])

    def heal(self) -> None:
        """Undo every cut and every loss (not `mute`, which belongs to frozen nodes)."""
        commands = "flush set bridge lab cut\nflush map bridge lab weak\n"
        execute(enter(self.switch, ["nft", "-f", "-"]), input_text=commands)

    def serve_names(self, hosts: dict[str, int], directory: Path, *, dhcp: bool) -> None:
        """Run the gateway's DNS server, which knows the lab's hosts and nothing else, and with `dhcp` DHCP.

        A second call replaces the first. Each host has a reserved address, so both ways give it the same.
        """
        lan = self.segments["lan"]
        group = ControlGroup(f"{self.lab}/{GATEWAY}")
        group.kill()
        names = [f"--host-record={host},{lan.address(n)},{lan.address6(n)}" for host, n in hosts.items()]
        leases = [
            f"--dhcp-range={lan.address(150)},{lan.address(180)},{lan.ipv4.netmask},1h",
            f"--dhcp-option=option:router,{lan.address(1)}",
            *(f"--dhcp-host={lan.hardware(n)},{lan.address(n)},{host}" for host, n in hosts.items()),
        ]
        start(
            enter(
                self.namespace(GATEWAY),
                [
                    *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--bind-interfaces"),
                    *(
                        "--no-resolv",
                        "--no-hosts",
                        "--local=/#/",
                        "--user=root",
                        "--leasefile-ro",
                        "--log-dhcp",
                        "--log-facility=-",
                    ),
                    *(f"--interface={lan.interface}", "--pid-file=", *names, *(leases if dhcp else [])),
                ],
            ),
            directory / "dnsmasq.log",
            groups=group.make(),
        )

    def _elements(self, verb: str, target: str, elements: Sequence[str]) -> None:
        command = f"{verb} element bridge lab {target} {{ {', '.join(elements)} }}\n"
        execute(enter(self.switch, ["nft", "-f", "-"]), input_text=command)

    def _list(self, target: str) -> list[str]:
        text = execute(enter(self.switch, ["nft", "list", "set", "bridge", "lab", target])).output
        _, _, tail = text.partition("elements = {")
        return [word.strip() for word in tail.partition("}")[0].split(",")]

    def _ip(self, namespace: str, *arguments: str, check: bool = True) -> None:
        execute(["ip", "-n", namespace, *arguments], check=check)


def prefix(lab: str) -> str:
    """What the names of all namespaces of a lab begin with."""
    return f"cl-{lab}-"


def remove_namespaces(lab: str) -> list[str]:
    """Delete every namespace of a lab, also of one that crashed half-way; returns their names."""
    found = sorted(each.name for each in NAMESPACES.glob(f"{prefix(lab)}*")) if NAMESPACES.is_dir() else []
    for name in found:
        execute(["ip", "netns", "del", name])
    return found
