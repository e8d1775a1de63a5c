"""The slave takes over what the pair has in common besides its settings: secrets and certificates."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable

from daemon.certificates.subsystem import Certificates
from daemon.engine import Engine
from daemon.errors import CentralinoError, ConflictError, UnavailableError
from daemon.jobs import JobHandle, Jobs
from daemon.pair_link import PairLink
from daemon.places import Places
from daemon.run import run
from daemon.services.model import Role
from daemon.shared_secrets import Digest, take_secrets
from daemon.subsystem import JsonObject

LANE = "settings"
WHO = "the master"
FETCH_SECONDS = 30.0
FETCH = (sys.executable, "-m", "fault_tolerance.service", "fetch-secrets")

log = logging.getLogger(__name__)


def fetch_from_master() -> str:
    """What the master's daemon.shared_secrets wrote. Raises UnavailableError, which quotes none of it."""
    done = run(FETCH, limit_seconds=FETCH_SECONDS, check=False)
    if done.status != 0:
        why = (done.errors.strip() or "the connection broke off").splitlines()[-1]
        raise UnavailableError(f"the master gives no secrets: {why}", "it is tried again")
    return done.output


class PairSecrets:
    """`take` fetches over the peer link, `digest` tells the runtime what this node has.

    `on_secrets` is called with the names of secrets that changed. The parts are asked for when needed."""

    def __init__(
        self,
        places: Places,
        engine: Callable[[], Engine],
        jobs: Callable[[], Jobs],
        link: Callable[[], PairLink],
        certificates: Certificates | None,
        on_secrets: Callable[[frozenset[str]], None],
        fetch: Callable[[], str] = fetch_from_master,
    ) -> None:
        self._places = places
        self._engine = engine
        self._jobs = jobs
        self._link = link
        self._certificates = certificates
        self._on_secrets = on_secrets
        self._fetch = fetch
        self._digest = Digest(places)
        self._names: tuple[int, list[str]] | None = None

    def names(self) -> list[str]:
        """The secrets that settings of cluster scope name."""
        engine = self._engine()
        if self._names is None or self._names[0] != engine.revision:
            from daemon.settings.scopes import secret_names

            self._names = engine.revision, secret_names(engine.settings)
        return self._names[1]

    def digest(self) -> str:
        """What this node has; "" where a slave does not serve it yet, so that it is tried again."""
        certificates = self._certificates
        if (
            certificates is not None
            and self._link().role() is Role.SLAVE
            and not certificates.serves_chosen()
        ):
            return ""
        return self._digest.now(self.names())

    def take(self) -> None:
        """Begin to have what the master has. It goes before settings that came later: they name it."""
        self._jobs().submit("receive", WHO, self._take, lane=LANE)

    def _take(self, _handle: JobHandle) -> object:
        self._refuse(None)
        try:
            given = json.loads(self._fetch())
            epoch, secrets, certificates = given["epoch"], given["secrets"], given["certificates"]
            self._refuse(int(epoch))
            changed = take_secrets(self._places, dict(secrets))
            if changed:
                log.info("taken over from the master: secrets %s", ", ".join(sorted(changed)))
                self._on_secrets(changed)
            if self._certificates is not None:
                self._certificates.follow(certificates)
        except (ValueError, KeyError, TypeError) as error:
            # The message of such an error may quote what was read.
            raise UnavailableError(
                f"what the master sent is not understood ({type(error).__name__})",
                "install the same version on both nodes",
            ) from None
        except CentralinoError as error:
            log.warning("secrets and certificates of the master were not taken over: %s", error)
            raise
        return {"secrets": sorted(changed)}

    def _refuse(self, epoch: int | None) -> None:
        """Raises ConflictError unless this node is slave and the epoch not older than its own."""
        status: JsonObject = self._link().ask("status")
        own = status.get("epoch")
        if status.get("role") != "slave" or not isinstance(own, int):
            raise ConflictError(f"this node is {status.get('role')}, and only a slave takes secrets over")
        if epoch is not None and epoch < own:
            raise ConflictError(f"the secrets are of epoch {epoch}, which is older than {own}")
