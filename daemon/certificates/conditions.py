"""What must be true before an automatic certificate is asked for (S-CE-03); in the helper process.

Each condition that fails is named, with what to do. A failed order counts against the limits of the public
service, so nothing is ordered before all of them hold.
"""

from __future__ import annotations

import http.client
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from daemon.dns import AnswerCode, RecordType, ask
from daemon.errors import UnavailableError
from daemon.files import remove_file, write_file

Address = IPv4Address | IPv6Address
CHALLENGE_PATH = "/.well-known/acme-challenge/"
HTTP_LIMIT_SECONDS = 5.0
RESOLVER_FILE = Path("/etc/resolv.conf")


class Condition(StrEnum):
    """A condition that does not hold, as a sentence."""

    MODE = "automatic certificates are for work mode cloud only"
    DOMAIN = "no domain is set"
    PUBLIC_ADDRESS = "no public address is set"
    TERMS = "the terms of the certificate service are not accepted"
    NAME_UNKNOWN = "the domain does not resolve"
    NAME_ELSEWHERE = "the domain resolves to another address than this box's"
    NO_RESOLVER = "no name server answers"
    WEB_SERVER = "the box itself does not answer on port 80"
    PORT_80 = "port 80 of the public address leads to something else"
    OUTBOUND = "the certificate service cannot be reached"
    PORT_80_UNSEEN = "port 80 of the public address could not be seen from inside"


@dataclass(frozen=True)
class Failing:
    """A condition that does not hold; with `fatal` false it only could not be checked."""

    condition: Condition
    detail: str
    remedy: str
    fatal: bool = True

    def as_json(self) -> dict[str, object]:
        """`path` (the condition's short name), `message`, `remedy`, `fatal`: the fields of a Problem."""
        name = self.condition.name.lower().replace("_", "-")
        message = f"{self.condition.value} ({self.detail})" if self.detail else self.condition.value
        return {"path": f"acme.{name}", "message": message, "remedy": self.remedy, "fatal": self.fatal}


@dataclass(frozen=True)
class Circumstances:
    """What the settings say; `addresses` are those that the names may resolve to."""

    cloud: bool
    names: tuple[str, ...]
    public_address: Address | None
    terms_accepted: bool
    resolvers: tuple[Address, ...]
    webroot: Path
    directory: str
    http_port: int = 80
    dns_port: int = 53


def failing(
    given: Circumstances,
    fetch_directory: Callable[[], str | None],
    local: str = "127.0.0.1",
) -> Iterator[Failing]:
    """Every condition that does not hold. Those on the network are looked at only if the settings allow it.

    `fetch_directory` returns why the service's directory cannot be read, None if it can.
    """
    on_paper = list(_on_paper(given))
    yield from on_paper
    if on_paper or given.public_address is None:
        return
    for name in given.names:
        yield from _name(name, given.public_address, given)
    yield from _port_80(given, local)
    trouble = fetch_directory()
    if trouble is not None:
        yield Failing(
            Condition.OUTBOUND, f"{given.directory}: {trouble}", "let this box reach it on TCP port 443"
        )


def _on_paper(given: Circumstances) -> Iterator[Failing]:
    if not given.cloud:
        yield Failing(Condition.MODE, "", "set mode.mode to cloud, or upload a certificate")
    if not given.names:
        yield Failing(Condition.DOMAIN, "", "set domain.fqdn")
    if given.public_address is None:
        yield Failing(Condition.PUBLIC_ADDRESS, "", "set domain.public_address")
    if not given.terms_accepted:
        yield Failing(Condition.TERMS, "", "add --accept-terms once you have read them")


def _name(name: str, public: Address, given: Circumstances) -> Iterator[Failing]:
    found: set[Address] = set()
    answered, unknown, trouble = False, False, "none is configured"
    for kind in (RecordType.A, RecordType.AAAA):
        for resolver in given.resolvers:
            try:
                answer = ask(name, kind, resolver, port=given.dns_port)
            except UnavailableError as error:
                trouble = error.message
                continue
            answered = True
            found.update(answer.addresses)
            unknown = answer.code == AnswerCode.NO_SUCH_NAME
            break
    if not answered:
        yield Failing(Condition.NO_RESOLVER, trouble, "set network.dns to name servers that answer")
    elif not found:
        reason = "there is no such name" if unknown else "it has neither A nor AAAA record"
        record = "AAAA" if public.version == 6 else "A"
        yield Failing(
            Condition.NAME_UNKNOWN,
            f"{name}: {reason}",
            f"add an {record} record for {public} at your DNS provider",
        )
    elif strangers := sorted(str(address) for address in found - {public}):
        # The service prefers IPv6 and asks any of the addresses: a single stale record fails the order.
        yield Failing(
            Condition.NAME_ELSEWHERE,
            f"{name} is {', '.join(strangers)}, not {public}",
            "correct the A and AAAA records at your DNS provider and wait until they are known",
        )


def _port_80(given: Circumstances, local: str) -> Iterator[Failing]:
    """Serve a file of our own and fetch it: from the box itself, then by way of the public address."""
    name, content = f"probe-{secrets.token_hex(8)}", secrets.token_hex(16)
    file = challenge_file(given.webroot, name)
    write_file(file, content, mode=0o644)
    try:
        try:
            answer = _fetch(local, given.http_port, given.names[0], name)
        except OSError as error:
            answer, reason = None, error.strerror or str(error)
        else:
            reason = "it answers something else" if answer != content else ""
        if answer != content:
            yield Failing(Condition.WEB_SERVER, reason, "see: centralino services logs nginx")
            return
        try:
            seen = _fetch(str(given.public_address), given.http_port, given.names[0], name)
        except OSError as error:
            # Many routers do not lead a box back to itself; the service's own visit will tell.
            yield Failing(
                Condition.PORT_80_UNSEEN,
                error.strerror or str(error) or "no answer in time",
                "make sure that TCP port 80 leads to this box",
                fatal=False,
            )
            return
        if seen != content:
            yield Failing(
                Condition.PORT_80,
                f"{given.public_address}",
                "forward TCP port 80 of the public address to this box",
            )
    finally:
        remove_file(file)


def challenge_file(webroot: Path, token: str) -> Path:
    """Where nginx looks for a token of HTTP-01 (RFC 8555, section 8.3)."""
    directory = webroot / CHALLENGE_PATH.strip("/")
    directory.mkdir(parents=True, exist_ok=True)
    for part in (directory, directory.parent):
        part.chmod(0o755)
    return directory / token


def _fetch(host: str, port: int, name: str, token: str) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=HTTP_LIMIT_SECONDS)
    try:
        connection.request("GET", CHALLENGE_PATH + token, headers={"Host": name})
        return connection.getresponse().read(1000).decode(errors="replace").strip()
    except http.client.HTTPException as error:
        raise OSError(0, f"no HTTP: {error}") from error
    finally:
        connection.close()


def system_resolvers(file: Path = RESOLVER_FILE) -> tuple[Address, ...]:
    """The name servers that the box itself uses."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return ()
    words = [line.split() for line in lines]
    found = []
    for word in words:
        if len(word) > 1 and word[0] == "nameserver":
            try:
                found.append(ip_address(word[1].partition("%")[0]))
            except ValueError:
                continue
    return tuple(found)
