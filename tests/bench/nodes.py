"""Nodes for figures: the built root, with the peers' packages added to this node's disk alone."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.lab import Node
from appliance.lab_host import execute

# Without it fail2ban does not start on a box that logs to the journal alone.
JAIL = "[DEFAULT]\nbackend = systemd\n"
PEER_PACKAGES = ("firewalld", "fail2ban", "python3-systemd")
PEER_UNITS = ("firewalld.service", "fail2ban.service")


def install(node: Node, packages: Sequence[str], *, disabled: Sequence[str] = ()) -> None:
    """Install packages into a node that is off, from the mirrors that this host uses.

    The host's apt configuration is shown to the node read-only while apt runs, and is not in it afterwards.
    `disabled` units do not start at boot, whatever their packages say.
    """
    node.prepare()
    node.disk.mount()
    inside = [
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={node.disk.tree}"),
        *("--bind-ro=/etc/apt", "--bind-ro=/etc/resolv.conf", "--console=pipe"),
        *("--setenv=DEBIAN_FRONTEND=noninteractive", "--"),
    ]
    try:
        execute([*inside, "apt-get", "update", "-q"], limit_seconds=300)
        wanted = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
        execute([*inside, *wanted], limit_seconds=900)
        if disabled:
            execute([*inside, "systemctl", "disable", *disabled])
    finally:
        node.disk.unmount()


def install_peers(node: Node, packages: Sequence[str] = PEER_PACKAGES) -> None:
    """Install the peers of the daemon, so that they run beside it; the node is off."""
    install(node, packages)
    node.disk.mount()
    try:
        (node.disk.tree / "etc/fail2ban/jail.d/backend.local").write_text(JAIL)
        # firewalld's unit would stop our nftables.service; here both shall run, so it gets no conflicts.
        unit = (node.disk.tree / "usr/lib/systemd/system/firewalld.service").read_text().splitlines()
        peaceful = [line for line in unit if not line.startswith("Conflicts=")]
        (node.disk.tree / "etc/systemd/system/firewalld.service").write_text("\n".join(peaceful) + "\n")
    finally:
        node.disk.unmount()


def start_peers(node: Node) -> None:
    """Start the peers, whatever the image's presets say about units that it does not know."""
    for unit in PEER_UNITS:
        node.run(["systemctl", "start", unit], limit_seconds=60)
        node.wait_active(unit)
