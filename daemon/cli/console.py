"""`centralino console`: the menu on the first screen, for whoever stands before the box.

Everybody may look; every change asks for the login of an administrator first. Changes go over the bus like
all others, and a changed address returns by itself unless it is confirmed here.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from daemon.cli.client import RETURN_LIMIT_SECONDS, SETTINGS, SYSTEM
from daemon.cli.console_address import (
    Answers,
    InterfaceAddress,
    address_lines,
    network_facts,
    read_gateway,
    read_interface_address,
    read_name_servers,
    with_address,
)
from daemon.cli.console_login import ADMIN, SEARCH, Login, Verdict
from daemon.cli.console_terminal import Hangup, Terminal
from daemon.cli.json_types import JsonObject, as_object, objects_of, text_of, texts_of, whole_of
from daemon.cli.plans import apply, changes_nothing, current, propose
from daemon.cli.plans import show as show_plan
from daemon.cli.render import fields
from daemon.cli.session import Session
from daemon.cli.status import pending_sentence, summary
from daemon.cli.status import show as show_status
from daemon.errors import CentralinoError
from daemon.run import run, run_on_terminal

Value = TypeVar("Value")

FIRST_PASSWORD = Path("/run/centralino/first-password")
REFRESH_SECONDS = 15.0
ANSWER_SECONDS = 300.0
CONFIRM_SECONDS = 120
TRIES = 5


@click.command()
@click.pass_obj
def console(session: Session) -> None:
    """Show the menu of the first screen: addresses, password, reboot, power off, shell.

    The appliance starts it on tty1. Whoever is not root acts with the rights of the own login; root is
    asked for the login of an administrator before any change.
    """
    Menu(session, Terminal()).run()


class Cancelled(Exception):  # noqa: N818 - an event, not a fault
    """The person wants back to the menu, or went away."""


@dataclass(frozen=True)
class Entry:
    """One line of the menu; `guarded` ones ask for a login first."""

    key: str
    text: str
    action: Callable[[], None]
    guarded: bool = True


class Menu:
    """The menu and who is logged in to it."""

    def __init__(self, session: Session, terminal: Terminal, login: Login | None = None) -> None:
        self._session = session
        self._terminal = terminal
        self._login = login or Login()
        self._user = ""
        self._must_change = False
        self._used = time.monotonic()
        self._idle_seconds = ANSWER_SECONDS
        self.entries = (
            Entry("1", "Show everything", self._show_everything, guarded=False),
            Entry("2", "Set the address of an interface", self._set_address),
            Entry("3", "Change the password", self._change_password),
            Entry("4", "Reboot", lambda: self._maintenance("reboot")),
            Entry("5", "Power off", lambda: self._maintenance("poweroff")),
            Entry("6", "Log in to a shell", self._shell, guarded=False),
        )

    def run(self) -> None:
        """Show and obey until the terminal hangs up."""
        shown = ""
        while True:
            try:
                self._forget_idle()
                state = self._state()
                # A screen that nobody touches is drawn again only when there is something new on it.
                if (current := f"{self._user} {json.dumps(state)}") != shown:
                    self._draw(state)
                    self._terminal.prompt("Choose: ")
                    shown = current
                choice = self._terminal.read("", REFRESH_SECONDS)
                if choice is not None:
                    self._used = time.monotonic()
                    shown = ""
                    self._obey(choice)
            except Hangup:
                return
            except KeyboardInterrupt:
                shown = ""
                self._terminal.write()
            except Cancelled:
                shown = ""
            except CentralinoError as error:
                shown = ""
                self._terminal.write(f"That failed: {error}")
                self._pause()

    # --- the screen ---------------------------------------------------------------------------------------

    def _state(self) -> JsonObject:
        """What the first screen is made of; `error` says why it is not there."""
        try:
            status = self._session.client.read_object(SYSTEM, "Status")
        except CentralinoError as error:
            return {"error": str(error), "addresses": local_addresses()}
        pending = as_object(status.get("pending"))
        pending.pop("seconds_left", None)
        kept = ("healthy", "reasons", "hostname", "role", "version", "platform", "pending")
        return {**{key: status.get(key) for key in kept}, "network": network_facts(status)}

    def _draw(self, state: JsonObject) -> None:
        self._terminal.clear()
        self._terminal.write("Centralino\n")
        if "error" in state:
            self._terminal.write(f"{text_of(state, 'error')}\n\n{text_of(state, 'addresses')}")
        else:
            self._show_summary(state)
        self._show_first_password()
        self._terminal.write()
        if self._user:
            self._terminal.write(f"Logged in as {self._user}.")
        for entry in self.entries:
            self._terminal.write(f"  {entry.key}  {entry.text}")
        if self._user:
            self._terminal.write("  9  Log out")
        self._terminal.write()

    def _show_summary(self, state: JsonObject) -> None:
        fields([*summary(state), *address_lines(as_object(state.get("network")))])
        reasons = texts_of(state, "reasons")
        for reason in reasons[:3]:
            self._terminal.write(f"  - {reason}")
        if len(reasons) > 3:
            self._terminal.write(f"  and {len(reasons) - 3} more: choose 1")

    def _show_first_password(self) -> None:
        """Once more what the first boot showed, as long as it opens the box."""
        if os.geteuid() != 0:
            return
        try:
            password = FIRST_PASSWORD.read_text().strip()
        except OSError:
            return
        if Login(self._login.execute).check(ADMIN, password) is Verdict.MUST_CHANGE:
            self._terminal.write(f"\nFirst login: user {ADMIN}, password {password} (to be changed at once)")
        else:
            FIRST_PASSWORD.unlink(missing_ok=True)

    def _pause(self) -> None:
        self._terminal.read("Press Enter to go back. ", ANSWER_SECONDS)

    # --- who is there -------------------------------------------------------------------------------------

    def _obey(self, choice: str) -> None:
        if choice == "9" and self._user:
            self._user = ""
            return
        entry = next((entry for entry in self.entries if entry.key == choice), None)
        if entry is None:
            return
        if entry.guarded:
            self._require_login()
        if entry.guarded and self._must_change and entry.action != self._change_password:
            self._terminal.write("The password must be changed first.")
            self._change_password()
        entry.action()

    def _require_login(self) -> None:
        """A login for root's menu; whoever runs the menu as another user has logged in already."""
        if os.geteuid() != 0 or self._user:
            return
        user = self._ask(f"Administrator [{ADMIN}]: ") or ADMIN
        password = self._terminal.read_hidden("Password: ", ANSWER_SECONDS)
        if password is None:
            raise Cancelled
        verdict = self._login.check(user, password)
        if verdict is Verdict.REFUSED:
            # As login(1) does it: guessing must cost time.
            time.sleep(self._login.pause_seconds())
            self._terminal.write("Login incorrect")
            self._pause()
            raise Cancelled
        self._user = user
        self._must_change = verdict is Verdict.MUST_CHANGE
        self._idle_seconds = self._idle_limit()

    def _idle_limit(self) -> float:
        """The setting console.idle_seconds; 0 is never."""
        try:
            answer = self._session.client.read_object(SETTINGS, "Get", "console")
        except CentralinoError:
            return ANSWER_SECONDS
        return whole_of(as_object(answer.get("settings")), "idle_seconds") or float("inf")

    def _forget_idle(self) -> None:
        if self._user and time.monotonic() - self._used > self._idle_seconds:
            self._user = ""

    def _comment(self) -> str:
        return f"Console, {self._user}" if self._user else "Console"

    # --- questions ----------------------------------------------------------------------------------------

    def _ask(self, prompt: str) -> str:
        """An answer, perhaps empty; nobody there ends the dialogue."""
        answer = self._terminal.read(prompt, ANSWER_SECONDS)
        if answer is None:
            self._terminal.write()
            raise Cancelled
        self._used = time.monotonic()
        return answer

    def _agree(self, question: str) -> bool:
        return self._ask(f"{question} [y/N] ").lower() in ("y", "yes")

    # --- actions ------------------------------------------------------------------------------------------

    def _show_everything(self) -> None:
        self._terminal.clear()
        show_status(self._session.client.read_object(SYSTEM, "Status"))
        self._terminal.write()
        self._pause()

    def _set_address(self) -> None:
        client = self._session.client
        facts = network_facts(client.read_object(SYSTEM, "Status"))
        names = [text_of(interface, "name") for interface in objects_of(facts, "interfaces")]
        if not names:
            self._terminal.write("This box shows no network interface.")
            self._pause()
            return
        answers = self._ask_address(self._choose_interface(names))
        document, base = current(client)
        document = with_address(document, answers)
        plan = propose(client, document, base)
        show_plan(plan)
        if changes_nothing(plan):
            self._pause()
            return
        if not self._agree("Apply this?"):
            return
        result = apply(client, document, base, self._comment(), confirm_seconds=CONFIRM_SECONDS)
        self._confirm(result)

    def _choose_interface(self, names: list[str]) -> str:
        if len(names) == 1:
            return names[0]
        for number, name in enumerate(names, start=1):
            self._terminal.write(f"  {number}  {name}")
        for _ in range(TRIES):
            answer = self._ask("Interface (empty: back): ")
            if not answer:
                raise Cancelled
            if answer in names:
                return answer
            if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(names):
                return names[int(answer) - 1]
            self._terminal.write(f"Answer with a number from 1 to {len(names)}.")
        raise Cancelled

    def _ask_address(self, interface: str) -> Answers:
        self._terminal.write(f"Address of {interface}, for example 192.0.2.10/24; the word dhcp for DHCP.")
        address = self._valid("Address (empty: back): ", _address_or_dhcp)
        if address is None:
            return Answers(interface)
        gateway = self._valid("Gateway (empty: none): ", lambda text: read_gateway(text, address))
        servers = self._valid("Name servers (empty: as they are): ", read_name_servers)
        return Answers(interface, address, gateway, servers)

    def _valid(self, prompt: str, read: Callable[[str], Value]) -> Value:
        """Ask until `read` accepts the answer; too many refusals lead back to the menu."""
        for _ in range(TRIES):
            try:
                return read(self._ask(prompt))
            except ValueError as error:
                self._terminal.write(f"{error}.")
        raise Cancelled

    def _confirm(self, result: JsonObject) -> None:
        if not text_of(result, "confirm_by"):
            self._terminal.write(f"Done: revision {text_of(result, 'revision')}.")
            self._pause()
            return
        self._terminal.write(pending_sentence(result))
        deadline = time.monotonic() + CONFIRM_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            answer = self._terminal.read("Does it work, and shall it stay? [y/n] ", left)
            if answer is None:
                break
            if answer.lower() in ("y", "yes"):
                self._session.client.call(SETTINGS, "Confirm", self._comment())
                self._terminal.write("Confirmed.")
                self._pause()
                return
            if answer.lower() in ("n", "no"):
                self._session.client.call(
                    SETTINGS, "Return", self._comment(), limit_seconds=RETURN_LIMIT_SECONDS
                )
                self._terminal.write("Taken back: the old settings are in force again.")
                self._pause()
                return
        self._terminal.write("Not confirmed: the old settings return by themselves.")
        self._pause()

    def _change_password(self) -> None:
        user = self._user or ADMIN
        first = self._terminal.read_hidden(f"New password of {user} (empty: back): ", ANSWER_SECONDS)
        if not first:
            raise Cancelled
        if self._terminal.read_hidden("The same again: ", ANSWER_SECONDS) != first:
            self._terminal.write("The two differ; nothing was changed.")
            self._pause()
            raise Cancelled
        self._session.client.call(SYSTEM, "SetPassword", user, first, self._comment())
        self._must_change = False
        self._terminal.write(f"The password of {user} is changed.")
        self._pause()

    def _maintenance(self, verb: str) -> None:
        if not self._agree({"reboot": "Reboot this box?", "poweroff": "Power this box off?"}[verb]):
            return
        try:
            self._session.client.call(SYSTEM, "Maintenance", verb, json.dumps({"comment": self._comment()}))
        except CentralinoError as error:
            if os.geteuid() != 0:
                raise
            # Whoever stands before a box whose daemon is dead must still be able to restart it in good order.
            self._terminal.write(f"{error}\nAsking systemd instead.")
            run(["systemctl", verb])
        self._terminal.write("The box is going down.")
        self._pause()

    def _shell(self) -> None:
        """As root, the login program takes this screen over, and systemd brings the menu back after it."""
        if os.geteuid() != 0:
            run_on_terminal([os.environ.get("SHELL") or "/bin/sh"])
            return
        program = shutil.which("login", path=SEARCH)
        if program is None:
            self._terminal.write("This box has no login program.")
            self._pause()
            return
        self._terminal.clear()
        sys.stdout.flush()
        os.execv(program, [program])  # noqa: S606 - a fixed program without arguments


def _address_or_dhcp(text: str) -> InterfaceAddress | None:
    if not text:
        raise Cancelled
    return None if text.lower() == "dhcp" else read_interface_address(text)


def local_addresses() -> str:
    """What the kernel has, for when the daemon cannot say."""
    try:
        text = run(["ip", "-brief", "address", "show", "scope", "global"], limit_seconds=5).output
    except CentralinoError as error:
        return str(error)
    return text.strip() or "No interface has an address."
