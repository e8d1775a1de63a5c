"""The operating system's root tree by kiwi-ng: description rendered, validated, packages installed.

kiwi only does what needs a package manager; roles and payload come later, in `appliance.root_tree`, so that
one tree of packages serves every version of our own code.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from appliance.cache import JsonValue, digest_file
from appliance.clouds import agent_packages
from appliance.errors import BuildError, HostError, MirrorError
from appliance.formats_contract import Variant
from appliance.mirror import Source
from appliance.platform_data import PlatformData
from appliance.profile import Profile
from appliance.run import isolated, require, run
from appliance.scratch import Scratch
from appliance.stages import BuildContext, Stage

TEMPLATES = Path(__file__).parent / "templates"
SCHEMA_VERSION = "8.3"
KIWI_VERSION = "10.2.8"
# To be raised when this module makes another tree of the same description.
RECIPE = 1
_PURPOSES = {Variant.CONTAINER: "", Variant.DISK: " for disks", Variant.LIVE: " for a live medium"}
PREPARE_SECONDS = 3 * 3600.0
# A tree with kernel and guest agents takes about 2 GiB; the packages that it is made of as much again.
NEEDED_BYTES = 4 << 30


def package_names(profile: Profile, platform: PlatformData, variant: Variant) -> list[str]:
    """Every package of a tree beyond the bootstrap, sorted."""
    agents = agent_packages(profile, platform, variant)
    return sorted({*platform.package_names(variant), *agents, *profile.packages.extra})


def module_streams(profile: Profile, platform: PlatformData) -> list[str]:
    """The dnf module streams, one per module: the profile's beat the platform's."""
    streams = dict(stream.split(":", 1) for stream in (*platform.modules.streams, *profile.packages.modules))
    return [f"{name}:{stream}" for name, stream in sorted(streams.items())]


@dataclass(frozen=True)
class LiveMedium:
    """What kiwi's type `iso` is told: volume label, hexadecimal identity, the kernel's arguments."""

    label: str
    identity: str
    arguments: tuple[str, ...]


def render_description(
    profile: Profile,
    platform: PlatformData,
    variant: Variant,
    sources: Sequence[Source],
    *,
    signed: bool,
    live: LiveMedium | None = None,
) -> str:
    """kiwi's config.xml. Pure: same arguments, same text. `signed`: repositories' signatures are checked.

    With `live` it describes a live medium, else a tree.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    modules = [stream.split(":", 1) for stream in module_streams(profile, platform)]
    return environment.get_template("config.xml.j2").render(
        schema=SCHEMA_VERSION,
        product=profile.product,
        live=live,
        # kiwi takes three numbers and nothing else; the real version is in the payload.
        version=kiwi_version(profile.product.version),
        package_manager=platform.kiwi.package_manager,
        release_version=platform.release.partition(".")[0] if platform.kiwi.package_manager != "apt" else "",
        check_signatures=signed,
        repository_type=platform.kiwi.repository_type,
        sources=sources,
        modules=[{"name": name, "stream": stream} for name, stream in modules],
        bootstrap=sorted(platform.packages["bootstrap"]),
        packages=package_names(profile, platform, variant),
    )


def kiwi_version(version: str) -> str:
    """A version as kiwi wants it, `1.4.0` of `1.4rc1`."""
    numbers = []
    for part in version.split(".")[:3]:
        digits = "".join(character for character in part if character.isdigit())
        numbers.append(digits or "0")
    return ".".join([*numbers, "0", "0"][:3])


def validate_description(directory: Path) -> None:
    """Check config.xml in a directory against kiwi's schema and rules; raises BuildError naming the line."""
    from kiwi.exceptions import KiwiError
    from kiwi.xml_description import XMLDescription
    from lxml import etree

    # It announces at import what it can read.
    logging.getLogger("kiwi").setLevel(logging.ERROR)
    file = directory / "config.xml"
    schema = etree.RelaxNG(etree.parse(Path(str(_kiwi_directory())) / "schema/kiwi.rng"))
    document = etree.parse(file)
    if not schema.validate(document):
        deepest = max(schema.error_log, key=lambda entry: entry.line)
        raise BuildError(
            f"the kiwi description is not valid: line {deepest.line}: {deepest.message}",
            "this is a defect of the builder or a name in the profile that kiwi does not allow",
        )
    try:
        XMLDescription(str(file)).load()
    except KiwiError as error:
        raise BuildError(f"kiwi refuses the description: {error}", "correct the profile") from error


def _kiwi_directory() -> Path:
    import kiwi

    return Path(kiwi.__path__[0])


def signing_keys(profile: Profile, platform: PlatformData) -> list[Path]:
    """The public keys that the repositories are checked with; raises HostError if none is there."""
    found = [file for file in platform.keys.files if file.is_file()][:1]
    own = [*profile.platform.repositories, *filter(None, [profile.packages.asterisk_repository])]
    found += [repository.key for repository in own if repository.key is not None]
    if not found and not platform.keys.optional:
        raise HostError(
            f"none of {', '.join(map(str, platform.keys.files))} exists, so packages could not be checked",
            f"install {platform.keys.package}",
        )
    return found


def os_stage(profile: Profile, platform: PlatformData, variant: Variant, sources: Sequence[Source]) -> Stage:
    """The stage that makes the tree of packages; its output holds `root/` and `description/`.

    Raises HostError if this host lacks a program or key.
    """
    require(platform.kiwi.host_programs)
    keys = signing_keys(profile, platform)
    text = render_description(profile, platform, variant, sources, signed=bool(keys))
    inputs: dict[str, JsonValue] = {
        "description": text,
        "keys": [digest_file(key) for key in keys],
        "kiwi": KIWI_VERSION,
        "recipe": RECIPE,
        "variant": str(variant),
    }

    def prepare(output: Path, context: BuildContext) -> None:
        description = output / "description"
        description.mkdir()
        (description / "config.xml").write_text(text, encoding="utf-8")
        validate_description(description)
        run_prepare(description, output / "root", keys, platform, context)

    title = f"install the packages of {platform.title}{_PURPOSES[variant]}"
    return Stage(f"os-{platform.name}", title, inputs, prepare, needs_bytes=NEEDED_BYTES)


def run_prepare(
    description: Path, root: Path, keys: Sequence[Path], platform: PlatformData, context: BuildContext
) -> None:
    """Run `kiwi-ng system prepare` in namespaces of its own; its whole output goes to the build's log."""
    with (
        Scratch() as home,
        context.cache.download_directory(platform.name) as downloads,
    ):
        arguments: list[str | Path] = [sys.executable, "-c", "from kiwi.kiwi import main; main()"]
        arguments += ["--debug", "--shared-cache-dir", downloads, "system", "prepare"]
        arguments += ["--description", description, "--root", root]
        arguments += [word for key in keys for word in ("--signing-key", str(key))]
        run(
            isolated(arguments, network=True),
            log=context.log,
            limit_seconds=PREPARE_SECONDS,
            environment={
                # gpg wants a home of its own and apt's maintainer scripts nobody to ask.
                "GNUPGHOME": home,
                "DEBIAN_FRONTEND": "noninteractive",
                "SOURCE_DATE_EPOCH": str(context.epoch),
            },
            remedy="read the log from its end; a package that the mirror lacks is named there",
        )
    if not (root / "usr").is_dir():
        raise MirrorError("kiwi ended without a root tree", f"read {context.log}")
    # kiwi leaves its description, which names the build's mirrors, in the tree.
    shutil.rmtree(root / "image", ignore_errors=True)
