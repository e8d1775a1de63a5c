"""Authorities for certificate tests: a private one in memory, and Pebble with its name server in a lab."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from appliance.lab import Client
from appliance.lab_host import wait_for

PUBLIC_NETWORK = "203.0.113.0/24"
AUTHORITY_ADDRESS = "203.0.113.53"
BOX_ADDRESS = "203.0.113.11"
DIRECTORY = f"https://{AUTHORITY_ADDRESS}:14000/dir"


class PrivateAuthority:
    """A root that issues server certificates; EC P-256 all through."""

    def __init__(self, name: str = "Lab Root") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._root = self._sign(
            self._name,
            self._key.public_key(),
            [(x509.BasicConstraints(ca=True, path_length=None), True)],
            timedelta(days=3650),
        )

    @property
    def root(self) -> str:
        """The root in PEM: a file of roots for tests."""
        return self._root.public_bytes(Encoding.PEM).decode()

    def issue(
        self,
        names: Sequence[str],
        *,
        days: float = 90,
        age_days: float = 1,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> tuple[str, str]:
        """Certificate and key in PEM for DNS names or addresses."""
        own = key or ec.generate_private_key(ec.SECP256R1())
        return self._issue(names, own.public_key(), days, age_days), key_pem(own)

    def answer(self, request: str, *, days: float = 90) -> str:
        """The certificate for a request in PEM, with the names that it asks for."""
        asked = x509.load_pem_x509_csr(request.encode())
        assert asked.is_signature_valid
        held = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        public = asked.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        return self._issue(held.get_values_for_type(x509.DNSName), public, days, 1)

    def _issue(
        self, names: Sequence[str], public: ec.EllipticCurvePublicKey, days: float, age_days: float
    ) -> str:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        extensions = [(x509.SubjectAlternativeName([_general(name) for name in names]), False)]
        made = self._sign(subject, public, extensions, timedelta(days=days), timedelta(days=age_days))
        return made.public_bytes(Encoding.PEM).decode()

    def _sign(
        self,
        subject: x509.Name,
        public: ec.EllipticCurvePublicKey,
        extensions: Sequence[tuple[x509.ExtensionType, bool]],
        lasts: timedelta,
        age: timedelta = timedelta(days=1),
    ) -> x509.Certificate:
        begin = datetime.now(UTC) - age
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + lasts)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, hashes.SHA256())


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """PKCS#8, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Pebble:
    """Pebble (an ACME server for tests) and its name server, in a client's namespace."""

    def __init__(self, client: Client, folder: Path, segment: str = "lan") -> None:
        self._client = client
        self._folder = folder
        self._pebble: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        authority = PrivateAuthority("Pebble's own")
        certificate, key = authority.issue([AUTHORITY_ADDRESS])
        self.roots = folder / "directory-roots.pem"
        self.roots.write_text(authority.root)
        (folder / "pebble.crt").write_text(certificate)
        (folder / "pebble.key").write_text(key)
        device = client.network.segments[segment].interface
        client.run(["ip", "address", "replace", f"{AUTHORITY_ADDRESS}/24", "dev", device])
        client.start(
            [
                *(
                    "pebble-challtestsrv",
                    "-dns01",
                    f"{AUTHORITY_ADDRESS}:53",
                    "-management",
                    "127.0.0.1:8055",
                ),
                *("-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv4", "", "-defaultIPv6", ""),
            ],
            "names.log",
        )
        wait_for(
            lambda: self._ask("127.0.0.1:8055/clear-a", '{"host": "x."}', scheme="http"),
            10,
            "the name server",
        )

    def start(self, *, reject_nonces: int = 5, validity_seconds: int = 90 * 86400) -> None:
        """Start (or start again: everything it knew is forgotten); `reject_nonces` in percent."""
        self.stop()
        table = {
            "listenAddress": f"{AUTHORITY_ADDRESS}:14000",
            "managementListenAddress": f"{AUTHORITY_ADDRESS}:15000",
            "certificate": str(self._folder / "pebble.crt"),
            "privateKey": str(self._folder / "pebble.key"),
            "httpPort": 80,
            "tlsPort": 443,
            "certificateValidityPeriod": validity_seconds,
        }
        configuration = self._folder / "pebble.json"
        configuration.write_text(json.dumps({"pebble": table}))
        settings = [f"PEBBLE_WFE_NONCEREJECT={reject_nonces}", "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0"]
        self._pebble = self._client.start(
            [
                "env",
                *settings,
                "pebble",
                "-config",
                str(configuration),
                "-dnsserver",
                f"{AUTHORITY_ADDRESS}:53",
            ],
            "pebble.log",
        )
        wait_for(lambda: self._ask(f"{AUTHORITY_ADDRESS}:14000/dir"), 10, "Pebble")

    def stop(self) -> None:
        """No service any more."""
        if self._pebble is not None:
            self._pebble.kill()
            self._pebble.wait()
            self._pebble = None

    def resolve(self, name: str, address: str | None) -> None:
        """Let a name lead to an IPv4 address; None: it has none."""
        self._tell("clear-a", {"host": f"{name}."})
        if address is not None:
            self._tell("add-a", {"host": f"{name}.", "addresses": [address]})

    def resolve6(self, name: str, address: str | None) -> None:
        """Let a name lead to an IPv6 address; None: it has none."""
        self._tell("clear-aaaa", {"host": f"{name}."})
        if address is not None:
            self._tell("add-aaaa", {"host": f"{name}.", "addresses": [address]})

    def issuer_root(self) -> str:
        """The root of what it issues, in PEM; another one after each start."""
        return self._client.run(
            ["curl", "-s", "--cacert", str(self.roots), f"https://{AUTHORITY_ADDRESS}:15000/roots/0"]
        ).output

    def _tell(self, verb: str, table: dict[str, object]) -> None:
        assert self._ask(f"127.0.0.1:8055/{verb}", json.dumps(table), scheme="http")

    def _ask(self, address: str, data: str | None = None, scheme: str = "https") -> bool:
        body = [] if data is None else ["-d", data]
        done = self._client.run(
            ["curl", "-s", "-f", "--cacert", str(self.roots), *body, f"{scheme}://{address}"], check=False
        )
        return done.ok


def programs_missing() -> str:
    """Why Pebble cannot run here, "" if it can."""
    paths = os.environ.get("PATH", "").split(":")
    missing = [
        name
        for name in ("pebble", "pebble-challtestsrv", "curl")
        if not any((Path(path) / name).exists() for path in paths)
    ]
    return f"{', '.join(missing)} is not installed: apt-get install pebble curl" if missing else ""
