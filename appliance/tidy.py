"""Take out of a finished tree what only says when and where it was built.

What stays is the same for two builds of the same inputs, apart from times, which archives cut at the epoch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from appliance.platform_data import PlatformData

# Directories to empty: caches that fill themselves, and logs of the build.
EMPTIED = (
    "dev",
    "proc",
    "run",
    "sys",
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/dnf",
    "var/cache/ldconfig",
    "var/cache/yum",
    "var/lib/apt/lists",
    "var/lib/dnf",
    "var/log/apt",
    "var/log/journal",
    "root/.ansible",
    "root/.cache",
    "tmp",
    "var/tmp",
)
# Single files: each is made anew when it is needed.
REMOVED = (
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/resolv.conf.kiwi",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "root/.bash_history",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/statoverride-old",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/status.kiwi",
    "var/lib/systemd/random-seed",
    "var/log/alternatives.log",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
    "var/log/fontconfig.log",
    "var/log/btmp",
    "var/log/wtmp",
    "var/log/lastlog",
    "var/log/faillog",
    "var/log/centralino/install.log",
)


def tidy(root: Path, platform: PlatformData, epoch: int) -> None:
    """Empty caches and the database, remove build logs, make passwd's "last changed" days those of `epoch`.

    The database that a package's script made is full of times and identities; its first start makes another.
    """
    for name in (*EMPTIED, platform.box.paths["mariadb_data"].lstrip("/")):
        empty(root / name)
    for name in REMOVED:
        path = root / name
        if path.is_symlink() or path.is_file():
            path.unlink()
    _fix_shadow(root, epoch // 86400)


def empty(directory: Path) -> None:
    """Remove everything in a directory, keep the directory."""
    if directory.is_symlink() or not directory.is_dir():
        return
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _fix_shadow(root: Path, day: int) -> None:
    """The third field of etc/shadow is the day of the last password change: the day of the build."""
    shadow = root / "etc/shadow"
    if not shadow.is_file():
        return
    lines = []
    for line in shadow.read_text().splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isdigit() and int(fields[2]) > day:
            fields[2] = str(day)
        lines.append(":".join(fields))
    state = shadow.stat()
    shadow.write_text("\n".join(lines) + "\n")
    shadow.chmod(state.st_mode & 0o7777)
