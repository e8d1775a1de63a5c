"""The files that the roles ship: what systemd 239 knows, what both platforms have, what is open to whom."""

from __future__ import annotations

import os
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jinja2
import pytest
import yaml

from firewall.ports import Mode, Protocol, Zone, services

TREE = Path(__file__).parents[2]
ROLES = TREE / "roles"
PLATFORMS = ("almalinux8", "debian12")

# Not known to systemd 239, which ignores them with a warning that nobody reads.
_TOO_NEW = """
    ProtectHostname ProtectKernelLogs ProtectClock ProtectProc ProcSubset PrivateIPC NoExecPaths ExecPaths
    SystemCallLog SocketBindAllow SocketBindDeny RestrictNetworkInterfaces RestrictFileSystems
    NetworkNamespacePath LoadCredential LoadCredentialEncrypted SetCredential SetCredentialEncrypted
    ImportCredential LogNamespace OOMPolicy ManagedOOMSwap ManagedOOMMemoryPressure
    ManagedOOMMemoryPressureLimit ManagedOOMPreference CoredumpFilter DisableControllers TimeoutAbortSec
    TimeoutStartFailureMode TimeoutStopFailureMode RestartKillSignal FinalKillSignal WatchdogSignal
    RestartSteps RestartMaxDelaySec RestartMode ExitType SuccessActionExitStatus FailureActionExitStatus
    OnSuccess Upholds ConditionEnvironment ConditionMemory ConditionCPUs ConditionFirmware ConditionOSRelease
    ConditionCPUFeature OnClockChange OnTimezoneChange FixedRandomDelay ExtensionImages MountImages
    MemoryZSwapMax MemoryPressureWatch OpenFile PropagatesStopTo StopPropagatedFrom
    TTYColumns TTYRows SystemCallErrorLog RestrictAddressFamiliesLog ConditionControlGroupController
    FileDescriptorStorePreserve StartupAllowedCPUs
"""
TOO_NEW = frozenset(_TOO_NEW.split())


def unit_files() -> list[Path]:
    """Units and drop-ins, as files and as templates."""
    return sorted(
        path
        for path in ROLES.rglob("*")
        if path.name.removesuffix(".j2").endswith(
            (".service", ".timer", ".socket", ".target", ".path", ".mount")
        )
        or (
            path.is_file()
            and re.search(r"^\[(Unit|Service)\]$", path.read_text(errors="replace"), re.MULTILINE)
        )
    )


def directives(path: Path) -> list[tuple[str, str, str]]:
    """(section, directive, value) of each line; continuation lines are joined."""
    found, section = [], ""
    for line in path.read_text().replace("\\\n", " ").splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line.strip()):
            section = match[1]
        elif section and "=" in line and not line.startswith(("#", ";", "{%")):
            name, _, value = line.partition("=")
            found.append((section, name.strip(), value.strip()))
    return found


def test_there_are_units_to_check() -> None:
    names = {path.name for path in unit_files()}
    assert {
        "centralinod.service",
        "centralino-first-boot.service.j2",
        "asterisk-unit.conf.j2",
        "mariadb-unit.conf.j2",
    } <= names


@pytest.mark.parametrize("path", unit_files(), ids=lambda path: path.name)
def test_every_directive_is_known_to_systemd_239(path: Path) -> None:
    too_new = [name for _, name, _ in directives(path) if name in TOO_NEW]
    assert not too_new, f"{path} uses what AlmaLinux 8 ignores: {too_new}"


@pytest.mark.parametrize("path", unit_files(), ids=lambda path: path.name)
def test_a_oneshot_unit_never_asks_for_a_restart(path: Path) -> None:
    settings = {name: value for _, name, value in directives(path)}
    assert settings.get("Type") != "oneshot" or "Restart" not in settings


def test_the_daemon_is_watched_and_restarted_for_ever() -> None:
    settings = {
        (section, name): value
        for section, name, value in directives(ROLES / "daemon/files/centralinod.service")
    }
    assert settings["Service", "Type"] == "notify"
    assert settings["Service", "WatchdogSec"] == "10"
    assert settings["Service", "Restart"] == "on-failure"
    assert settings["Service", "RestartSec"] == "500ms"
    assert settings["Unit", "StartLimitIntervalSec"] == "0"
    assert "dbus.service" in settings["Unit", "After"].split()


def test_a_comment_stands_for_every_capability_that_is_kept() -> None:
    text = (ROLES / "daemon/files/centralinod.service").read_text()
    kept = re.search(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
    assert kept
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    missing = [
        name for name in kept[1].split() if not re.search(rf"\b{name.removeprefix('CAP_')}\b", comments)
    ]
    assert not missing


def test_the_fallback_of_the_core_leaves_time_to_hang_up() -> None:
    settings = {name: value for _, name, value in directives(ROLES / "pbx/templates/asterisk-unit.conf.j2")}
    assert settings["Restart"] == "on-failure"
    assert settings["RestartSec"] == "5s"
    assert int(settings["TimeoutStopSec"].removesuffix("s")) >= 20


def platform_file(name: str) -> dict[str, dict[str, str]]:
    """The `[box]` table."""
    table: dict[str, dict[str, str]] = tomllib.loads(
        (TREE / "appliance/platforms" / f"{name}.toml").read_text()
    )["box"]
    return table


@pytest.mark.parametrize("name", PLATFORMS)
def test_all_names_that_the_roles_use_exist_on_the_platform(name: str) -> None:
    box = platform_file(name)
    variables = yaml.safe_load((ROLES / "vars" / f"{name}.yml").read_text())
    used = set()
    for path in ROLES.rglob("*"):
        if path.suffix in {".yml", ".j2"}:
            used |= set(re.findall(r"\bbox\.(units|paths|users)\.(\w+)", path.read_text()))
    assert len(used) > 20
    assert not [f"{table}.{key}" for table, key in sorted(used) if key not in box[table]]
    assert variables["ansible_python_interpreter"] == box["paths"]["module_interpreter"]
    assert variables["python"] == box["paths"]["python"]


@pytest.mark.parametrize("name", PLATFORMS)
def test_every_template_renders_for_the_platform(name: str) -> None:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True)  # noqa: S701
    environment.filters |= {"dirname": os.path.dirname, "basename": os.path.basename}
    templates = sorted(ROLES.rglob("*.j2"))
    assert len(templates) > 15
    for path in templates:
        variables = yaml.safe_load((ROLES / "vars" / f"{name}.yml").read_text()) | {
            "box": platform_file(name)
        }
        defaults = path.parents[1] / "defaults/main.yml"
        if defaults.exists():
            variables |= yaml.safe_load(defaults.read_text())
        text = environment.from_string(path.read_text()).render(variables)
        assert text.strip()
        assert "{{" not in text


def test_both_platforms_have_the_same_variables() -> None:
    debian, alma = (
        yaml.safe_load((ROLES / "vars" / f"{name}.yml").read_text()) for name in ("debian12", "almalinux8")
    )
    assert debian.keys() == alma.keys()


def test_nothing_but_data_tells_the_platforms_apart() -> None:
    branching = re.compile(r"platform\s*[!=]=|ansible_(distribution|os_family)|when:.*\bplatform\b")
    guilty = [path for path in ROLES.rglob("*") if path.is_file() and branching.search(path.read_text())]
    assert not guilty


def test_modules_that_run_on_the_target_are_ansible_s_own() -> None:
    # ansible-core 2.16's own modules still run on the platform's Python 3.6; a collection or a module of ours
    # would have to prove it.
    assert not list(ROLES.rglob("*.py"))
    modules = set()
    for path in [*ROLES.rglob("tasks/*.yml"), *ROLES.rglob("handlers/*.yml")]:
        for task in yaml.safe_load(path.read_text()):
            modules |= {key for key in task if "." in key}
    assert modules
    assert all(module.startswith("ansible.builtin.") for module in modules)


def test_only_root_may_own_the_name_and_everybody_may_call() -> None:
    root = ElementTree.parse(ROLES / "daemon/files/org.centralino.conf").getroot()  # noqa: S314 - our own file
    owners = {
        tuple(policy.attrib.items())
        for policy in root
        for rule in policy
        if "own" in rule.attrib and rule.tag == "allow"
    }
    assert owners == {(("user", "root"),)}
    callers = [
        policy.attrib
        for policy in root
        for rule in policy
        if rule.get("send_destination") == "org.centralino"
    ]
    assert callers == [{"context": "default"}]


def nft_ports(chain: str, protocol: Protocol) -> set[int]:
    """The ports that a chain of the base rules accepts."""
    text = (ROLES / "firewall/files/base.nft").read_text()
    rule = rf"^add rule inet centralino {chain} {protocol} dport (?:{{ ([^}}]*) }}|(\d+)) accept$"
    ports: set[int] = set()
    for match in re.finditer(rule, text, re.MULTILINE):
        for word in (match[1] or match[2]).split(","):
            first, _, last = word.strip().partition("-")
            ports |= set(range(int(first), int(last or first) + 1))
    return ports


@pytest.mark.parametrize("protocol", list(Protocol))
def test_before_the_daemon_the_lan_reaches_exactly_the_table_of_standard_mode(protocol: Protocol) -> None:
    """S-NW-06; the daemon later loads the same from the settings."""
    table = services(Mode.STANDARD, Zone.LOCAL)
    wanted = {
        port for entry in table if entry.protocol is protocol for port in range(entry.first, entry.last + 1)
    }
    assert nft_ports("local", protocol) == wanted


def test_strangers_reach_ssh_and_nothing_else() -> None:
    assert nft_ports("input", Protocol.TCP) == {22}
    assert nft_ports("input", Protocol.UDP) == set()


def columns(table: str) -> dict[str, str]:
    """Columns of a table of the schema with their types."""
    text = (ROLES / "database/files/schema.sql").read_text()
    body = text.split(f"CREATE TABLE IF NOT EXISTS {table} (", 1)[1].split("\n)", 1)[0]
    return {
        match[1]: match[2]
        for match in re.finditer(r"^    `?([a-z0-9_]+)`? ([A-Z]+(?:\(\d+\))?)", body, re.MULTILINE)
    }


def test_a_contact_of_every_release_finds_its_columns() -> None:
    """An INSERT that names a column which is not there fails, and the phone is not registered."""
    release_16 = (
        "id uri expiration_time qualify_frequency qualify_timeout authenticate_qualify outbound_proxy path "
        "user_agent endpoint reg_server via_addr via_port call_id prune_on_boot"
    )
    later = "qualify_2xx_only"
    assert set(f"{release_16} {later}".split()) <= columns("ps_contacts").keys()


@pytest.mark.parametrize(
    "table", ["ps_endpoints", "ps_auths", "ps_aors", "ps_contacts", "ps_domain_aliases", "ps_endpoint_id_ips"]
)
def test_no_column_is_too_short_to_leave_the_page(table: str) -> None:
    lengths = [int(kind[8:-1]) for kind in columns(table).values() if kind.startswith("VARCHAR(")]
    assert min(lengths) >= 64


def test_the_schema_never_enters_the_binary_log() -> None:
    lines = (ROLES / "database/files/schema.sql").read_text().splitlines()
    statements = [line for line in lines if line and not line.startswith("--")]
    assert statements[0] == "SET SESSION sql_log_bin = 0;"
    for line in statements:
        if line.startswith("CREATE"):
            assert "IF NOT EXISTS" in line


def test_no_other_channel_driver_and_no_shell_is_loaded() -> None:
    modules = yaml.safe_load((ROLES / "pbx/defaults/main.yml").read_text())["pbx_modules"]
    assert [name for name in modules if name.startswith("chan_")] == ["chan_pjsip", "chan_bridge_media"]
    assert not {"app_system", "func_shell", "res_agi", "res_pjsip_endpoint_identifier_anonymous"} & set(
        modules
    )
    assert len(modules) == len(set(modules))


def test_a_node_that_goes_down_hands_over_before_anything_that_it_needs_for_that_ends() -> None:
    """What a unit is ordered after, it is stopped before."""
    order = (ROLES / "replication/templates/peer-order.conf.j2").read_text()
    for needed in ("centralino-vrrp.service", "systemd-user-sessions.service", "box.units.sshd"):
        assert needed in order
    addresses = directives(ROLES / "replication/files/centralino-vrrp.service")
    assert not [value for _, name, value in addresses if name == "After" and "centralino-peer" in value]
    tasks = (ROLES / "replication/tasks/main.yml").read_text()
    assert "success=done default=ignore]    pam_succeed_if.so quiet user = centralino-peer" in tasks
