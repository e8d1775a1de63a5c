"""The work mode (settings `mode`): its defaults for others, the TURN server, what a switch deletes."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

from daemon.domain import own_addresses
from daemon.errors import ApplyFailedError, CentralinoError, Problem
from daemon.files import FileChange, ensure_directory, read_text, remove_file, write_file
from daemon.network.truth import LIMIT_SECONDS, Truth, look
from daemon.places import Places
from daemon.platform import Platform
from daemon.reach_files import MARK
from daemon.run import run
from daemon.secrets import SecretStore
from daemon.settings import Settings
from daemon.settings.reach import CertificateSource, WorkMode
from daemon.subsystem import Change, State
from daemon.turn import Credentials, coturn_text, credentials, idle_text, with_secret, without_secret
from daemon.work_modes import DEFAULTS, defaults, effects

Address = IPv4Address | IPv6Address

DEFAULTS_FILE = "mode-defaults.json"
EDGE_CLIENT_FILE = "edge/client.json"
KEPT_EDGE_CLIENT = "kept/edge-client.json"
COTURN_COPIES = "coturn"
"""Below the directory of the certificate; daemon.certificates.consumers keeps the copies new."""
SECRET_BYTES = 32
RESTART_LIMIT_SECONDS = 30.0

log = logging.getLogger(__name__)


class Mode:
    """See daemon.subsystem.Subsystem. coturn is started and stopped by supervision, which comes later."""

    name = "mode"
    sections: tuple[str, ...] = ("mode",)

    def __init__(
        self,
        places: Places,
        platform: Platform,
        settings: Callable[[], Settings],
        *,
        look: Callable[[float], Truth] = look,
    ) -> None:
        """`settings` are those in force."""
        self._places = places
        self._settings = settings
        self._look = look
        self._secrets = SecretStore(places.secrets)
        self._unit = platform.units["coturn"]
        self._user = platform.users["coturn"]
        self._certificate, self._key = platform.paths["tls_certificate"], platform.paths["tls_key"]
        copies = self._certificate.parent / COTURN_COPIES
        self._turn_certificate, self._turn_key = copies / self._certificate.name, copies / self._key.name
        self._turn_file = places.on_box(platform.paths["coturn_config"])
        self._defaults_file = places.state / DEFAULTS_FILE
        self._edge_file = places.configuration / EDGE_CLIENT_FILE
        self._kept_edge_file = places.state / KEPT_EDGE_CLIENT

    # --- the four functions -------------------------------------------------------------------------------

    def verify(self, settings: Settings, facts: Mapping[str, object]) -> Sequence[Problem]:
        """Warnings of cloud mode; its preconditions are refused by the schema and the domain (S-NW-02)."""
        if settings.mode.mode is not WorkMode.CLOUD:
            return []
        problems = []
        if settings.certificates.source is CertificateSource.SELF_SIGNED:
            problems.append(
                Problem(
                    "certificates.source",
                    "is self-signed, which phones and browsers outside do not trust",
                    "upload a certificate or have one made by ACME",
                    fatal=False,
                )
            )
        if settings.fault_tolerance.shared_addresses:
            problems.append(
                Problem(
                    "fault_tolerance.shared_addresses",
                    "are not used in cloud mode, where nothing but the name can move",
                    "switch the pair by hand in the order that the manual gives",
                    fatal=False,
                )
            )
        return problems

    def plan(self, old: Settings | None, new: Settings) -> Sequence[Change]:
        """The defaults, the edge client, the TURN server; each sentence of a switch is in the plan."""
        changes: list[Change] = []
        mode = new.mode.mode
        switches = old is not None and old.mode.mode is not mode
        before, after = read_text(self._defaults_file), _defaults_text(mode)
        if switches or (old is None and before != after):
            sentence = f"Take the defaults of work mode {mode.value}: {_differences(mode)}"
            file = FileChange(self._defaults_file, before, after)
            changes.append(Change(self.name, sentence, files=(file,), risky=switches))
        if edge := self._edge_change(mode):
            changes.append(edge)
        if switches:
            changes += [Change(self.name, effect.sentence) for effect in effects(mode) if not effect.deletes]
        if turn := self._turn_change(old, new):
            changes.append(turn)
        return changes

    def apply(self, change: Change) -> None:
        """Write the files; the secret joins coturn's only here, so that no plan can show it."""
        match change.detail.get("do"):
            case "turn":
                self._write_turn(change)
            case "delete edge client":
                self._delete_edge_client()
            case "restore edge client":
                self._restore_edge_client()
            case _:
                for file in change.files:
                    write_file(file.path, file.after or "", mode=file.mode)

    def observe(self) -> State:
        """The mode and its defaults; a TURN configuration by another hand is drift."""
        settings = self._settings()
        try:
            wanted = self._turn_text(settings)
            found = read_text(self._turn_file)
        except CentralinoError as error:
            return State(False, (f"the work mode cannot be seen: {error}",))
        drift: tuple[str, ...] = ()
        if found is not None and without_secret(found) != wanted:
            drift = (f"{self._turn_file} is not what the settings say",)
        mode = settings.mode.mode
        return State(not drift, drift=drift, facts={"mode": mode.value, "defaults": defaults(mode)})

    # --- for others ---------------------------------------------------------------------------------------

    def turn_credentials(self, name: str, life_seconds: int, now: float) -> Credentials:
        """Credentials for one client. Raises ApplyFailedError outside of cloud mode, NotFoundError."""
        settings = self._settings()
        if settings.mode.mode is not WorkMode.CLOUD:
            raise ApplyFailedError(
                "there is no TURN server in work mode standard", "see: centralino mode show"
            )
        return credentials(self._secrets.get(settings.media.turn_secret), name, life_seconds, now)

    def secrets_changed(self, names: frozenset[str]) -> None:
        """The master's TURN secret came: coturn takes it with its next start, at once if it runs.

        Raises StorageError, CommandFailedError."""
        settings = self._settings()
        name = settings.media.turn_secret
        if name not in names or settings.mode.mode is not WorkMode.CLOUD or not self._secrets.has(name):
            return
        text = with_secret(self._turn_text(settings), self._secrets.get(name))
        if self._turn_file.parent.is_dir() and read_text(self._turn_file) != text:
            write_file(self._turn_file, text, mode=0o600, owner=self._user, group=self._user)
            if self._places.is_live:
                run(["systemctl", "try-restart", self._unit], limit_seconds=RESTART_LIMIT_SECONDS)

    # ------------------------------------------------------------------------------------------------------

    def _edge_change(self, mode: WorkMode) -> Change | None:
        here, kept = self._edge_file, self._kept_edge_file
        if mode is WorkMode.CLOUD and here.is_file():
            return Change(
                self.name,
                "Delete the configuration of the edge client; a copy is kept for the way back",
                files=(FileChange(here, "", None, secret=True),),
                risky=True,
                deletes=(str(here),),
                detail={"do": "delete edge client"},
            )
        if mode is WorkMode.STANDARD and kept.is_file() and not here.exists():
            return Change(
                self.name,
                "Bring the configuration of the edge client back",
                files=(FileChange(here, None, "", mode=0o600, secret=True),),
                detail={"do": "restore edge client"},
            )
        return None

    def _delete_edge_client(self) -> None:
        text = read_text(self._edge_file)
        if text is None:
            return
        ensure_directory(self._kept_edge_file.parent, 0o700)
        write_file(self._kept_edge_file, text, mode=0o600)
        remove_file(self._edge_file)

    def _restore_edge_client(self) -> None:
        text = read_text(self._kept_edge_file)
        if text is None:
            return
        ensure_directory(self._edge_file.parent, 0o700)
        write_file(self._edge_file, text, mode=0o600)
        remove_file(self._kept_edge_file)

    def _turn_text(self, settings: Settings) -> str:
        if settings.mode.mode is not WorkMode.CLOUD:
            return idle_text(MARK)
        own = own_addresses(settings, self._look(LIMIT_SECONDS) if self._places.is_live else Truth())
        return coturn_text(settings, own, self._turn_certificate, self._turn_key, MARK)

    def _turn_change(self, old: Settings | None, new: Settings) -> Change | None:
        found = read_text(self._turn_file)
        before = None if found is None else without_secret(found)
        after = self._turn_text(new)
        known = self._turn_text(old) if old else before
        if after == known or not self._turn_file.parent.is_dir():
            return None
        cloud = new.mode.mode is WorkMode.CLOUD
        ports = f"UDP ports {new.media.relay_first_port} to {new.media.relay_last_port}"
        return Change(
            self.name,
            f"Relay audio for {new.domain.fqdn} (TURN) on {ports}"
            if cloud
            else "Leave the TURN server without a configuration that anybody could use",
            files=(
                FileChange(self._turn_file, before, after, mode=0o600, owner=self._user, group=self._user),
            ),
            restarts=(self._unit,) if cloud and old is not None and old.mode.mode is WorkMode.CLOUD else (),
            detail={"do": "turn", "secret": new.media.turn_secret if cloud else ""},
        )

    def _write_turn(self, change: Change) -> None:
        file = change.files[0]
        text = file.after or ""
        if name := str(change.detail.get("secret") or ""):
            if not self._secrets.has(name):
                self._secrets.set(name, secrets.token_hex(SECRET_BYTES))
            text = with_secret(text, self._secrets.get(name))
            self._copy_certificate()
        write_file(file.path, text, mode=file.mode, owner=file.owner, group=file.group)
        if change.restarts and self._places.is_live:
            # Only one that runs; supervision starts it in a step of its own.
            run(["systemctl", "try-restart", self._unit], limit_seconds=RESTART_LIMIT_SECONDS)

    def _copy_certificate(self) -> None:
        """coturn has a user of its own, who cannot read the box's key. Renewals replace the copy too."""
        for source, target, mode in (
            (self._certificate, self._turn_certificate, 0o644),
            (self._key, self._turn_key, 0o600),
        ):
            place = self._places.on_box(target)
            text = read_text(self._places.on_box(source))
            if text is None or read_text(place) == text:
                continue
            ensure_directory(place.parent)
            write_file(place, text, mode=mode, owner=self._user, group=self._user)


def _defaults_text(mode: WorkMode) -> str:
    return json.dumps({"mode": mode.value, "defaults": defaults(mode)}, indent=2) + "\n"


def _differences(mode: WorkMode) -> str:
    return "; ".join(
        f"{default.title.lower()}: {default.value(mode)}"
        for default in DEFAULTS
        if default.standard != default.cloud
    )
