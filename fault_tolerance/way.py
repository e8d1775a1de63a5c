"""What the kernel says of the way to the other node, for the pairing. With pyroute2, so only in a helper that
ends: a resident process reads the few messages that it needs by itself (daemon.network.netlink)."""

from __future__ import annotations

from daemon.errors import ConflictError


def packet_bytes(peer: str) -> int:
    """The largest packet that the way to `peer` takes (MTU of the route, else of its interface).

    Two nodes that differ hear each other's heartbeats, and a copy of the database hangs for ever: its packets
    are the first large ones. Raises ConflictError if there is no way.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as kernel:
        try:
            (route, *_) = kernel.route("get", dst=peer)
        except (NetlinkError, ValueError, OSError) as error:
            raise ConflictError(
                f"this node has no way to {peer}", "look at the network of both nodes"
            ) from error
        metrics = route.get_attr("RTA_METRICS")
        of_route = None if metrics is None else metrics.get_attr("RTAX_MTU")
        (link, *_) = kernel.get_links(route.get_attr("RTA_OIF"))
        return int(of_route or link.get_attr("IFLA_MTU"))
