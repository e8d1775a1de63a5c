"""What a disk for a cloud has beyond the others: cloud-init's data source, the cloud's clock, its own agent.

There is one root tree for every disk, so the agents are in all of them; only the disk of an agent's own cloud
starts it, on every other one its units are masked. So a disk behaves as the format that was asked for,
wherever it is carried, and nothing guesses at run time what the machine is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from appliance.formats_contract import OutputFormat, Variant
from appliance.platform_data import CloudTable, PlatformData
from appliance.profile import Profile
from appliance.tree_entries import Addition

TEMPLATES = Path(__file__).parent / "templates" / "clouds"
UNITS = ("usr/lib/systemd/system", "lib/systemd/system")


@dataclass(frozen=True)
class Cloud:
    """`source` is for cloud-init, `clock` for chrony, `settings` the agent's file (its text: TEMPLATES)."""

    source: str
    clock: str = ""
    settings: str = ""


CLOUDS = {
    OutputFormat.AMI: Cloud("Ec2", "server 169.254.169.123 prefer iburst minpoll 4 maxpoll 4\n"),
    OutputFormat.AZURE: Cloud("Azure", settings="etc/waagent.conf"),
    OutputFormat.GCP: Cloud(
        "GCE", "server metadata.google.internal prefer iburst\n", "etc/default/instance_configs.cfg"
    ),
}


def has_agent(table: CloudTable, profile: Profile) -> bool:
    """Whether the trees of a profile hold this agent: some are in a repository that the profile must name."""
    named = {repository.name for repository in profile.platform.repositories}
    return bool(table.packages) and (table.repository is None or table.repository in named)


def agent_packages(profile: Profile, platform: PlatformData, variant: Variant) -> set[str]:
    """The agents of all clouds, for the tree of disks alone."""
    if variant is not Variant.DISK:
        return set()
    tables = [table for table in platform.clouds.values() if has_agent(table, profile)]
    return {name for table in tables for name in table.packages}


def agent_remark(form: OutputFormat, profile: Profile, platform: PlatformData) -> str | None:
    """Why a disk for a cloud that has an agent goes without it, or None."""
    table = platform.clouds.get(str(form))
    if table is None or has_agent(table, profile):
        return None
    if table.repository:
        return (
            f"without {', '.join(table.packages)}: the profile names no [[platform.repositories]] "
            f"{table.repository!r}; cloud-init alone"
        )
    return f"{platform.title} has no agent for {form} that fits beside NetworkManager; cloud-init alone"


def cloud_additions(form: OutputFormat, root: Path, platform: PlatformData) -> dict[str, Addition]:
    """What lies over the tree on a disk of this format, clouds and others."""
    return {**_agents(form, root, platform), **_cloud_init(form, root, platform)}


def _agents(form: OutputFormat, root: Path, platform: PlatformData) -> dict[str, Addition]:
    added = {}
    for name, table in platform.clouds.items():
        for unit in (*table.units, *table.unwanted_units):
            place = next((directory for directory in UNITS if (root / directory / unit).exists()), None)
            if place is None:
                continue
            if name != form or unit in table.unwanted_units:
                added[f"etc/systemd/system/{unit}"] = Addition(target="/dev/null")
            else:
                link = f"etc/systemd/system/multi-user.target.wants/{unit}"
                added[link] = Addition(target=f"/{place}/{unit}")
                settings = CLOUDS[form].settings
                added[settings] = Addition((TEMPLATES / Path(settings).name).read_bytes())
    return added


def _cloud_init(form: OutputFormat, root: Path, platform: PlatformData) -> dict[str, Addition]:
    """What tells cloud-init where it is, or, outside of those clouds, that it is not wanted."""
    if not (root / "etc/cloud").is_dir():
        return {}
    cloud = CLOUDS.get(form)
    if cloud is None:
        return {"etc/cloud/cloud-init.disabled": Addition(b"")}
    settings = {
        "datasource_list": [cloud.source, "None"],
        # Host name, addresses and host keys are the appliance's own business, in every kind of image.
        "preserve_hostname": True,
        "network": {"config": "disabled"},
        "ssh_deletekeys": False,
        "ssh_genkeytypes": [],
        "ssh_pwauth": False,
        "apt_preserve_sources_list": True,
        "system_info": {"default_user": {"name": "admin", "lock_passwd": False}},
    }
    # JSON is YAML; cloud-init reads *.cfg in order of their names.
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    added = {"etc/cloud/cloud.cfg.d/95_centralino.cfg": Addition(text.encode())}
    if cloud.clock:
        sources = platform.box.paths["chrony_sources"].lstrip("/")
        added[f"{sources}/cloud.sources"] = Addition(cloud.clock.encode())
    return added
