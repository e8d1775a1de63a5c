"""Booted nodes for tests. `CENTRALINO_LAB_ROOT` names a root tree; without it the reference root is built.

- `lab`: a fresh lab for one test, empty;
- `shared_node`: one booted node for all tests that leave it as they found it;
- `two_nodes`: two booted nodes for one module, to be made a pair;
- on failure journals and consoles are kept in `out/lab-logs/`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair_of_nodes import PairOfNodes, boot_two

from appliance.lab import LOGS, Lab, Node
from appliance.lab_tree import packages_of_this_tree

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember whether a test failed, for the fixtures that end after it."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        item.session.stash[FAILED] = True
    return report


@pytest.fixture(scope="session")
def lab_root() -> Path:
    """The root tree that nodes boot; never written to."""
    if os.geteuid() != 0:
        pytest.skip("a lab needs root")
    if chosen := os.environ.get("CENTRALINO_LAB_ROOT"):
        return Path(chosen)
    from appliance.lab_cli import built_root

    return built_root(None, "debian12")


@pytest.fixture
def lab(lab_root: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A fresh lab without nodes."""
    with Lab(lab_root, tmp_path / "lab") as made:
        yield made
        if request.node.stash.get(FAILED, False):
            print(f"logs: {made.save_logs(LOGS / request.node.name)}")


@pytest.fixture(scope="session")
def shared_node(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Node]:
    """One booted node; leave it as it was."""
    with Lab(lab_root, tmp_path_factory.mktemp("shared") / "lab") as made:
        made.add_node()
        made.power_on_all()
        yield made.node("node1")
        if request.session.stash.get(FAILED, False):
            made.save_logs(LOGS / "shared")


@pytest.fixture(scope="module")
def two_nodes(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[PairOfNodes]:
    """Two booted nodes of this tree and a client for one module, not yet a pair."""
    with Lab(lab_root, tmp_path_factory.mktemp("pair") / "lab") as made:
        yield boot_two(made)
        if request.session.testsfailed:
            made.save_logs(LOGS / request.path.stem)


@pytest.fixture(scope="session")
def code(lab_root: Path) -> dict[str, str]:
    """Binds that put this tree's packages over those of a root chosen by hand, which may be older."""
    return packages_of_this_tree(lab_root) if os.environ.get("CENTRALINO_LAB_ROOT") else {}
