"""The settings document: one model that describes the box."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from daemon.errors import Problem
from daemon.settings.base import Part, Section
from daemon.settings.fault_tolerance import FaultTolerance
from daemon.settings.messages import Alarms, Mail
from daemon.settings.network import NetworkSection
from daemon.settings.node import Node
from daemon.settings.protection import Firewall
from daemon.settings.reach import (
    Certificates,
    CertificateSource,
    Console,
    Domain,
    Media,
    Mode,
    Web,
    WorkMode,
)
from daemon.settings.services import Services
from daemon.settings.upkeep import Backup, History, Licence, Logs, Updates
from daemon.settings.words import ConfigDict, Field

SCHEMA = 1


class Settings(Part):
    """The whole document; every section has defaults, so the empty document is valid."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    schema_number: Annotated[int, Field(ge=1, le=SCHEMA)] = Field(
        default=SCHEMA, alias="schema", description="Number of the schema that the document is written in."
    )
    node: Node = Field(default=Node(), description="Who this node is.")
    network: NetworkSection = Field(
        default=NetworkSection(), description="Interfaces, routes, DNS, time, hosts."
    )
    fault_tolerance: FaultTolerance = Field(default=FaultTolerance(), description="The pair of nodes.")
    domain: Domain = Field(default=Domain(), description="The name under which the appliance is known.")
    mode: Mode = Field(default=Mode(), description="The work mode.")
    media: Media = Field(default=Media(), description="Ports for audio and the TURN relay.")
    certificates: Certificates = Field(default=Certificates(), description="The certificate that is served.")
    firewall: Firewall = Field(default=Firewall(), description="What may reach the appliance.")
    web: Web = Field(default=Web(), description="The HTTPS front end.")
    console: Console = Field(default=Console(), description="The menu on the first terminal, and SSH.")
    services: Services = Field(default=Services(), description="Supervision of the services.")
    mail: Mail = Field(default=Mail(), description="The system mailbox.")
    alarms: Alarms = Field(default=Alarms(), description="Who is told what.")
    backup: Backup = Field(default=Backup(), description="Scheduled backups.")
    licence: Licence = Field(default=Licence(), description="Entitlement.")
    updates: Updates = Field(default=Updates(), description="Software updates.")
    logs: Logs = Field(default=Logs(), description="How long logs are kept.")
    history: History = Field(default=History(), description="The settings' own history.")

    def problems(self) -> Iterator[Problem]:
        """What one section asks of another (S-NW-02, S-CE-03)."""
        if self.mode.mode is WorkMode.CLOUD:
            for field in ("fqdn", "public_address"):
                if getattr(self.domain, field) is None:
                    yield Problem(
                        f"domain.{field}", "is needed in cloud mode", "set it, or use mode standard"
                    )
        if self.certificates.source is CertificateSource.ACME and self.domain.fqdn is None:
            yield Problem("certificates.source", "acme needs a domain", "set domain.fqdn first")
        own = {
            address.ip: name
            for name, interface in self.network.interfaces.items()
            for address in interface.addresses
        }
        for number, shared in enumerate(self.fault_tolerance.shared_addresses):
            if shared.address.ip in own:
                yield Problem(
                    f"fault_tolerance.shared_addresses.{number}.address",
                    f"{shared.address.ip} is this node's own address on {own[shared.address.ip]}",
                    "use an address of its own",
                )


def sections() -> dict[str, type[Section]]:
    """Section name to model, in document order."""
    found: dict[str, type[Section]] = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found[name] = field.annotation
    return found
