"""The package lock as a file: round trips, and refusals that name what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import InputError, LockError
from iso.lock import Lock, LockedPackage, Request, check_lock, read_lock, write_lock
from iso.module_metadata import prune_comps, prune_modules, streams_in

PACKAGE = LockedPackage(
    "bash",
    0,
    "4.4.20",
    "5.el8",
    "x86_64",
    "a" * 64,
    1611000,
    "baseos",
    "Packages/bash-4.4.20-5.el8.x86_64.rpm",
    "GPLv3+",
    "c21ad6ea",
    "",
)
LOCK = Lock("b" * 64, "almalinux8", "8.10", (PACKAGE,), "---\ndocument: modulemd\n", "<comps/>\n")


def test_a_lock_reads_back_as_it_was(tmp_path: Path) -> None:
    write_lock(LOCK, tmp_path / "lock.toml")
    assert read_lock(tmp_path / "lock.toml") == LOCK
    assert PACKAGE.nevra == "bash-4.4.20-5.el8.x86_64" and replace(PACKAGE, epoch=2).nevra.startswith(
        "bash-2:4"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=30))
def test_any_metadata_survives(tmp_path: Path, modules: str, comps: str, licence: str) -> None:
    lock = replace(LOCK, modules=modules, comps=comps, packages=(replace(PACKAGE, license=licence),))
    write_lock(lock, tmp_path / "lock.toml")
    assert read_lock(tmp_path / "lock.toml") == lock


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 9", "schema 9"),
        ("size = 1611000", 'size = "big"', "size is no int"),
        ("epoch = 0", "surprise = 0", "surprise"),
        ("Packages/bash", "../../etc/bash", "leads out of the repository"),
        ("comps = ", "groups = ", "comps"),
        ("[[package]]", "[[package", "cannot be read"),
    ],
)
def test_a_wrong_lock_is_one_clear_error(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_lock(LOCK, tmp_path / "lock.toml")
    text = (tmp_path / "lock.toml").read_text()
    assert old in text
    (tmp_path / "lock.toml").write_text(text.replace(old, new))
    with pytest.raises(LockError, match=message) as caught:
        read_lock(tmp_path / "lock.toml")
    assert "--update-lock" in str(caught.value)


def test_a_lock_of_another_request_is_refused(tmp_path: Path) -> None:
    request = Request("almalinux8", "platform:el8", "8.10", "x86_64", ("a", "b"))
    lock = replace(LOCK, request=request.digest)
    check_lock(lock, replace(request, packages=("b", "a")), tmp_path)
    for change in ({"packages": ("a",)}, {"modules": ("x:1",)}, {"release": "8.9"}, {"excluded": ("b",)}):
        with pytest.raises(LockError):
            check_lock(lock, replace(request, **change), tmp_path)


MODULE = """---
document: modulemd
version: 2
data:
  name: {name}
  stream: {stream}
  context: {context}
  artifacts:
    rpms:
    - {name}-server-3:{build}.module_el8.x86_64
"""
DEFAULTS = "---\ndocument: modulemd-defaults\nversion: 1\ndata:\n  module: mariadb\n  stream: '10.3'\n"


def test_only_the_build_of_a_stream_that_is_shipped_is_kept() -> None:
    text = "".join(
        MODULE.format(name="mariadb", stream='"10.11"', context=context, build=build)
        for context, build in (("aaaa", "10.11.6-1"), ("bbbb", "10.11.8-1"))
    )
    pruned = prune_modules(
        [text + DEFAULTS], ["mariadb:10.11"], ["mariadb-server-10.11.8-1.module_el8.x86_64.rpm"]
    )
    assert "bbbb" in pruned and "aaaa" not in pruned and "defaults" not in pruned
    assert streams_in(pruned) == {"mariadb:10.11"}


def test_a_stream_or_group_that_is_nowhere_is_named() -> None:
    with pytest.raises(InputError, match=r"mariadb:10\.11"):
        prune_modules([DEFAULTS], ["mariadb:10.11"], [])
    with pytest.raises(InputError, match="core"):
        prune_comps(["<comps><group><id>other</id></group></comps>"], ["core"])
