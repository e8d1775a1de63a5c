"""Who serves the certificate: which files each reads, how each takes a new one, where it is asked for it.

Nothing here drops a call: nginx and coturn take new files on a signal, Asterisk renews its TLS
listener alone.
"""

from __future__ import annotations

import pwd
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from daemon.errors import CentralinoError, CommandFailedError
from daemon.files import read_text, write_file
from daemon.places import Places
from daemon.platform import Platform
from daemon.run import run

RELOAD_LIMIT_SECONDS = 15.0
LISTENER_FILE = "pjsip.d/90-tls-listener.conf"
LISTENER_TEXT = """\
; Written by Centralino. Asterisk before 16.29, 18.15 and 20.0 renews the listener of TLS only if its section
; has changed, so this number is another one after each certificate; it acts on WebSockets alone.
[tls](+)
allow_reload = yes
websocket_write_timeout = {number}
"""
_NUMBER = re.compile(r"^websocket_write_timeout = (\d+)$", re.MULTILINE)
_ENABLED = re.compile(r"^\s*tlsenable\s*=>?\s*(yes|true|1|on)\b", re.MULTILINE | re.IGNORECASE)
_WSS_PORT = re.compile(r"^\s*tlsbindaddr\s*=>?\s*\S*?:(\d+)\s*$", re.MULTILINE)
_TURN_PORT = re.compile(r"^\s*tls-listening-port\s*=\s*(\d+)", re.MULTILINE)


class Service(StrEnum):
    """A consumer's name."""

    WEB = "nginx"
    SIP = "asterisk-tls"
    WSS = "asterisk-wss"
    TURN = "coturn"


@dataclass(frozen=True)
class Copy:
    """Where a consumer reads chain and key; the key is readable by `owner` alone."""

    chain: Path
    key: Path
    owner: str


@dataclass(frozen=True)
class Consumer:
    """`reloads` are ways to take a new certificate, gentlest first: the next is tried if the handshake after
    one still shows the old certificate. `port` is None where it is not configured to serve TLS."""

    service: Service
    title: str
    unit: str
    port: int | None
    copy: Copy
    reloads: tuple[Callable[[], None], ...]

    def running(self) -> bool:
        """Whether it is configured, and its unit runs now."""
        if self.port is None:
            return False
        done = run(["systemctl", "is-active", "--quiet", self.unit], check=False)
        return done.status == 0


def consumers(places: Places, platform: Platform) -> Sequence[Consumer]:
    """Those whose program is installed, as configured at this moment."""
    return [one for one in _known(places, platform) if _account_exists(one.copy.owner)]


def _account_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _known(places: Places, platform: Platform) -> Sequence[Consumer]:
    asterisk = places.on_box(platform.paths["asterisk_config"])
    web = Copy(
        places.on_box(platform.paths["tls_certificate"]), places.on_box(platform.paths["tls_key"]), "root"
    )
    keys = Copy(
        asterisk / "keys" / web.chain.name, asterisk / "keys" / web.key.name, platform.users["asterisk"]
    )
    turn_directory = web.chain.parent / "coturn"
    turn = Copy(turn_directory / web.chain.name, turn_directory / web.key.name, platform.users["coturn"])
    units = platform.units
    listener = asterisk / LISTENER_FILE
    http, turn_text = _text(asterisk / "http.conf"), _text(places.on_box(platform.paths["coturn_config"]))
    return (
        Consumer(
            Service.WEB,
            "web",
            units["nginx"],
            443,
            web,
            (lambda: _run("systemctl", "reload", units["nginx"]),),
        ),
        Consumer(
            Service.SIP,
            "SIP over TLS",
            units["asterisk"],
            5061,
            keys,
            (
                lambda: _reload_listener(platform, listener),
                lambda: _renew_listener(platform, listener, platform.users["asterisk"]),
            ),
        ),
        Consumer(
            Service.WSS,
            "WebSockets of Asterisk",
            units["asterisk"],
            _port(_WSS_PORT, http, 8089) if _ENABLED.search(http) else None,
            keys,
            (lambda: _asterisk(platform, "module reload http"),),
        ),
        Consumer(
            Service.TURN,
            "TURN",
            units["coturn"],
            _port(_TURN_PORT, turn_text, 5349) if str(turn.chain) in turn_text else None,
            turn,
            # coturn(1): SIGUSR2 makes it read its certificate again; sessions go on.
            (lambda: _run("systemctl", "kill", "--signal=SIGUSR2", units["coturn"]),),
        ),
    )


def _reload_listener(platform: Platform, listener: Path) -> None:
    """With unchanged file names, Asterisk reads the files again; where that was not enough once, the listener
    is renewed at once."""
    if listener.is_file():
        _renew_listener(platform, listener, platform.users["asterisk"])
    else:
        _asterisk(platform, "module reload res_pjsip.so")


def _renew_listener(platform: Platform, listener: Path, group: str) -> None:
    found = _NUMBER.search(read_text(listener) or "")
    number = 101 if found and found[1] == "100" else 100
    write_file(listener, LISTENER_TEXT.format(number=number), mode=0o640, group=group)
    _asterisk(platform, "module reload res_pjsip.so")


def _asterisk(platform: Platform, command: str) -> None:
    _run(str(platform.paths["asterisk_binary"]), "-rx", command)


def _run(*arguments: str) -> None:
    try:
        run(arguments, limit_seconds=RELOAD_LIMIT_SECONDS)
    except CommandFailedError as error:
        raise CentralinoError(error.message, "see the journal of that service") from error


def _text(file: Path) -> str:
    return read_text(file) or ""


def _port(pattern: re.Pattern[str], text: str, otherwise: int) -> int:
    found = pattern.search(text)
    return int(found[1]) if found else otherwise
