"""How the appliance is reached: domain, work mode, certificates, web and console."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, ClassVar

from daemon.errors import Problem
from daemon.settings.base import (
    Address,
    DomainName,
    HighPort,
    Line,
    MailAddress,
    Network,
    Part,
    QualifiedDomainName,
    Scope,
    Seconds,
    SecretName,
    Section,
    WebAddress,
)
from daemon.settings.words import Field, StringConstraints


class Domain(Section):
    """The name and public address under which the appliance is known (S-NW-01)."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    fqdn: QualifiedDomainName | None = Field(
        default=None, description="Public name, for example pbx.example.com."
    )
    public_address: Address | None = Field(
        default=None, description="Static public address that the name resolves to."
    )
    reach_through_domain: bool = Field(
        default=False, description="Whether web and phones are sent to the name instead of an address."
    )
    local_networks: tuple[Network, ...] = Field(
        default=(),
        max_length=64,
        description="Networks reached without NAT; empty: the subnets of the interfaces.",
    )
    public_resolvers: tuple[Address, ...] = Field(
        default=(),
        max_length=4,
        description="Name servers on the Internet that show the name as outsiders see it.",
    )

    def problems(self) -> Iterator[Problem]:
        """The switch needs a name."""
        if self.reach_through_domain and self.fqdn is None:
            yield Problem("reach_through_domain", "needs a domain", "set domain.fqdn")


class WorkMode(StrEnum):
    """Standard: on the customer's network. Cloud: behind NAT 1:1 on the Internet (S-AR-01)."""

    STANDARD = "standard"
    CLOUD = "cloud"


class Mode(Section):
    """The work mode, the first setting of a new appliance (S-WM-01)."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    mode: WorkMode = Field(default=WorkMode.STANDARD, description="standard or cloud.")


class CertificateSource(StrEnum):
    """Where the served certificate comes from."""

    SELF_SIGNED = "self-signed"
    UPLOADED = "uploaded"
    ACME = "acme"
    EDGE = "edge"


class KeyType(StrEnum):
    """Keys that this box makes."""

    RSA_3072 = "rsa3072"
    EC_P256 = "ec-p256"


EncodedCertificate = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=16384)]


class Acme(Part):
    """Automatic certificates (RFC 8555, HTTP-01)."""

    directory: WebAddress | None = Field(default=None, description="ACME directory; unset: Let's Encrypt.")
    directory_roots: tuple[EncodedCertificate, ...] = Field(
        default=(),
        max_length=10,
        description="Certificates (base64 of DER) that vouch for that directory; empty: the system's.",
    )
    staging: bool = Field(default=False, description="Use Let's Encrypt's staging service, for trials.")
    contact: MailAddress | None = Field(default=None, description="Account e-mail address.")
    terms_accepted: bool = Field(default=False, description="Whether the service's terms are accepted.")


class Certificates(Section):
    """The certificate that web, SIP over TLS and TURN serve (S-CE-01)."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    source: CertificateSource = Field(
        default=CertificateSource.SELF_SIGNED, description="self-signed, uploaded, acme or edge."
    )
    names: tuple[DomainName, ...] = Field(
        default=(), max_length=20, description="Further names in requested certificates, besides the domain."
    )
    key_type: KeyType = Field(
        default=KeyType.EC_P256, description="Key for requests and self-signed certificates."
    )
    acme: Acme = Field(default=Acme(), description="Automatic certificates.")
    expiry_alarm_days: tuple[Annotated[int, Field(ge=1, le=365)], ...] = Field(
        default=(30, 14, 7, 1), max_length=8, description="Days before expiry on which an alarm is raised."
    )


class TlsFloor(StrEnum):
    """Oldest TLS version that is served."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


class Web(Section):
    """The HTTPS front end."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    redirect_http: bool = Field(default=True, description="Answer on port 80 with a redirect to HTTPS.")
    minimum_tls: TlsFloor = Field(default=TlsFloor.TLS_1_2, description="Oldest TLS version that is served.")
    session_seconds: Annotated[int, Field(ge=300, le=86400)] = Field(
        default=1800, description="Idle seconds after which a web session ends."
    )


class Console(Section):
    """The menu on the first terminal, and SSH."""

    scope: ClassVar[Scope] = Scope.NODE

    menu: bool = Field(default=True, description="Show the menu on the first terminal.")
    banner: Line = Field(default="", description="Line shown before login.")
    ssh_passwords: bool = Field(default=True, description="Whether SSH accepts passwords besides keys.")
    idle_seconds: Seconds = Field(
        default=900, description="Idle seconds after which a login ends; 0 is never."
    )


SIGNALLING_PORTS = (3478, *range(5060, 5064), 5070, 5071)


class Media(Section):
    """Ports for audio and the TURN relay (S-NW-03); Asterisk, TURN and firewall follow them."""

    scope: ClassVar[Scope] = Scope.CLUSTER

    rtp_first_port: HighPort = Field(default=10000, description="First UDP port for RTP.")
    rtp_last_port: HighPort = Field(default=20000, description="Last UDP port for RTP.")
    relay_first_port: HighPort = Field(default=20001, description="First UDP port of the TURN relay.")
    relay_last_port: HighPort = Field(default=30000, description="Last UDP port of the TURN relay.")
    turn_secret: SecretName = Field(
        default="turn", description="Name of the secret that signs TURN credentials."
    )

    def problems(self) -> Iterator[Problem]:
        """Ranges are ordered and apart."""
        for kind in ("rtp", "relay"):
            first, last = getattr(self, f"{kind}_first_port"), getattr(self, f"{kind}_last_port")
            if first > last:
                yield Problem(f"{kind}_last_port", "is below the first port", "exchange the two")
            if taken := [port for port in SIGNALLING_PORTS if first <= port <= last]:
                yield Problem(
                    f"{kind}_first_port", f"the range holds port {taken[0]} of SIP or TURN", "move the range"
                )
        if self.rtp_first_port <= self.relay_last_port and self.relay_first_port <= self.rtp_last_port:
            yield Problem(
                "relay_first_port", "the relay's ports overlap those of RTP", "move one of the ranges"
            )
