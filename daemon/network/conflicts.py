"""Addresses that the settings ask for and another machine has already, asked of the wire beforehand."""

from __future__ import annotations

import time
from collections.abc import Mapping

from daemon.errors import Problem
from daemon.network import wire
from daemon.network.truth import Link
from daemon.settings import Settings

REMEMBERED_SECONDS = 5.0
"""A plan and its apply follow each other; the wire is asked once for both."""


class Conflicts:
    """Asks, and remembers for a moment that nobody answered (never that somebody did)."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, wire.Address], float] = {}

    def find(self, settings: Settings, links: Mapping[str, Link]) -> list[Problem]:
        """A problem for each new address that answers already; a warning where the wire cannot be asked."""
        own = {address.ip for link in links.values() for address in link.addresses}
        now = time.monotonic()
        self._free = {key: until for key, until in self._free.items() if until > now}
        paths: dict[wire.Question, str] = {}
        for name, interface in settings.network.interfaces.items():
            link = links.get(name)
            if not interface.enabled or link is None or not link.carrier or not link.hardware_address:
                continue
            for number, address in enumerate(interface.addresses):
                if address.ip not in own and (name, address.ip) not in self._free:
                    question = wire.Question(name, link.hardware_address, address.ip)
                    paths[question] = f"network.interfaces.{name}.addresses.{number}"
        if not paths:
            return []
        try:
            answers = wire.ask(list(paths))
        except OSError as error:
            return [
                Problem(path, f"could not be looked for on the wire: {error.strerror}", fatal=False)
                for path in paths.values()
            ]
        for question in paths:
            if question not in answers:
                self._free[question.interface, question.target] = now + REMEMBERED_SECONDS
        return [
            Problem(
                paths[question],
                f"{question.target} is in use already on {question.interface} by {hardware}",
                "choose a free address, or take it from that machine first",
            )
            for question, hardware in answers.items()
        ]
