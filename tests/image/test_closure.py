"""The closure against real dnf and real RPMs: weak dependencies, conflicts, modules, signatures (S-IN-01)."""

from __future__ import annotations

import ast
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rpm_repositories import (
    Key,
    Rpm,
    build,
    comps,
    defaults,
    make_key,
    module,
    repository,
    sign,
)

from appliance.errors import InputError, LockError, MirrorError
from appliance.mirror import Source
from iso.closure import UnsatisfiableError, Workshop, fetch_locked, resolve
from iso.lock import Lock, Request, check_lock, differences, read_lock, write_lock
from iso.repository import build_repositories, metadata_types

pytestmark = pytest.mark.image

MARIADB = "mariadb:10.11:8100020240000000000:489197e6"
OLD = "mariadb:10.3:8100020240000000000:489197e6"
BASE_RPMS = (
    Rpm("basesystem"),
    Rpm("kernel", requires=("basesystem",), recommends=("linux-firmware-extra",)),
    Rpm("linux-firmware-extra"),
    Rpm("bash", requires=("libtinfo",)),
    Rpm("ncurses-libs", provides=("libtinfo",)),
    Rpm("firewalld"),
    Rpm("epochal", version="2.0", epoch=3),
    Rpm("clash-a", conflicts=("clash-b",)),
    Rpm("clash-b"),
    Rpm("broken", requires=("nobody-has-this",)),
)
APP_RPMS = (
    Rpm("python3.12", requires=("bash",)),
    Rpm("mariadb-server", version="10.11.6", module=MARIADB, requires=("mariadb-common",)),
    Rpm("mariadb-common", version="10.11.6", module=MARIADB),
    Rpm("mariadb-server", version="10.3.39", module=OLD),
    Rpm("forgery"),
    Rpm("unsigned"),
)


class Fixture:
    """Two repositories, signed but for two packages, and what is needed to use them."""

    def __init__(self, directory: Path) -> None:
        self.key: Key = make_key(directory, "vendor")
        self.foreign: Key = make_key(directory, "stranger")
        base = build(directory / "base-rpms", BASE_RPMS)
        app = build(directory / "app-rpms", APP_RPMS)
        forged = [file for file in app if "forgery" in file.name]
        sign(
            [file for file in base + app if "forgery" not in file.name and "unsigned" not in file.name],
            self.key,
        )
        sign(forged, self.foreign)
        self.base = repository(
            directory / "BaseOS", base, groups=comps({"core": ["bash", "firewalld"], "other": ["kernel"]})
        )
        artefacts = ["mariadb-server-0:10.11.6-1.el8.noarch", "mariadb-common-0:10.11.6-1.el8.noarch"]
        self.modules = (
            module("mariadb", "10.11", artefacts)
            + module("mariadb", "10.3", ["mariadb-server-0:10.3.39-1.el8.noarch"])
            + defaults("mariadb", "10.3")
            + module("nginx", "1.24", [])
        )
        self.app = repository(directory / "AppStream", app, modules=self.modules)

    @property
    def sources(self) -> list[Source]:
        return [Source("baseos", self.base.as_uri()), Source("appstream", self.app.as_uri())]

    def workshop(self, cache: Path, **changes: object) -> Workshop:
        return replace(Workshop(cache, keys=(self.key.public,)), **changes)


REQUEST = Request(
    platform="almalinux8",
    platform_id="platform:el8",
    release="8.10",
    architecture="x86_64",
    packages=("kernel", "python3.12", "mariadb-server", "epochal"),
    groups=("core",),
    modules=("mariadb:10.11",),
    excluded=("firewalld",),
    repositories=("appstream", "baseos"),
)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    if missing := [
        name for name in ("dnf", "rpmbuild", "createrepo_c", "rpmsign") if shutil.which(name) is None
    ]:
        pytest.skip(f"this host lacks {', '.join(missing)}")
    return Fixture(tmp_path_factory.mktemp("rpms"))


@pytest.fixture(scope="session")
def resolved(made: Fixture, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lock, dict[str, Path], Path]:
    cache = tmp_path_factory.mktemp("cache")
    lock, files = resolve(REQUEST, made.sources, made.workshop(cache))
    return lock, files, cache


def test_dependencies_come_weak_ones_stay_out_and_the_stream_decides(made: Fixture, resolved) -> None:
    lock, files, _ = resolved
    assert [package.nevra for package in lock.packages] == [
        "basesystem-1.0-1.el8.noarch",
        "bash-1.0-1.el8.noarch",
        "epochal-3:2.0-1.el8.noarch",
        "kernel-1.0-1.el8.noarch",
        "mariadb-common-10.11.6-1.el8.noarch",
        "mariadb-server-10.11.6-1.el8.noarch",
        "ncurses-libs-1.0-1.el8.noarch",
        "python3.12-1.0-1.el8.noarch",
    ]
    by_name = {package.name: package for package in lock.packages}
    assert by_name["mariadb-server"].module == "mariadb:10.11" and by_name["bash"].module == ""
    assert by_name["bash"].repository == "baseos" and by_name["python3.12"].repository == "appstream"
    assert {package.signer for package in lock.packages} != {"not checked"}
    assert all(files[package.sha256].stat().st_size == package.size for package in lock.packages)
    assert '"10.3"' not in lock.modules and "nginx" not in lock.modules and "defaults" not in lock.modules
    assert "<id>core</id>" in lock.comps and "other" not in lock.comps and "lang" not in lock.comps


def test_the_default_stream_is_taken_when_none_is_named(made: Fixture, tmp_path: Path) -> None:
    lock, _ = resolve(replace(REQUEST, modules=()), made.sources, made.workshop(tmp_path))
    assert "mariadb-server-10.3.39-1.el8.noarch" in [package.nevra for package in lock.packages]


def test_a_lock_file_holds_everything(resolved, tmp_path: Path) -> None:
    lock, _, _ = resolved
    write_lock(lock, tmp_path / "a.toml")
    write_lock(read_lock(tmp_path / "a.toml"), tmp_path / "b.toml")
    assert read_lock(tmp_path / "a.toml") == lock
    assert (tmp_path / "a.toml").read_bytes() == (tmp_path / "b.toml").read_bytes()
    assert "file://" not in (tmp_path / "a.toml").read_text()


def test_a_locked_build_resolves_nothing(resolved, made: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, files, cache = resolved
    monkeypatch.setattr("iso.closure.run", lambda *words, **options: pytest.fail("something was started"))
    assert fetch_locked(lock, made.sources, made.workshop(cache)) == files


def test_a_package_that_differs_from_the_lock_is_refused(resolved, made: Fixture, tmp_path: Path) -> None:
    lock, _, _ = resolved
    mirror = tmp_path / "mirror"
    shutil.copytree(made.base, mirror)
    victim = next((mirror / "Packages").glob("bash-*.rpm"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    sources = [Source("baseos", mirror.as_uri()), made.sources[1]]
    with pytest.raises(LockError, match=r"bash-1\.0-1\.el8\.noarch from baseos is not what the lock says"):
        fetch_locked(lock, sources, made.workshop(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.partial*"))


def test_a_cached_package_that_rotted_is_fetched_again(resolved, made: Fixture, tmp_path: Path) -> None:
    lock, _, _ = resolved
    workshop = made.workshop(tmp_path)
    victim = next(iter(fetch_locked(lock, made.sources, workshop).values()))
    good = victim.read_bytes()
    victim.write_bytes(good[:-1])
    fetch_locked(lock, made.sources, workshop)
    assert victim.read_bytes() == good


def test_another_request_refuses_the_lock(resolved, tmp_path: Path) -> None:
    lock, _, _ = resolved
    check_lock(lock, REQUEST, tmp_path / "lock")
    check_lock(lock, replace(REQUEST, packages=tuple(reversed(REQUEST.packages))), tmp_path / "lock")
    with pytest.raises(LockError, match="--update-lock"):
        check_lock(lock, replace(REQUEST, packages=("kernel",)), tmp_path / "lock")


@pytest.mark.parametrize(
    ("package", "message"),
    [("unsigned", "unsigned-.*: not signed"), ("forgery", "forgery-.*: signed by the unknown key")],
)
def test_unsigned_and_foreign_packages_are_refused(
    made: Fixture, tmp_path: Path, package: str, message: str
) -> None:
    with pytest.raises(LockError, match=message):
        resolve(replace(REQUEST, packages=(package,)), made.sources, made.workshop(tmp_path))


def test_a_flipped_byte_behind_a_signature_is_found(made: Fixture, tmp_path: Path) -> None:
    """A mirror that was changed together with its metadata: only the signature can tell."""
    files = [tmp_path / file.name for file in (made.base / "Packages").iterdir()]
    for file in files:
        shutil.copy(made.base / "Packages" / file.name, file)
        if file.name.startswith("bash-"):
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
    mirror = repository(tmp_path / "mirror", files, groups=comps({"core": ["bash"]}))
    with pytest.raises(LockError, match="refused"):
        resolve(
            replace(REQUEST, packages=("bash",), modules=()),
            [Source("baseos", mirror.as_uri())],
            made.workshop(tmp_path / "cache"),
        )


def test_checking_can_be_turned_off_and_says_so(made: Fixture, tmp_path: Path) -> None:
    lock, _ = resolve(
        replace(REQUEST, packages=("unsigned",)), made.sources, made.workshop(tmp_path, check=False)
    )
    assert {package.signer for package in lock.packages} == {"not checked"}


def test_no_key_is_an_error_not_a_pass(made: Fixture, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--no-gpgcheck"):
        resolve(REQUEST, made.sources, made.workshop(tmp_path, keys=()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"packages": ("kernel", "nothing-like-this")},
            UnsatisfiableError,
            "no repository offers nothing-like-this",
        ),
        ({"packages": ("broken",)}, UnsatisfiableError, "nobody-has-this"),
        ({"packages": ("clash-a", "clash-b")}, UnsatisfiableError, "clash-a.*clash-b|clash-b.*clash-a"),
        ({"modules": ("mariadb:99",)}, UnsatisfiableError, "mariadb:99"),
        ({"groups": ("core", "no-such-group")}, UnsatisfiableError, "no-such-group"),
    ],
)
def test_what_cannot_be_is_one_clear_error(made: Fixture, tmp_path: Path, change, error, message) -> None:
    with pytest.raises(error, match=message):
        resolve(replace(REQUEST, **change), made.sources, made.workshop(tmp_path))


def test_an_unreachable_mirror_is_one_clear_error(made: Fixture, tmp_path: Path) -> None:
    gone = [Source("baseos", (tmp_path / "nowhere").as_uri()), made.sources[1]]
    with pytest.raises(MirrorError, match="baseos"):
        resolve(REQUEST, gone, made.workshop(tmp_path))
    with pytest.raises(MirrorError, match="does not answer"):
        resolve(REQUEST, [Source("baseos", "http://127.0.0.1:9/"), made.sources[1]], made.workshop(tmp_path))


def tree_of(resolved, directory: Path) -> Path:
    lock, files, cache = resolved
    build_repositories(lock, files, directory, epoch=1767225600, cache=cache)
    return directory


def test_the_repositories_are_the_same_bytes_twice_and_dnf_installs_from_them(
    resolved, tmp_path: Path
) -> None:
    first, second = tree_of(resolved, tmp_path / "a"), tree_of(resolved, tmp_path / "b" / "deeper")
    names = sorted(path.relative_to(first) for path in first.rglob("*"))
    assert names == sorted(path.relative_to(second) for path in second.rglob("*"))
    for name in names:
        if (first / name).is_file():
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert "modules" in metadata_types(first / "AppStream") and "group" in metadata_types(first / "BaseOS")
    # Another dnf run, from the medium's repositories alone, must find exactly the closure.
    lock, _, cache = resolved
    again, _ = resolve(
        REQUEST,
        [Source("baseos", (first / "BaseOS").as_uri()), Source("appstream", (first / "AppStream").as_uri())],
        Workshop(cache, check=False),
    )
    assert [package.nevra for package in again.packages] == [package.nevra for package in lock.packages]


def test_a_modular_package_without_metadata_is_never_packed(resolved, tmp_path: Path) -> None:
    lock, files, cache = resolved
    with pytest.raises(InputError, match=r"mariadb:10\.11"):
        build_repositories(replace(lock, modules=""), files, tmp_path, epoch=1, cache=cache)


def test_differences_between_locks_are_told(resolved) -> None:
    lock, _, _ = resolved
    newer = replace(lock.packages[0], version="2.0", sha256="0" * 64)
    changed = replace(lock, packages=(newer, *lock.packages[2:], replace(lock.packages[1], name="zsh")))
    assert differences(lock, changed) == [
        "~ basesystem-1.0-1.el8.noarch -> basesystem-2.0-1.el8.noarch",
        "- bash-1.0-1.el8.noarch",
        "+ zsh-1.0-1.el8.noarch",
    ]


def test_the_resolver_stays_readable_for_the_old_python() -> None:
    """EL8's dnf runs under Python 3.6: no syntax of a newer one."""
    source = Path(__file__).parents[2] / "iso/dnf_resolver.py"
    ast.parse(source.read_text(), feature_version=(3, 6))
