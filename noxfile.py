"""Every developer task. `.ci/nox -s SESSION` sets up what these need; plain nox works in that environment.

The sessions use the one locked environment that `.ci/nox` keeps in the cache, so none installs anything.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import nox

TREE = Path(__file__).parent
PACKAGES = ["appliance", "daemon", "iso", "kickstart", "fault_tolerance", "firewall"]

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "none"


def python(session: nox.Session, *arguments: str) -> None:
    """Run the environment's own Python with the tree on its path."""
    if importlib.util.find_spec("pydantic") is None:
        session.error("this environment lacks the locked packages; run .ci/nox instead of nox")
    os.environ["PYTHONPATH"] = str(TREE)
    session.run("python", *arguments, external=True)


@nox.session
def build(session: nox.Session) -> None:
    """Build the reference root tree; arguments go to `centralino-build image`."""
    python(
        session,
        "-m",
        "appliance.cli",
        "image",
        "--platform",
        "debian12",
        *(session.posargs or ["--format", "root"]),
    )


@nox.session
def cli(session: nox.Session) -> None:
    """Run `centralino-build` with the arguments after `--`."""
    python(session, "-m", "appliance.cli", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Build the appliance, call it, kill its core; form a pair, cut its power; writes out/demo.json."""
    python(session, "-m", "appliance.demo", "--output", "out/demo.json", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run unit tests, then (as root) netns, lab and image tests; arguments go to pytest."""
    chosen = session.posargs or (["tests"] if os.geteuid() == 0 else ["tests/unit"])
    python(session, "-m", "pytest", "-m", "not slow and not chaos", "--durations=15", *chosen)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that take minutes each; they are recorded in docs/verification.md."""
    python(session, "-m", "pytest", "-m", "slow", *(session.posargs or ["tests"]))


@nox.session
def chaos(session: nox.Session) -> None:
    """Break a pair in random ways under load and audit it; `--seed N --count N`; writes out/chaos.json."""
    python(session, "-m", "tests.chaos", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, import contract, roles, shell scripts and generated documentation."""
    python(session, "-m", "ruff", "check", ".")
    python(session, "-m", "ruff", "format", "--check", ".")
    python(session, "-m", "mypy")
    session.run("lint-imports", "--no-cache", external=True)
    python(session, "-m", "docs.generate", "--check")
    session.run("ansible-lint", "--offline", "--strict", "roles", external=True)
    scripts = [*Path(".ci").glob("nox"), Path(".ci/run"), *Path("roles").rglob("*.sh"), Path("roles/install")]
    session.run("shellcheck", *map(str, scripts), external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure side by side with the named peers; writes out/bench.json and docs/benchmarks.md."""
    python(session, "-m", "tests.bench", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Generate the references from the schema and the command line."""
    python(session, "-m", "docs.generate", *session.posargs)
