"""What must not be in memory: in a box without a pair nothing of pairs, in a runtime nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest


def loaded(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after the statement."""
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


def test_the_daemon_imports_nothing_of_fault_tolerance() -> None:
    pytest.importorskip("gi")
    modules = loaded("import daemon.lean, daemon.daemon")
    assert "daemon.pair_link" in modules
    assert not {name for name in modules if name.startswith("fault_tolerance")}
    assert "daemon.pair_jobs" not in modules


def test_the_runtime_imports_neither_pydantic_nor_paramiko() -> None:
    modules = loaded("import fault_tolerance.service")
    heavy = {
        "pydantic",
        "paramiko",
        "cryptography",
        "pyroute2",
        "pymysql",
        "gi",
        "asyncio",
        "daemon.settings",
    }
    assert not heavy & modules


def test_the_database_library_comes_without_tls() -> None:
    modules = loaded(
        "import fault_tolerance.service\n"
        # What `build` of the two replications loads.
        "import fault_tolerance.database.replica, fault_tolerance.files.replica\n"
        "from fault_tolerance.database.session import library\nlibrary()"
    )
    assert "pymysql" in modules
    assert not {"ssl", "_ssl", "_hashlib", "cryptography"} & modules
    # Whoever needs them later finds them.
    assert "ssl" in loaded("from fault_tolerance.database.session import library\nlibrary()\nimport ssl")
