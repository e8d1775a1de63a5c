"""The menu of the first screen on a booted node: what an installer does who has a screen and no DHCP.

The node has no /dev/tty1, so the menu gets a terminal of this host as its own; everything behind it (PAM's
helper, bus, daemon, NetworkManager) is the node's.
"""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from appliance.lab import LOGS, Lab, Node
from appliance.lab_host import wait_for

pytestmark = pytest.mark.lab

LIMIT_SECONDS = 60.0
PASSWORD = "Fresh-Paint-42"
CONTROLLING_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Screen:
    """A terminal with a program of the node on it."""

    def __init__(self, node: Node, words: Sequence[str]) -> None:
        self._leader, follower = pty.openpty()
        inside = ["nsenter", f"--target={node.init}", "--all", "--", "env", "TERM=linux", *words]
        self._process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLING_TERMINAL, *inside],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
        )
        os.close(follower)
        self.shown = ""
        self._seen = 0

    def see(self, expected: str) -> None:
        """Wait until the text appears after what was seen before."""
        end = time.monotonic() + LIMIT_SECONDS
        while expected not in self.shown[self._seen :]:
            ready, _, _ = select.select([self._leader], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{expected!r} did not come; shown: {self.shown[-3000:]}"
            try:
                piece = os.read(self._leader, 65536)
            except OSError:
                piece = b""
            assert piece, f"the program ended before {expected!r}; shown: {self.shown[-3000:]}"
            self.shown += piece.decode(errors="replace")
        self._seen = self.shown.index(expected, self._seen) + len(expected)

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._leader, text.encode() + b"\n")

    def talk(self, *dialogue: tuple[str, str]) -> None:
        """See a text, type an answer, and so on."""
        for expected, answer in dialogue:
            self.see(expected)
            self.type(answer)

    def close(self) -> None:
        """Hang up; twice is once."""
        if self._leader < 0:
            return
        os.close(self._leader)
        self._leader = -1
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def node(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Node]:
    """A node fresh from its image, on wires without DHCP."""
    with Lab(lab_root, tmp_path_factory.mktemp("console") / "lab") as lab:
        lab.add_node(addressing="none")
        made = lab.node("node1")
        # Without DHCP, NetworkManager-wait-online holds the end of the boot up for a minute; nobody waits.
        made.power_on(wait=False)
        wait_for(lambda: made.init > 0, 30, "the first process of the node")
        made.wait_active("centralinod.service")
        yield made
        if request.session.testsfailed:
            lab.save_logs(LOGS / "console")


@pytest.fixture
def screen(node: Node) -> Iterator[Screen]:
    made = Screen(node, ["centralino", "console"])
    yield made
    made.close()


def password_opens(node: Node, password: str) -> bool:
    """Whether PAM's helper takes the password of admin."""
    return node.run(["unix_chkpwd", "admin", "nonull"], input_text=password + "\0", check=False).ok


def has_address(node: Node, interface: str, address: str) -> bool:
    links = json.loads(node.run(["ip", "-json", "address", "show", "dev", interface]).output)
    return any(entry.get("local") == address for link in links for entry in link["addr_info"])


def test_first_password_is_shown_and_must_be_changed_before_anything_else(node: Node, screen: Screen) -> None:
    first = node.run(["cat", "/run/centralino/first-password"]).output.strip()
    assert first and password_opens(node, first)
    screen.see(f"First login: user admin, password {first}")
    screen.talk(
        ("Choose: ", "4"),
        ("Administrator [admin]: ", ""),
        ("Password: ", first),
    )
    screen.see("The password must be changed first.")
    screen.talk(
        ("New password of admin (empty: back): ", "short"),
        ("The same again: ", "short"),
        ("password: must have", ""),
        ("Choose: ", "3"),
        ("New password of admin (empty: back): ", PASSWORD),
        ("The same again: ", PASSWORD),
        ("The password of admin is changed.", ""),
    )
    screen.see("Choose: ")
    assert password_opens(node, PASSWORD) and not password_opens(node, first)
    assert PASSWORD not in screen.shown
    assert not node.run(["test", "-e", "/run/centralino/first-password"], check=False).ok
    assert node.boots() == 1


def test_static_address_without_dhcp(node: Node, screen: Screen) -> None:
    node.run(["chpasswd"], input_text=f"admin:{PASSWORD}\n")
    screen.see("no address")
    screen.talk(
        ("Choose: ", "2"),
        ("Administrator [admin]: ", "admin"),
        ("Password: ", "wrong"),
        ("Login incorrect", ""),
        ("Choose: ", "2"),
        ("Administrator [admin]: ", ""),
        ("Password: ", PASSWORD),
        ("Interface (empty: back): ", "7"),
        ("a number from 1 to 2", "1"),
        ("Address (empty: back): ", "10.77.0.31"),
        ("write it like 192.0.2.10/24", "10.77.0.31 255.255.255.0"),
        ("Gateway (empty: none): ", "10.99.0.1"),
        ("is outside 10.77.0.0/24", "10.77.0.1"),
        ("Name servers (empty: as they are): ", "10.77.0.1"),
        ("Apply this? [y/N] ", "y"),
        ("shall it stay? [y/n] ", "y"),
        ("Confirmed.", ""),
    )
    screen.see("10.77.0.31/24 (up)")
    screen.see("10.77.0.1 via eth0")
    assert has_address(node, "eth0", "10.77.0.31")
    assert node.run(["ping", "-c1", "-W2", "10.77.0.1"], check=False).ok
    newest = json.loads(node.run(["centralino", "config", "history", "--json"]).output)[0]
    assert newest["comment"] == "Console, admin" and newest["state"] == "confirmed"
    assert newest["who"] == "root"
    screen.talk(("Logged in as admin.", ""), ("Choose: ", "9"), ("Choose: ", "5"))
    screen.see("Administrator [admin]: ")


def test_login_of_somebody_who_is_no_administrator_is_refused(node: Node, screen: Screen) -> None:
    node.run(["useradd", "-m", "watcher"])
    node.run(["usermod", "-aG", "centralino-operator", "watcher"])
    node.run(["chpasswd"], input_text=f"watcher:{PASSWORD}\n")
    screen.talk(
        ("Choose: ", "5"),
        ("Administrator [admin]: ", "watcher"),
        ("Password: ", PASSWORD),
        ("Login incorrect", ""),
    )


def test_shell_is_an_ordinary_login(node: Node, screen: Screen) -> None:
    screen.talk(("Choose: ", "6"), ("login: ", "admin"), ("Password: ", PASSWORD))
    screen.see("admin@")
    screen.type("id -un; exit")
    screen.see("admin")


def test_without_the_daemon_the_menu_still_shows_addresses_and_reboots(node: Node, screen: Screen) -> None:
    boots = node.boots()
    node.run(["systemctl", "stop", "centralinod.service"])
    screen.see("Choose: ")
    screen.type("")
    screen.see("the Centralino daemon does not run")
    screen.see("10.77.0.31/24")
    screen.talk(
        ("Choose: ", "4"),
        ("Administrator [admin]: ", ""),
        ("Password: ", PASSWORD),
        ("Reboot this box? [y/N] ", "y"),
    )
    screen.see("Asking systemd instead.")
    screen.see("The box is going down.")
    # A process of the node whose parent is on this host must be reaped here, or the node cannot end.
    screen.close()
    wait_for(lambda: node.boots() > boots, 150, "the reboot asked for at the console")
    wait_for(lambda: node.init > 0, 30, "the first process of the node")
    node.wait_active("centralinod.service")
    # What was set at the console is there again after the reboot.
    wait_for(lambda: has_address(node, "eth0", "10.77.0.31"), 30, "the address after the reboot")
