"""Nodes that run this source tree instead of what was built into their root: for working on the programs."""

from __future__ import annotations

from pathlib import Path

SOURCE_TREE = Path(__file__).resolve().parents[1]
PACKAGES = ("daemon", "fault_tolerance", "firewall", "appliance")
ENVIRONMENT = Path("opt/centralino/venv")


def packages_of_this_tree(root: Path) -> dict[str, str]:
    """Binds for `NodeSpecification.binds`: our packages of this tree, over those in a root's environment.

    Only code is taken over; units, configuration and roles stay those that the root was built with.
    """
    # The environment is reached by a link that is absolute inside of the root.
    environment = root / ENVIRONMENT
    if environment.is_symlink():
        environment = (
            root / environment.readlink().relative_to("/")
            if environment.readlink().is_absolute()
            else (environment.parent / environment.readlink())
        )
    places = sorted(environment.glob("lib/python3.*/site-packages"))
    return {
        str(SOURCE_TREE / package): "/" + str((place / package).relative_to(root))
        for place in places
        for package in PACKAGES
        if (place / package).is_dir()
    }
