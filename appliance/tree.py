"""The source tree that is being built: where it is and what of it counts."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from appliance.errors import InputError

TREE = Path(__file__).absolute().parent.parent
PACKAGES = ("appliance", "daemon", "fault_tolerance", "firewall", "iso", "kickstart")
IGNORED_DIRECTORIES = frozenset(
    {"__pycache__", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".ansible"}
)


@cache
def project(tree: Path = TREE) -> dict[str, object]:
    """The `[project]` table of pyproject.toml; raises InputError if this is no source tree."""
    file = tree / "pyproject.toml"
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise InputError(
            f"{file} cannot be read",
            "run centralino-build from a checkout of the sources, installed editable",
        ) from error
    return dict(table)


def version(tree: Path = TREE) -> str:
    """The version of our own code."""
    return str(project(tree)["version"])


def requirements(*extras: str, tree: Path = TREE) -> list[str]:
    """The direct requirements of our code and the named extras, sorted, without doubles."""
    table = project(tree)
    optional = table["optional-dependencies"]
    if not isinstance(optional, dict) or not isinstance(table["dependencies"], list):
        raise InputError("pyproject.toml has no lists of requirements", "restore it from version control")
    return sorted({*table["dependencies"], *(line for extra in extras for line in optional[extra])})


def files_below(directory: Path) -> list[Path]:
    """Every file and link below a directory that is source: no caches, no byte code; sorted."""
    return sorted(
        path
        for path in directory.rglob("*")
        if (path.is_file() or path.is_symlink())
        and path.suffix != ".pyc"
        and not IGNORED_DIRECTORIES.intersection(path.relative_to(directory).parts)
        and not any(part.endswith(".egg-info") for part in path.relative_to(directory).parts)
    )


def application_sources(tree: Path = TREE) -> list[Path]:
    """The files that our own wheel is made of."""
    sources = [tree / "pyproject.toml", tree / "README.md"]
    for package in PACKAGES:
        sources += files_below(tree / package)
    return [path for path in sources if path.exists()]
