"""The kickstart's %post, replayed on a tree of packages and nothing else, then booted (S-IN-02).

The reference platform stands for EL8: the same kickstart scripts, the same payload, the same roles. What
Anaconda does around them (mounting the new system, binding /dev and /sys) is done here by hand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.archive import write_tar
from appliance.cache import digest_file
from appliance.demo_steps import wait_healthy
from appliance.formats_contract import Variant
from appliance.kiwi import os_stage
from appliance.lab import Lab
from appliance.mirror import resolve_sources
from appliance.payload import build_payload
from appliance.platform_data import load_platform
from appliance.profile import load_profile
from appliance.progress import Progress
from appliance.root_tree import run_inside
from appliance.stages import BuildContext, build_context
from appliance.tidy import tidy
from kickstart.from_profile import MediumFacts, installation
from kickstart.model import PayloadSource
from kickstart.render import render
from kickstart.validate import Section, validate

pytestmark = [pytest.mark.image, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def context() -> Iterator[BuildContext]:
    if os.geteuid() != 0:
        pytest.skip("a root tree needs root")
    profile = load_profile(Path("pbx-debian12"))
    with build_context("replay", epoch=profile.source_date_epoch, progress=Progress(silent=True)) as made:
        yield made


def scripts(payload_sha256: str) -> list[Section]:
    """Both %post scripts of the product's kickstart, as they are on the medium."""
    medium = MediumFacts(
        payload=PayloadSource(sha256=payload_sha256, path="centralino/payload.tar"),
        label="CENTRALINO",
        hash_list_sha256="1" * 64,
    )
    profile = load_profile(Path("pbx-almalinux8"))
    text = render(installation(profile, load_platform("almalinux8"), medium))
    return [section for section in validate(text) if section.kind == "%post"]


def test_the_installed_system_is_healthy(
    context: BuildContext, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("replay")
    profile, platform = load_profile(Path("pbx-debian12")), load_platform("debian12")
    packages = context.build(
        os_stage(profile, platform, Variant.CONTAINER, resolve_sources(profile, platform))
    )
    payload = build_payload(profile, platform, context)

    # What Anaconda has done when %post begins: the medium is mounted, the packages are on the disk.
    installer, system = folder / "installer", folder / "system"
    for name in ("run/install/repo/centralino", "mnt", "sys/class/tty/console", "dev"):
        (installer / name).mkdir(parents=True)
    (installer / "sys/class/tty/console/active").write_text("ttyS0\n")
    subprocess.run(["cp", "-a", "--reflink=auto", packages.output / "root", system], check=True)
    (installer / "mnt/sysroot").symlink_to(system)
    archive = installer / "run/install/repo/centralino/payload.tar"
    with archive.open("wb") as stream:
        write_tar(stream, payload.directory, context.epoch, prefix="payload/")
    outside, inside = scripts(digest_file(archive))
    assert not outside.in_chroot and inside.in_chroot

    done = subprocess.run(
        ["bash", "-c", outside.text],
        env={**os.environ, "CENTRALINO_ROOT": str(installer), "CENTRALINO_HOLD_SECONDS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (system / "ks-post").write_text(inside.text)
    (system / "boot").mkdir(exist_ok=True)
    run_inside(system, ["/usr/bin/env", "CENTRALINO_HOLD_SECONDS=0", "/bin/bash", "/ks-post"], context)
    assert (system / "boot/centralino-medium").read_text() == "1" * 64 + "\n"

    # The rest of an image's way does not belong to an installation, but a lab node must have no machine-id.
    (system / "ks-post").unlink()
    tidy(system, platform, context.epoch)
    with Lab(system, folder / "lab") as lab:
        node = lab.add_node()
        node.power_on(180)
        assert wait_healthy(node)
    shutil.rmtree(system)
