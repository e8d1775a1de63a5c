"""What makes one box out of an image: identity, keys, secrets and the first password (S-IN-07, S-SE-05).

Runs once, before anything that shows a key or takes a password, as `centralino-first-boot.service`. Each
step looks at what is there and adds what is missing, so that a power loss at any point is repaired by the
next boot; the marker that ends it all is written last.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from daemon import faults
from daemon.cloud_instance import instance_id, runs_on_ec2
from daemon.errors import CentralinoError, UnavailableError
from daemon.files import ensure_directory, read_text, remove_file, write_file
from daemon.places import Places
from daemon.platform import Platform, platform
from daemon.run import Completed, run

ADMIN = "admin"
MARKER = "first-boot-complete"
MACHINE_ID = re.compile(r"[0-9a-f]{32}\n?")
HOST_KEYS = ("ed25519", "ecdsa", "rsa")
# Letters that nobody mistakes for another and that QWERTY, QWERTZ and AZERTY have at the same place.
PASSWORD_ALPHABET = "bcdefghjknprstuvx"  # noqa: S105 - what passwords are made of
PASSWORD_LENGTH = 20
CERTIFICATE_YEARS = 10
RSA_BITS = 2048
# A crowded host without hardware virtualization needs more than half a minute; failing would leave the box
# without its secrets until it is started again.
KEY_LIMIT_SECONDS = 240.0
ADDRESS_LIMIT_SECONDS = 10.0
CONSOLES = Path("/sys/class/tty/console/active")

Runner = Callable[..., Completed]


def addresses_of_box() -> list[IPv4Address | IPv6Address]:
    """The addresses by which others may reach this box, in the order of the interfaces."""
    found: list[IPv4Address | IPv6Address] = []
    for _, entries in sorted(psutil.net_if_addrs().items()):
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            address = ip_address(entry.address.partition("%")[0])
            if not address.is_loopback and not address.is_link_local and address not in found:
                found.append(address)
    return found


def console_devices(active: Path = CONSOLES) -> list[Path]:
    """The screens and serial lines that the kernel writes to, and the first screen in any case."""
    try:
        names = active.read_text().split()
    except OSError:
        names = []
    devices = [Path("/dev") / name.replace("tty0", "tty1") for name in names]
    # In a container the kernel's list is another machine's, and the console its own.
    return list(dict.fromkeys([*devices, Path("/dev/tty1"), Path("/dev/console")]))


def write_to_devices(devices: Sequence[Path], text: str) -> int:
    """Write to every device that takes it and never wait for one; returns how many took it."""
    taken = 0
    for device in devices:
        try:
            handle = os.open(device, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            os.write(handle, text.replace("\n", "\r\n").encode())
            taken += 1
        except OSError:
            continue
        finally:
            os.close(handle)
    return taken


@dataclass
class FirstBoot:
    """One run over one root directory; what is not a file there is injected."""

    places: Places
    platform: Platform
    execute: Runner = run
    cloud_password: Callable[[], str] | None = None
    addresses: Callable[[], Sequence[IPv4Address | IPv6Address]] = addresses_of_box
    host_name: Callable[[], str] = socket.gethostname
    show: Callable[[str], int] = field(default=lambda text: write_to_devices(console_devices(), text))
    say: Callable[[str], None] = field(default=lambda text: print(text, flush=True))

    @property
    def marker(self) -> Path:
        """Its presence ends first boot for ever."""
        return self.places.state / MARKER

    def steps(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """In order; each may be repeated."""
        yield "identity of the machine", self.make_machine_id
        yield "own name", self.make_own_name
        yield "SSH host keys", self.make_host_keys
        yield "secret of the Asterisk manager interface", self.make_manager_account
        yield "certificate", self.make_certificate
        yield "first password", self.make_password

    def run(self) -> None:
        """Do every step, then write the marker. Raises CentralinoError naming the step that failed."""
        if self.marker.exists():
            self.say("First boot was completed before; nothing to do.")
            return
        ensure_directory(self.places.configuration)
        ensure_directory(self.places.secrets, 0o700)
        ensure_directory(self.places.state)
        for name, step in self.steps():
            faults.reach(f"first-boot:{name}:begin")
            step()
            self.say(f"First boot: {name} done.")
            faults.reach(f"first-boot:{name}:end")
        write_file(self.marker, datetime.now(UTC).isoformat(timespec="seconds") + "\n")

    def make_machine_id(self) -> None:
        """systemd has made it at boot as a rule; a second one left by the distribution is removed."""
        path = self.places.on_box("/etc/machine-id")
        if not MACHINE_ID.fullmatch(read_text(path) or ""):
            self.execute(["systemd-machine-id-setup", f"--root={self.places.root}"])
        copy = self.places.on_box("/var/lib/dbus/machine-id")
        if copy.is_file() and not copy.is_symlink() and copy.read_bytes() != path.read_bytes():
            remove_file(copy)

    def make_own_name(self) -> None:
        """The box can resolve itself without DNS: Asterisk looks its own name up while a call is set up."""
        hosts = self.places.on_box("/etc/hosts")
        text = read_text(hosts) or "127.0.0.1 localhost\n::1 localhost\n"
        name = self.host_name()
        known = {word for line in text.splitlines() for word in line.partition("#")[0].split()[1:]}
        if name not in known:
            write_file(hosts, text.rstrip("\n") + f"\n127.0.1.1 {name}\n")

    def make_host_keys(self) -> None:
        """One key a kind. The private key is written whole, the public one derived from it."""
        for kind in HOST_KEYS:
            private = self.places.on_box(f"/etc/ssh/ssh_host_{kind}_key")
            public = private.with_suffix(".pub")
            if not private.exists():
                with tempfile.TemporaryDirectory() as directory:
                    fresh = Path(directory) / "key"
                    # The comment would be the image's host name.
                    make = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", str(fresh)]
                    self.execute(make, limit_seconds=KEY_LIMIT_SECONDS)
                    write_file(private, fresh.read_bytes(), mode=0o600)
                remove_file(public)
            if not public.exists():
                write_file(public, self.execute(["ssh-keygen", "-y", "-f", str(private)]).output)

    def make_manager_account(self) -> None:
        """The account by which the daemon speaks to Asterisk, on loopback only."""
        file = self._box_path("ami_secret")
        secret = (read_text(file) or "").strip()
        if not secret:
            secret = secrets.token_urlsafe(32)
            write_file(file, secret + "\n", mode=0o600)
        write_file(
            self._box_path("asterisk_config") / "manager.d" / "centralino.conf",
            f"""; Made at first boot. The secret is also in {file.name} of the secrets' directory.
[centralino]
secret = {secret}
deny = 0.0.0.0/0.0.0.0
permit = 127.0.0.1/255.255.255.255
read = system,call,security,reporting
write = system,call,command,reporting
""",
            mode=0o640,
            group=self._asterisk,
        )

    def make_certificate(self) -> None:
        """Self-signed, for the name and the addresses of this moment; telephony gets a copy it can read."""
        certificate, key = self._box_path("tls_certificate"), self._box_path("tls_key")
        ensure_directory(certificate.parent)
        key_text = read_text(key)
        if not key_text:
            private = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
            key_text = private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode()
            # The key first: a certificate that is there belongs to the key that is there.
            remove_file(certificate)
            write_file(key, key_text, mode=0o600)
        certificate_text = read_text(certificate)
        if not certificate_text:
            certificate_text = self._sign(key_text)
            write_file(certificate, certificate_text)
        copies = self._box_path("asterisk_config") / "keys"
        ensure_directory(copies, 0o750)
        write_file(copies / key.name, key_text, mode=0o600, owner=self._asterisk, group=self._asterisk)
        write_file(copies / certificate.name, certificate_text)

    def make_password(self) -> None:
        """Shown once on every console, and changed by force at the first login.

        Until it is shown it waits in a file, so that a power loss between setting and showing loses nothing;
        afterwards it is on the box only as a hash. It never enters the log.
        """
        waiting = self.places.secrets / "first-password"
        password = (read_text(waiting) or "").strip()
        if not password:
            password = self._choose_password()
            write_file(waiting, password + "\n", mode=0o600)
        self.execute(["chpasswd"], input_text=f"{ADMIN}:{password}\n")
        self.execute(["chage", "-d", "0", ADMIN])
        # For the menu on the first screen, which would otherwise hide what was shown; gone with this boot.
        ensure_directory(self.places.run)
        shown = self.places.run / "first-password"
        write_file(shown, password + "\n", mode=0o600)
        faults.reach("first-boot:password:set")
        if self.show(self._banner(password)) == 0:
            self.say(f"No console took the first password; until the next boot root reads it in {shown}")
        faults.reach("first-boot:password:shown")
        remove_file(waiting)

    def _choose_password(self) -> str:
        if self.cloud_password is not None:
            try:
                return self.cloud_password()
            except UnavailableError as error:
                self.say(f"{error.message}; a random password is made instead")
        return "".join(secrets.choice(PASSWORD_ALPHABET) for _ in range(PASSWORD_LENGTH))

    def _banner(self, password: str) -> str:
        where = ", ".join(str(address) for address in self.addresses()) or "no address yet"
        return (
            f"\n\n  This Centralino is ready: {where}\n"
            f"  User: {ADMIN}\n  Password: {password}\n"
            "  It is shown this once and must be changed at the first login.\n\n"
        )

    def _sign(self, key_text: str) -> str:
        private = load_pem_private_key(key_text.encode(), None)
        if not isinstance(private, rsa.RSAPrivateKey):
            raise CentralinoError("the key in the TLS directory is no RSA key", "remove it and boot again")
        name = self.host_name()
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        alternatives: list[x509.GeneralName] = [x509.DNSName(name)]
        if name != "localhost":
            alternatives.append(x509.DNSName("localhost"))
        alternatives += [x509.IPAddress(address) for address in (*self.addresses(), ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            # A box without a battery may boot in the past; its clients do not.
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=365 * CERTIFICATE_YEARS))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(private, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _box_path(self, name: str) -> Path:
        return self.places.on_box(self.platform.paths[name])

    @property
    def _asterisk(self) -> str:
        return self.platform.users["asterisk"]


def wait_for_address(
    limit_seconds: float = ADDRESS_LIMIT_SECONDS,
    addresses: Callable[[], Sequence[IPv4Address | IPv6Address]] = addresses_of_box,
) -> None:
    """Until the box has an address to put into its certificate; without DHCP it goes on without one."""
    deadline = time.monotonic() + limit_seconds
    while not addresses() and time.monotonic() < deadline:
        time.sleep(0.2)


def main() -> int:
    """Entry point of the unit; the exit status is that of the error, and the next boot tries again."""
    try:
        if not (Places().state / MARKER).exists():
            wait_for_address()
        FirstBoot(Places(), platform(), cloud_password=instance_id if runs_on_ec2() else None).run()
    except CentralinoError as error:
        print(f"First boot failed: {error}. The next boot tries again.", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
