"""What a profile says about its boxes, written into a finished root tree: name, time zone, language, access.

An installation by kickstart gets the same from the installer. Pure file writing, no program is run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from appliance.errors import InputError
from appliance.platform_data import PlatformData
from appliance.profile import Profile

FIRST_USER = "admin"
HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"


def personalize(root: Path, profile: Profile, platform: PlatformData) -> None:
    """Write hostname, time zone, locale, keyboard, root's password hash and the first user's keys."""
    regional = profile.regional
    write(root, "etc/hostname", f"{profile.network.hostname}\n")
    if not (root / "etc/hosts").exists():
        # kiwi takes away the build host's and leaves none.
        write(root, "etc/hosts", HOSTS)
    zone = Path("usr/share/zoneinfo") / regional.timezone
    if ".." in zone.parts or not (root / zone).is_file():
        raise InputError(
            f"{platform.title} knows no time zone {regional.timezone!r}",
            "correct regional.timezone in the profile",
        )
    replace_link(root, "etc/localtime", f"/{zone.as_posix()}")
    write(root, "etc/locale.conf", f"LANG={regional.language}\n")
    write(root, "etc/vconsole.conf", f"KEYMAP={regional.keyboard}\n")
    if (root / "etc/timezone").exists():
        write(root, "etc/timezone", f"{regional.timezone}\n")
    if (root / "etc/default").is_dir() and (root / "etc/debian_version").exists():
        # Debian's own names for the same two.
        write(root, "etc/default/locale", f"LANG={regional.language}\n")
        write(
            root,
            "etc/default/keyboard",
            f'XKBMODEL="pc105"\nXKBLAYOUT="{regional.keyboard}"\nXKBVARIANT=""\nXKBOPTIONS=""\nBACKSPACE="guess"\n',
        )
    if profile.access.root_password_hash is not None:
        set_password_hash(root, "root", profile.access.root_password_hash)
    if profile.access.ssh_keys:
        add_authorized_keys(root, FIRST_USER, profile.access.ssh_keys)


def write(root: Path, name: str, text: str, mode: int = 0o644) -> None:
    """Write a file of the tree; a link in its place is replaced, not followed out of the tree."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        path.unlink()
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def replace_link(root: Path, name: str, target: str) -> None:
    """Make a symbolic link of the tree, in place of whatever file was there."""
    path = root / name
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def set_password_hash(root: Path, user: str, password_hash: str) -> None:
    """Put a hash into etc/shadow; raises InputError if the tree has no such user."""
    shadow = root / "etc/shadow"
    text, count = re.subn(
        rf"^{re.escape(user)}:[^:]*:", f"{user}:{password_hash}:", shadow.read_text(), flags=re.MULTILINE
    )
    if count != 1:
        raise InputError(f"the tree has no user {user}", "the roles did not finish; read the build's log")
    shadow.write_text(text)


def add_authorized_keys(root: Path, user: str, keys: tuple[str, ...]) -> None:
    """Let a user of the tree in by SSH keys."""
    for line in (root / "etc/passwd").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == user:
            number, group, home = int(fields[2]), int(fields[3]), fields[5].lstrip("/")
            break
    else:
        raise InputError(f"the tree has no user {user}", "the roles did not finish; read the build's log")
    directory = root / home / ".ssh"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(root, f"{home}/.ssh/authorized_keys", "".join(f"{key}\n" for key in keys), 0o600)
    for path in (directory, directory / "authorized_keys"):
        os.chown(path, number, group)
