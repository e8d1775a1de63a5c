"""Automatic certificates by ACME (RFC 8555, HTTP-01; renewal information RFC 9773); in the helper process.

The protocol is the library's (`acme` and `josepy`, of the Certbot project). Here are our choices: an
EC account key that is kept, patience with rejected nonces, and every failure as one sentence with its remedy.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import requests
from acme import challenges, client, errors, messages
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from daemon.certificates import making
from daemon.certificates.conditions import challenge_file
from daemon.files import remove_file, write_file

USER_AGENT = "Centralino"
NONCE_TRIES = 8
NETWORK_LIMIT_SECONDS = 20
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,256}")
_PREFIX = "urn:ietf:params:acme:error:"


class OrderFault(StrEnum):
    """Why no certificate came, as sentences."""

    UNREACHABLE = "the certificate service cannot be reached"
    RATE_LIMITED = "the certificate service has had too many requests for this domain or address"
    VALIDATION = "the certificate service could not see this box under the domain"
    DNS = "the certificate service could not look the domain up"
    REFUSED = "the certificate service refuses"
    EXPIRED = "the order was not finished in time and has expired"
    TIMEOUT = "the certificate service took too long"


class OrderError(Exception):
    """No certificate; `retry_after` is the moment before which it makes no sense to ask again."""

    def __init__(
        self, fault: OrderFault, detail: str, remedy: str, retry_after: datetime | None = None
    ) -> None:
        super().__init__(f"{fault.value} ({detail})" if detail else fault.value)
        self.fault = fault
        self.remedy = remedy
        self.retry_after = retry_after
        self.account: str | None = None
        self.account_unknown = False

    def as_json(self) -> dict[str, object]:
        """`fault` (short name), `message`, `remedy`, `retry_after` (ISO 8601 or null)."""
        return {
            "fault": self.fault.name.lower().replace("_", "-"),
            "message": str(self),
            "remedy": self.remedy,
            "retry_after": None if self.retry_after is None else self.retry_after.isoformat(),
        }


@dataclass(frozen=True)
class Service:
    """Where to order: `roots` is a file of certificates in PEM that vouch for the directory."""

    directory: str
    roots: Path
    contact: str | None = None
    account: str | None = None


@dataclass(frozen=True)
class Ordered:
    """Chain and key in PEM, and the account (JSON with its private key) to keep."""

    chain: str
    key: str
    account: str


class _Network(client.ClientNetwork):
    """The library's network, which tries twice when a nonce is refused, with more patience; it also keeps
    the last `Retry-After`."""

    retry_after: datetime | None = None

    def post(self, *arguments: Any, **options: Any) -> requests.Response:
        for _ in range(NONCE_TRIES):
            try:
                return super().post(*arguments, **options)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*arguments, **options)

    def note(self, response: requests.Response, *_arguments: object, **_options: object) -> None:
        """Remember how long the service wants to be left alone."""
        if response.status_code >= 400 and (text := response.headers.get("Retry-After")):
            self.retry_after = _moment(text)


def _moment(text: str) -> datetime | None:
    """Retry-After is a number of seconds or a date (RFC 9110, section 10.2.3)."""
    if text.strip().isdecimal():
        return datetime.now(UTC) + timedelta(seconds=min(int(text), 30 * 86400))
    try:
        return parsedate_to_datetime(text)
    except ValueError:
        return None


def directory_trouble(service: Service) -> str | None:
    """Why the directory cannot be read, None if it can."""
    try:
        with _told(network := _network(service, JWKEC(key=ec.generate_private_key(ec.SECP256R1())))):
            client.ClientV2.get_directory(service.directory, network)
    except OrderError as error:
        return str(error)
    return None


def order(service: Service, names: Sequence[str], kind: str, webroot: Path, limit_seconds: float) -> Ordered:
    """Get a certificate for `names`; `kind` is a value of KeyType.

    An account that the service has forgotten is made anew. Raises OrderError, which carries the account if
    one stands by then: nothing else of the attempt stays.
    """
    account = None if service.account is None else _Account.read(service.account)
    try:
        return _order(service, account, names, kind, webroot, limit_seconds)
    except OrderError as error:
        if account is None or not error.account_unknown:
            raise
    return _order(service, None, names, kind, webroot, limit_seconds)


def _order(
    service: Service,
    account: _Account | None,
    names: Sequence[str],
    kind: str,
    webroot: Path,
    limit_seconds: float,
) -> Ordered:
    account_key = _new_account_key() if account is None else account.key
    network = _network(service, account_key)
    try:
        with _told(network):
            found = client.ClientV2(client.ClientV2.get_directory(service.directory, network), net=network)
            if account is None:
                account = _register(found, account_key, service.contact)
            network.account = account.registration
            key = making.make_key(kind)
            deadline = datetime.now() + timedelta(seconds=limit_seconds)
            ordered = found.new_order(making.request(key, names).encode())
            with _answered(found, ordered, account_key, webroot):
                ordered = found.poll_and_finalize(ordered, deadline)
    except OrderError as error:
        error.account = None if account is None or error.account_unknown else account.text()
        raise
    return Ordered(ordered.fullchain_pem, making.key_text(key), account.text())


def renewal_moment(service: Service, certificate: str) -> tuple[datetime | None, datetime]:
    """When the service suggests to renew (None: it does not say), and when to ask again.

    Raises OrderError.
    """
    network = _network(service, _new_account_key())
    with _told(network):
        found = client.ClientV2(client.ClientV2.get_directory(service.directory, network), net=network)
        suggested, again = found.renewal_time(certificate.encode())
    return suggested, again.astimezone(UTC)


@dataclass(frozen=True)
class _Account:
    key: JWKEC
    registration: messages.RegistrationResource

    def text(self) -> str:
        return json.dumps(
            {"key": self.key.to_json(), "registration": self.registration.to_json()}, default=str
        )

    @classmethod
    def read(cls, text: str) -> _Account:
        table: Mapping[str, Any] = json.loads(text)
        key = JWKEC.from_json(table["key"])
        if not isinstance(key, JWKEC):
            raise OrderError(
                OrderFault.REFUSED, "the account's key is of a foreign kind", "remove the account"
            )
        return cls(
            key,
            messages.RegistrationResource.from_json(table["registration"]),
        )


def _new_account_key() -> JWKEC:
    return JWKEC(key=ec.generate_private_key(ec.SECP256R1()))


def _network(service: Service, key: JWKEC) -> _Network:
    network = _Network(
        key,
        alg=ES256,
        verify_ssl=str(service.roots),  # type: ignore[arg-type]  # requests takes a file here as well
        user_agent=USER_AGENT,
        timeout=NETWORK_LIMIT_SECONDS,
    )
    network.session.trust_env = False
    network.session.hooks["response"].append(network.note)
    return network


def _register(found: client.ClientV2, key: JWKEC, contact: str | None) -> _Account:
    wanted = messages.NewRegistration.from_data(email=contact, terms_of_service_agreed=True)
    try:
        return _Account(key, found.new_account(wanted))
    except errors.ConflictError as error:
        known = messages.RegistrationResource(uri=error.location, body=messages.Registration())
        return _Account(key, found.query_registration(known))


@contextmanager
def _answered(
    found: client.ClientV2, ordered: messages.OrderResource, key: JWKEC, webroot: Path
) -> Iterator[None]:
    """Put the answers to the challenges where nginx serves them, and take them away afterwards."""
    files: list[Path] = []
    try:
        for authorization in ordered.authorizations:
            if authorization.body.status == messages.STATUS_VALID:
                continue
            challenge = next(
                (one for one in authorization.body.challenges if isinstance(one.chall, challenges.HTTP01)),
                None,
            )
            if challenge is None:
                raise OrderError(OrderFault.REFUSED, "it offers no HTTP challenge", "use another service")
            token = challenge.chall.encode("token")
            if not _TOKEN.fullmatch(token):
                raise OrderError(OrderFault.REFUSED, "its token is no token", "use another service")
            response, content = challenge.response_and_validation(key)
            file = challenge_file(webroot, token)
            write_file(file, content, mode=0o644)
            files.append(file)
            found.answer_challenge(challenge, response)
        yield
    finally:
        for file in files:
            remove_file(file)


@contextmanager
def _told(network: _Network) -> Iterator[None]:
    """Every failure of the library as an OrderError."""
    try:
        yield
    except errors.ValidationError as error:
        raise _validation(error) from error
    except messages.Error as error:
        raise _refusal(error, network.retry_after) from error
    except errors.IssuanceError as error:
        raise _refusal(error.error, network.retry_after) from error
    except errors.TimeoutError as error:
        raise OrderError(OrderFault.TIMEOUT, "", "it is tried again later") from error
    except requests.exceptions.SSLError as error:
        raise OrderError(
            OrderFault.UNREACHABLE,
            "its own certificate is not trusted",
            "give the roots of a private service with --roots FILE",
        ) from error
    except requests.exceptions.RequestException as error:
        raise OrderError(
            OrderFault.UNREACHABLE, _network_reason(error), "let this box reach it on TCP port 443"
        ) from error
    except (errors.Error, JoseError, ValueError, KeyError) as error:
        raise OrderError(OrderFault.REFUSED, _short(str(error)), "see the journal") from error


def _network_reason(error: requests.exceptions.RequestException) -> str:
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    text = str(error)
    for sign, reason in (("Name or service", "its name does not resolve"), ("refused", "connection refused")):
        if sign in text:
            return reason
    return _short(text)


def _validation(error: errors.ValidationError) -> OrderError:
    details, names_failed = [], False
    for authorization in error.failed_authzrs:
        for challenge in authorization.body.challenges:
            if challenge.error is not None:
                names_failed |= challenge.error.code == "dns"
                name = authorization.body.identifier.value
                details.append(f"{name}: {_short(challenge.error.detail or '')}")
    fault = OrderFault.DNS if names_failed else OrderFault.VALIDATION
    remedy = (
        "check the domain's records at your DNS provider"
        if names_failed
        else "make sure that TCP port 80 of the public address leads to this box from everywhere"
    )
    return OrderError(fault, "; ".join(details), remedy)


def _refusal(error: messages.Error | None, retry_after: datetime | None) -> OrderError:
    if error is None:
        return OrderError(OrderFault.REFUSED, "without a reason", "it is tried again later")
    detail = _short(error.detail or "")
    if error.code == "rateLimited":
        until = f"; it asks to wait until {retry_after:%Y-%m-%d %H:%M} UTC" if retry_after else ""
        return OrderError(
            OrderFault.RATE_LIMITED, f"{detail}{until}", "wait: every further try makes it worse", retry_after
        )
    if error.code == "malformed" and "expired" in detail.lower():
        return OrderError(OrderFault.EXPIRED, detail, "it is tried again with a new order")
    remedies = {
        "unauthorized": "check that the account still exists; remove it to register anew",
        "rejectedIdentifier": "the service issues nothing for this name: upload a certificate instead",
        "caa": "allow the service in the domain's CAA record",
        "invalidContact": "give another address with --email",
        "userActionRequired": "read the service's new terms",
    }
    what = f"{(error.typ or '').removeprefix(_PREFIX)}: {detail}"
    remedy = remedies.get(error.code or "", "see the journal")
    found = OrderError(OrderFault.REFUSED, what, remedy, retry_after)
    found.account_unknown = error.code == "accountDoesNotExist"
    return found


def _short(text: str) -> str:
    """One printable line, whatever the service wrote."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line[:300]


@contextmanager
def roots_file(bundle: Path, roots: str | None) -> Iterator[Path]:
    """The file that vouches for a directory: the given roots alone, or those of the system."""
    if roots is None:
        yield bundle
        return
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(roots)
        file.flush()
        yield Path(file.name)
