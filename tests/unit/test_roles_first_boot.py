"""First boot: everything of its own, nothing twice, and a power loss at any point repaired (S-SE-05)."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from daemon import faults
from daemon.errors import CommandFailedError, UnavailableError
from daemon.first_boot import PASSWORD_ALPHABET, FirstBoot, console_devices, write_to_devices
from daemon.places import Places
from daemon.platform import Platform
from daemon.run import Completed, run

ADDRESSES = [ip_address("192.0.2.10"), ip_address("2001:db8::10")]
PATHS = {
    "ami_secret": "/etc/centralino/secrets/asterisk-ami",
    "asterisk_config": "/etc/asterisk",
    "tls_certificate": "/etc/centralino/tls/box.crt",
    "tls_key": "/etc/centralino/tls/box.key",
}


class PowerLossError(BaseException):
    """Nothing may catch it, as nothing catches a power loss."""


@dataclass
class Box:
    """A root directory with what an image holds, and what was done to it beyond files."""

    root: Path
    passwords: list[str] = field(default_factory=list)
    expired: bool = False
    shown: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    consoles: int = 1

    def execute(self, arguments: list[str], **options: object) -> Completed:
        """The programs that need a real root file system are recorded; ssh-keygen is the real one."""
        if arguments[0] == "systemd-machine-id-setup":
            (self.root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
        elif arguments[0] == "chpasswd":
            self.passwords.append(str(options["input_text"]).strip().partition("admin:")[2])
            self.expired = False
        elif arguments == ["chage", "-d", "0", "admin"]:
            self.expired = True
        else:
            assert arguments[0] == "ssh-keygen"
            # The shortest key that it makes, because the length is not what is tested.
            return run([*arguments, "-b", "1024"] if "rsa" in arguments else arguments)
        return Completed(tuple(arguments), 0, "", "")

    def show(self, text: str) -> int:
        self.shown.append(text)
        return self.consoles

    def first_boot(self, **changes: object) -> FirstBoot:
        platform = Platform(
            "test", "1", {}, {name: Path(path) for name, path in PATHS.items()}, {"asterisk": "root"}
        )
        return FirstBoot(
            Places(self.root),
            platform,
            execute=self.execute,
            addresses=lambda: ADDRESSES,
            host_name=lambda: "pbx",
            show=self.show,
            say=self.said.append,
            **changes,  # type: ignore[arg-type]
        )

    def read(self, path: str) -> str:
        return (self.root / path.removeprefix("/")).read_text()

    def mode(self, path: str) -> int:
        return stat.S_IMODE((self.root / path.removeprefix("/")).stat().st_mode)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the length of keys nor the disk's own flush is what is tested here."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr("daemon.first_boot.RSA_BITS", 1024)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    for directory in ("etc/asterisk/manager.d", "etc/ssh", "var/lib/dbus", "run"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "etc/machine-id").write_text("")
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost # pbx\n")
    yield Box(tmp_path)
    faults.install(None)


def assert_complete(box: Box) -> None:
    """What must hold after first boot, however often it was interrupted."""
    assert re.fullmatch(r"[0-9a-f]{32}\n", box.read("etc/machine-id"))
    assert box.read("etc/hosts").endswith("\n127.0.1.1 pbx\n")
    assert box.read("etc/hosts").count("127.0.1.1") == 1
    for kind in ("ed25519", "ecdsa", "rsa"):
        private = box.root / f"etc/ssh/ssh_host_{kind}_key"
        assert box.mode(f"etc/ssh/{private.name}") == 0o600
        key_pair = load_ssh_private_key(private.read_bytes(), None).public_key()
        public_line = key_pair.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        assert box.read(f"etc/ssh/{private.name}.pub").split()[:2] == public_line.split()[:2]
    secret = box.read(PATHS["ami_secret"]).strip()
    assert len(secret) >= 32
    assert f"secret = {secret}\n" in box.read("etc/asterisk/manager.d/centralino.conf")
    assert box.mode(PATHS["ami_secret"]) == 0o600
    assert box.mode("etc/centralino/secrets") == 0o700
    assert box.mode("etc/asterisk/manager.d/centralino.conf") == 0o640
    certificate = x509.load_pem_x509_certificate(box.read(PATHS["tls_certificate"]).encode())
    key = load_pem_private_key(box.read(PATHS["tls_key"]).encode(), None)
    public = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert certificate.public_key().public_bytes(*public) == key.public_key().public_bytes(*public)
    for name in ("box.key", "box.crt"):
        assert box.read(f"etc/asterisk/keys/{name}") == box.read(f"etc/centralino/tls/{name}")
    assert box.mode(PATHS["tls_key"]) == box.mode("etc/asterisk/keys/box.key") == 0o600
    assert box.expired
    assert box.passwords[-1] in box.shown[-1]
    assert not (box.root / "etc/centralino/secrets/first-password").exists()
    assert (box.root / "var/lib/centralino/first-boot-complete").exists()
    assert not list(box.root.rglob("*.centralino-new"))


def test_a_box_gets_everything_of_its_own(box: Box) -> None:
    box.first_boot().run()
    assert_complete(box)
    certificate = x509.load_pem_x509_certificate(box.read(PATHS["tls_certificate"]).encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["pbx", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [*ADDRESSES, ip_address("127.0.0.1")]
    assert len(box.passwords[0]) == 20
    assert set(box.passwords[0]) <= set(PASSWORD_ALPHABET)


def test_two_boxes_of_one_image_share_nothing(box: Box, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = Box(tmp_path_factory.mktemp("other"))
    for directory in ("etc/asterisk/manager.d", "etc/ssh"):
        (other.root / directory).mkdir(parents=True)
    box.first_boot().run()
    other.first_boot().run()
    for path in (
        PATHS["ami_secret"],
        PATHS["tls_key"],
        "etc/ssh/ssh_host_ed25519_key",
        "etc/ssh/ssh_host_ecdsa_key",
        "etc/ssh/ssh_host_rsa_key",
    ):
        assert box.read(path) != other.read(path)
    assert box.passwords != other.passwords


def points(box: Box) -> list[str]:
    """Every named point that one undisturbed run passes."""
    passed: list[str] = []
    faults.install(passed.append)
    box.first_boot().run()
    faults.install(None)
    return passed


def test_power_may_fail_at_every_point(box: Box, tmp_path_factory: pytest.TempPathFactory) -> None:
    names = points(box)
    assert len(names) > 40
    for cut in range(len(names)):
        root = tmp_path_factory.mktemp("cut")
        for directory in ("etc/asterisk/manager.d", "etc/ssh"):
            (root / directory).mkdir(parents=True)
        (root / "etc/machine-id").write_text("")
        # Two kinds of keys are brought along: the third takes every path that they do.
        for name in ("rsa_key", "rsa_key.pub", "ecdsa_key", "ecdsa_key.pub"):
            copy = root / f"etc/ssh/ssh_host_{name}"
            copy.write_text(box.read(f"etc/ssh/{copy.name}"))
            copy.chmod(0o600)
        victim = Box(root)
        reached: list[str] = []

        def cut_power(name: str, reached: list[str] = reached, cut: int = cut) -> None:
            reached.append(name)
            if len(reached) > cut:
                raise PowerLossError

        faults.install(cut_power)
        try:
            victim.first_boot().run()
        except PowerLossError:
            # What was on tmpfs is gone.
            for file in (root / "run/centralino").glob("*"):
                file.unlink()
        faults.install(None)
        victim.first_boot().run()
        assert victim.shown, f"after a power loss at {reached[-1]} the password was never shown"
        assert_complete(victim)


def test_what_was_shown_holds_even_if_the_marker_was_not_written(box: Box) -> None:
    def cut(name: str) -> None:
        if name == "first-boot:password:shown":
            raise PowerLossError

    faults.install(cut)
    with pytest.raises(PowerLossError):
        box.first_boot().run()
    faults.install(None)
    box.first_boot().run()
    assert box.passwords[0] == box.passwords[1]


def test_a_second_boot_touches_nothing(box: Box) -> None:
    box.first_boot().run()
    before = {path: path.read_bytes() for path in box.root.rglob("*") if path.is_file()}
    box.first_boot().run()
    assert {path: path.read_bytes() for path in box.root.rglob("*") if path.is_file()} == before
    assert len(box.passwords) == 1


def test_the_password_never_enters_the_log(box: Box) -> None:
    box.first_boot().run()
    assert box.passwords[0] not in "\n".join(box.said)
    assert box.read(PATHS["ami_secret"]).strip() not in "\n".join(box.said)


def test_without_a_console_root_is_told_where_to_look(box: Box) -> None:
    box.consoles = 0
    box.first_boot().run()
    file = box.root / "run/centralino/first-password"
    assert str(file) in "\n".join(box.said)
    assert file.read_text().strip() == box.passwords[0]
    assert box.mode("run/centralino/first-password") == 0o600


def test_in_amazon_s_cloud_the_password_is_the_instance_id(box: Box) -> None:
    box.first_boot(cloud_password=lambda: "i-0123456789abcdef0").run()
    assert box.passwords == ["i-0123456789abcdef0"]
    assert box.expired


def test_without_a_metadata_service_the_password_is_random(box: Box) -> None:
    def refuse() -> str:
        raise UnavailableError("the metadata service gave no instance ID")

    box.first_boot(cloud_password=refuse).run()
    assert set(box.passwords[0]) <= set(PASSWORD_ALPHABET)
    assert "gave no instance ID" in "\n".join(box.said)


def test_a_step_that_fails_leaves_no_marker_and_no_password(box: Box) -> None:
    def broken(arguments: list[str], **options: object) -> Completed:
        if arguments[0] == "chpasswd":
            raise CommandFailedError("chpasswd ended with status 1")
        return box.execute(arguments, **options)

    boot = box.first_boot()
    boot.execute = broken
    with pytest.raises(CommandFailedError):
        boot.run()
    assert not boot.marker.exists()
    assert not box.shown
    box.first_boot().run()
    assert_complete(box)


def test_the_identity_of_the_image_does_not_outlive_in_d_bus(box: Box) -> None:
    copy = box.root / "var/lib/dbus/machine-id"
    copy.write_text("ffffffffffffffffffffffffffffffff\n")
    box.first_boot().run()
    assert not copy.exists()


def test_the_first_screen_stands_for_the_kernel_s_current_one(tmp_path: Path) -> None:
    active = tmp_path / "active"
    active.write_text("tty0 ttyS0\n")
    assert console_devices(active) == [Path("/dev/tty1"), Path("/dev/ttyS0"), Path("/dev/console")]
    active.write_text("ttyS0\n")
    assert console_devices(active) == [Path("/dev/ttyS0"), Path("/dev/tty1"), Path("/dev/console")]
    assert console_devices(tmp_path / "none") == [Path("/dev/tty1"), Path("/dev/console")]


def test_a_console_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    present = tmp_path / "ttyS0"
    present.touch()
    assert write_to_devices([tmp_path / "tty1", present], "one\ntwo\n") == 1
    assert present.read_bytes() == b"one\r\ntwo\r\n"
