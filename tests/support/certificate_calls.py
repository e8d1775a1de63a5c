"""Live calls for certificate tests: SIPp over UDP, and over TLS by a tunnel (Debian's SIPp has no TLS)."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.lab import Client, Node
from appliance.lab_host import wait_for
from appliance.lab_sip import SCENARIOS, Phone, add_phone, socket_in

TUNNEL_PORT = 15061
ECHO_NUMBER = "600"


class TlsTunnel:
    """Takes TCP connections in a client's namespace and passes each on over TLS to a node's port."""

    def __init__(self, client: Client, target: tuple[str, int]) -> None:
        self._client = client
        self._target = target
        self._context = ssl.create_default_context()
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self.lost = 0
        """Connections that the far end closed."""
        self._end = threading.Event()
        self._listener = socket_in(client.namespace, socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((client.address(), TUNNEL_PORT))
        self._listener.listen()
        self._listener.settimeout(0.2)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections and end those that stand."""
        self._end.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(OSError):
                near, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        plain = socket_in(self._client.namespace, socket.AF_INET, socket.SOCK_STREAM)
        plain.settimeout(5)
        plain.connect(self._target)
        with near, self._context.wrap_socket(plain) as far, selectors.DefaultSelector() as selector:
            selector.register(near, selectors.EVENT_READ)
            selector.register(far, selectors.EVENT_READ)
            while not self._end.is_set():
                for key, _ in selector.select(0.2):
                    while True:
                        source = key.fileobj
                        assert isinstance(source, socket.socket)
                        data = source.recv(65536)
                        if not data:
                            self.lost += source is far
                            return
                        (near if source is far else far).sendall(data)
                        if not (source is far and far.pending()):
                            break


@dataclass
class LiveCalls:
    """Calls that stand: `over` names the transport."""

    over: str
    process: subprocess.Popen[bytes]
    errors: Path

    def ended_well(self, limit_seconds: float) -> bool:
        """Whether every call ended by its own BYE, answered over the same connection."""
        return self.process.wait(limit_seconds) == 0


def live_channels(node: Node) -> int:
    """Calls that Asterisk counts as up."""
    output = node.run(["asterisk", "-rx", "core show channels count"]).output
    return next(int(line.split()[0]) for line in output.splitlines() if "active call" in line)


@contextmanager
def calls(
    node: Node, client: Client, folder: Path, *, each: int, seconds: float, keep: bool = True
) -> Iterator[list[LiveCalls]]:
    """Put `each` calls over UDP and as many over TLS to the echo test, and wait until all are up.

    With `keep` it is an error if the node closes a TLS connection meanwhile.
    """
    made = []
    tunnel = TlsTunnel(client, (node.address(), 5061))
    try:
        for over, number, target, transport in (
            ("UDP", "1001", f"{node.address()}:5060", "u1"),
            ("TLS", "1002", f"{client.address()}:{TUNNEL_PORT}", "t1"),
        ):
            phone = add_phone(node, number)
            made.append(_call(client, phone, folder / over, over, (target, transport), each, seconds))
        wait_for(lambda: live_channels(node) == 2 * each, 20, f"{2 * each} calls", interval_seconds=0.2)
        yield made
        assert not keep or tunnel.lost == 0, "a TLS connection was closed by the appliance"
    finally:
        for call in made:
            if call.process.poll() is None:
                call.process.kill()
        tunnel.close()


def _call(
    client: Client, phone: Phone, folder: Path, over: str, way: tuple[str, str], each: int, seconds: float
) -> LiveCalls:
    folder.mkdir(parents=True, exist_ok=True)
    accounts, errors = folder / "accounts.csv", folder / "errors.log"
    accounts.touch(mode=0o600)
    keyword = f"[authentication username={phone.number} password={phone.password}]"
    rows: Sequence[str] = ["SEQUENTIAL", *[f"{phone.number};{keyword};{ECHO_NUMBER};18000"] * each]
    accounts.write_text("\n".join(rows) + "\n")
    arguments = [
        *("sipp", way[0], "-t", way[1], "-sf", str(SCENARIOS / "lab_call.xml"), "-inf", str(accounts)),
        *("-m", str(each), "-r", "10", "-i", client.address(), "-nostdin", "-d", str(int(seconds * 1000))),
        *("-trace_err", "-error_file", str(errors), "-timeout", f"{int(seconds + 20)}s", "-timeout_error"),
    ]
    return LiveCalls(over, client.start(arguments, f"calls-{over}-{time.monotonic_ns()}.log"), errors)
