"""The reference disk, really built and started: SeaBIOS and OVMF with Secure Boot on, to a healthy box.

One image for both. A unit that only this test adds asks `centralino status` and writes the answer to the
serial console; nothing else of the image differs from what is shipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cache import Cache
from appliance.clouds import cloud_additions
from appliance.disk import DiskPlan, assemble
from appliance.formats_contract import OutputFormat, Variant
from appliance.gpt import move_backup, read_table
from appliance.image import build_root
from appliance.platform_data import load_platform
from appliance.profile import load_profile
from appliance.progress import Progress
from appliance.sparse import sparse_copy
from appliance.stages import build_context
from appliance.tree_entries import Addition
from iso.boot_test import BootResult, Expectation, Milestone, boot_test
from iso.qemu import Attachment, Firmware, Machine, firmware_files

pytestmark = [
    pytest.mark.image,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="building a root tree needs root"),
]
GIB = 1 << 30
GROWN = 12 * GIB
HEALTHY, FAILED = "the box is healthy", "the box is not healthy"
# Software emulation on two busy processors takes minutes for what a machine does in twenty seconds.
LOGIN_SECONDS, HEALTH_SECONDS = 600, 900
SCRIPT = f"""#!/bin/sh
lsblk --bytes --noheadings --output NAME,SIZE >/dev/ttyS0
df --output=size /  >/dev/ttyS0
mokutil --sb-state >/dev/ttyS0 2>&1 || dmesg | grep -i 'secure boot' >/dev/ttyS0
if centralino status --wait {HEALTH_SECONDS - 60} >/dev/ttyS0 2>&1; then
  echo 'test-status: {HEALTHY}' >/dev/ttyS0
else
  centralino services list >/dev/ttyS0 2>&1
  systemctl --failed --no-legend >/dev/ttyS0 2>&1
  echo 'test-status: {FAILED}' >/dev/ttyS0
fi
"""
UNIT = """[Unit]
Description=Report the health of the box to the test
After=centralinod.service multi-user.target
[Service]
Type=oneshot
ExecStart=/usr/libexec/test-status
TimeoutStartSec=infinity
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    profile, platform = load_profile(Path("pbx-debian12")), load_platform("debian12")
    with build_context(
        "test-disk-boot", epoch=profile.source_date_epoch, cache=Cache(), progress=Progress(silent=True)
    ) as context:
        root = build_root(profile, platform, context, Variant.DISK)
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    unit = "etc/systemd/system/test-status.service"
    assemble(
        DiskPlan(
            root=root,
            size=6 * GIB,
            seed="boot test",
            epoch=profile.source_date_epoch,
            data=platform.disk,
            title="Centralino",
            arguments=platform.disk.arguments,
            additions={
                **cloud_additions(OutputFormat.RAW, root, platform),
                "usr/libexec/test-status": Addition(SCRIPT.encode(), mode=0o755),
                unit: Addition(UNIT.encode()),
                # Not wanted by multi-user.target, which it comes after.
                "etc/systemd/system/graphical.target.wants/test-status.service": Addition(target=f"/{unit}"),
                "etc/systemd/system/default.target": Addition(target="/lib/systemd/system/graphical.target"),
            },
        ),
        path,
    )
    # As on a hypervisor, where the disk is larger than what was shipped.
    sparse_copy(path, path.with_name("grown.raw"))
    move_backup(path.with_name("grown.raw"), GROWN)
    path.unlink()
    yield path.with_name("grown.raw")
    path.with_name("grown.raw").unlink()


def start(disk: Path, firmware: Firmware, log: Path) -> BootResult:
    expectation = Expectation(
        (
            Milestone("kernel", "Linux version", 240),
            Milestone("login", r"\blogin: ", LOGIN_SECONDS),
            Milestone("health", f"test-status: {HEALTHY}", HEALTH_SECONDS),
        ),
        ("Kernel panic", "emergency mode", f"test-status: {FAILED}"),
    )
    machine = Machine(disk, firmware=firmware, attachment=Attachment.DISK, memory_mib=3072)
    return boot_test(machine, expectation, log)


@pytest.mark.parametrize("firmware", [Firmware.BIOS, Firmware.SECURE_BOOT])
def test_starts_to_a_healthy_box(firmware: Firmware, disk: Path, tmp_path: Path) -> None:
    if firmware is not Firmware.BIOS and firmware_files(firmware) is None:
        pytest.skip("this host has no OVMF with Microsoft's keys")
    result = start(disk, firmware, Path(os.environ.get("CENTRALINO_TEST_LOGS", tmp_path)) / f"{firmware}.log")
    assert [title for title, _ in result.reached] == ["kernel", "login", "health"]
    if firmware is Firmware.SECURE_BOOT:
        assert "Secure Boot is enabled" in result.console or "Secure boot enabled" in result.console
    # The root partition ends where the disk does.
    root = read_table(disk).partitions[2]
    sizes = [
        int(words[1])
        for words in map(str.split, result.console.splitlines())
        if len(words) == 2 and "vda3" in words[0]
    ]
    assert sizes, "lsblk did not report"
    assert sizes[0] > root.size
    assert GROWN - root.start - sizes[0] < 2 << 20
