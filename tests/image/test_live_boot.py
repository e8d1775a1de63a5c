"""The live medium of the reference platform, built by kiwi and started, by BIOS, UEFI and Secure Boot.

It is asked on its own console, where it logs in by itself, whether the tools for a rescue work.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.tree import TREE
from iso.boot_test import Expectation, Milestone, boot_test, load_expectation
from iso.qemu import Attachment, Firmware, Machine, firmware_files

pytestmark = [
    pytest.mark.image,
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(os.geteuid() != 0, reason="building a root tree needs root"),
]
PROMPT = r"root@\S+:~# "
# The shell's echo of what is typed has no digit behind the sign, its answer has.
QUESTIONS = (
    Milestone("shell", PROMPT, 60, "centralino status --wait 1200; echo health=$?\n"),
    Milestone("health", r"health=0\b", 1260, "centralino-rescue find; echo found=$?\n"),
    Milestone("rescue tool", r"found=0\b", 120, "ls /dev/disk/by-label; systemctl is-system-running\n"),
    Milestone("medium", r"CENTRALINO-PBX\S*-LIVE", 60),
)


def build(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance.cli", *map(str, words)],
        capture_output=True, text=True, timeout=5000, check=False, cwd=TREE,
        env={**os.environ, "PYTHONPATH": str(TREE)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("live")
    done = build("image", "--platform", "debian12", "--format", "live", "--output", output, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(json.loads(done.stdout)["artefacts"]["live"])


@pytest.mark.parametrize(
    ("firmware", "attachment"),
    [(Firmware.BIOS, Attachment.CD), (Firmware.UEFI, Attachment.CD), (Firmware.SECURE_BOOT, Attachment.USB)],
)
def test_starts_to_a_shell_with_the_tools(
    firmware: Firmware, attachment: Attachment, medium: Path, tmp_path: Path
) -> None:
    if firmware is not Firmware.BIOS and firmware_files(firmware) is None:
        pytest.skip("this host has no OVMF")
    usual = load_expectation("live")
    log = Path(os.environ.get("CENTRALINO_TEST_LOGS", tmp_path)) / f"live-{firmware}-{attachment}.log"
    machine = Machine(medium, firmware, attachment, memory_mib=3072)
    result = boot_test(machine, Expectation((*usual.milestones, *QUESTIONS), usual.failures), log)
    assert [title for title, _ in result.reached][-1] == "medium"


def test_is_verified_and_every_damage_is_named(medium: Path, tmp_path: Path) -> None:
    done = build("verify", medium)
    assert done.returncode == 0, done.stderr
    for file in medium.parent.glob(f"{medium.name}*"):
        shutil.copyfile(file, tmp_path / file.name)
    with (tmp_path / medium.name).open("r+b") as stream:
        stream.seek(medium.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 4]))
    done = build("verify", tmp_path / medium.name)
    assert done.returncode == 9
    assert "implanted checksum: does not fit the image" in done.stderr


def test_the_same_tree_gives_the_same_bytes(medium: Path, tmp_path: Path) -> None:
    """kiwi's own identities come from chance and from the time of day; another second, another directory."""
    from appliance.cache import Cache
    from appliance.formats_contract import Variant
    from appliance.image import build_root
    from appliance.live import MEDIUM, medium_stage
    from appliance.platform_data import load_platform
    from appliance.profile import load_profile
    from appliance.progress import Progress
    from appliance.stages import build_context

    profile, platform = load_profile(Path("pbx-debian12")), load_platform("debian12")
    silent = Progress(silent=True)
    with build_context("live-again", epoch=profile.source_date_epoch, progress=silent) as context:
        root = build_root(profile, platform, context, Variant.LIVE)
    cache = Cache(tmp_path / "another-cache")
    with build_context(
        "live-again", epoch=profile.source_date_epoch, cache=cache, progress=silent
    ) as context:
        again = context.build(medium_stage(root, profile, platform, context)).output / MEDIUM
    assert subprocess.run(["cmp", medium, again], capture_output=True, text=True, check=False).stdout == ""
