"""One root tree, and on each disk the agent of its own cloud alone (S-IN-07, issue "images" 7)."""

from __future__ import annotations

import configparser
import json
from pathlib import Path

import pytest

from appliance.clouds import TEMPLATES, agent_packages, agent_remark, cloud_additions
from appliance.formats_contract import DISK_FORMATS, OutputFormat, Variant
from appliance.kiwi import package_names
from appliance.plan import make_plan, plan_text
from appliance.platform_data import PlatformData, load_platform, platform_names
from appliance.profile import Profile, Repository, load_profile
from kickstart.from_profile import wanted_packages

AZURE, GCP = OutputFormat.AZURE, OutputFormat.GCP
WANTS = "etc/systemd/system/multi-user.target.wants"


def google_profile() -> Profile:
    """The product's profile with the repository that has Google's agent."""
    profile = load_profile(Path("pbx-almalinux8"))
    google = Repository(name="google-compute-engine", url="https://mirror.example/google")
    named = profile.platform.model_copy(update={"repositories": (google,)})
    return profile.model_copy(update={"platform": named})


@pytest.fixture(params=platform_names())
def platform(request: pytest.FixtureRequest) -> PlatformData:
    return load_platform(request.param)


@pytest.fixture
def tree(tmp_path: Path, platform: PlatformData) -> Path:
    """A tree in which every package of every cloud is installed."""
    units = tmp_path / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for table in platform.clouds.values():
        for unit in (*table.units, *table.unwanted_units):
            (units / unit).touch()
    (tmp_path / "etc/cloud").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("form", sorted(DISK_FORMATS))
def test_an_agent_starts_in_its_own_cloud_and_nowhere_else(
    form: OutputFormat, tree: Path, platform: PlatformData
) -> None:
    added = cloud_additions(form, tree, platform)
    for name, table in platform.clouds.items():
        for unit in table.units:
            started = added.get(f"{WANTS}/{unit}")
            masked = added.get(f"etc/systemd/system/{unit}")
            if name == form:
                assert started is not None and started.target == f"/usr/lib/systemd/system/{unit}"
                assert masked is None
            else:
                assert started is None
                assert masked is not None and masked.target == "/dev/null"
        for unit in table.unwanted_units:
            assert added[f"etc/systemd/system/{unit}"].target == "/dev/null"


def test_a_tree_without_agents_gets_no_unit_and_no_settings_of_theirs(
    tmp_path: Path, platform: PlatformData
) -> None:
    (tmp_path / "etc/cloud").mkdir(parents=True)
    added = cloud_additions(GCP, tmp_path, platform)
    assert [name for name in added if "systemd" in name or "default" in name] == []
    settings = json.loads(added["etc/cloud/cloud.cfg.d/95_centralino.cfg"].content or b"")
    assert settings["datasource_list"] == ["GCE", "None"]


def test_agents_leave_provisioning_network_and_firewall_alone(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/system/waagent.service").touch()
    added = cloud_additions(AZURE, tmp_path, load_platform("almalinux8"))
    lines = (added["etc/waagent.conf"].content or b"").decode().splitlines()
    said = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for key in ("Provisioning.Enabled", "ResourceDisk.Format", "OS.EnableFirewall", "AutoUpdate.Enabled"):
        assert said[key] == "n", key
    assert said["Provisioning.UseCloudInit"] == "y"
    google = configparser.ConfigParser()
    google.read(TEMPLATES / "instance_configs.cfg")
    for section, key in (
        ("Daemons", "accounts_daemon"), ("Daemons", "network_daemon"), ("InstanceSetup", "set_host_keys"),
        ("NetworkInterfaces", "setup"), ("MetadataScripts", "startup"), ("MetadataScripts", "shutdown"),
    ):  # fmt: skip
        assert not google.getboolean(section, key), key


def test_only_the_tree_of_disks_holds_agents() -> None:
    profile, platform = google_profile(), load_platform("almalinux8")
    assert agent_packages(profile, platform, Variant.DISK) == {"WALinuxAgent", "google-guest-agent"}
    for variant in (Variant.CONTAINER, Variant.LIVE):
        assert not {"WALinuxAgent", "google-guest-agent"} & set(package_names(profile, platform, variant))
    assert not {"WALinuxAgent", "google-guest-agent"} & set(wanted_packages(profile, platform))


def test_an_agent_that_no_repository_has_is_left_out_and_said() -> None:
    profile, platform = load_profile(Path("pbx-almalinux8")), load_platform("almalinux8")
    assert agent_packages(profile, platform, Variant.DISK) == {"WALinuxAgent"}
    assert agent_remark(AZURE, profile, platform) is None
    assert agent_remark(OutputFormat.RAW, profile, platform) is None
    assert "google-compute-engine" in (agent_remark(GCP, profile, platform) or "")
    assert agent_remark(GCP, google_profile(), platform) is None
    assert "google-compute-engine" in plan_text(make_plan(profile, platform, [GCP]))
    debian = load_platform("debian12")
    assert "NetworkManager" in (agent_remark(AZURE, load_profile(Path("pbx-debian12")), debian) or "")
