"""Bills of materials: read from a tree's databases, valid by the formats' own validators, reproducible."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from appliance.errors import InputError
from appliance.sbom import Component, Source, Subject, components_of, cyclonedx, spdx

SUBJECT = Subject("centralino", "1.2", "Centralino", 1767225600, "seed")
PACKAGES = "opt/centralino/venv/lib/python3.11/site-packages"
STATUS = """Package: openssl
Status: install ok installed
Architecture: amd64
Version: 3.0.15-1~deb12u1
Description: Secure Sockets Layer toolkit
 Status: deinstall
 Version: 0

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: tzdata
Status: install ok installed
Architecture: all
Version: 2025a-0+deb12u1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {
        "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n',
        "var/lib/dpkg/status": STATUS,
        f"{PACKAGES}/PyMySQL-1.1.1.dist-info/METADATA": (
            "Metadata-Version: 2.1\nName: PyMySQL\nVersion: 1.1.1\nLicense-Expression: MIT\n\nName: no\n"
        ),
        f"{PACKAGES}/ansible_collections/ansible/posix/MANIFEST.json": json.dumps(
            {
                "collection_info": {
                    "namespace": "ansible",
                    "name": "posix",
                    "version": "1.6.2",
                    "license": ["GPL-3.0"],
                }
            }
        ),
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_reads_packages_wheels_and_collections(root: Path) -> None:
    assert [(each.source, each.name, each.version) for each in components_of(root)] == [
        (Source.ANSIBLE, "ansible.posix", "1.6.2"),
        (Source.DEB, "openssl", "3.0.15-1~deb12u1"),
        (Source.DEB, "tzdata", "2025a-0+deb12u1"),
        (Source.PYPI, "PyMySQL", "1.1.1"),
    ]


def test_package_urls() -> None:
    deb = Component(Source.DEB, "libstdc++6", "12.2.0-14", "amd64", distribution="debian-12")
    assert deb.purl == "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14?arch=amd64&distro=debian-12"
    rpm = Component(Source.RPM, "openssl", "1:1.1.1k-14.el8_6", "x86_64", distribution="almalinux-8.10")
    assert rpm.purl == "pkg:rpm/almalinux/openssl@1.1.1k-14.el8_6?arch=x86_64&epoch=1&distro=almalinux-8.10"
    assert Component(Source.PYPI, "Typing_Extensions", "4").purl == "pkg:pypi/typing-extensions@4"


def test_cyclonedx_is_valid(root: Path) -> None:
    text = json.dumps(cyclonedx(SUBJECT, components_of(root)))
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is None


def test_spdx_is_valid(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.spdx.json"
    file.write_text(json.dumps(spdx(SUBJECT, components_of(root))))
    assert validate_full_spdx_document(parse_file(str(file))) == []


def test_a_tree_without_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a dpkg nor an rpm database"):
        components_of(tmp_path)


def test_reads_an_rpm_database(tmp_path: Path) -> None:
    if shutil.which("rpmbuild") is None:
        pytest.skip("rpmbuild is not installed")
    spec = tmp_path / "thing.spec"
    spec.write_text(
        "Name: thing\nEpoch: 2\nVersion: 1.5\nRelease: 3\nSummary: x\nLicense: MIT\nBuildArch: noarch\n"
        "%description\nx\n%files\n"
    )
    top = f"_topdir {tmp_path}/build"
    subprocess.run(["rpmbuild", "-bb", "--define", top, spec], check=True, capture_output=True)
    package = next((tmp_path / "build/RPMS").rglob("*.rpm"))
    database = tmp_path / "root/var/lib/rpm"
    database.mkdir(parents=True)
    subprocess.run(
        ["rpm", "--dbpath", database, "--justdb", "--nodeps", "-i", package], check=True, capture_output=True
    )
    found = components_of(tmp_path / "root")
    assert [(each.source, each.name, each.version, each.license) for each in found] == [
        (Source.RPM, "thing", "2:1.5-3", "MIT")
    ]
