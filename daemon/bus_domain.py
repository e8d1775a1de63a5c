"""The methods of org.centralino.Domain1: how the name is seen, and credentials for the TURN server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping

from daemon.authorization import Caller, reads, writes
from daemon.bus import BUS_NAME, Handler
from daemon.domain import Domain
from daemon.domain_checks import check_address, check_names
from daemon.engine import Engine
from daemon.errors import InvalidSettingsError, Problem, UnavailableError
from daemon.mode import Mode
from daemon.turn import LONGEST_LIFE_SECONDS, PORT

CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def domain_handlers(engine: Engine, domain: Domain | None, mode: Mode | None) -> dict[str, Handler]:
    """Every method of Domain1 by its full name; without a known platform they say so."""
    methods = _Domain(engine, domain, mode)
    table: Mapping[str, Handler] = {"Check": methods.check, "TurnCredentials": methods.turn_credentials}
    return {f"{BUS_NAME}.Domain1.{name}": handler for name, handler in table.items()}


class _Domain:
    def __init__(self, engine: Engine, domain: Domain | None, mode: Mode | None) -> None:
        self._engine = engine
        self._domain = domain
        self._mode = mode

    @reads
    def check(self, _caller: Caller) -> str:
        if self._domain is None:
            raise UnavailableError("the domain is not looked after", "see the reasons in `centralino status`")
        settings = self._engine.settings
        facts = self._domain.facts(settings)
        problems = [*check_address(settings), *check_names(settings, facts)]
        return json.dumps(
            {
                "fqdn": settings.domain.fqdn,
                "public_address": str(settings.domain.public_address or "") or None,
                "own_addresses": sorted(str(address) for address in facts.own),
                "inside": facts.inside.as_json(),
                "outside": facts.outside.as_json(),
                "problems": [problem.as_json() for problem in problems],
            }
        )

    @writes(lambda name, life_seconds: {"name": name, "life_seconds": life_seconds})
    def turn_credentials(self, _caller: Caller, name: str, life_seconds: int) -> str:
        problems = []
        if not CLIENT_NAME.fullmatch(name):
            problems.append(Problem("name", "is no name of a client", "use letters, digits, dots and dashes"))
        if not 1 <= life_seconds <= LONGEST_LIFE_SECONDS:
            problems.append(Problem("life_seconds", f"must be 1 to {LONGEST_LIFE_SECONDS}", "correct it"))
        if problems:
            raise InvalidSettingsError(problems)
        if self._mode is None:
            raise UnavailableError("the mode is not looked after", "see the reasons in `centralino status`")
        made = self._mode.turn_credentials(name, life_seconds, time.time())
        host = self._engine.settings.domain.fqdn
        return json.dumps(
            {
                "username": made.username,
                "password": made.password,
                "expires": made.expires,
                "uris": [f"turn:{host}:{PORT}?transport={transport}" for transport in ("udp", "tcp")],
            }
        )
