"""From a tree of packages to the finished root tree: environment, application, roles, without a network.

os-PLATFORM           packages only (kiwi); changes with package list and mirror
environment-PLATFORM  what `install --phase dependencies` adds, as an overlay's upper layer
root-PLATFORM         both merged, then `install --phase application`; changes with our own code
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from appliance.cache import Entry, JsonValue
from appliance.errors import HostError
from appliance.formats_contract import Variant
from appliance.kiwi import os_stage
from appliance.mirror import Source, probe
from appliance.payload import Payload, build_payload
from appliance.personalize import personalize
from appliance.platform_data import PlatformData
from appliance.profile import Profile
from appliance.run import isolated, run
from appliance.stages import BuildContext, Stage
from appliance.tidy import tidy
from appliance.tree import TREE

INSTALL_SECONDS = 3600.0
NEEDED_BYTES = 3 << 30
# Where the payload stands while it is installed: at the top, so that no layer changes a directory on its way.
STAGED = ".centralino-payload"


def build_root_tree(
    profile: Profile,
    platform: PlatformData,
    variant: Variant,
    sources: Sequence[Source],
    context: BuildContext,
) -> Path:
    """The finished tree in the cache, READ ONLY. Raises BuildError; needs root."""
    if os.geteuid() != 0:
        raise HostError("building a root tree needs root", "run it with sudo")
    system = os_stage(profile, platform, variant, sources)
    # Cheap checks first: a mirror that does not answer and a wheel that cannot be had are known in seconds.
    if context.cold or context.cache.find(system.name, system.key) is None:
        probe(sources)
    payload = build_payload(profile, platform, context)
    packages = context.build(system)
    environment = context.build(_environment_stage(packages, payload, platform))
    final = context.build(_root_stage(packages, environment, payload, profile, platform))
    return final.output / "root"


def _environment_stage(packages: Entry, payload: Payload, platform: PlatformData) -> Stage:
    inputs: dict[str, JsonValue] = {"packages": packages.key, "dependencies": payload.dependencies_key}

    def install(output: Path, context: BuildContext) -> None:
        upper, work, merged = output / "upper", output / "work", output / "merged"
        for directory in (upper, work, merged):
            directory.mkdir()
        with staged(payload.dependencies, upper):
            run_overlaid(
                [packages.output / "root"], upper, work, merged,
                [f"/{STAGED}/install", "--phase", "dependencies"],
                context,
            )  # fmt: skip
        shutil.rmtree(work)
        merged.rmdir()

    return Stage(f"environment-{platform.name}", "make the virtual environment", inputs, install)


def _root_stage(
    packages: Entry, environment: Entry, payload: Payload, profile: Profile, platform: PlatformData
) -> Stage:
    inputs: dict[str, JsonValue] = {
        "environment": environment.key,
        "payload": payload.key,
        "access": profile.access.model_dump(mode="json"),
        "regional": profile.regional.model_dump(mode="json"),
        "hostname": profile.network.hostname,
    }

    def install(output: Path, context: BuildContext) -> None:
        root = output / "root"
        merge([environment.output / "upper", packages.output / "root"], root, context)
        with staged(payload.directory, root):
            run_inside(root, [f"/{STAGED}/install", "--phase", "application"], context)
        personalize(root, profile, platform)
        tidy(root, platform, context.epoch)

    return Stage(
        f"root-{platform.name}", "install application and roles", inputs, install, needs_bytes=NEEDED_BYTES
    )


@contextmanager
def staged(payload: Path, root: Path) -> Iterator[None]:
    """A copy of the payload inside a tree while `install` runs."""
    target = root / STAGED
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(payload, target)
    try:
        yield
    finally:
        shutil.rmtree(target, ignore_errors=True)


def run_inside(root: Path, arguments: Sequence[str], context: BuildContext, *, network: bool = False) -> None:
    """Run a program in a tree: no network unless asked for, no process or mount outlives it."""
    run(
        isolated([sys.executable, "-m", "appliance.chroot", root, *arguments], network=network),
        cwd=TREE,
        log=context.log,
        limit_seconds=INSTALL_SECONDS,
        environment={"SOURCE_DATE_EPOCH": str(context.epoch)},
        remedy="read the log from its end",
    )


def run_overlaid(
    lower: Sequence[Path],
    upper: Path,
    work: Path,
    merged: Path,
    arguments: Sequence[str],
    context: BuildContext,
) -> None:
    """Run a program in an overlay of trees: what it writes goes into `upper`. No network."""
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
    run(
        isolated(
            [sys.executable, "-m", "appliance.chroot", f"--overlay={options}", merged, *arguments],
            network=False,
        ),
        cwd=TREE,
        log=context.log,
        limit_seconds=INSTALL_SECONDS,
        environment={"SOURCE_DATE_EPOCH": str(context.epoch)},
        remedy="read the log from its end",
    )


def merge(layers: Sequence[Path], target: Path, context: BuildContext) -> None:
    """Copy an overlay of layers, topmost first, into one plain tree."""
    view = target.parent / "view"
    view.mkdir()
    options = f"lowerdir={':'.join(map(str, layers))}"
    run(
        isolated(
            [sys.executable, "-m", "appliance.chroot", f"--overlay={options}", f"--copy-to={target}", view],
            network=False,
        ),
        cwd=TREE,
        log=context.log,
        limit_seconds=INSTALL_SECONDS,
    )
    view.rmdir()
