"""The kickstart's scripts, run by bash as Anaconda would, against a made tree of /sys and /dev."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from pykickstart.parser import KickstartParser
from pykickstart.version import makeVersion

from kickstart.model import Disk, Installation, PayloadSource, Volume
from kickstart.render import render
from kickstart.validate import Section, validate

GB = 10**9
VOLUMES = (
    Volume("root", "/", "xfs", 20480),
    Volume("swap", "", "swap", 4096),
    Volume("data", "/var", "xfs", 30720, True),
)
PLAIN = Installation(
    product="Centralino",
    version="0.1.0",
    disk=Disk(minimum_bytes=150 * GB, volumes=VOLUMES),
    packages=("@core",),
    payload=PayloadSource(sha256="0" * 64, path="centralino/payload.tar"),
    medium_label="CENTRALINO",
    kernel_arguments="console=tty0 quiet",
)


class Machine:
    """A fake machine: disks in sysfs, consoles that are files, and a medium."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for directory in (
            "sys/block",
            "sys/class/tty/console",
            "dev/disk/by-label",
            "dev/disk/by-id",
            "tmp",
            "run/install/repo/centralino",
            "mnt/sysroot/var/log",
            "mnt/sysroot/var/tmp",
            "bin",
            "proc",
            "mnt/sysroot/boot",
        ):
            (root / directory).mkdir(parents=True)
        (root / "sys/class/tty/console/active").write_text("tty0 ttyS0\n")
        self.program("blkid", 'read -r first <"${!#}" && [ "$first" = data ]')
        self.program("findmnt", f"cat {root}/mounted 2>/dev/null")
        # A "filesystem" is a directory NAME.fs beside the device node NAME.
        body = 'rmdir "$4" && [ -d "$3.fs" ] && ln -s "$3.fs" "$4" || { mkdir -p "$4"; exit 32; }'
        self.program("mount", body)
        self.program("umount", 'rm "$1" && mkdir "$1"')
        self.program("restorecon", f'echo "$@" >>{root}/relabelled')

    def program(self, name: str, body: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def disk(
        self,
        name: str,
        size: int,
        *,
        data: bool = False,
        partitions: tuple[str, ...] = (),
        removable: int = 0,
        ro: int = 0,
        model: str = "",
    ) -> Path:
        block = self.root / "sys/block" / name
        (block / "holders").mkdir(parents=True)
        (block / "device").mkdir()
        for attribute, value in (
            ("size", size // 512),
            ("removable", removable),
            ("ro", ro),
            ("device/model", model),
        ):
            (block / attribute).write_text(f"{value}\n")
        (self.root / "dev" / name).write_text("data\n" if data else "\n")
        for partition in partitions:
            (block / partition).mkdir()
            (block / partition / "partition").write_text("1\n")
            (self.root / "dev" / partition).write_text("data\n")
        return block

    def holder(self, disk: str, name: str, attribute: str, value: str) -> None:
        path = self.root / "sys/block" / disk / "holders" / name / attribute
        path.parent.mkdir(parents=True)
        path.write_text(value + "\n")

    def efi(self) -> None:
        (self.root / "sys/firmware/efi").mkdir(parents=True)

    def run(self, section: Section, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", section.text],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={
                "PATH": f"{self.root}/bin:{os.environ['PATH']}",
                "CENTRALINO_ROOT": str(self.root),
                "CENTRALINO_HOLD_SECONDS": "0",
                **environment,
            },
        )

    @property
    def console(self) -> str:
        path = self.root / "dev/ttyS0"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def section(installation: Installation, kind: str, index: int) -> Section:
    return [found for found in validate(render(installation)) if found.kind == kind][index]


def choose(machine: Machine, **disk: object) -> dict[str, object] | str:
    """What the disk script decides: storage commands as pykickstart reads them, or the refusal it shows."""
    installation = replace(PLAIN, disk=replace(PLAIN.disk, **disk))
    installation.check("profile")
    done = machine.run(section(installation, "%pre", -1))
    storage = machine.root / "tmp/centralino-storage.ks"
    if done.returncode != 0:
        assert not storage.exists() and done.returncode == 1, done
        assert "INSTALLATION STOPPED" in machine.console and "What to do" in machine.console
        return machine.console
    assert not done.stderr, done.stderr
    parser = KickstartParser(makeVersion("RHEL8"))
    parser.readKickstartFromString(storage.read_text())
    handler = parser.handler
    return {
        "disks": handler.ignoredisk.onlyuse,
        "cleared": handler.clearpart.drives,
        "boot": handler.bootloader.bootDrive,
        "arguments": handler.bootloader.appendLine,
        "reqpart": handler.reqpart.reqpart,
        "partitions": [(part.mountpoint, part.disk, part.fstype) for part in handler.partition.partitions],
        "raids": [(raid.mountpoint, str(raid.level), raid.members) for raid in handler.raid.raidList],
        "volumes": [(lv.name, lv.mountpoint, lv.fstype, lv.size, lv.grow) for lv in handler.logvol.lvList],
    }


def test_the_one_disk_is_used_and_laid_out_as_the_profile_says(machine: Machine) -> None:
    machine.disk("vda", 200 * GB)
    assert choose(machine) == {
        "disks": ["vda"],
        "cleared": ["vda"],
        "boot": "vda",
        "arguments": "console=tty0 quiet",
        "reqpart": True,
        "partitions": [("/boot", "vda", "xfs"), ("pv.1", "vda", "")],
        "raids": [],
        "volumes": [
            ("root", "/", "xfs", 20480, False),
            ("swap", "swap", "swap", 4096, False),
            ("data", "/var", "xfs", 30720, True),
        ],
    }
    assert "everything on it is erased" in machine.console


def test_sticks_optical_drives_read_only_and_empty_slots_are_passed_over(machine: Machine) -> None:
    machine.disk("loop0", 500 * GB)
    machine.disk("sr0", 10 * GB, removable=1)
    machine.disk("sda", 500 * GB, removable=1)
    machine.disk("sdb", 500 * GB, ro=1)
    machine.disk("sdc", 0)
    machine.disk("sdd", 200 * GB)
    assert choose(machine)["disks"] == ["sdd"]


@pytest.mark.parametrize("how", ["mounted whole", "mounted partition", "label"])
def test_the_installation_medium_is_never_chosen(machine: Machine, how: str) -> None:
    """Some USB enclosures say that they are not removable."""
    machine.disk("sda", 500 * GB, partitions=("sda1",))
    machine.disk("sdb", 200 * GB)
    if how == "label":
        (machine.root / "dev/disk/by-label/CENTRALINO").symlink_to("../../sda")
    else:
        (machine.root / "mounted").write_text(
            f"{machine.root}/dev/{'sda1' if 'partition' in how else 'sda'}\n"
        )
    assert choose(machine)["disks"] == ["sdb"]


def test_members_of_multipath_and_firmware_raid_are_passed_over(machine: Machine) -> None:
    for name in ("sda", "sdb", "sdc", "sdd"):
        machine.disk(name, 200 * GB)
    machine.holder("sda", "dm-0", "dm/uuid", "mpath-3600508b4")
    machine.holder("sdb", "md127", "md/metadata_version", "external:imsm")
    machine.holder("sdc", "dm-1", "dm/uuid", "DMRAID-isw")
    assert choose(machine)["disks"] == ["sdd"]


def test_an_old_installation_with_lvm_is_replaced(machine: Machine) -> None:
    machine.disk("sda", 200 * GB, partitions=("sda1", "sda2"))
    machine.holder("sda", "dm-0", "dm/uuid", "LVM-abcdef")
    assert choose(machine)["disks"] == ["sda"]


def test_too_small_disks_are_refused_with_both_sizes(machine: Machine) -> None:
    machine.disk("sda", 80 * GB, model="TinyDisk   ")
    text = choose(machine)
    assert "needs 150 GB" in text and "/dev/sda (80 GB, TinyDisk)" in text


def test_no_disk_at_all(machine: Machine) -> None:
    machine.disk("sr0", GB, removable=1)
    assert "no disk to install on" in choose(machine)


def test_several_disks_with_data_are_refused_unless_the_profile_says_so(machine: Machine) -> None:
    machine.disk("sda", 200 * GB, data=True)
    machine.disk("sdb", 200 * GB, partitions=("sdb1",))
    text = choose(machine)
    assert "2 disks hold data (/dev/sda /dev/sdb)" in text
    assert choose(machine, allow_several_used_disks=True)["disks"] == ["sda"]


def test_data_on_a_disk_too_small_to_use_counts(machine: Machine) -> None:
    machine.disk("sda", 10 * GB, data=True)
    machine.disk("sdb", 200 * GB, data=True)
    assert "2 disks hold data" in choose(machine)


def test_an_empty_disk_goes_before_one_with_data(machine: Machine) -> None:
    machine.disk("sda", 200 * GB, data=True)
    machine.disk("sdb", 200 * GB)
    assert choose(machine)["disks"] == ["sdb"]


@pytest.mark.parametrize("name", ["sdb", "/dev/sdb", "/dev/disk/by-id/wwn-0x1"])
def test_the_named_disk_is_used_even_beside_others_with_data(machine: Machine, name: str) -> None:
    machine.disk("sda", 500 * GB, data=True)
    machine.disk("sdb", 200 * GB, data=True)
    (machine.root / "dev/disk/by-id/wwn-0x1").symlink_to("../../sdb")
    assert choose(machine, names=(name if name.startswith("/") else f"/dev/{name}",))["disks"] == ["sdb"]


@pytest.mark.parametrize("names", [(), ("/dev/sda",)])
def test_a_profile_that_forbids_erasing_takes_empty_disks_only(
    machine: Machine, names: tuple[str, ...]
) -> None:
    machine.disk("sda", 200 * GB, data=True)
    assert "profile forbids to erase any" in choose(machine, erase_used=False, names=names)
    machine.disk("sdb", 200 * GB)
    if not names:
        assert choose(machine, erase_used=False)["disks"] == ["sdb"]


def test_a_named_disk_that_is_missing_small_or_the_medium_is_refused(machine: Machine) -> None:
    machine.disk("sda", 80 * GB)
    machine.disk("sdb", 200 * GB, removable=1)
    assert "sdx named in the profile is not in this machine" in choose(machine, names=("/dev/sdx",))
    assert "/dev/sda (80 GB) is too small" in choose(machine, names=("/dev/sda",))
    assert "sdb named in the profile cannot be used: removable" in choose(machine, names=("/dev/sdb",))


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_a_mirror_can_boot_from_either_half(machine: Machine, firmware: str) -> None:
    machine.disk("sda", 200 * GB)
    machine.disk("sdb", 200 * GB)
    machine.disk("sdc", 200 * GB)
    if firmware == "uefi":
        machine.efi()
    plan = choose(machine, raid1=True)
    assert plan["disks"] == ["sda", "sdb"] and not plan["reqpart"]
    if firmware == "uefi":
        assert ("/boot/efi", "RAID1", ["raid.esp1", "raid.esp2"]) in plan["raids"]
    else:
        assert [disk for mount, disk, _ in plan["partitions"] if mount == "biosboot"] == ["sda", "sdb"]
    assert ("/boot", "RAID1", ["raid.boot1", "raid.boot2"]) in plan["raids"]
    assert ("pv.1", "RAID1", ["raid.pv1", "raid.pv2"]) in plan["raids"]


def test_a_mirror_of_one_disk_is_refused(machine: Machine) -> None:
    machine.disk("sda", 200 * GB)
    machine.disk("sdb", 80 * GB)
    assert "RAID 1, which needs two suitable disks; found 1" in choose(machine, raid1=True)


def test_a_medium_left_in_the_machine_does_not_install_twice(machine: Machine) -> None:
    machine.disk("sda", 200 * GB, partitions=("sda1", "sda2"))
    boot = machine.root / "dev/sda2.fs"
    boot.mkdir()
    (boot / "centralino-medium").write_text(f"{PLAIN.payload.sha256}\n")
    assert "already installed by this very installer (sda2)" in choose(machine)
    # Another installer, or the word of a person, erases it.
    (boot / "centralino-medium").write_text("f" * 64)
    assert choose(machine)["disks"] == ["sda"]
    (boot / "centralino-medium").write_text(f"{PLAIN.payload.sha256}\n")
    (machine.root / "proc/cmdline").write_text("quiet centralino.reinstall console=ttyS0\n")
    assert choose(machine)["disks"] == ["sda"]


def medium(machine: Machine) -> Installation:
    repo = machine.root / "run/install/repo"
    (repo / "a file").write_text("content")
    (repo / "images").mkdir()
    (repo / "images/install.img").write_bytes(b"x" * 5000)
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(repo)}\n"
        for path in (repo / "a file", repo / "images/install.img")
    ]
    (repo / "SHA256SUMS").write_text("".join(lines))
    digest = hashlib.sha256((repo / "SHA256SUMS").read_bytes()).hexdigest()
    return replace(PLAIN, hash_list_sha256=digest)


def test_an_intact_medium_passes(machine: Machine) -> None:
    done = machine.run(section(medium(machine), "%pre", 0))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "medium is intact" in machine.console


@pytest.mark.parametrize("damage", ["flipped", "missing", "list", "no list"])
def test_a_damaged_medium_is_refused(machine: Machine, damage: str) -> None:
    check = section(medium(machine), "%pre", 0)
    repo = machine.root / "run/install/repo"
    match damage:
        case "flipped":
            (repo / "images/install.img").write_bytes(b"x" * 4999 + b"y")
        case "missing":
            (repo / "a file").unlink()
        case "list":
            (repo / "SHA256SUMS").write_text("")
        case "no list":
            (repo / "SHA256SUMS").unlink()
    done = machine.run(check)
    assert done.returncode == 1
    assert "INSTALLATION STOPPED" in machine.console
    if damage in ("flipped", "missing"):
        assert ("./images/install.img" if damage == "flipped" else "a file") in done.stdout + done.stderr


def payload(machine: Machine, script: str) -> Installation:
    source = machine.root / "source"
    source.mkdir()
    (source / "install").write_text(f"#!/bin/bash\n{script}\n")
    (source / "install").chmod(0o755)
    archive = machine.root / "run/install/repo/centralino/payload.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(source, "payload")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return replace(PLAIN, payload=replace(PLAIN.payload, sha256=digest, arguments=("--phase", "image")))


def test_the_payload_is_copied_and_run_in_the_new_system(machine: Machine) -> None:
    installation = payload(machine, f'echo "ran with $*" >{machine.root}/ran')
    done = machine.run(section(installation, "%post", 0))
    assert done.returncode == 0, done.stderr
    system = machine.root / "mnt/sysroot"
    assert (system / "opt/centralino/payload/install").stat().st_mode & 0o111
    done = machine.run(section(installation, "%post", 1), CENTRALINO_ROOT=str(system))
    assert done.returncode == 0, done.stderr
    assert (machine.root / "ran").read_text() == "ran with --phase image\n"
    assert f"-R {system}/opt" in (machine.root / "relabelled").read_text()
    assert (system / "boot/centralino-medium").read_text() == f"{installation.payload.sha256}\n"


def test_a_payload_that_was_changed_is_refused(machine: Machine) -> None:
    installation = payload(machine, "true")
    archive = machine.root / "run/install/repo/centralino/payload.tar"
    content = bytearray(archive.read_bytes())
    content[600] ^= 1
    archive.write_bytes(content)
    assert machine.run(section(installation, "%post", 0)).returncode == 1
    assert "payload is not the one" in machine.console


def test_a_failing_payload_stops_visibly_and_shows_the_log(machine: Machine) -> None:
    installation = payload(machine, "echo 'TASK [database] failed: disk full'; exit 3")
    assert machine.run(section(installation, "%post", 0)).returncode == 0
    system = machine.root / "mnt/sysroot"
    for directory in ("sys", "dev"):
        (system / directory).symlink_to(machine.root / directory)
    log = system / "var/log/centralino/kickstart-post.log"
    script = replace(section(installation, "%post", 1))
    # Anaconda sends the script's output to --log; so does this.
    wrapped = replace(script, text=f"exec >>{log} 2>&1\n{script.text}")
    done = machine.run(wrapped, CENTRALINO_ROOT=str(system))
    assert done.returncode == 1
    assert "TASK [database] failed: disk full" in machine.console
    assert "application layer could not be installed (status 3)" in machine.console
    assert "disk full" in log.read_text()


def test_the_logs_survive_a_fatal_error(machine: Machine) -> None:
    (machine.root / "tmp/anaconda.log").write_text("why")
    done = machine.run(section(PLAIN, "%onerror", 0))
    assert done.returncode == 0
    assert (machine.root / "mnt/sysroot/var/log/centralino/installer/anaconda.log").read_text() == "why"
