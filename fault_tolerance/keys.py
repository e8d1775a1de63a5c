"""Who may open the peer link: the key files of this node, the peer's, and an invited guest's.

`authorized_keys` is rendered whole from what is pinned, so that nothing else can creep in. Every key is
restricted to one forced command; the peer's also to the peer's address, a guest's to a quarter of an hour.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from daemon.errors import StorageError
from daemon.files import ensure_directory, remove_file, write_file
from daemon.run import run
from fault_tolerance import accept
from fault_tolerance.pair import AUTHORIZED_KEYS, HOST_KEYS, KEY_FILE, KNOWN_HOSTS, STATE
from fault_tolerance.peer_link import HOST_ALIAS

PEER_FILE = STATE / "peer-key"
GUEST_FILE = STATE / "guest-key"
log = logging.getLogger(__name__)

_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)) [A-Za-z0-9+/]{20,2000}={0,3}")


def own_public_key() -> str:
    """This node's key for the peer link, made when it is first asked for: `TYPE BASE64`."""
    ensure_directory(STATE, 0o700)
    public = KEY_FILE.with_suffix(".pub")
    try:
        if KEY_FILE.stat().st_size:
            return checked(public.read_text())
    except (OSError, ValueError):
        log.info("this node gets a key for the peer link")
    # ssh-keygen does not sync what it writes: after a power loss the key would be empty.
    fresh = KEY_FILE.with_name("key-new")
    for path in (fresh, fresh.with_suffix(".pub")):
        path.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "256", "-N", "", "-C", "", "-f", str(fresh)])
    write_file(KEY_FILE, fresh.read_bytes(), mode=0o600)
    write_file(public, fresh.with_suffix(".pub").read_bytes())
    for path in (fresh, fresh.with_suffix(".pub")):
        path.unlink()
    return checked(public.read_text())


def host_keys(directory: Path = HOST_KEYS) -> tuple[str, ...]:
    """The public host keys of this node's SSH server."""
    found = []
    for path in sorted(directory.glob("ssh_host_*_key.pub")):
        with contextlib.suppress(ValueError, OSError):
            found.append(checked(path.read_text()))
    if not found:
        raise StorageError(
            f"{directory} holds no host key", "is the SSH server installed and was it started?"
        )
    return tuple(found)


def checked(text: str) -> str:
    """`TYPE BASE64` of a public key, without its comment. Raises ValueError for anything else."""
    found = _KEY.match(text.strip())
    if found is None:
        raise ValueError("this is no public key")
    return found[0]


def pin_peer(key: str, hosts: Sequence[str], address: str) -> None:
    """From now on this key may open the link from this address, and the peer must show one of `hosts`."""
    known = "".join(f"{HOST_ALIAS} {checked(host)}\n" for host in hosts)
    write_file(KNOWN_HOSTS, known, mode=0o600)
    write_file(PEER_FILE, f"{address} {checked(key)}\n", mode=0o600)
    remove_file(GUEST_FILE)
    render()


def welcome_guest(key: str, until: datetime) -> None:
    """Let a guest in who can do nothing but pair, until then."""
    ensure_directory(STATE, 0o700)
    write_file(GUEST_FILE, f"{until:%Y%m%d%H%M%S} {checked(key)}\n", mode=0o600)
    render()


def forget() -> None:
    """Nobody may open the link any more."""
    for path in (PEER_FILE, GUEST_FILE, KNOWN_HOSTS):
        remove_file(path)
    render()


def render() -> None:
    """Write the file that sshd reads."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        address, key = PEER_FILE.read_text().strip().split(" ", 1)
        lines.append(f'restrict,from="{address}",command="{_command("peer")}" {checked(key)}\n')
    with contextlib.suppress(FileNotFoundError):
        until, key = GUEST_FILE.read_text().strip().split(" ", 1)
        lines.append(f'restrict,expiry-time="{until}",command="{_command("guest")}" {checked(key)}\n')
    # Read by sshd as the user of the link.
    write_file(AUTHORIZED_KEYS, "".join(lines), mode=0o644)


def _command(who: str) -> str:
    return f"{sys.executable} -I -S {accept.__file__} {who}"
