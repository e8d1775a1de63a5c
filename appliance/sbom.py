"""What a root tree consists of: system packages, Python wheels, Ansible collections.

Read from the tree's own databases, never by running anything in it. Two writers turn it into CycloneDX 1.5
and SPDX 2.3; both are sorted and carry no time but the build's epoch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import HeaderParser
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

from appliance.disk_identity import derived_uuid
from appliance.errors import InputError
from appliance.run import find_program, run

TOOL = "centralino-build"
RPM_DATABASES = ("var/lib/rpm", "usr/lib/sysimage/rpm")
RPM_FORMAT = (
    "%{NAME}\\t%|EPOCH?{%{EPOCH}}:{0}|\\t%{VERSION}-%{RELEASE}\\t%{ARCH}\\t%{LICENSE}\\t%{SHA256HEADER}\\n"
)


class Source(StrEnum):
    """Where a component comes from; the word is also the type of its package URL."""

    DEB = "deb"
    RPM = "rpm"
    PYPI = "pypi"
    ANSIBLE = "ansible"


@dataclass(frozen=True, order=True)
class Component:
    """One installed thing. `license` is free text as its package states it; `sha256` of what, if known."""

    source: Source
    name: str
    version: str
    architecture: str = ""
    license: str = ""
    sha256: str = ""
    distribution: str = ""

    @property
    def purl(self) -> str:
        """Its package URL (purl specification)."""
        name, version = quote(self.name, safe=""), quote(self.version, safe="")
        if self.source in (Source.PYPI, Source.ANSIBLE):
            if self.source is Source.ANSIBLE:
                return f"pkg:generic/ansible-collection/{name}@{version}"
            return f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
        namespace, _, release = self.distribution.partition("-")
        qualifiers = f"arch={quote(self.architecture, safe='')}"
        if self.source is Source.RPM and ":" in self.version:
            epoch, _, rest = self.version.partition(":")
            version = quote(rest, safe="")
            qualifiers += f"&epoch={epoch}"
        return f"pkg:{self.source}/{namespace}/{name}@{version}?{qualifiers}&distro={namespace}-{release}"

    def as_json(self) -> dict[str, str]:
        """Keys `source`, `name`, `version`, `architecture`, for the manifest's package list."""
        return {
            "source": str(self.source),
            "name": self.name,
            "version": self.version,
            "architecture": self.architecture,
        }


@dataclass(frozen=True)
class Subject:
    """What the bill is about: `name`, `version`; `epoch` in seconds since 1970, `seed` for identifiers."""

    name: str
    version: str
    publisher: str
    epoch: int
    seed: str

    @property
    def time(self) -> str:
        """The epoch as both formats want it."""
        return datetime.fromtimestamp(self.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def components_of(root: Path) -> list[Component]:
    """Everything found in a root tree, sorted. Raises InputError if it has no package database."""
    found: set[Component] = set()
    distribution = _distribution(root)
    status = root / "var/lib/dpkg/status"
    rpm = next((root / name for name in RPM_DATABASES if (root / name).is_dir()), None)
    if status.is_file():
        found.update(_debs(status, distribution))
    elif rpm is not None:
        found.update(_rpms(rpm, distribution))
    else:
        raise InputError(f"{root} holds neither a dpkg nor an rpm database", "give a whole root tree")
    found.update(_wheels(root))
    found.update(_collections(root))
    return sorted(found)


def _distribution(root: Path) -> str:
    """`debian-12`: identifier and release of os-release(5)."""
    values: dict[str, str] = {}
    for name in ("etc/os-release", "usr/lib/os-release"):
        file = root / name
        if file.is_file() and not (file.is_symlink() and file.readlink().is_absolute()):
            for line in file.read_text(encoding="utf-8").splitlines():
                key, separator, value = line.partition("=")
                if separator and not key.startswith("#"):
                    values[key] = "".join(shlex.split(value))
            break
    return f"{values.get('ID', 'linux')}-{values.get('VERSION_ID', '0')}"


def _debs(status: Path, distribution: str) -> Iterator[Component]:
    for stanza in status.read_text(encoding="utf-8", errors="replace").split("\n\n"):
        # Long descriptions may hold anything; only the first lines of fields count.
        fields = {
            key: value
            for key, separator, value in (line.partition(": ") for line in stanza.splitlines())
            if separator and not key.startswith(" ")
        }
        if fields.get("Status", "").endswith(" installed"):
            yield Component(
                Source.DEB,
                fields["Package"],
                fields["Version"],
                fields.get("Architecture", ""),
                distribution=distribution,
            )


def _rpms(database: Path, distribution: str) -> Iterator[Component]:
    if find_program("rpm") is None:
        raise InputError(f"{database} needs the program rpm to be read", "install the package rpm")
    text = run(["rpm", "--dbpath", database.absolute(), "-qa", "--qf", RPM_FORMAT]).output
    for line in text.splitlines():
        name, epoch, version, architecture, licence, digest = line.split("\t")
        if name == "gpg-pubkey":
            continue
        yield Component(
            Source.RPM,
            name,
            version if epoch == "0" else f"{epoch}:{version}",
            architecture,
            licence,
            digest if len(digest) == 64 else "",
            distribution,
        )


def _wheels(root: Path) -> Iterator[Component]:
    for pattern in ("opt/*/*/lib/python3*/site-packages", "opt/*/lib/python3*/site-packages"):
        for packages in root.glob(pattern):
            for metadata in packages.glob("*.dist-info/METADATA"):
                headers = HeaderParser().parsestr(metadata.read_text(encoding="utf-8", errors="replace"))
                yield Component(
                    Source.PYPI,
                    str(headers["Name"]),
                    str(headers["Version"]),
                    license=" ".join(str(headers.get("License-Expression") or "").split()),
                )


def _collections(root: Path) -> Iterator[Component]:
    for pattern in ("opt/**/ansible_collections/*/*/MANIFEST.json", "usr/share/ansible/**/*/MANIFEST.json"):
        for file in root.glob(pattern):
            information = json.loads(file.read_text(encoding="utf-8")).get("collection_info", {})
            if information.get("name"):
                yield Component(
                    Source.ANSIBLE,
                    f"{information['namespace']}.{information['name']}",
                    str(information["version"]),
                    license=" OR ".join(information.get("license") or ()),
                )


def cyclonedx(subject: Subject, components: list[Component]) -> dict[str, object]:
    """A CycloneDX 1.5 document."""

    def entry(component: Component) -> dict[str, object]:
        made: dict[str, object] = {
            "type": "library",
            "bom-ref": component.purl,
            "name": component.name,
            "version": component.version,
            "purl": component.purl,
        }
        if component.license:
            made["licenses"] = [{"license": {"name": component.license}}]
        if component.sha256:
            made["hashes"] = [{"alg": "SHA-256", "content": component.sha256}]
        return made

    reference = f"{subject.name}@{subject.version}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{derived_uuid(subject.seed, 'cyclonedx')}",
        "version": 1,
        "metadata": {
            "timestamp": subject.time,
            "tools": {"components": [{"type": "application", "name": TOOL}]},
            "component": {
                "type": "operating-system",
                "bom-ref": reference,
                "name": subject.name,
                "version": subject.version,
                "publisher": subject.publisher,
            },
        },
        "components": [entry(component) for component in components],
        "dependencies": [{"ref": reference, "dependsOn": sorted(each.purl for each in components)}],
    }


def spdx(subject: Subject, components: list[Component]) -> dict[str, object]:
    """An SPDX 2.3 document."""

    def package(identifier: str, name: str, version: str, more: Mapping[str, object]) -> dict[str, object]:
        return {
            "SPDXID": identifier,
            "name": name,
            "versionInfo": version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": "NOASSERTION",
            "copyrightText": "NOASSERTION",
            **more,
        }

    identifiers = [f"SPDXRef-Package-{number}" for number in range(1, len(components) + 1)]
    packages = [
        package(
            "SPDXRef-Appliance",
            subject.name,
            subject.version,
            {"primaryPackagePurpose": "OPERATING-SYSTEM", "supplier": f"Organization: {subject.publisher}"},
        )
    ]
    for identifier, component in zip(identifiers, components, strict=True):
        more: dict[str, object] = {
            "externalRefs": [
                {
                    "referenceCategory": "PACKAGE-MANAGER",
                    "referenceType": "purl",
                    "referenceLocator": component.purl,
                }
            ]
        }
        if component.license:
            more["licenseComments"] = f"declared by the package as: {component.license}"
        packages.append(package(identifier, component.name, component.version, more))
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{subject.name}-{subject.version}",
        "documentNamespace": f"https://centralino.invalid/spdx/{derived_uuid(subject.seed, 'spdx')}",
        "creationInfo": {"created": subject.time, "creators": [f"Tool: {TOOL}"]},
        "packages": packages,
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": "SPDXRef-Appliance",
            },
            *(
                {
                    "spdxElementId": "SPDXRef-Appliance",
                    "relationshipType": "CONTAINS",
                    "relatedSpdxElement": identifier,
                }
                for identifier in identifiers
            ),
        ],
    }
