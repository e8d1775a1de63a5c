"""The firewall subsystem: settings to one nftables table, loaded in one transaction, and watched.

What is lasting is written to a file that nftables.service loads at boot; what ends by itself (support access,
timed entries, the sessions that are open) is only in the kernel. A policy that cannot be loaded leaves the
one before in force; if there is none, the failsafe policy holds: SSH from management, nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

from daemon.alarms import Alarms
from daemon.errors import ApplyFailedError, CentralinoError, Problem, StorageError
from daemon.files import FileChange, apply_file_change, ensure_directory, read_text
from daemon.places import Places
from daemon.settings import Settings
from daemon.settings.messages import Severity
from daemon.subsystem import Change, State
from firewall import kernel_rules
from firewall.build import build, default_management
from firewall.kernel_changes import KernelChanges
from firewall.kernel_sets import Address, KernelSets
from firewall.policy import PRIVATE_NETWORKS, Network, Policy
from firewall.ports import Mode
from firewall.render import (
    SETTLED_SETS,
    TABLE,
    failsafe,
    fresh_meters,
    render,
    render_lasting,
    session_elements,
)
from firewall.sessions import ssh_sources

POLICY_FILE = Path("/etc/centralino/nftables.d/50-policy.nft")
FAILSAFE_FILE = Path("/etc/centralino/failsafe.nft")
FAILSAFE_ALARM = "firewall.failsafe"
DRIFT_ALARM = "firewall.drift"
FILE_ALARM = "firewall.file"
# The kernel tells of changes; this look is for what time alone brings.
LOOK_SECONDS = 30.0
# Under attack each block is a change, and a look starts nft: so often at most.
BETWEEN_LOOKS_SECONDS = 5.0
# So long an alarm stands after what it tells of was put right.
TOLD_SECONDS = 600.0
# A policy that could not be loaded is tried again: what kept nft from it may be over.
RETRY_SECONDS = 60.0
NEVER_LOADED = -1
# For a box whose owner switched the firewall off; other tables stay.
NO_TABLE = f"add table {TABLE}\ndelete table {TABLE}\n"

log = logging.getLogger(__name__)


class Firewall:
    """See daemon.subsystem.Subsystem. Below another root than `/`, only files are touched.

    `settings` gives those in force, `serving` whether the node's role opens SIP (for people to see:
    the role runtime closes it by a table of its own), `sessions` who is connected
    over SSH. `on_lost` is called when the table had been taken away and is back: its dynamic sets are empty.
    """

    name = "firewall"
    sections: tuple[str, ...] = ("firewall",)

    def __init__(
        self,
        places: Places,
        settings: Callable[[], Settings],
        alarms: Alarms,
        *,
        serving: Callable[[], bool] = lambda: True,
        sessions: Callable[[], Iterable[Address]] = ssh_sources,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._places = places
        self._settings = settings
        self._alarms = alarms
        self._serving = serving
        self._sessions = sessions
        self._on_lost = on_lost
        self._kernel = KernelSets()
        self._lock = threading.RLock()
        self._loaded: str | None = None
        self._generation = 0
        self._table: int | None = NEVER_LOADED
        self._kept_because = ""
        self._failed_at = 0.0
        self._put_right = 0.0
        self._failsafe_reason = ""
        self._stopped = threading.Event()
        self._watcher: threading.Thread | None = None

    # --- subsystem ------------------------------------------------------------------------------------------

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        """What nft would refuse, and what would shut out whoever is at work now."""
        if not settings.firewall.enabled:
            warning = "the box would filter nothing"
            return [Problem("firewall.enabled", warning, "leave it on, or filter in front", fatal=False)]
        policy = self._policy(settings)
        problems = [] if self._same_as_now(policy) else self._lock_out(policy, settings)
        if self._places.is_live and not self._same_as_now(policy):
            # Lists hold nothing but networks: they cannot be refused, and checking takes as long as loading.
            reason = kernel_rules.refusal(render(_without_lists(policy)))
            if reason is not None:
                problems.append(Problem("firewall", f"nft refuses the rules: {reason}", "change the rules"))
        return problems

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        """One change that replaces the table. It is risky unless only lists of addresses differ: those cannot
        reach the rule that lets management in."""
        before = None if old is None else self._policy(old)
        after = self._policy(new)
        enabled = new.firewall.enabled
        files = self._files(new, after)
        same = old is not None and before == after and old.firewall.enabled == enabled
        if same and not files:
            return []
        risky = (
            before is None
            or old is None
            or old.firewall.enabled != enabled
            or _without_lists(before) != _without_lists(after)
        )
        script = render(after) if enabled else NO_TABLE
        if enabled and before is not None and before.limits != after.limits:
            script += fresh_meters()
        return [
            Change(
                self.name,
                _sentence(after, enabled),
                files=files,
                risky=risky,
                detail={"script": script},
            )
        ]

    def apply(self, change: Change) -> None:
        """Load in one transaction, with the sessions that are open; then keep the file for the next boot."""
        script = str(change.detail["script"])
        with self._lock:
            if self._places.is_live:
                try:
                    self._load(script)
                except CentralinoError as error:
                    raise ApplyFailedError(str(error), "the rules before stay in force") from error
            for file in change.files:
                ensure_directory(file.path.parent)
                apply_file_change(file)
            self._alarms.clear_alarm(FAILSAFE_ALARM)
            self._failsafe_reason = self._kept_because = ""

    def observe(self) -> State:
        """Whether the table is the one that was loaded; costs one question to the kernel unless it is not."""
        if not self._places.is_live:
            return State(True)
        settings = self._settings()
        facts = {
            "enabled": settings.firewall.enabled,
            "mode": settings.mode.mode.value,
            "serving": self._serving(),
            "failsafe": self._failsafe_reason or None,
        }
        if self._failsafe_reason:
            return State(False, (self._failsafe_sentence(),), (), facts)
        if self._kept_because:
            return State(False, (self._kept_because,), (), facts)
        try:
            drift = self._drift()
        except CentralinoError as error:
            return State(False, (f"the firewall cannot be seen: {error}",), (), facts)
        return State(not drift, (), drift, facts)

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load the policy of the settings in force and watch it from now on; never raises.

        What the kernel has may be the image's own rules, those of the file (without what ends by itself), or
        those of a daemon before this one.
        """
        if not self._places.is_live:
            return
        changes = KernelChanges()
        self.refresh()
        self._watcher = threading.Thread(target=self._watch, args=(changes,), name="firewall", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Stop watching; the policy stays."""
        self._stopped.set()

    def in_order(self) -> bool:
        """Whether the policy of the settings is in force, and not the failsafe one."""
        return not self._failsafe_reason and not self._kept_because

    def refresh(self) -> None:
        """Load the policy of the settings and of the role in force now, or the failsafe one; never raises."""
        settings = self._settings()
        with self._lock:
            try:
                policy = self._policy(settings)
                self._load(render(policy) if settings.firewall.enabled else NO_TABLE)
            except Exception as error:
                log.exception("the firewall's policy could not be loaded")
                self._failed_at = time.monotonic()
                if self._still_there():
                    self._keep_the_one_before(str(error))
                else:
                    self._fail_safe(settings, str(error))
                return
            self._failsafe_reason = self._kept_because = ""
            self._alarms.clear_alarm(FAILSAFE_ALARM)
            self._mend_files(settings, policy)

    def _watch(self, changes: KernelChanges) -> None:
        while True:
            changes.wait(LOOK_SECONDS)
            if self._stopped.is_set():
                changes.close()
                return
            try:
                self._look_after()
            except CentralinoError as error:
                log.warning("the firewall could not be looked at: %s", error)
            self._stopped.wait(BETWEEN_LOOKS_SECONDS)

    def _look_after(self) -> None:
        if (self._failsafe_reason or self._kept_because) and (
            time.monotonic() - self._failed_at > RETRY_SECONDS
        ):
            self.refresh()
        if self._failsafe_reason or not self._settings().firewall.enabled:
            return
        with self._lock:
            table = self._kernel.table()
            lost = table != self._table
        if lost:
            # Without the table everything is open, and with a new one (nftables.service was started again)
            # nobody is blocked: neither waits for a person.
            log.warning(
                "the firewall's table was %s; it is loaded again", "made anew" if table else "removed"
            )
            self.refresh()
            self._on_lost()
            if table is None:
                sentence = "the firewall's table had been removed by something else, and was put back"
                self._alarms.raise_alarm(DRIFT_ALARM, f"{sentence}; find out what flushes the rules")
                self._put_right = time.monotonic()
        elif drift := self._drift():
            sentence = f"{drift[0]}; see who did it, then run: centralino firewall reload"
            self._alarms.raise_alarm(DRIFT_ALARM, sentence)
        elif time.monotonic() - self._put_right > TOLD_SECONDS or not self._put_right:
            self._alarms.clear_alarm(DRIFT_ALARM)

    def _drift(self) -> tuple[str, ...]:
        """What differs from what was loaded. The kernel's generation tells cheaply that nothing can."""
        with self._lock:
            if self._table is None:
                return () if self._kernel.table() is None else ("a table is there that should not be",)
            if self._kernel.table() != self._table:
                return ("the firewall's table was taken away or made anew; it is being put back",)
            generation = self._kernel.generation()
            if self._loaded is not None and generation == self._generation:
                return ()
            now = self._digest()
            if self._loaded is None or now == self._loaded:
                self._loaded, self._generation = now, generation
                return ()
        return ("the firewall's table was changed by something else than these settings",)

    def _digest(self) -> str:
        rules = kernel_rules.digest()
        if rules is None:
            return "none"
        return f"{rules} {self._kernel.digest(SETTLED_SETS)}"

    def _load(self, script: str) -> None:
        extra = "" if script == NO_TABLE else session_elements(self._sessions())
        kernel_rules.load(script + extra)
        self._table = self._kernel.table()
        # Listing what was loaded takes as long as loading it: the watcher does that when the kernel tells it.
        self._loaded = None

    def _still_there(self) -> bool:
        """Whether a policy that this daemon has loaded is in force."""
        try:
            return (
                not self._failsafe_reason and self._table is not None and self._kernel.table() == self._table
            )
        except CentralinoError:
            return False

    def _keep_the_one_before(self, reason: str) -> None:
        self._kept_because = (
            f"the firewall's policy could not be loaded again ({reason}): the one before stays in force; "
            "it is tried again, and so does: centralino firewall reload"
        )
        self._alarms.raise_alarm(FAILSAFE_ALARM, self._kept_because, Severity.CRITICAL)

    def _fail_safe(self, settings: Settings, reason: str) -> None:
        """The last resort; the sessions that are open stay."""
        self._failsafe_reason = reason
        try:
            self._load(failsafe(_management(settings)))
        except CentralinoError as error:
            self._failsafe_reason = f"{reason}; and the failsafe policy was refused too: {error}"
        self._alarms.raise_alarm(FAILSAFE_ALARM, self._failsafe_sentence(), Severity.CRITICAL)

    def _failsafe_sentence(self) -> str:
        return (
            f"the firewall's policy could not be loaded ({self._failsafe_reason}): only SSH from the "
            "management networks is open; correct the settings below `firewall`, or go back: "
            "centralino config rollback"
        )

    # --- details --------------------------------------------------------------------------------------------

    def _policy(self, settings: Settings) -> Policy:
        return build(settings)

    def _same_as_now(self, policy: Policy) -> bool:
        return policy == self._policy(self._settings())

    def _lock_out(self, policy: Policy, settings: Settings) -> list[Problem]:
        """A session that the new policy would not let in again is refused in cloud mode without management
        networks, and named otherwise: it stays open for an hour in any case."""
        welcome = (*policy.management, *(entry.network for entry in policy.support))
        strangers = [
            session
            for session in sorted(self._sessions(), key=str)
            if not any(session in network for network in welcome if network.version == session.version)
        ]
        if not strangers:
            return []
        shown = ", ".join(str(session) for session in strangers)
        careless = policy.mode is Mode.CLOUD and not settings.firewall.management_networks
        message = (
            f"{shown} is connected over SSH and would not get in again"
            if careless
            else f"{shown} is connected over SSH now, and will not get in again when the session has ended"
        )
        return [
            Problem(
                "firewall.management_networks",
                message,
                "add the network that you administer from: "
                f"centralino config append firewall.management_networks {_host(strangers[0])}",
                fatal=careless,
            )
        ]

    def _texts(self, settings: Settings, policy: Policy) -> dict[Path, str]:
        return {
            self._places.on_box(POLICY_FILE): render_lasting(policy)
            if settings.firewall.enabled
            else NO_TABLE,
            self._places.on_box(FAILSAFE_FILE): failsafe(_management(settings)),
        }

    def _files(self, settings: Settings, policy: Policy) -> tuple[FileChange, ...]:
        changes = []
        for path, text in self._texts(settings, policy).items():
            before = read_text(path)
            if before != text:
                changes.append(FileChange(path, before, text, mode=0o600))
        return tuple(changes)

    def _mend_files(self, settings: Settings, policy: Policy) -> None:
        """The files are ours alone: one that differs was damaged or edited, and a boot would suffer."""
        try:
            changes = self._files(settings, policy)
            for change in changes:
                ensure_directory(change.path.parent)
                apply_file_change(change)
        except StorageError as error:
            self._alarms.raise_alarm(FILE_ALARM, f"the firewall's rules for the next boot: {error}")
            return
        damaged = [str(change.path) for change in changes if change.before is not None]
        if damaged:
            sentence = f"{', '.join(damaged)} was not as this box had written it, and was written anew"
            self._alarms.raise_alarm(FILE_ALARM, f"{sentence}; find out who edits it", Severity.WARNING)
        else:
            self._alarms.clear_alarm(FILE_ALARM)


def _management(settings: Settings) -> tuple[Network, ...]:
    return settings.firewall.management_networks or default_management(settings, PRIVATE_NETWORKS)


def _without_lists(policy: Policy) -> Policy:
    return replace(policy, allowed=(), blocked=(), blocklist=(), support=())


def _host(address: Address) -> Network:
    return ip_network(f"{address}/{address.max_prefixlen}")


def _sentence(policy: Policy, enabled: bool) -> str:
    if not enabled:
        return "Take the firewall's table away: everything that listens can be reached"
    lists = [
        f"{len(entries)} {word}"
        for entries, word in (
            (policy.allowed, "allowed"),
            ((*policy.blocked, *policy.blocklist), "blocked"),
            (policy.support, "support"),
        )
        if entries
    ]
    extra = f" ({', '.join(lists)})" if lists else ""
    return f"Load the firewall's policy of {policy.mode.value} mode{extra}"
