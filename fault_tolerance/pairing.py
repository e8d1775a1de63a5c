"""Making two nodes a pair: a one-time code, one SSH session by paramiko, keys exchanged and pinned.

The code has two halves: a secret from which both sides derive a key that opens a session for a quarter of an
hour and can do nothing but pair; and the fingerprint of the inviting node's host key, so that nobody in
between can pose as that node, not even the first time. Neither half is ever sent.

Runs in processes of their own that end, so that paramiko and cryptography are in no resident one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import ip_interface
from typing import IO, TYPE_CHECKING, Any

from daemon.errors import (
    CentralinoError,
    CommandFailedError,
    ConflictError,
    InvalidSettingsError,
    NotAuthorizedError,
    Problem,
    UnavailableError,
)
from fault_tolerance import keys
from fault_tolerance.contracts import Channel
from fault_tolerance.hearing import SKEW_SECONDS
from fault_tolerance.pair import RUN, STATE, USER
from fault_tolerance.state import RoleState
from fault_tolerance.way import packet_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SECRET_LETTERS = 10
FINGERPRINT_LETTERS = 10
INVITATION_MINUTES = 15
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
LONGEST_LINE = 256 * 1024
SALT = b"centralino pairing 1"

Table = dict[str, object]


def command(verb: str, words: Sequence[str]) -> int:
    """`invite`: print a code. `pair`: {"peer", "port", "code", "facts"} on stdin, the peer's facts on stdout.
    `greet FACTS`: the inviting side's end of a session. `forget`: drop all keys. Raises CentralinoError."""
    match verb:
        case "invite":
            print(json.dumps(invite()))
        case "pair":
            print(json.dumps(pair(json.loads(sys.stdin.readline(LONGEST_LINE)))))
        case "greet":
            return greet(words, sys.stdin, sys.stdout)
        case _:
            keys.forget()
    return 0


# --- the code -----------------------------------------------------------------------------------------------


def fingerprint(host_key: str) -> str:
    """Letters of the SHA-256 of a host key's base64 part."""
    blob = base64.b64decode(host_key.split()[1])
    return base64.b32encode(hashlib.sha256(blob).digest()).decode()[:FINGERPRINT_LETTERS]


def new_code(host_key: str) -> str:
    """Four groups of five letters and digits."""
    secret = base64.b32encode(secrets.token_bytes(10)).decode()[:SECRET_LETTERS]
    letters = secret + fingerprint(host_key)
    return "-".join(letters[start : start + 5] for start in range(0, len(letters), 5))


def read_code(code: str) -> tuple[str, str]:
    """Secret and fingerprint; forgiving about case, dashes and blanks. Raises InvalidSettingsError."""
    letters = "".join(letter for letter in code.upper() if letter.isalnum())
    if len(letters) != SECRET_LETTERS + FINGERPRINT_LETTERS:
        raise InvalidSettingsError(
            [Problem("code", "is not complete", "read it again from `centralino fault-tolerance invite`")]
        )
    return letters[:SECRET_LETTERS], letters[SECRET_LETTERS:]


def _guest_key(secret: str) -> EllipticCurvePrivateKey:
    """The same key on both sides: P-256, from the secret by scrypt."""
    from cryptography.hazmat.primitives.asymmetric import ec

    seed = hashlib.scrypt(secret.encode(), salt=SALT, n=2**14, r=8, p=1, dklen=40)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    return ec.derive_private_key(int.from_bytes(seed, "big") % (order - 1) + 1, ec.SECP256R1())


def invite() -> Table:
    """Let a guest in for a quarter of an hour; the code for `pair` on the other node."""
    import paramiko

    chosen = _preferred(keys.host_keys())
    code = new_code(chosen)
    private = _guest_key(read_code(code)[0])
    key = paramiko.ECDSAKey(vals=(private, private.public_key()))
    until = datetime.now() + timedelta(minutes=INVITATION_MINUTES)
    keys.welcome_guest(f"{key.get_name()} {key.get_base64()}", until)
    return {"code": code, "minutes": INVITATION_MINUTES}


def _preferred(host_keys: Sequence[str]) -> str:
    """The one that both sides name in the code: Ed25519 where there is one, else the first."""
    return next((key for key in host_keys if key.startswith("ssh-ed25519")), host_keys[0])


# --- the asking side ----------------------------------------------------------------------------------------


def pair(request: Table) -> Table:
    """Pair with the node at `peer`; returns its facts. Raises CentralinoError with the reason."""
    import paramiko

    secret, expected = read_code(str(request["code"]))
    peer, port = str(request["peer"]), int(str(request["port"]))
    own = request["facts"]
    if not isinstance(own, dict):
        raise CommandFailedError("the own facts are missing")
    own = {
        **own,
        "public_key": keys.own_public_key(),
        "host_keys": list(keys.host_keys()),
        "packet_bytes": packet_bytes(peer),
    }
    private = _guest_key(secret)
    guest = paramiko.ECDSAKey(vals=(private, private.public_key()))
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(_Fingerprint(expected))  # type: ignore[arg-type]
    try:
        client.connect(
            peer,
            port,
            USER,
            pkey=guest,
            timeout=CONNECT_SECONDS,
            banner_timeout=CONNECT_SECONDS,
            auth_timeout=CONNECT_SECONDS,
            allow_agent=False,
            look_for_keys=False,
        )
    except paramiko.AuthenticationException:
        raise NotAuthorizedError(
            f"{peer} does not accept this code", "a code is good for 15 minutes: invite again on that node"
        ) from None
    except (paramiko.SSHException, OSError) as error:
        raise UnavailableError(
            f"{peer} cannot be reached over SSH: {error}", "check address and firewall"
        ) from error
    with contextlib.closing(client):
        stdin, stdout, stderr = client.exec_command(Channel.PAIR.value, timeout=ANSWER_SECONDS)
        try:
            # Each tells its time when the other one reads already: what differs then is the clocks.
            _hear(stdout, stderr)
            _say(stdin, {**own, "wall": time.time()})
            answer = _hear(stdout, stderr)
            refuse_unfit(own, answer, time.time())
            _say(stdin, {"commit": True})
            done = _hear(stdout, stderr)
        except (OSError, paramiko.SSHException) as error:
            raise UnavailableError(f"{peer} went away while pairing: {error}", "try again") from error
    if done.get("done") is not True:
        raise CommandFailedError(f"{peer} did not finish the pairing", "try again")
    hosts = answer["host_keys"]
    if not isinstance(hosts, list):
        raise CommandFailedError(f"{peer} named no host keys")
    keys.pin_peer(str(answer["public_key"]), [str(host) for host in hosts], peer)
    state = RoleState(STATE, RUN)
    # The node that asks is the one whose data are kept: it comes first when nobody is master yet.
    epoch = max(state.durable.epoch, _epoch(answer)) + 1
    state.change(epoch=epoch, mastered=epoch, off=False)
    return answer


class _Fingerprint:
    """paramiko's missing-host-key policy: the key must be the one in the code."""

    def __init__(self, expected: str) -> None:
        self._expected = expected

    def missing_host_key(self, _client: object, hostname: str, key: object) -> None:
        """Raises SSHException for another key."""
        import paramiko

        name, blob = key.get_name(), key.get_base64()  # type: ignore[attr-defined]
        if fingerprint(f"{name} {blob}") != self._expected:
            raise paramiko.SSHException(
                f"the node that answers at {hostname} is not the one that made this code"
            )


# --- the inviting side --------------------------------------------------------------------------------------


def greet(words: Sequence[str], incoming: IO[str], outgoing: IO[str]) -> int:
    """Talk to a guest on the standard streams; on commit hand its facts to centralinod, which joins."""
    from fault_tolerance.bus import call

    def say(table: Table) -> None:
        outgoing.write(json.dumps(table) + "\n")
        outgoing.flush()

    try:
        say({"ready": True})
        theirs = json.loads(incoming.readline(LONGEST_LINE))
        heard = time.time()
        own: Table = json.loads(
            call("Facts", json.dumps({"shared": theirs["fault_tolerance"]["shared_addresses"]}))
        )
        own |= {
            "public_key": keys.own_public_key(),
            "host_keys": list(keys.host_keys()),
            "packet_bytes": packet_bytes(str(theirs["link_address"])),
        }
        refuse_unfit(own, theirs, heard)
        say({**own, "epoch": RoleState(STATE, RUN).durable.epoch, "wall": time.time()})
        answer = json.loads(incoming.readline(LONGEST_LINE))
        if answer.get("commit") is not True:
            return 1
        keys.pin_peer(
            str(theirs["public_key"]),
            [str(host) for host in theirs["host_keys"]],
            str(theirs["link_address"]),
        )
        RoleState(STATE, RUN).change(mastered=0, off=False)
        call("Join", json.dumps(theirs))
        say({"done": True})
    except CentralinoError as error:
        say({"refused": error.message, "remedy": error.remedy})
        return error.exit_code
    except (ValueError, KeyError, TypeError) as error:
        say({"refused": f"this version does not understand the other node ({error})", "remedy": ""})
        return 1
    return 0


# --- both ---------------------------------------------------------------------------------------------------


def refuse_unfit(own: Table, peer: Table, now: float) -> None:
    """Raises ConflictError with every reason why these two cannot be a pair."""
    reasons = []
    for key, what in (("version", "version"), ("schema", "settings schema"), ("mode", "work mode")):
        if own.get(key) != peer.get(key):
            reasons.append(f"this node has {what} {own.get(key)}, the other one {peer.get(key)}")
    skew = float(str(peer.get("wall", 0))) - now
    if abs(skew) > SKEW_SECONDS:
        reasons.append(f"the clocks of the two nodes are {abs(skew):.1f} s apart")
    if own.get("machine") == peer.get("machine"):
        reasons.append("both nodes have the same machine id: one is a copy of the other")
    if own.get("hostname") == peer.get("hostname"):
        reasons.append(f"both nodes are called {own.get('hostname')}")
    mine, theirs = own.get("service_address"), peer.get("service_address")
    if mine and theirs:
        one, other = ip_interface(str(mine)), ip_interface(str(theirs))
        if one.network != other.network:
            reasons.append(f"{one} and {other} are not on the same subnet")
        elif one.ip == other.ip:
            reasons.append(f"both nodes have the address {one.ip}")
    elif mine or theirs:
        reasons.append("only one of the nodes has an address in the subnet of the primary shared address")
    here, there = own.get("packet_bytes"), peer.get("packet_bytes")
    if here and there and here != there:
        reasons.append(f"the way between them takes packets of {here} bytes here and of {there} bytes there")
    if own.get("licence") is False or peer.get("licence") is False:
        reasons.append("a licence does not allow a pair")
    if reasons:
        raise ConflictError(
            "these two nodes cannot be a pair: " + "; ".join(reasons), "mend that, and pair again"
        )


def _epoch(answer: Table) -> int:
    epoch = answer.get("epoch")
    return epoch if isinstance(epoch, int) else 0


def _say(stream: Any, table: Table) -> None:
    stream.write(json.dumps(table) + "\n")
    stream.flush()


def _hear(stdout: Any, stderr: Any) -> Table:
    line = stdout.readline(LONGEST_LINE)
    if not line:
        said = stderr.read().strip() if hasattr(stderr, "read") else ""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise UnavailableError(text or "the other node hung up", "see its journal")
    table = json.loads(line)
    if "refused" in table:
        raise ConflictError(f"the other node refuses: {table['refused']}", str(table.get("remedy", "")))
    return dict(table)
