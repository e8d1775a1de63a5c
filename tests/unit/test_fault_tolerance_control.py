"""The runtime's two sockets: what is answered, what is refused, whose streams go where."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from daemon.errors import ConflictError, NotFoundError
from fault_tolerance import accept
from fault_tolerance.contracts import Channel
from fault_tolerance.control import ControlServer, Doors, Table


class Loop:
    """The runtime's loop, in a thread, for as long as a test lasts."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self.selector.select(0.02):
                key.data()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.stop()


def ask(path: Path, line: bytes) -> Table:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(line)
        with client.makefile("rb") as stream:
            answer = stream.readline()
    found = json.loads(answer)
    assert isinstance(found, dict)
    return found


def answer(method: str, request: Table) -> object:
    if method == "refuse":
        raise ConflictError("not now", "later")
    return {"method": method, "more": request.get("more")}


def test_control_answers_and_names_its_errors(tmp_path: Path, loop: Loop) -> None:
    server = ControlServer(tmp_path / "control", loop.selector, answer)
    loop.start()
    assert ask(tmp_path / "control", b'{"id": 7, "method": "status", "more": 1}\n') == {
        "id": 7,
        "result": {"method": "status", "more": 1},
    }
    refused = ask(tmp_path / "control", b'{"id": 8, "method": "refuse"}\n')
    assert (refused["error"], refused["message"], refused["remedy"]) == ("ConflictError", "not now", "later")
    assert (tmp_path / "control").stat().st_mode & 0o777 == 0o600
    loop.stop()
    server.close()


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b'{"id": 1}\n', b"null\n"])
def test_control_hangs_up_on_what_is_no_request(tmp_path: Path, loop: Loop, line: bytes) -> None:
    ControlServer(tmp_path / "control", loop.selector, answer)
    loop.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(tmp_path / "control"))
        client.sendall(line)
        assert client.recv(100) == b""


def test_subscribers_hear_events(tmp_path: Path, loop: Loop) -> None:
    server = ControlServer(tmp_path / "control", loop.selector, answer)
    loop.start()
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as stream:
        client.settimeout(5)
        client.connect(str(tmp_path / "control"))
        client.sendall(b'{"id": 1, "method": "subscribe"}\n')
        assert json.loads(stream.readline())["id"] == 1
        server.tell({"event": "state"})
        assert json.loads(stream.readline()) == {"event": "state"}


def through_the_door(
    path: Path, who: str, wish: str, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """What sshd would do: the forced command, with the peer's wish in its environment."""
    script = f"import sys; sys.argv[1:] = ['{who}']; from fault_tolerance import accept; "
    script += f"accept.SOCKET = '{path}'; sys.exit(accept.main())"
    return subprocess.run(
        [sys.executable, "-c", script],
        input=given,
        capture_output=True,
        timeout=30,
        env={**os.environ, "SSH_ORIGINAL_COMMAND": wish},
        check=False,
    )


def serve(channel: Channel, words: Sequence[str], guest: bool) -> list[str]:
    if list(words) == ["unknown"]:
        raise NotFoundError("there is no such thing")
    return ["sh", "-c", f"cat; echo {channel.value} {guest}; exit 3"]


@pytest.fixture
def door(tmp_path: Path, loop: Loop) -> Path:
    Doors(tmp_path / "link", loop.selector, lambda *_: None, serve)
    loop.start()
    return tmp_path / "link"


def test_a_program_runs_on_the_peers_own_streams_and_its_status_arrives(door: Path) -> None:
    done = through_the_door(door, "peer", "database stream", b"bytes")
    assert (done.returncode, done.stdout) == (3, b"bytesdatabase False\n")


@pytest.mark.parametrize(
    ("who", "wish"),
    [
        ("peer", "shell"),
        ("peer", ""),
        ("peer", "database unknown"),
        ("peer", "pair"),
        ("guest", "database stream"),
        ("guest", "heartbeat"),
        ("nobody", "database stream"),
        ("", "database stream"),
    ],
)
def test_nothing_else_opens(door: Path, who: str, wish: str) -> None:
    done = through_the_door(door, who, wish)
    assert done.returncode == 1
    assert done.stdout == b""


def test_a_guest_may_pair_and_nothing_else(door: Path) -> None:
    assert through_the_door(door, "guest", "pair").stdout == b"pair True\n"


def test_without_a_runtime_the_forced_command_says_so(tmp_path: Path) -> None:
    done = through_the_door(tmp_path / "nothing", "peer", "heartbeat")
    assert done.returncode == accept.NOT_RUNNING
    assert b"does not run" in done.stderr


def test_a_heartbeat_goes_to_the_link_with_its_streams(tmp_path: Path, loop: Loop) -> None:
    arrived: list[tuple[int, int, socket.socket]] = []
    Doors(tmp_path / "link", loop.selector, lambda *streams: arrived.append(streams), serve)
    loop.start()
    peer = threading.Thread(
        target=lambda: through_the_door(tmp_path / "link", "peer", "heartbeat", b"beat\n")
    )
    peer.start()
    wait_until(lambda: bool(arrived))
    heard, said, doorway = arrived[0]
    assert os.read(heard, 100) == b"beat\n"
    doorway.send(b"\0")
    doorway.close()
    for descriptor in (heard, said):
        os.close(descriptor)
    peer.join(10)
    assert not peer.is_alive()


def wait_until(condition: Callable[[], bool], limit_seconds: float = 10.0) -> None:
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
