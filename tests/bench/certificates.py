"""A certificate replaced under live calls, proven on every service; beside the reloads of a deploy hook."""

from __future__ import annotations

import tempfile
from pathlib import Path

from appliance.lab import Lab, Node
from appliance.run import require
from tests.bench.rows import Row, median
from tests.support.certificate_authority import PrivateAuthority
from tests.support.certificate_calls import calls, live_channels

LIMIT_SECONDS = 3.0
EACH = 3
NAME = "pbx.example.com"
SECONDS_FOR_A_RUN = 6
# What the manuals of ACME clients propose: copy the files and reload, without looking whether it helped.
HOOK = """
install -m 644 $1 /etc/centralino/tls/box.crt
install -m 600 $2 /etc/centralino/tls/box.key
install -m 644 $1 /etc/asterisk/keys/box.crt
install -m 600 -o asterisk -g asterisk $2 /etc/asterisk/keys/box.key
systemctl reload nginx.service
"""
RELOADS = "asterisk -rx 'module reload res_pjsip.so'\n"
RESTARTS = "systemctl restart asterisk.service\n"


def measure(lab: Lab, node: Node, runs: int = 5) -> list[Row]:
    """Uploads in turns with hooks that reload; at the end one hook that restarts Asterisk, as many do."""
    require({"sipp": "sip-tester"})
    phone = lab.add_client("phone")
    authority = PrivateAuthority()
    node.run(["tee", "/usr/local/share/ca-certificates/bench.crt"], input_text=authority.root)
    node.run(["update-ca-certificates"])
    node.run(["tee", "/root/reloads.sh"], input_text=HOOK + RELOADS)
    node.run(["tee", "/root/restarts.sh"], input_text=HOOK + RESTARTS)
    ours: list[float | None] = []
    hook: list[float | None] = []
    with tempfile.TemporaryDirectory() as folder:
        held = SECONDS_FOR_A_RUN * (runs + 2) * 2
        with calls(node, phone, Path(folder), each=EACH, seconds=held, keep=False) as standing:
            for _ in range(runs):
                files = _fresh(node, authority)
                hook.append(node.run(["sh", "/root/reloads.sh", *files]).seconds)
                files = _fresh(node, authority)
                ours.append(node.run(["centralino", "certificate", "upload", "--yes", *files]).seconds)
            dropped = 2 * EACH - live_channels(node)
            node.run(["sh", "/root/restarts.sh", *_fresh(node, authority)])
            node.wait_active("asterisk.service")
            dropped_by_restart = 2 * EACH - live_channels(node)
            for call in standing:
                call.process.kill()
    # The hooks went behind the daemon's back; it puts its own certificate in force again.
    node.run(["centralino", "certificate", "upload", "--yes", *_fresh(node, authority)])
    note = f"{2 * EACH} calls stand, half of them over TLS; only ours has shaken hands with every service"
    return [
        Row(
            "certificate upload to proven on every service",
            median(ours),
            median(hook),
            "files copied and reloads ordered, unproven",
            "s",
            runs,
            LIMIT_SECONDS,
            note=note,
        ),
        Row(
            f"calls dropped of {2 * EACH} while certificates are replaced",
            float(dropped),
            float(dropped_by_restart),
            "a hook that restarts Asterisk",
            "calls",
            runs,
            0.0,
        ),
    ]


def _fresh(node: Node, authority: PrivateAuthority) -> tuple[str, str]:
    chain, key = authority.issue([NAME])
    node.run(["tee", "/root/bench.crt"], input_text=chain)
    node.run(["sh", "-c", "umask 077; cat > /root/bench.key"], input_text=key)
    return "/root/bench.crt", "/root/bench.key"
