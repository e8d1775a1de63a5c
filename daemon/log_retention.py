"""How long logs are kept (settings section `logs`): systemd's journal, and our audit log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from daemon.audit import MEBIBYTE, AuditLog
from daemon.errors import Problem, StorageError
from daemon.files import FileChange, apply_file_change, ensure_directory, read_text
from daemon.places import Places
from daemon.run import run
from daemon.settings import Settings
from daemon.subsystem import Change, State

# Later names win, so this overrides what the image brings.
FILE = "/etc/systemd/journald.conf.d/90-centralino.conf"
UNIT = "systemd-journald.service"
LIMIT_SECONDS = 30.0


class LogRetention:
    """A drop-in of journald, and the size of the audit log."""

    name = "logs"
    sections = ("logs",)

    def __init__(self, places: Places, audit: AuditLog) -> None:
        self._places = places
        self._audit = audit
        self._wanted: str | None = None

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        """Nothing that only the box could know."""
        return []

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        """One change of the drop-in; the audit log needs none of the box."""
        file = self._places.on_box(FILE)
        after, before = rendered(new), read_text(file)
        audit = {"audit_bytes": new.logs.audit_megabytes * MEBIBYTE}
        if (before != after) if old is None else (rendered(old) != after):
            days, megabytes = new.logs.journal.days, new.logs.journal.megabytes
            return [
                Change(
                    self.name,
                    f"Keep the journal for {days} days, in at most {megabytes} MB.",
                    files=(FileChange(file, before, after),),
                    restarts=(UNIT,),
                    detail=audit,
                )
            ]
        if new.logs.audit_megabytes * MEBIBYTE != self._audit.maximum_bytes:
            sentence = f"Start a new audit file every {new.logs.audit_megabytes} MB."
            return [Change(self.name, sentence, detail=audit)]
        return []

    def apply(self, change: Change) -> None:
        """Write the drop-in and let journald read it; it keeps all streams over a restart."""
        if isinstance(size := change.detail.get("audit_bytes"), int):
            self._audit.maximum_bytes = size
        for file in change.files:
            ensure_directory(file.path.parent)
            apply_file_change(file)
            self._wanted = file.after
        if change.files and self._places.is_live:
            run(["systemctl", "restart", UNIT], limit_seconds=LIMIT_SECONDS)

    def observe(self) -> State:
        """Whether somebody else changed the drop-in."""
        try:
            found = read_text(self._places.on_box(FILE))
        except StorageError as error:
            return State(False, (str(error),))
        drift = (f"{FILE} was changed by hand",) if self._wanted not in (None, found) else ()
        return State(True, drift=drift, facts={"audit_bytes": self._audit.maximum_bytes})


def rendered(settings: Settings) -> str:
    """The drop-in, journald.conf(5) of systemd 239."""
    journal = settings.logs.journal
    return (
        "# Written by centralinod from the settings section `logs`.\n"
        "[Journal]\n"
        "Storage=persistent\n"
        f"SystemMaxUse={journal.megabytes}M\n"
        f"MaxRetentionSec={journal.days}day\n"
    )
