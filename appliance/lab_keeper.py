"""Keeps one node running: `python -m appliance.lab_keeper LAB_DIRECTORY NODE`.

Started by `Node.power_on`, in a control group beside the node's own. A node that reboots itself (a watchdog,
an update, an admin) is booted again with new cables and the same disk; one that powers off stays off.
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.lab import Lab
from appliance.lab_node import repeat_boots


def main(directory: str, name: str) -> int:
    """Run the node until it powers itself off; the status of its last boot."""
    node = Lab.open(Path(directory)).node(name)
    return repeat_boots(node, node.boot_once)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
