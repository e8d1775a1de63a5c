"""A clock of its own for one program of a node: all nodes of a lab share the wall clock of one kernel.

`time.time` of that program is another one; everything else is real.
"""

from __future__ import annotations

from appliance.lab import Node

PYTHON = "/opt/centralino/venv/bin/python"


def shift_clock(node: Node, program: str, seconds: float) -> None:
    """The clock of `centralino-peer PROGRAM` on this node, at once if it began with a shifted one and else
    from its next start on; 0 puts it right."""
    where = node.run([PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).output.strip()
    shift = f"/var/lib/clock-of-the-test-{program}"
    # Such a line may be run twice, where two names lead to the directory.
    line = (
        f"import sys, time, pathlib; sys.orig_argv[-1] == {program!r} and not hasattr(sys, 'shifted') and "
        f"[setattr(sys, 'shifted', True), setattr(time, 'time', lambda real=time.time, "
        f"shift=pathlib.Path({shift!r}): real() + float(shift.read_text()))]\n"
    )
    made = node.path(f"{shift}.new")
    made.write_text(str(seconds))
    made.replace(node.path(shift))
    node.path(f"{where}/zz-clock-of-the-test-{program}.pth").write_text(line)
