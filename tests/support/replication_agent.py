"""The replications of one node without the role runtime: started on a node by the lab tests of replication.

python replication_agent.py run OWN PEER [TREES]      the parts, told what to do through a socket
python replication_agent.py call METHOD [JSON ...]    one call; prints the answer as JSON
python replication_agent.py serve                     forced command of the peer's key
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

CALLS = "/run/replication-agent"
BEATS = "/run/replication-beats"
KEY = "/root/.ssh/peer"
STATE = Path("/var/lib/centralino/fault-tolerance")
BEAT_SECONDS = 0.2


class Channel:
    """`contracts.PeerChannel` over a plain key."""

    def __init__(self, peer: str) -> None:
        options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "BatchMode=yes",
            "LogLevel=ERROR",
        ]
        options += ["ConnectTimeout=2", "ServerAliveInterval=5", "ServerAliveCountMax=3"]
        self._ssh = ["ssh", "-i", KEY, *(word for option in options for word in ("-o", option))]
        self._peer = f"root@{peer}"

    def command(self, channel: str, words: Sequence[str] = ()) -> list[str]:
        return [*self._ssh, self._peer, shlex.join([str(channel), *words])]


class Agent:
    """Both parts of a node and the heartbeats between the two nodes."""

    def __init__(self, own: str, peer: str, trees: str) -> None:
        from fault_tolerance.database import build

        pair = SimpleNamespace(own=ip_address(own), peer=ip_address(peer), kilobytes_per_second=10_000)
        self.channel = Channel(peer)
        self.database = build(pair, self.channel)
        self.files = None
        if trees:
            from fault_tolerance.files import build_with, sender
            from fault_tolerance.files.trees import read

            pair.kilobytes_per_second = int(os.environ.get("CAP", "10000"))
            sender.VERIFY_SECONDS = float(os.environ.get("VERIFY", sender.VERIFY_SECONDS))
            self.files = build_with(pair, self.channel, read(Path(trees)))
        self.job = ""
        threading.Thread(target=self.hear, daemon=True).start()
        threading.Thread(target=self.tell, daemon=True).start()

    def hear(self) -> None:
        Path(BEATS).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as beats:
            beats.bind(BEATS)
            while True:
                for line in beats.recv(1 << 20).splitlines():
                    table = json.loads(line)
                    self.database.heard(table["database"])
                    if self.files is not None:
                        self.files.heard(table["files"])

    def tell(self) -> None:
        while True:
            relay = subprocess.Popen(self.channel.command("beats"), stdin=subprocess.PIPE)
            assert relay.stdin is not None
            try:
                while relay.poll() is None:
                    files = {} if self.files is None else self.files.heartbeat()
                    table = {"database": self.database.heartbeat(), "files": files}
                    relay.stdin.write(json.dumps(table).encode() + b"\n")
                    relay.stdin.flush()
                    time.sleep(BEAT_SECONDS)
            except OSError:
                pass
            relay.kill()
            relay.wait()
            time.sleep(BEAT_SECONDS)

    def answer(self, method: str, words: list[object]) -> object:
        part, _, name = method.partition(".")
        target = {"database": self.database, "files": self.files}[part]
        if name in ("seed_from_peer", "resynchronize"):
            said: list[object] = []
            getattr(target, name)(lambda share, text: said.append([share, text]), *words)
            return said
        found = getattr(target, name)(*words)
        if name == "state":
            return {**asdict(found), "obstacles": sorted(item.name for item in found.obstacles)}
        return found

    def serve(self) -> None:
        Path(CALLS).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as calls:
            calls.bind(CALLS)
            calls.listen()
            while True:
                connection, _ = calls.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rw") as stream:
            method, *words = json.loads(stream.readline())
            try:
                stream.write(json.dumps({"result": self.answer(method, words)}))
            except Exception as error:
                stream.write(json.dumps({"error": f"{type(error).__name__}: {error}"}))


def call(method: str, *words: object) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.connect(CALLS)
        with link.makefile("rw") as stream:
            stream.write(json.dumps([method, *words]) + "\n")
            stream.flush()
            return dict(json.loads(stream.read()))


def serve() -> int:
    channel, *words = shlex.split(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
    if channel == "beats":
        argv = ["socat", "-u", "STDIN", f"UNIX-SENDTO:{BEATS}"]
    else:
        answer = call(f"{channel}.serve_argv", words)
        if "error" in answer:
            sys.stderr.write(f"{answer['error']}\n")
            return 1
        argv = [str(word) for word in answer["result"]]  # type: ignore[union-attr]
    os.execvp(argv[0], argv)  # noqa: S606
    return 1


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    match arguments:
        case ["run", own, peer, *trees]:
            Agent(own, peer, trees[0] if trees else "").serve()
        case ["call", method, *words]:
            print(json.dumps(call(method, *(json.loads(word) for word in words))))
        case ["serve"]:
            return serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
