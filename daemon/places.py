"""Where things lie on the box, below one root, so that tests and previews can use a root of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """Paths of the daemon's own files; `root` is `/` on a box. See docs/architecture.md, "On the box"."""

    root: Path = Path("/")

    def on_box(self, path: str | Path) -> Path:
        """An absolute path of the box as it lies below the root: `/etc/hostname` -> ROOT/etc/hostname."""
        return self.root / Path(path).relative_to("/")

    @property
    def is_live(self) -> bool:
        """Whether this is the running box; below another root only files are touched, never the kernel."""
        return self.root == Path("/")

    @property
    def configuration(self) -> Path:
        """The platform file, the initial settings, the secrets."""
        return self.on_box("/etc/centralino")

    @property
    def platform_file(self) -> Path:
        """Unit names and paths of this platform."""
        return self.configuration / "platform.toml"

    @property
    def initial_settings(self) -> Path:
        """Settings that the image brings; they become revision 1 on the first start."""
        return self.configuration / "initial-settings.json"

    @property
    def secrets(self) -> Path:
        """One secret a file."""
        return self.configuration / "secrets"

    @property
    def state(self) -> Path:
        """Everything that must outlive a reboot."""
        return self.on_box("/var/lib/centralino")

    @property
    def revisions(self) -> Path:
        """The settings, one file a revision."""
        return self.state / "revisions"

    @property
    def first_password(self) -> Path:
        """The first password of the first user, until it is changed or the box starts again."""
        return self.on_box("/run/centralino/first-password")

    @property
    def logs(self) -> Path:
        """The audit log."""
        return self.on_box("/var/log/centralino")

    @property
    def audit_log(self) -> Path:
        """Every mutating and every refused call, one JSON object a line."""
        return self.logs / "audit.jsonl"

    @property
    def run(self) -> Path:
        """Sockets and verdict files, gone after a reboot."""
        return self.on_box("/run/centralino")

    @property
    def boot_marker(self) -> Path:
        """Names this boot, see daemon.clock."""
        return self.run / "boot"
