"""The firewall on a booted appliance: loaded by the daemon, kept over reboots, and never a lock-out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lab import LOGS, Lab, Node
from appliance.lab_host import Result, wait_for

pytestmark = pytest.mark.lab

REPOSITORY = Path(__file__).resolve().parents[2]
UNIT = "centralinod.service"


def with_this_tree(lab_root: Path) -> dict[str, str]:
    """This tree's packages in place of those in the image."""
    (site,) = (lab_root / "opt/centralino/venv/lib").glob("python3*/site-packages")
    inside = "/" / site.relative_to(lab_root)
    return {str(REPOSITORY / name): str(inside / name) for name in ("daemon", "firewall", "fault_tolerance")}


@pytest.fixture(scope="module")
def lab_of_one(
    lab_root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Lab]:
    with Lab(lab_root, tmp_path_factory.mktemp("firewall") / "lab") as lab:
        lab.add_node(binds=with_this_tree(lab_root))
        lab.add_client("admin")
        lab.power_on_all()
        lab.node("node1").wait_active(UNIT)
        yield lab
        if request.session.testsfailed:
            lab.save_logs(LOGS / "firewall")


@pytest.fixture
def node(lab_of_one: Lab) -> Node:
    return lab_of_one.node("node1")


def centralino(node: Node, *words: str) -> Result:
    return node.run(["centralino", *words], check=False, limit_seconds=90)


def test_the_daemon_loads_the_policy(node: Node) -> None:
    found = centralino(node, "firewall", "status", "--json")
    assert found.ok, found.errors
    print(found.output, centralino(node, "firewall", "status").output)
