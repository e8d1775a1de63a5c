"""What Asterisk is told when a role changes, against a double of its manager interface."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_tolerance.pbx import CORE, TRUNKS, Pbx, note_role

CONTACTS = "  Contact:  <Aor/ContactUri...> <Hash....> <Status> <RTT(ms)..>\n"


class Asterisk(socketserver.ThreadingTCPServer):
    """Answers like Asterisk; `said` are the actions that change something."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, files: Path) -> None:
        super().__init__(("127.0.0.1", 0), Talk)
        self.files = files
        self.said: list[str] = []
        self.contacts = ""
        self.start()

    def start(self) -> None:
        """Read the configuration, as at its own start."""
        self.trunks = not (self.files / "modules.conf").exists()
        self.reload()

    def reload(self) -> None:
        self.interval = 0 if (self.files / "pjsip-global.conf").exists() else 30


class Talk(socketserver.StreamRequestHandler):
    server: Asterisk

    def handle(self) -> None:
        self.wfile.write(b"Asterisk Call Manager/5.0\r\n")
        fields: dict[str, str] = {}
        for line in self.rfile:
            key, colon, value = line.decode().strip().partition(": ")
            if colon:
                fields[key] = value
                continue
            reply = "".join(f"Output: {each}\r\n" for each in self.output(fields).splitlines())
            head = f"Response: Success\r\nActionID: {fields['ActionID']}\r\n"
            self.wfile.write(f"{head}{reply}\r\n".encode())
            fields = {}

    def output(self, fields: dict[str, str]) -> str:
        asterisk = self.server
        match fields["Action"], fields.get("Command", fields.get("Module", "")):
            case "Command", "pjsip show settings":
                return f" contact_expiration_check_interval   : {asterisk.interval}"
            case "Command", "pjsip show contacts":
                return asterisk.contacts
            case "Command", command if command.startswith("module show like"):
                return f"{TRUNKS} Running" if asterisk.trunks else "0 modules loaded"
            case "Command", command:
                asterisk.said.append(command)
            case "ModuleLoad", module:
                asterisk.said.append(f"{fields['LoadType']} {module}")
                if module == CORE:
                    asterisk.reload()
                else:
                    asterisk.trunks = fields["LoadType"] == "load"
            case "PJSIPQualify", _:
                asterisk.said.append(f"qualify {fields['Endpoint']}")
        return ""


@pytest.fixture
def asterisk(tmp_path: Path) -> Iterator[Asterisk]:
    with Asterisk(tmp_path) as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        (tmp_path / "control").touch()
        (tmp_path / "secret").write_text("secret")
        yield made
        made.shutdown()


@pytest.fixture
def pbx(asterisk: Asterisk, tmp_path: Path) -> Pbx:
    return Pbx(tmp_path / "secret", tmp_path / "control", tmp_path, asterisk.server_address[1])


def test_silence_ends_calls_trunks_and_expiry_once(asterisk: Asterisk, pbx: Pbx) -> None:
    pbx.close()
    assert asterisk.said == ["channel request hangup all", f"unload {TRUNKS}", f"reload {CORE}"]
    assert (asterisk.trunks, asterisk.interval) == (False, 0)
    asterisk.said.clear()
    pbx.look(serving=False)
    assert asterisk.said == []


def test_service_begins_trunks_and_expiry_and_looks_for_lost_phones(asterisk: Asterisk, pbx: Pbx) -> None:
    pbx.close()
    asterisk.said.clear()
    asterisk.contacts = (
        f"{CONTACTS}  Contact:  1001/sip:1001@10.77.0.101:5060             d2df5b9d4b Unavail         nan\n"
        "  Contact:  1002/sip:1002@10.77.0.102:5060             aadf5b9d4b NonQual         nan\n"
    )
    pbx.open()
    assert asterisk.said == [f"load {TRUNKS}", f"reload {CORE}", "qualify 1001"]
    assert (asterisk.trunks, asterisk.interval) == (True, 30)


def test_an_asterisk_that_starts_on_a_silent_node_is_silent_from_its_first_moment(
    asterisk: Asterisk, pbx: Pbx, tmp_path: Path
) -> None:
    note_role(serving=False, directory=tmp_path)
    asterisk.start()
    assert (asterisk.trunks, asterisk.interval) == (False, 0)
    pbx.look(serving=False)
    assert asterisk.said == ["channel request hangup all"]


def test_an_asterisk_that_started_anew_is_told_again(asterisk: Asterisk, pbx: Pbx, tmp_path: Path) -> None:
    pbx.close()
    asterisk.trunks, asterisk.interval = True, 30
    pbx.look(serving=False)
    assert asterisk.trunks
    assert pbx.settled
    (tmp_path / "control").unlink()
    (tmp_path / "control").touch()
    assert not pbx.settled
    pbx.look(serving=False)
    assert (asterisk.trunks, asterisk.interval) == (False, 0)


def test_an_order_during_a_look_is_not_lost(
    asterisk: Asterisk, pbx: Pbx, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promotion while the node is still being silenced."""
    ordered: list[threading.Thread] = []

    def slow(*, serving: bool, directory: Path) -> None:
        if not ordered:
            ordered.append(threading.Thread(target=pbx.open))
            ordered[0].start()
            while pbx._wanted is not True:
                pass
        note_role(serving=serving, directory=directory)

    monkeypatch.setattr("fault_tolerance.pbx.note_role", slow)
    pbx.look(serving=False)
    ordered[0].join(5)
    assert (asterisk.trunks, asterisk.interval) == (True, 30)


def test_an_asterisk_that_is_away_is_told_later(asterisk: Asterisk, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    pbx = Pbx(tmp_path / "missing", tmp_path / "control", tmp_path, asterisk.server_address[1])
    pbx.open()
    assert asterisk.said == []
    secret.rename(tmp_path / "missing")
    asterisk.trunks = False
    pbx.look(serving=False)  # a look that was meant for the role before
    assert asterisk.trunks
