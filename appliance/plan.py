"""What a build would make, from what and how large: no root, no network, nothing written.

`plan` is decided by profile, platform and lock alone, so that its digest can be kept in tests; `now` says
what this host has at the moment.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.cache import Cache, JsonValue, digest_json
from appliance.clouds import agent_remark
from appliance.errors import BuildError, MirrorError
from appliance.formats_contract import (
    DISK_FORMATS,
    INSTALLER_FORMATS,
    LIVE_FORMATS,
    TREE_FORMATS,
    OutputFormat,
    Variant,
    artefact_name,
)
from appliance.kiwi import KIWI_VERSION, module_streams, package_names
from appliance.lock_files import lock_path, read_lock
from appliance.mirror import resolve_sources
from appliance.platform_data import PlatformData
from appliance.profile import Profile, check_against_platform

GIB = 1 << 30
STAGES = ("wheels", "dependencies", "payload", "os", "environment", "root")


def make_plan(
    profile: Profile, platform: PlatformData, formats: Sequence[OutputFormat], cache: Cache | None = None
) -> dict[str, JsonValue]:
    """Keys `plan`, `digest` (SHA-256 of its canonical JSON), `now`. Raises ProfileError, LockError."""
    check_against_platform(profile, platform, "the profile")
    plan: dict[str, JsonValue] = {
        "product": profile.product.model_dump(mode="json"),
        "platform": {
            "name": platform.name,
            "release": profile.platform.release or platform.release,
            "python": platform.python.version,
        },
        "artefacts": [_artefact(form, profile, platform) for form in formats],
        "repositories": _repositories(profile, platform),
        "modules": module_streams(profile, platform),
        "bootstrap": sorted(platform.packages["bootstrap"]),
        "packages": _packages(profile, platform, formats),
        "python_packages": [f"{one.name}=={one.version}" for one in read_lock(lock_path(platform))],
        "roles": {"playbook": profile.site.playbook, "skip_tags": list(profile.site.skip_tags)},
        "kiwi": KIWI_VERSION,
        "source_date_epoch": profile.source_date_epoch,
        "signed_by": None if profile.signing is None else str(profile.signing.tool),
    }
    if INSTALLER_FORMATS.intersection(formats):
        plan["installer"] = _installer(profile)
    return {"plan": plan, "digest": digest_json(plan), "now": _now(profile, platform, cache or Cache())}


def _packages(
    profile: Profile, platform: PlatformData, formats: Sequence[OutputFormat]
) -> dict[str, JsonValue]:
    """The named packages of each root tree that is needed, and of what an installer installs."""
    wanted: dict[str, JsonValue] = {}
    for variant, forms in (
        (Variant.CONTAINER, TREE_FORMATS),
        (Variant.DISK, DISK_FORMATS),
        (Variant.LIVE, LIVE_FORMATS),
    ):
        if forms.intersection(formats):
            wanted[f"{variant} tree"] = list(package_names(profile, platform, variant))
    if INSTALLER_FORMATS.intersection(formats):
        # A disk's, without the agents of clouds; what its installer needs beside them is its own.
        wanted["installer"] = sorted({*platform.package_names(Variant.DISK), *profile.packages.extra})
    return wanted


def _artefact(form: OutputFormat, profile: Profile, platform: PlatformData) -> dict[str, JsonValue]:
    tree = Variant.CONTAINER if form in TREE_FORMATS else Variant.DISK
    artefact: dict[str, JsonValue] = {"format": str(form), "name": artefact_name(profile, form)}
    if form in INSTALLER_FORMATS:
        artefact["from"] = "base medium, closure of packages, payload"
    elif form in LIVE_FORMATS:
        artefact["from"] = "root tree for live media"
    else:
        artefact["from"] = f"root tree for {tree}s"
    if form in DISK_FORMATS:
        # An OVA's descriptor and disk are of the tier's size from the start [S-SZ-01].
        tier = profile.disk.tier.sizes.disk_gib if form is OutputFormat.OVA else 0
        artefact["virtual_bytes"] = max(profile.disk.image_gib, tier) * GIB
    if remark := agent_remark(form, profile, platform):
        artefact["remark"] = remark
    return artefact


def _installer(profile: Profile) -> dict[str, JsonValue]:
    sizes = profile.disk.tier.sizes
    return {
        "iso_label": profile.iso_label,
        "device": profile.disk.device,
        "raid": profile.disk.raid,
        "filesystem": profile.disk.filesystem,
        "smallest_disk_gib": profile.disk.smallest_gib,
        "volumes": profile.disk.volumes.model_dump(mode="json"),
        "tier": {"name": str(profile.disk.tier), **sizes.model_dump(mode="json")},
        "network": profile.network.model_dump(mode="json"),
        "after_install": profile.boot.after_install,
    }


def _repositories(profile: Profile, platform: PlatformData) -> list[JsonValue]:
    release = profile.platform.release or platform.release
    rows: list[JsonValue] = []
    for one in platform.repositories:
        if one.purpose == "asterisk" and profile.packages.asterisk_repository is not None:
            continue
        rows.append(
            {"name": one.name, "mirror": one.mirror, "below": one.suite or one.path.format(release=release)}
        )
    own = [*profile.platform.repositories, *filter(None, [profile.packages.asterisk_repository])]
    rows += [{"name": one.name, "mirror": one.url, "below": one.suite or ""} for one in own]
    return rows


def _now(profile: Profile, platform: PlatformData, cache: Cache) -> dict[str, JsonValue]:
    """Mirrors as this host resolves them, and what the last build of each stage took."""
    now: dict[str, JsonValue] = {}
    try:
        now["mirrors"] = {source.name: source.url for source in resolve_sources(profile, platform)}
    except MirrorError as error:
        now["mirrors"] = None
        now["mirror_problem"] = str(error)
    last: dict[str, JsonValue] = {}
    for stage in STAGES:
        name = f"{stage}-{platform.name}"
        if (record := cache.last_record(name)) is not None:
            last[name] = {"seconds": record.seconds, "bytes": record.size}
    now["last_builds"] = last
    return now


def plan_text(made: dict[str, JsonValue]) -> str:
    """The plan for people."""
    plan, now = made["plan"], made["now"]
    if not isinstance(plan, dict) or not isinstance(now, dict):
        raise BuildError("the plan has no shape", "this is a defect of the builder; please report it")
    product, platform = plan["product"], plan["platform"]
    lines = [f"{product['title']} {product['version']} for {platform['name']} {platform['release']}", ""]
    lines.append("makes")
    for artefact in plan["artefacts"]:
        size = f", {artefact['virtual_bytes'] // GIB} GiB virtual" if "virtual_bytes" in artefact else ""
        lines.append(f"  {artefact['name']}  ({artefact['format']}: {artefact['from']}{size})")
        if "remark" in artefact:
            lines.append(f"    {artefact['remark']}")
    lines.append("from")
    for repository in plan["repositories"]:
        lines.append(
            f"  repository {repository['name']}: mirror {repository['mirror']}, {repository['below']}"
        )
    if plan["modules"]:
        lines.append(f"  module streams {', '.join(plan['modules'])}")
    for variant, packages in plan["packages"].items():
        lines.append(f"  {len(packages)} named system packages for the {variant}, with what they need")
    lines.append(f"  {len(plan['python_packages'])} locked Python packages for Python {platform['python']}")
    lines.append(f"  roles: {plan['roles']['playbook']}")
    lines.append("on this host")
    if now["mirrors"] is None:
        lines.append(f"  {now['mirror_problem']}")
    else:
        lines += [f"  {name}: {url}" for name, url in now["mirrors"].items()]
    for name, last in now["last_builds"].items():
        lines.append(f"  {name}: last made in {last['seconds']:.0f} s, {last['bytes'] >> 20} MiB")
    lines.append(f"plan {made['digest']}")
    return "\n".join(lines)
