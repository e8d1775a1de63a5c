"""The kickstart's scripts replayed: %pre in a booted tree, %post on a tree of packages that then boots.

The reference platform stands for EL8: the same kickstart scripts, the same payload, the same roles (S-IN-02).
What Anaconda does around them (mounting medium and new system, binding /dev and /sys) is done here by hand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pykickstart.parser import KickstartParser
from pykickstart.version import makeVersion
from rpm_repositories import make_key

from appliance.archive import write_tar
from appliance.cache import digest_file
from appliance.demo_steps import wait_healthy
from appliance.formats_contract import Variant
from appliance.image import build_root
from appliance.kiwi import os_stage
from appliance.lab import Lab
from appliance.lab_host import Result
from appliance.lab_node import Node
from appliance.mirror import resolve_sources
from appliance.payload import build_payload
from appliance.platform_data import load_platform
from appliance.profile import load_profile
from appliance.progress import Progress
from appliance.root_tree import run_inside
from appliance.stages import BuildContext, build_context
from appliance.tidy import tidy
from iso.hash_list import HASH_LIST, SIGNING_KEY, Signer, hash_list
from kickstart.from_profile import MediumFacts, installation
from kickstart.model import PayloadSource
from kickstart.render import render
from kickstart.validate import Section, validate

pytestmark = [pytest.mark.image, pytest.mark.slow, pytest.mark.timeout(1800)]
PROFILE, PLATFORM = load_profile(Path("pbx-debian12")), load_platform("debian12")
PAYLOAD = "centralino/payload.tar"
REPOSITORY = "run/install/repo"
GB = 10**9


@dataclass(frozen=True)
class Installer:
    """The installer's own root with the medium mounted in it, and the scripts of the medium's kickstart."""

    root: Path
    sections: list[Section]
    list_digest: str

    def scripts(self, kind: str) -> list[Section]:
        return [section for section in self.sections if section.kind == kind]


@pytest.fixture(scope="module")
def context() -> Iterator[BuildContext]:
    if os.geteuid() != 0:
        pytest.skip("a root tree needs root")
    with build_context("replay", epoch=PROFILE.source_date_epoch, progress=Progress(silent=True)) as made:
        yield made


@pytest.fixture(scope="module")
def installer(context: BuildContext, tmp_path_factory: pytest.TempPathFactory) -> Installer:
    folder = tmp_path_factory.mktemp("installer")
    root = folder / "root"
    for name in (
        f"{REPOSITORY}/centralino",
        "mnt",
        "sys/class/tty/console",
        "sys/block",
        "dev",
        "tmp",
        "proc",
    ):
        (root / name).mkdir(parents=True)
    (root / "sys/class/tty/console/active").write_text("ttyS0\n")
    medium = root / REPOSITORY
    payload = build_payload(PROFILE, PLATFORM, context)
    with (medium / PAYLOAD).open("wb") as stream:
        write_tar(stream, payload.directory, context.epoch, prefix="payload/")
    digests = {PAYLOAD: digest_file(medium / PAYLOAD)}
    with Signer(make_key(folder, "release").secret, time=context.epoch) as signer:
        signer.export(medium / SIGNING_KEY)
        digests[SIGNING_KEY] = digest_file(medium / SIGNING_KEY)
        (medium / HASH_LIST).write_text(hash_list(digests))
        signer.sign(medium / HASH_LIST)
    list_digest = digest_file(medium / HASH_LIST)
    facts = MediumFacts(
        payload=PayloadSource(sha256=digests[PAYLOAD], path=PAYLOAD),
        label="CENTRALINO",
        hash_list_sha256=list_digest,
        signing_key=SIGNING_KEY,
    )
    text = render(installation(load_profile(Path("pbx-almalinux8")), load_platform("almalinux8"), facts))
    return Installer(root, validate(text), list_digest)


def add_disk(root: Path, name: str, size: int, *, removable: int = 0) -> None:
    """A disk as the kernel shows it; without any signature on it."""
    block = root / "sys/block" / name
    (block / "holders").mkdir(parents=True)
    for attribute, value in (("size", size // 512), ("removable", removable), ("ro", 0)):
        (block / attribute).write_text(f"{value}\n")
    (root / "dev" / name).write_bytes(bytes(1 << 20))


def replay_pre(node: Node, installer: Installer, number: int) -> Result:
    """One %pre script of the medium, by the booted tree's own bash and programs."""
    section = installer.scripts("%pre")[number]
    assert not section.in_chroot
    node.path(f"/srv/pre-{number}").write_text(section.text)
    words = [
        "env",
        "CENTRALINO_ROOT=/srv/installer",
        "CENTRALINO_HOLD_SECONDS=0",
        "bash",
        f"/srv/pre-{number}",
    ]
    return node.run(words, check=False, limit_seconds=120)


def test_the_medium_is_checked_and_the_disk_chosen_in_a_booted_tree(
    context: BuildContext, installer: Installer, tmp_path: Path
) -> None:
    with Lab(build_root(PROFILE, PLATFORM, context), tmp_path / "lab") as lab:
        node = lab.add_node()
        node.power_on(180)
        root = node.path("/srv/installer")
        shutil.copytree(installer.root, root)
        add_disk(root, "sda", 16 * GB, removable=1)
        add_disk(root, "vda", 20 * GB)
        add_disk(root, "vdb", 200 * GB)

        checked = replay_pre(node, installer, 0)
        assert checked.status == 0, checked.output + checked.errors
        assert "The installation medium is intact." in checked.output
        # gpgv of the tree had the last word on the list.
        assert "Good signature" in checked.errors

        chosen = replay_pre(node, installer, 1)
        assert chosen.status == 0, chosen.output + chosen.errors
        assert "/dev/vdb (200 GB)" in chosen.output
        parser = KickstartParser(makeVersion("RHEL8"))
        parser.readKickstartFromString((root / "tmp/centralino-storage.ks").read_text())
        assert parser.handler.ignoredisk.onlyuse == ["vdb"]
        assert parser.handler.clearpart.drives == ["vdb"]

        # One flipped bit, and the installation ends before a disk is looked at.
        with (root / REPOSITORY / PAYLOAD).open("r+b") as stream:
            byte = stream.read(1)[0]
            stream.seek(0)
            stream.write(bytes([byte ^ 1]))
        damaged = replay_pre(node, installer, 0)
        assert damaged.status == 1
        assert "INSTALLATION STOPPED: files of the installation medium are damaged" in damaged.output
        assert f"./{PAYLOAD}: FAILED" in damaged.output
        assert wait_healthy(node)


def test_the_installed_system_is_healthy(context: BuildContext, installer: Installer, tmp_path: Path) -> None:
    packages = context.build(
        os_stage(PROFILE, PLATFORM, Variant.CONTAINER, resolve_sources(PROFILE, PLATFORM))
    )
    # What Anaconda has done when %post begins: the medium is mounted, the packages are on the disk.
    system = tmp_path / "system"
    subprocess.run(["cp", "-a", "--reflink=auto", packages.output / "root", system], check=True)
    (installer.root / "mnt/sysroot").symlink_to(system)
    outside, inside = installer.scripts("%post")
    assert not outside.in_chroot and inside.in_chroot

    done = subprocess.run(
        ["bash", "-c", outside.text],
        env={**os.environ, "CENTRALINO_ROOT": str(installer.root), "CENTRALINO_HOLD_SECONDS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (system / "ks-post").write_text(inside.text)
    (system / "boot").mkdir(exist_ok=True)
    run_inside(system, ["/usr/bin/env", "CENTRALINO_HOLD_SECONDS=0", "/bin/bash", "/ks-post"], context)
    assert (system / "boot/centralino-medium").read_text() == f"{installer.list_digest}\n"

    # The rest of an image's way does not belong to an installation, but a lab node must have no machine-id.
    (system / "ks-post").unlink()
    tidy(system, PLATFORM, context.epoch)
    with Lab(system, tmp_path / "lab") as lab:
        node = lab.add_node()
        node.power_on(180)
        assert wait_healthy(node)
    shutil.rmtree(system)
