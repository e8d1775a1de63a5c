"""The methods of org.centralino.Firewall1: from JSON text to the firewall and its shield."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from ipaddress import ip_address

from daemon.authorization import Caller, reads, writes
from daemon.bus import BUS_NAME, Handler
from daemon.engine import Engine
from daemon.errors import InvalidSettingsError, Problem, UnavailableError
from daemon.subsystem import JsonObject
from firewall.build import build
from firewall.kernel_sets import Address
from firewall.shield import Shield
from firewall.subsystem import Firewall
from firewall.verdict import verdict

MOST_ROWS = 1000


def firewall_handlers(engine: Engine, firewall: Firewall | None, shield: Shield | None) -> dict[str, Handler]:
    """Every method of Firewall1 by its full name; without a firewall (no live box) they say so."""
    methods = _Firewall(engine, firewall, shield)
    table: Mapping[str, Handler] = {
        "Status": methods.status,
        "Why": methods.why,
        "Top": methods.top,
        "Unblock": methods.unblock,
        "Reload": methods.reload,
    }
    return {f"{BUS_NAME}.Firewall1.{name}": handler for name, handler in table.items()}


class _Firewall:
    def __init__(self, engine: Engine, firewall: Firewall | None, shield: Shield | None) -> None:
        self._engine = engine
        self._firewall = firewall
        self._shield = shield

    @reads
    def status(self, _caller: Caller) -> str:
        state = self._running().observe()
        section = self._engine.settings.firewall
        now = time.time()
        listed = {
            name: sum(1 for entry in entries if entry.until is None or entry.until.timestamp() > now)
            for name, entries in (("allow", section.allow), ("block", section.block))
        }
        support = section.support
        until = support.until
        answer: JsonObject = {
            "healthy": state.healthy,
            "reasons": list(state.reasons),
            "drift": list(state.drift),
            **state.facts,
            "management": [str(network) for network in build(self._engine.settings).management],
            "trusted": [str(network) for network in section.trusted_networks],
            "allowed": listed["allow"],
            "blocked": listed["block"] + len(section.blocklist),
            "support": {
                "networks": [str(network) for network in support.networks],
                "until": until.isoformat() if until else None,
                "open": until is not None and until.timestamp() > now,
            },
            "shield": {} if self._shield is None else self._shield.status(),
        }
        return json.dumps(answer, ensure_ascii=False)

    @reads
    def why(self, _caller: Caller, address: str) -> str:
        asked = _address(address)
        held: JsonObject = {} if self._shield is None else self._shield.why(asked)
        return json.dumps(verdict(self._engine.settings, asked, held, time.time()), ensure_ascii=False)

    @reads
    def top(self, _caller: Caller, limit: int) -> str:
        rows = [] if self._shield is None else self._shield.top(min(limit or 20, MOST_ROWS))
        return json.dumps(rows, ensure_ascii=False)

    @writes(lambda address: {"address": address[:64]})
    def unblock(self, _caller: Caller, address: str) -> str:
        asked = _address(address)
        if self._shield is None:
            raise UnavailableError("the shield does not run", "see: centralino firewall status")
        return json.dumps({"address": str(asked), "was_blocked": self._shield.unblock(asked)})

    @writes(dict)
    def reload(self, _caller: Caller) -> str:
        firewall = self._running()
        firewall.refresh()
        if self._shield is not None:
            self._shield.fill_kernel()
        if firewall.in_order():
            return json.dumps({"healthy": True, "reasons": []})
        return json.dumps({"healthy": False, "reasons": list(firewall.observe().reasons)}, ensure_ascii=False)

    def _running(self) -> Firewall:
        if self._firewall is None:
            raise UnavailableError("the firewall is not managed here", "this is not a live box")
        return self._firewall


def _address(text: str) -> Address:
    try:
        return ip_address(text.strip())
    except ValueError:
        raise InvalidSettingsError(
            [Problem("address", f"{text[:64]!r} is no IP address", "write it like 198.51.100.7")]
        ) from None
