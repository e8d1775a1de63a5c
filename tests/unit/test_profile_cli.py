"""`centralino-build`: exit codes, JSON, commands of other modules, and plans that only change on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cache import Cache
from appliance.cli import LAZY_COMMANDS, cli
from appliance.formats_contract import OutputFormat
from appliance.plan import make_plan, plan_text
from appliance.platform_data import load_platform
from appliance.profile import load_profile
from appliance.tree import version

GOLDEN = Path(__file__).parent / "golden_plan/digests.json"
SHIPPED = ("pbx-almalinux8", "pbx-debian12")


def build(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "CENTRALINO_CACHE": str(cache)},
        check=False,
    )


def test_it_knows_its_name_and_version_without_being_installed(tmp_path: Path) -> None:
    told = build("--version", cache=tmp_path)
    assert (told.returncode, told.stdout) == (0, f"centralino-build {version()}\n")
    told = build("verify", cache=tmp_path)
    assert told.returncode == 2
    assert told.stderr.startswith("Usage: centralino-build verify ")


def test_a_refused_profile_ends_with_its_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[product]\nname = 'x'\n")
    told = build("profile", "check", str(file), cache=tmp_path)
    assert told.returncode == 3
    assert "product.title: is missing" in told.stderr
    assert "Traceback" not in told.stderr
    as_json = build("profile", "check", str(file), "--json", cache=tmp_path)
    assert as_json.returncode == 3
    assert {"path": "platform", "message": "is missing", "remedy": "add it"} in json.loads(as_json.stdout)[
        "problems"
    ]


def test_a_mirror_that_does_not_answer_is_exactly_one_error(tmp_path: Path) -> None:
    """The AlmaLinux 8 image without a reachable mirror (needs root as every image does)."""
    if os.geteuid() != 0:
        pytest.skip("building an image needs root")
    told = build(
        *("image", "--platform", "almalinux8", "--format", "root"),
        *("--mirror", "http://127.0.0.1:9/almalinux", "--mirror", "epel=http://127.0.0.1:9/epel"),
        cache=tmp_path,
    )
    assert told.returncode == 4
    assert told.stderr.count("centralino-build: ") == 1
    assert "repository baseos at http://127.0.0.1:9/almalinux" in told.stderr
    assert "Traceback" not in told.stderr
    assert not list(tmp_path.glob("stages/*/.partial*"))


def test_the_schema_is_json(tmp_path: Path) -> None:
    told = build("profile", "schema", cache=tmp_path)
    assert told.returncode == 0
    assert json.loads(told.stdout)["title"] == "Profile"


def test_commands_of_absent_modules_are_absent_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAZY_COMMANDS, "absent", "appliance.no_such_module:command")
    assert CliRunner().invoke(cli, ["--help"]).exit_code == 0
    assert CliRunner().invoke(cli, ["absent"]).exit_code == 2


def test_a_module_that_cannot_be_imported_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_command_module.py").write_text("import no_such_dependency_of_ours\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(LAZY_COMMANDS, "broken", "broken_command_module:command")
    result = CliRunner().invoke(cli, ["broken"])
    assert isinstance(result.exception, ModuleNotFoundError)


@pytest.mark.parametrize("name", SHIPPED)
def test_plans_change_only_on_purpose(name: str, tmp_path: Path) -> None:
    """One digest per profile and format; renew with UPDATE_GOLDEN=1 after reviewing the plans."""
    profile = load_profile(Path(name))
    platform = load_platform(profile.platform.name)
    digests = {}
    for form in OutputFormat:
        made = make_plan(profile, platform, [form], Cache(tmp_path))
        digests[str(form)] = made["digest"]
        assert plan_text(made).endswith(f"plan {made['digest']}")
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**golden, name: digests}, indent=1, sort_keys=True) + "\n")
        return
    changed = sorted(form for form in digests if golden.get(name, {}).get(form) != digests[form])
    assert not changed, f"the plan of {name} for {', '.join(changed)} is another one"


def test_a_plan_says_the_same_twice_and_names_what_differs(tmp_path: Path) -> None:
    profile = load_profile(Path("pbx-almalinux8"))
    platform = load_platform("almalinux8")
    first = make_plan(profile, platform, profile.output.formats, Cache(tmp_path))
    again = make_plan(profile, platform, profile.output.formats, Cache(tmp_path / "other"))
    assert first["digest"] == again["digest"]
    larger = profile.model_copy(update={"disk": profile.disk.model_copy(update={"image_gib": 16})})
    assert make_plan(larger, platform, profile.output.formats, Cache(tmp_path))["digest"] != first["digest"]
