"""The medium starts in QEMU as disc and as stick, from BIOS, UEFI and Secure Boot (S-IN-04, S-IN-05).

A stand-in plays the installer's first steps (tests/support/installer_init.sh) and runs the kickstart's own
%pre and %post scripts, so that disks are found in a real /sys and the medium is checked file by file.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from installer_site import Site

from appliance.errors import BootTestError
from iso.boot_test import BootResult, Expectation, Milestone, boot_test
from iso.qemu import Attachment, Firmware, Machine

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]

DISK = 200 * 10**9
STEPS = (
    ("kernel", "installer: kernel is up", 60),
    ("medium", "installer: medium 'CENTRALINO-PBX-0_1_0' is /dev/", 30),
    ("runtime", "installer: stage 2 is mounted", 30),
    ("BaseOS", "installer: repository BaseOS resolves", 30),
    ("kickstart", "installer: kickstart: # Centralino PBX", 30),
    ("medium check", r"installer: %pre script ended well: The installation medium is intact", 60),
    ("disk", r"installer: %pre script ended well: .* will be installed on /dev/vda \(200 GB\)", 30),
    ("payload", r"installer: %post script ended well: The payload is in /opt/centralino/payload", 30),
    ("end", "installer: PASSED", 30),
)
FAILURES = ("installer: FAILED", "Kernel panic", "INSTALLATION STOPPED")


def expectation(*leave_out: str) -> Expectation:
    return Expectation(tuple(Milestone(*step) for step in STEPS if step[0] not in leave_out), FAILURES)


def build(site: Site, command: str, output: Path, *more: str | Path, profile: str = "pbx") -> Path:
    done = site.run(command, *site.words(site.profile(profile), output, "--json", *more))
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(json.loads(done.stdout)["path"])


def start(
    image: Path,
    tmp_path: Path,
    firmware: Firmware,
    attachment: Attachment,
    wanted: Expectation,
    disk: int = DISK,
) -> BootResult:
    machine = Machine(image, firmware, attachment, memory_mib=1024, disk_bytes=disk)
    return boot_test(machine, wanted, tmp_path / "console.log")


def test_disc_and_bios(medium: Path, tmp_path: Path) -> None:
    before = medium.stat().st_mtime_ns
    result = start(medium, tmp_path, Firmware.BIOS, Attachment.CD, expectation())
    assert [title for title, _ in result.reached] == [step[0] for step in STEPS]
    assert "medium 'CENTRALINO-PBX-0_1_0' is /dev/sr0" in result.console
    assert medium.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("firmware", "attachment"),
    [
        pytest.param(Firmware.BIOS, Attachment.USB, marks=pytest.mark.slow),
        pytest.param(Firmware.UEFI, Attachment.CD, marks=pytest.mark.slow),
        pytest.param(Firmware.UEFI, Attachment.USB, marks=pytest.mark.slow),
        pytest.param(Firmware.SECURE_BOOT, Attachment.CD, marks=pytest.mark.slow),
        # In every run: signatures, the file inside of the EFI image, the partition table and the raw writing.
        (Firmware.SECURE_BOOT, Attachment.USB),
    ],
)
def test_every_other_way(medium: Path, tmp_path: Path, firmware: Firmware, attachment: Attachment) -> None:
    result = start(medium, tmp_path, firmware, attachment, expectation())
    device = "/dev/sr0" if attachment is Attachment.CD else "/dev/sda"
    assert f"is {device}" in result.console
    if firmware is not Firmware.BIOS:
        # The menu came from the file inside of the EFI image, or from the ISO: both are ours.
        assert "Install Centralino PBX" in result.console


@pytest.mark.slow
def test_a_disk_below_the_tier_is_refused_on_the_console(medium: Path, tmp_path: Path) -> None:
    with pytest.raises(BootTestError, match="INSTALLATION STOPPED: every disk is too small") as caught:
        start(
            medium,
            tmp_path,
            Firmware.BIOS,
            Attachment.CD,
            Expectation((Milestone("end", "installer: PASSED", 60),), ("INSTALLATION STOPPED",)),
            disk=20 * 10**9,
        )
    assert "150 GB" in (tmp_path / "console.log").read_text()
    # The screen was still there to be photographed.
    assert (tmp_path / "console.png").read_bytes().startswith(b"\x89PNG")
    assert "console.log" in caught.value.remedy


@pytest.mark.slow
def test_a_damaged_medium_stops_before_the_disk(medium: Path, tmp_path: Path) -> None:
    from iso.iso9660 import Iso

    damaged = tmp_path / "damaged.iso"
    with Iso(medium) as iso:
        sector, length = iso.files["centralino/payload.tar"].extents[0]
    content = bytearray(medium.read_bytes())
    content[sector * 2048 + length // 2] ^= 1
    damaged.write_bytes(content)
    wanted = Expectation((Milestone("end", "installer: PASSED", 60),), ("INSTALLATION STOPPED.*",))
    with pytest.raises(BootTestError, match="damaged or were changed"):
        start(damaged, tmp_path, Firmware.BIOS, Attachment.CD, wanted)
    assert "will be installed on" not in (tmp_path / "console.log").read_text()


@pytest.mark.slow
def test_a_second_product_starts_too(site: Site, tmp_path: Path) -> None:
    image = build(site, "iso", tmp_path / "out", profile="edge")
    wanted = Expectation((Milestone("end", "will be installed on /dev/vda .*(.|\n)*PASSED", 90),), FAILURES)
    result = start(image, tmp_path, Firmware.UEFI, Attachment.USB, wanted, disk=40 * 10**9)
    assert "Edge Gateway 7.2" in result.console


@pytest.mark.slow
def test_network_boot_by_ipxe(site: Site, medium: Path, tmp_path: Path) -> None:
    tree = build(site, "pxe", tmp_path / "out", "--url", "http://10.0.2.100/pbx")
    result = start(tree, tmp_path, Firmware.BIOS, Attachment.NETWORK, expectation("medium", "medium check"))
    assert "installer: network is up" in result.console


@pytest.mark.slow
def test_a_milestone_that_does_not_come_fails_with_the_last_lines(medium: Path, tmp_path: Path) -> None:
    wanted = Expectation((Milestone("never", "this is not said", 60),), ())
    with pytest.raises(BootTestError, match=r"the machine went off before `never`(.|\n)*installer: PASSED"):
        start(medium, tmp_path, Firmware.BIOS, Attachment.CD, wanted)


@pytest.mark.slow
def test_the_command_tells_by_its_exit_code(site: Site, medium: Path, tmp_path: Path) -> None:
    milestones = tmp_path / "m.toml"
    milestones.write_text(
        'failures = ["installer: FAILED"]\n[[milestone]]\ntitle = "end"\n'
        'pattern = "installer: PASSED"\nseconds = 90\n'
    )
    words = ["--firmware", "bios", "--attach", "cd", "--milestones", str(milestones), "--memory", "1024"]
    done = site.run("boot-test", medium, *words, "--log-dir", tmp_path / "good", "--target-gb", "200")
    assert done.returncode == 0 and "end after" in done.stderr, done.stderr
    # Without a disk to install on the same medium must not pass; the script holds its message for a while.
    milestones.write_text(
        milestones.read_text().replace("installer: FAILED", "INSTALLATION STOPPED: no disk")
    )
    done = site.run("boot-test", medium, *words, "--log-dir", tmp_path / "bad")
    assert done.returncode == 10 and "no disk to install on" in done.stderr
    assert [path.suffix for path in sorted((tmp_path / "bad").iterdir())] == [".log", ".png"]
    leftover = subprocess.run(["pgrep", "-f", f"file={medium}"], capture_output=True, text=True, check=False)
    assert not leftover.stdout, "a machine is still running"
