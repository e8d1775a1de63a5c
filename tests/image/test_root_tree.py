"""The root tree of the reference platform, really built: packages, roles, and what goes wrong on the way.

The tests share one cache with `centralino-build`, so that a tree that was just built is not built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import pytest

from appliance.cache import Cache, digest_file
from appliance.formats_contract import Variant
from appliance.kiwi import os_stage
from appliance.mirror import resolve_sources
from appliance.platform_data import box_text, load_platform
from appliance.profile import load_profile
from appliance.progress import Progress
from appliance.root_tree import run_overlaid
from appliance.run import run
from appliance.stages import build_context
from appliance.tree import PACKAGES, TREE

pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="building a root tree needs root"),
]
WAIT_SECONDS = 300.0


def build(
    *arguments: str, sources: Path = TREE, cache: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(sources)}
    if cache is not None:
        environment["CENTRALINO_CACHE"] = str(cache)
    return subprocess.run(
        [sys.executable, "-m", "appliance.cli", *arguments],
        cwd=sources,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )


def copy_of_the_sources(target: Path) -> Path:
    for name in (*PACKAGES, "roles"):
        shutil.copytree(TREE / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(TREE / name, target / name)
    return target


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that the build and what it is compared with are of the same moment."""
    return copy_of_the_sources(tmp_path_factory.mktemp("sources") / "tree")


@pytest.fixture(scope="module")
def built(sources: Path) -> dict[str, object]:
    done = build("image", "--platform", "debian12", "--format", "root", "--json", sources=sources)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def tree(built: dict[str, object]) -> Path:
    artefacts = built["artefacts"]
    assert isinstance(artefacts, dict)
    return Path(artefacts["root"])


def test_the_tree_carries_the_application_and_its_platform(tree: Path) -> None:
    assert (tree / "etc/centralino/platform.toml").read_text() == box_text(load_platform("debian12"))
    programs = {
        "usr/bin/centralino": "opt/centralino/bin/centralino",
        "usr/sbin/centralinod": "opt/centralino/venv/bin/centralinod",
    }
    for name, program in programs.items():
        assert (tree / name).readlink() == Path("/", program)
        assert os.access(tree / program, os.X_OK)
    assert run(["chroot", tree, "centralino", "--version"]).output.startswith("centralino ")
    payload = tree / "opt/centralino/payload"
    files = json.loads((payload / "manifest.json").read_text())["files"]
    wrong = [name for name, digest in files.items() if digest_file(payload / name) != digest]
    assert wrong == []
    assert "ii  asterisk " in run(["chroot", tree, "dpkg", "-l", "asterisk"]).output


def test_every_program_of_the_tree_belongs_to_a_package(tree: Path) -> None:
    """What dpkg does not know gets no security update and stands in no bill of materials."""
    known: set[str] = set()
    for listing in (tree / "var/lib/dpkg/info").glob("*.list"):
        known.update(listing.read_text().splitlines())
    diverted = set((tree / "var/lib/dpkg/diversions").read_text().splitlines())
    strangers = []
    for directory in ("usr/bin", "usr/sbin", "usr/lib/x86_64-linux-gnu"):
        for path in (tree / directory).iterdir():
            name = f"/{path.relative_to(tree)}"
            # A merged /usr: packages still say /bin/bash.
            if (
                path.is_file()
                and not path.is_symlink()
                and not {name, name.removeprefix("/usr")} & (known | diverted)
            ):
                strangers.append(name)
    assert strangers == []
    assert run(["chroot", tree, "dpkg", "--audit"]).output == ""


def test_the_tree_holds_no_identity_and_no_trace_of_the_build_host(tree: Path) -> None:
    assert (tree / "etc/machine-id").read_text() == ""
    assert not list((tree / "etc/ssh").glob("ssh_host_*"))
    for name in ("image", "etc/resolv.conf", "etc/passwd-", "var/log/dpkg.log", ".centralino-payload"):
        assert not (tree / name).exists(), name
    for name in ("tmp", "var/tmp", "run", "proc", "sys", "dev", "var/lib/apt/lists"):
        assert not list((tree / name).glob("**/*")), name
    profile = load_profile(Path("pbx-debian12"))
    mirrors = {source.url for source in resolve_sources(profile, load_platform("debian12"))}
    configured = "".join(file.read_text() for file in (tree / "etc/apt").rglob("*.sources"))
    assert not any(mirror in configured for mirror in mirrors)
    assert (tree / "etc/hosts").read_text().startswith("127.0.0.1 localhost")


def test_a_build_with_nothing_changed_makes_nothing(
    built: dict[str, object], sources: Path, tree: Path
) -> None:
    again = json.loads(
        build("image", "--platform", "debian12", "--format", "root", "--json", sources=sources).stdout
    )
    assert [stage["name"] for stage in again["stages"] if stage["made"]] == []
    assert again["artefacts"]["root"] == str(tree)


def test_a_change_in_our_code_alone_installs_no_package(built: dict[str, object], tmp_path: Path) -> None:
    changed = copy_of_the_sources(tmp_path / "tree")
    file = changed / "daemon/errors.py"
    file.write_text(file.read_text() + "# one line more\n")
    done = build("image", "--platform", "debian12", "--format", "root", "--json", sources=changed)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    made = [stage["name"] for stage in result["stages"] if stage["made"]]
    assert made == ["application", "payload-debian12", "root-debian12"]
    packages = Path(result["artefacts"]["root"], "opt/centralino/venv/lib/python3.11/site-packages")
    installed = packages.resolve() / "daemon/errors.py"
    assert installed.read_text().endswith("# one line more\n")


def test_inside_a_tree_there_is_no_network_and_nothing_stays_mounted(tree: Path, tmp_path: Path) -> None:
    upper, work, merged = tmp_path / "upper", tmp_path / "work", tmp_path / "merged"
    for directory in (upper, work, merged):
        directory.mkdir()
    silent = Progress(silent=True)
    with build_context("test", epoch=0, cache=Cache(tmp_path / "cache"), progress=silent) as context:
        run_overlaid([tree], upper, work, merged, ["cat", "/proc/net/dev", "/proc/net/route"], context)
        log = context.log.read_text()
    interfaces = [line.split(":")[0].strip() for line in log.splitlines() if line.count(":") == 1]
    assert interfaces == ["lo"]
    assert "\t00000000\t" not in log, "no route leads anywhere"
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert not list((merged).iterdir())


def test_a_package_that_the_mirror_lacks_is_named_and_nothing_stays(tmp_path: Path) -> None:
    profile = tmp_path / "profile.toml"
    text = (TREE / "appliance/profiles/pbx-debian12.toml").read_text()
    profile.write_text(text + '[packages]\nextra = ["no-such-package-anywhere"]\n')
    script = textwrap.dedent(STAGE).replace("PROFILE", str(profile))
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "cache"],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 6, done.stderr
    assert "no-such-package-anywhere" in done.stderr
    [log] = (tmp_path / "cache/logs").glob("*.log")
    assert str(log) in done.stderr
    assert not list((tmp_path / "cache/stages").glob("*/*"))
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


# One stage alone: packages by kiwi, in a cache of its own but for the downloads: they are not under test.
STAGE = """
import sys
import tarfile
from pathlib import Path
from appliance.cache import Cache
from appliance.cli_common import errors_to_exit_codes
from appliance.formats_contract import Variant
from appliance.kiwi import os_stage
from appliance.mirror import resolve_sources
from appliance.platform_data import load_platform
from appliance.profile import load_profile
from appliance.progress import Progress
from appliance.stages import build_context

@errors_to_exit_codes
def main():
    profile, platform = load_profile(Path("PROFILE")), load_platform("debian12")
    sources = resolve_sources(profile, platform)
    cache = Cache(Path(sys.argv[1]))
    cache.download_directory = Cache().download_directory
    with build_context("test", epoch=0, cache=cache, progress=Progress(silent=True)) as context:
        context.build(os_stage(profile, platform, Variant.CONTAINER, sources))

main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_package_installation_leaves_no_mount_process_or_half(
    tmp_path: Path, number: signal.Signals
) -> None:
    script = textwrap.dedent(STAGE).replace("PROFILE", "pbx-debian12")
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "cache"], cwd=TREE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + WAIT_SECONDS
    # The bootstrap is over when dpkg works inside the tree: mounts are up, maintainer scripts run.
    while not list((tmp_path / "cache/stages").glob("*/.partial-*/output/root/var/lib/dpkg/info/dpkg.list")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert not list((tmp_path / "cache/stages").glob("*/.partial*"))
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    processes = run(["ps", "-eo", "args"]).output.splitlines()
    assert [line for line in processes if str(tmp_path / "cache") in line] == []
    assert os.access("/dev/null", os.W_OK), "the host's own /dev is untouched"


@pytest.mark.parametrize(
    ("stage", "sign"),
    [
        ("environment-debian12", "output/upper/opt/centralino/environments/*/bin/python"),
        ("root-debian12", "output/root/opt/centralino/venv/lib/python*/site-packages/daemon/errors.py"),
    ],
)
def test_an_interrupted_installation_of_the_payload_leaves_no_mount_process_or_half(
    built: dict[str, object], sources: Path, tmp_path: Path, stage: str, sign: str
) -> None:
    """Inside of `payload/install`: while the environment is made, and amid the roles."""
    (tmp_path / "stages").mkdir()
    for known in (Cache().directory / "stages").iterdir():
        if known.name not in (stage, "root-debian12"):
            (tmp_path / "stages" / known.name).symlink_to(known)
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "image", "--platform", "debian12", "--format", "root"],
        cwd=sources,
        env={**os.environ, "PYTHONPATH": str(sources), "CENTRALINO_CACHE": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + WAIT_SECONDS
    while not list((tmp_path / "stages" / stage).glob(f".partial-*/{sign}")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert list((tmp_path / "stages" / stage).iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    processes = run(["ps", "-eo", "args"]).output.splitlines()
    assert [line for line in processes if str(tmp_path) in line] == []


def test_the_almalinux_description_is_what_kiwi_would_get(tmp_path: Path) -> None:
    """Its packages cannot be installed without a mirror of it; the stage is ready up to that point."""
    profile, platform = load_profile(Path("pbx-almalinux8")), load_platform("almalinux8")
    words = ("http://mirror.test/almalinux", "epel=http://mirror.test/epel")
    sources = resolve_sources(profile, platform, words, apt=[], yum={})
    stage = os_stage(profile, platform, Variant.DISK, sources)
    assert isinstance(stage.inputs, dict)
    assert "python3.12" in str(stage.inputs["description"])


@pytest.mark.slow
def test_two_cold_builds_are_the_same_bytes(sources: Path, tmp_path: Path) -> None:
    """Nothing shared: other directories, another moment, wheels compiled and packages installed anew."""
    results = []
    for name in ("one", "two"):
        done = build(
            *("image", "--platform", "debian12", "--format", "tbz", "--output", str(tmp_path / name)),
            sources=sources,
            cache=tmp_path / f"cache-{name}",
        )
        assert done.returncode == 0, done.stderr
        results.append(next((tmp_path / name).iterdir()))
        shutil.rmtree(tmp_path / f"cache-{name}")
    if digest_file(results[0]) != digest_file(results[1]):
        pytest.fail(f"the first file that differs is {first_difference(*results)}")


def first_difference(one: Path, two: Path) -> str:
    """The name of the first member by which two archives differ, with what differs."""
    members = []
    for archive in (one, two):
        unpacked = subprocess.Popen(["zstd", "-dc", archive], stdout=subprocess.PIPE)
        with tarfile.open(fileobj=unpacked.stdout, mode="r|") as tar:
            members.append({member.name: described(tar, member) for member in tar})
        unpacked.wait()
    for name in sorted(members[0].keys() | members[1].keys()):
        if members[0].get(name) != members[1].get(name):
            return f"{name}: {members[0].get(name)} and {members[1].get(name)}"
    return "none: only the order or the compression differs"


def described(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[object, ...]:
    content = tar.extractfile(member) if member.isreg() else None
    digest = hashlib.sha256(content.read()).hexdigest() if content else member.linkname
    return (member.type, oct(member.mode), member.uid, member.gid, member.size, member.mtime, digest)
