"""`/usr/bin/centralino`: the launcher that the role ships, in a virtual environment like that of a box."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import click
import jeepney
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = REPOSITORY / "roles/daemon/files/centralino"
INTERPRETER = "/opt/centralino/venv/bin/python"
NO_BUS = "unix:path=/nowhere/bus"
WITH_SITE = "import sys; sys.argv[0] = 'centralino'; from daemon.cli.start import main; main()"
FOREIGN = "raise SystemExit('this is no module of ours')"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `roles/install` leaves it: a set of packages, a link to it, and the launcher beside."""
    place = tmp_path_factory.mktemp("opt")
    venv.create(place / "environments/one", symlinks=True)
    (place / "venv").symlink_to("environments/one")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = place / "venv/lib" / version / "site-packages"
    for package in (click, jeepney):
        (packages / package.__name__).symlink_to(Path(package.__file__).parent)
    (packages / "daemon").symlink_to(REPOSITORY / "daemon")
    launcher = place / "bin/centralino"
    launcher.parent.mkdir()
    launcher.write_text(LAUNCHER.read_text().replace(INTERPRETER, str(place / "venv/bin/python"), 1))
    launcher.chmod(LAUNCHER.stat().st_mode)
    (place / "usr").mkdir()
    (place / "usr/centralino").symlink_to(launcher)
    return place


def start(program: list[str | Path], *words: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [*program, "--bus", NO_BUS, *words],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C", **environment},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_launcher_names_the_environment_of_a_box() -> None:
    assert LAUNCHER.read_text().splitlines()[0] == f"#!{INTERPRETER} -IS"
    assert os.access(LAUNCHER, os.X_OK)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, ["--version"]),
        (0, ["--help"]),
        (0, ["network", "set", "--help"]),
        (0, ["completion", "bash"]),
        (2, ["network", "nothing"]),
        (2, ["network", "set", "eth0", "--mtu"]),
        (9, ["status"]),
        (9, ["status", "--json"]),
        (9, ["network", "set", "eth0", "--mtu", "1400", "--yes", "--json"]),
    ],
)
def test_it_answers_as_the_module_does(home: Path, code: int, words: list[str]) -> None:
    answer = start([home / "usr/centralino"], *words)
    assert answer[0] == code, answer
    assert answer == start([home / "venv/bin/python", "-c", WITH_SITE], *words)


def test_it_completes(home: Path) -> None:
    typed = {"COMP_WORDS": "centralino netw", "COMP_CWORD": "1", "_CENTRALINO_COMPLETE": "bash_complete"}
    done = subprocess.run([home / "usr/centralino"], capture_output=True, text=True, env=typed, check=True)
    assert done.stdout == "plain,network\n"


def test_its_modules_are_those_of_the_environment_that_the_link_named(home: Path, tmp_path: Path) -> None:
    """Neither `site` nor what the caller's directory and variables offer."""
    for name in ("click", "jeepney", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(FOREIGN)
    asked = (
        "import runpy, sys; from daemon import connections;"
        "connections.leave = lambda code: print(*sys.path, sorted(sys.modules), sep='\\n');"
        f"runpy.run_path({str(home / 'bin/centralino')!r})"
    )
    program = home / "venv/bin/python"
    begun = f"import sys; sys.path.append({str(REPOSITORY)!r}); sys.argv = ['centralino', '--version'];"
    done = subprocess.run(
        [program, "-IS", "-c", begun + asked],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        check=True,
    )
    *path, modules = done.stdout.splitlines()[1:]
    (place,) = [entry for entry in path if entry.startswith(str(home))]
    assert place.startswith(str(home / "environments/one/lib"))
    assert "'click'" in modules and "'site'" not in modules
    assert start([home / "usr/centralino"], "--version", PYTHONPATH=str(tmp_path))[0] == 0


def test_an_unforeseen_error_shows_where_it_comes_from(home: Path) -> None:
    """A `daemon` that cannot be imported, as after an update that was cut off."""
    packages = next((home / "environments/one/lib").glob("python3*/site-packages"))
    (packages / "daemon").unlink()
    try:
        code, output, errors = start([home / "usr/centralino"], "status")
    finally:
        (packages / "daemon").symlink_to(REPOSITORY / "daemon")
    assert (code, output) == (1, "")
    assert errors.startswith("Traceback") and "No module named 'daemon'" in errors
