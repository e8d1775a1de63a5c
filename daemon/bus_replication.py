"""The methods of org.centralino.Replication1: the lag of both replications, and a full resynchronization."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from daemon.authorization import Caller, reads, writes
from daemon.bus import BUS_NAME, Handler
from daemon.errors import CancelledError, CommandFailedError, InvalidSettingsError, Problem, UnavailableError
from daemon.jobs import JobHandle, Jobs
from daemon.pair_link import PairLink
from daemon.subsystem import JsonObject

LANE = "replication"
POLL_SECONDS = 0.5
AWAY_SECONDS = 20.0
SCOPES = {
    "db": "Throw this node's database away and copy the master's.",
    "files": "Compare all file trees with the master's, contents included, and copy what differs.",
    "all": "Copy the master's database and compare all file trees.",
}


def replication_handlers(link: PairLink, jobs: Jobs) -> dict[str, Handler]:
    """Every method of Replication1 by its full name."""
    methods = _Replication(link, jobs)
    table: Mapping[str, Handler] = {"Status": methods.status, "Start": methods.start}
    return {f"{BUS_NAME}.Replication1.{name}": handler for name, handler in table.items()}


class _Replication:
    def __init__(self, link: PairLink, jobs: Jobs) -> None:
        self._link = link
        self._jobs = jobs

    @reads
    def status(self, _caller: Caller) -> str:
        if self._link.role_word() == "standalone":
            return json.dumps({"paired": False, "role": "standalone"})
        status = self._link.ask("status")
        kept = {name: status.get(name) for name in ("role", "database", "files", "obstacles")}
        return json.dumps({"paired": True, **kept, "resync": self._link.ask("resync-state")})

    @writes(lambda options: json.loads(options) if options.startswith("{") else {})
    def start(self, caller: Caller, options: str) -> str:
        wanted = _options(options)
        what, accept = str(wanted.get("what", "all")), wanted.get("accept_deletions") is True
        if what not in SCOPES:
            raise InvalidSettingsError([Problem("what", f"{what[:32]!r} is unknown", "use db, files or all")])
        role = self._link.role_word()
        if wanted.get("dry_run") is True:
            return json.dumps({"sentence": SCOPES[what], "role": role, "drops_calls": False})
        self._link.ask("resync", what=what, accept_deletions=accept)
        job = self._jobs.submit("replication", caller.shown, self._follow, lane=LANE)
        return job.identifier

    def _follow(self, handle: JobHandle) -> JsonObject:
        """Show how far the runtime is; a runtime that restarts has lost the work and says so."""
        heard = time.monotonic()
        while True:
            if handle.cancelled:
                self._cancel()
                raise CancelledError("the resynchronization was cancelled", "start it again any time")
            try:
                state = self._link.ask("resync-state")
                heard = time.monotonic()
            except UnavailableError:
                if time.monotonic() - heard > AWAY_SECONDS:
                    raise
                time.sleep(POLL_SECONDS)
                continue
            if state.get("error"):
                raise CommandFailedError(str(state["error"]), str(state.get("remedy", "")))
            if state.get("done") is True:
                return {"message": str(state.get("message", ""))}
            if state.get("running") is not True:
                raise UnavailableError("the runtime of the pair was restarted meanwhile", "start it again")
            share = state.get("progress")
            handle.progress(
                float(share) if isinstance(share, int | float) else None, str(state.get("message", ""))
            )
            time.sleep(POLL_SECONDS)

    def _cancel(self) -> None:
        """Tell the runtime, and wait for its next step, so that the next order finds it ready."""
        limit = time.monotonic() + AWAY_SECONDS
        self._link.ask("resync-cancel")
        while self._link.ask("resync-state").get("running") is True and time.monotonic() < limit:
            time.sleep(POLL_SECONDS / 5)


def _options(text: str) -> JsonObject:
    try:
        table = json.loads(text or "{}")
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise InvalidSettingsError([Problem("options", "is no JSON object", "write it like {}")])
    return table
