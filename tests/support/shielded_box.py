"""What tests and figures of the SIP shield share: a phone with its account, and what the box says of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from appliance.lab import Client, Node
from appliance.lab_host import wait_for

PHONE = Path(__file__).with_name("sip_phone.py")
USER, PASSWORD = "phone1", "right-4711"
ACCOUNT = f"""
[{USER}]
type = endpoint
context = centralino-probe
disallow = all
allow = alaw
auth = {USER}
aors = {USER}
[{USER}]
type = auth
auth_type = userpass
username = {USER}
password = {PASSWORD}
[{USER}]
type = aor
max_contacts = 1
remove_existing = yes
"""


def open_account(node: Node) -> None:
    """Give a booted node the phone's account, and wait until the shield listens."""
    node.wait_active("asterisk.service", 90)
    configure(node, "phone1", ACCOUNT)
    wait_for(lambda: shield(node)["listening"] is True, 60, "the shield's connection to Asterisk")


def configure(node: Node, name: str, text: str) -> None:
    """Add a file to Asterisk's PJSIP configuration and have it read."""
    booted = ["asterisk", "-rx", "core waitfullybooted"]
    wait_for(lambda: node.run(booted, check=False).ok, 60, "Asterisk")
    node.run(["tee", f"/etc/asterisk/pjsip.d/{name}.conf"], input_text=text)
    node.run(["asterisk", "-rx", "module reload res_pjsip.so"])


def shield(node: Node) -> dict[str, object]:
    """What `centralino firewall status` says of the shield; `listening` is false while nobody answers."""
    done = node.run(["centralino", "firewall", "status", "--json"], check=False, limit_seconds=60)
    return dict(json.loads(done.output)["shield"]) if done.ok else {"listening": False}


def phone(client: Client, *words: str, limit_seconds: float = 60) -> dict[str, object]:
    """Run sip_phone.py at a client: keys `statuses` and `last`."""
    done = client.run([sys.executable, str(PHONE), *words], limit_seconds=limit_seconds)
    return dict(json.loads(done.output))
