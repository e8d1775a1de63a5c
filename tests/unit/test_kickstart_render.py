"""The kickstart: golden texts, pykickstart's verdict, refusals that name the field (S-IN-01, S-IN-02)."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ProfileError
from kickstart.model import Disk, Finish, Installation, Network, PayloadSource, Source, User, Volume
from kickstart.render import render
from kickstart.validate import KickstartInvalidError, validate

GOLDEN = Path(__file__).parent / "golden_kickstart"
HASH = "$6$saltsalt$" + "a" * 86
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtlc3RrZXkta2V5LWtleS1rZXkta2V5LWtleS1rZXk= installer@example"

VOLUMES = (
    Volume("root", "/", "xfs", 20480),
    Volume("swap", "", "swap", 4096),
    Volume("data", "/var", "xfs", 30720, grow=True),
)
MINIMAL = Installation(
    product="Centralino",
    version="0.1.0",
    disk=Disk(minimum_bytes=150 * 10**9, volumes=VOLUMES),
    packages=("@core", "python3.12"),
    payload=PayloadSource(sha256="0" * 64, path="centralino/payload.tar"),
    medium_label="CENTRALINO-0-1-0",
    hash_list_sha256="1" * 64,
)
FULL = replace(
    MINIMAL,
    disk=replace(MINIMAL.disk, names=("sda", "sdb"), raid1=True, allow_several_used_disks=True),
    networks=(
        Network(
            device="eth0",
            address=IPv4Interface("192.0.2.10/24"),
            gateway=ip_address("192.0.2.1"),
            name_servers=(ip_address("192.0.2.53"), ip_address("2001:db8::53")),
            hostname="pbx.example.com",
        ),
        Network(device="eth1", address=IPv6Interface("2001:db8::10/64")),
    ),
    root_password_hash=HASH,
    users=(User("admin", ("wheel", "centralino-admin"), HASH), User("support", ("centralino-operator",))),
    ssh_keys=(("root", KEY), ("admin", KEY)),
    modules=(("mariadb", "10.11"), ("nginx", "1.24")),
    excluded_packages=("firewalld", "iwl*-firmware"),
    enabled_services=("chronyd", "sshd"),
    time_servers=("ntp1.example.com", "ntp2.example.com"),
    kernel_arguments="console=tty0 console=ttyS0,115200n8",
    finish=Finish.POWER_OFF,
    signing_key="centralino/signing-key.gpg",
)
CASES = {
    "minimal": MINIMAL,
    "full": FULL,
    "questions": replace(FULL, unattended=False),
    "network-boot": replace(
        MINIMAL,
        hash_list_sha256="",
        source=Source(
            "http://boot.example/almalinux", (("AppStream", "http://boot.example/almalinux/AppStream"),)
        ),
        payload=PayloadSource(sha256="0" * 64, url="http://boot.example/payload.tar"),
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_golden_texts(name: str) -> None:
    text = render(CASES[name])
    path = GOLDEN / f"{name}.ks"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"UPDATE_GOLDEN=1 writes {path.name} anew; read the difference before"


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_handler_of_the_target_accepts_every_kickstart(name: str) -> None:
    sections = validate(render(CASES[name]))
    stopping = [(section.kind, section.in_chroot) for section in sections if section.stops_on_failure]
    # A %post that fails without --erroronfail would end in a reboot into half a system.
    assert ("%post", False) in stopping and ("%post", True) in stopping
    assert all(section.stops_on_failure for section in sections if section.kind != "%onerror")


def test_the_medium_is_checked_before_a_disk_is_chosen() -> None:
    first, second = [section for section in validate(render(MINIMAL)) if section.kind == "%pre"]
    assert "check_medium" in first.text.splitlines()[-1]
    assert "write_storage" in second.text


def test_an_installation_with_questions_touches_no_disk_by_itself() -> None:
    text = render(CASES["questions"])
    for command in ("clearpart", "rootpw", "network ", "ignoredisk", "cmdline", "%include"):
        assert f"\n{command}" not in text


@pytest.mark.parametrize(
    ("old", "new", "line", "option"),
    [
        ("skipx", "skipx --never", 5, "--never"),
        ("eula --agreed", "timesource --ntp-server=a", 4, "timesource"),
        ("%packages --excludeWeakdeps", "%packages --exclude-weakdeps", 0, "--exclude-weakdeps"),
        ("rootpw --lock", "rootpw --lock --allow-ssh", 0, "--allow-ssh"),
        ("selinux --enforcing", "selinux --sometimes", 0, "--sometimes"),
    ],
)
def test_an_error_names_line_and_option(old: str, new: str, line: int, option: str) -> None:
    text = render(MINIMAL)
    assert text.count(old) >= 1
    wrong = text.replace(old, new, 1)
    number = line or next(index for index, found in enumerate(wrong.splitlines(), 1) if option in found)
    with pytest.raises(KickstartInvalidError) as caught:
        validate(wrong)
    assert f"line {number} " in str(caught.value)
    assert option in str(caught.value)


def test_a_deprecated_command_is_refused() -> None:
    with pytest.raises(KickstartInvalidError, match="deprecated"):
        validate("install\n" + render(MINIMAL))


def refused(installation: Installation) -> str:
    with pytest.raises(ProfileError) as caught:
        installation.check("profile.toml")
    return str(caught.value)


def test_refusals_name_every_field_at_once_and_repeat_no_secret() -> None:
    text = refused(
        replace(
            MINIMAL,
            disk=replace(MINIMAL.disk, raid1=True, names=("sda",), minimum_bytes=20 * 10**9),
            root_password_hash="correct horse",
            users=(User("admin", (), "battery staple"),),
            ssh_keys=(("root", "-----BEGIN OPENSSH PRIVATE KEY-----"),),
            modules=(("mariadb", "10.11 --disable"),),
            networks=(Network(address=IPv4Interface("192.0.2.10/24"), gateway=ip_address("198.51.100.1")),),
        )
    )
    for field in (
        "disk.raid1",
        "disk.volumes",
        "root_password_hash",
        "users.admin",
        "ssh_keys.root",
        "modules",
        "network.gateway",
    ):
        assert field in text
    assert "correct horse" not in text and "battery staple" not in text and "PRIVATE" not in text


@given(st.lists(st.text(max_size=30), max_size=3), st.text(max_size=30), st.text(max_size=20))
def test_hostile_values_are_refused_or_stay_values(names: list[str], password: str, label: str) -> None:
    """Whatever a profile says: refused, or a valid kickstart with the sections it always has."""
    installation = replace(
        MINIMAL,
        disk=replace(MINIMAL.disk, names=tuple(names)),
        root_password_hash=password,
        ssh_keys=(("root", f"ssh-ed25519 {password}"),),
        medium_label=label,
    )
    try:
        installation.check("profile.toml")
    except ProfileError:
        return
    assert len(validate(render(installation))) == len(validate(render(MINIMAL)))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", sorted(CASES))
def test_shellcheck_finds_nothing_in_the_scripts_as_anaconda_runs_them(name: str) -> None:
    for section in validate(render(CASES[name])):
        done = subprocess.run(
            # SC2034: a script may be given values that this product has no use for.
            ["shellcheck", "--shell=bash", "--severity=style", "--exclude=SC2034", "-"],
            input=section.text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{section.kind} at line {section.line}:\n{done.stdout}"


@pytest.mark.parametrize("name", sorted(CASES))
def test_scripts_use_only_what_anacondas_runtime_keeps(name: str) -> None:
    """lorax removes these from the EL8 installer (runtime-cleanup.tmpl of its rhel8 branch)."""
    removed = {
        "stat",
        "timeout",
        "base64",
        "openssl",
        "nproc",
        "stty",
        "tty",
        "runcon",
        "chcon",
        "who",
        "shuf",
        "truncate",
        "expand",
        "comm",
        "nl",
        "install",
        "logname",
        "rpm",
        "getent",
        "file",
        "diff",
    }
    for section in validate(render(CASES[name])):
        if section.in_chroot:
            continue
        for line in section.text.splitlines():
            code = line.split("#", 1)[0].strip()
            words = code.replace("$(", " ; ").replace("|", " ; ").replace("&&", " ; ").split(" ; ")
            commands = {word.split()[0] for word in words if word.split()}
            assert not commands & removed, f"line {line!r} uses {commands & removed}"
