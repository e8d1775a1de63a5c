"""A root tree as tar and as OCI archive: whole, verifiable, the same bytes twice."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from appliance.cache import Cache, digest_file
from appliance.formats_contract import OutputFormat, artefact_name
from appliance.personalize import personalize
from appliance.platform_data import load_platform
from appliance.profile import Profile, load_profile, parse_profile
from appliance.progress import Progress
from appliance.stages import build_context
from appliance.tidy import tidy
from appliance.tree_formats import write_oci, write_tbz

EPOCH = 1767225600
HASH = "$6$salt$" + "a" * 86


def small_tree(root: Path) -> Path:
    for name in ("etc/default", "usr/share/zoneinfo/Europe", "var/log/apt", "home/admin", "tmp/left"):
        (root / name).mkdir(parents=True)
    (root / "usr/share/zoneinfo/Europe/Rome").write_text("zone")
    (root / "usr/share/zoneinfo/UTC").write_text("zone")
    (root / "etc/debian_version").write_text("12\n")
    (root / "etc/timezone").write_text("Etc/UTC\n")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nadmin:x:1000:1000::/home/admin:/bin/sh\n")
    (root / "etc/shadow").write_text("root:!*:20781:0:99999:7:::\nadmin:!:20781:0:99999:7:::\n")
    (root / "etc/shadow-").write_text("old")
    (root / "var/log/apt/history.log").write_text("when")
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    (root / "link").symlink_to("etc/passwd")
    os.link(root / "etc/passwd", root / "etc/passwd.hard")
    return root


def named(**sections: object) -> Profile:
    product = {"name": "pbx", "title": "PBX", "version": "1.2"}
    return parse_profile({"product": product, "platform": {"name": "debian12"}, **sections}, "test")


def test_a_profile_personalizes_its_tree(tmp_path: Path) -> None:
    root = small_tree(tmp_path / "root")
    (root / "etc/hostname").symlink_to("/etc/passwd")
    before = Path("/etc/passwd").read_bytes()
    profile = named(
        regional={"timezone": "Europe/Rome", "language": "it_IT.UTF-8", "keyboard": "it"},
        network={"hostname": "pbx.example.com"},
        access={"root_password_hash": HASH, "ssh_keys": ["ssh-ed25519 AAAAC3Nz one"]},
    )
    if os.geteuid() != 0:
        pytest.skip("giving files to another user needs root")
    personalize(root, profile, load_platform("debian12"))
    assert (root / "etc/hostname").read_text() == "pbx.example.com\n"
    assert Path("/etc/passwd").read_bytes() == before, "a link in the tree is not followed out of it"
    assert str((root / "etc/localtime").readlink()) == "/usr/share/zoneinfo/Europe/Rome"
    assert (root / "etc/locale.conf").read_text() == "LANG=it_IT.UTF-8\n"
    assert 'XKBLAYOUT="it"' in (root / "etc/default/keyboard").read_text()
    assert (root / "etc/shadow").read_text().startswith(f"root:{HASH}:20781:")
    keys = root / "home/admin/.ssh/authorized_keys"
    assert keys.read_text() == "ssh-ed25519 AAAAC3Nz one\n"
    assert (keys.stat().st_mode & 0o777, keys.stat().st_uid) == (0o600, 1000)


def test_a_tidied_tree_forgets_when_it_was_built(tmp_path: Path) -> None:
    root = small_tree(tmp_path / "root")
    tidy(root, load_platform("debian12"), EPOCH)
    assert not list((root / "tmp").iterdir())
    assert not list((root / "var/log/apt").iterdir())
    assert not (root / "etc/shadow-").exists()
    assert f":{EPOCH // 86400}:" in (root / "etc/shadow").read_text()


@pytest.mark.parametrize("compression", ["zstd", "xz", "none"])
def test_a_tar_is_the_same_bytes_of_two_copies(tmp_path: Path, compression: str) -> None:
    profile = named(output={"compression": compression})
    name = artefact_name(profile, OutputFormat.TBZ)
    digests = []
    for place in ("one", "two"):
        root = small_tree(tmp_path / place / "root")
        cache = Cache(tmp_path / "cache")
        with build_context("test", epoch=EPOCH, cache=cache, progress=Progress(silent=True)) as context:
            write_tbz(root, tmp_path / place / name, profile, context)
        digests.append(digest_file(tmp_path / place / name))
        assert sorted(path.name for path in (tmp_path / place).iterdir()) == sorted(["root", name])
    assert digests[0] == digests[1]
    listed = subprocess.run(
        ["tar", "-tvf", tmp_path / "one" / name], capture_output=True, text=True, check=True
    ).stdout
    assert "link to etc/passwd" in listed


def test_an_oci_archive_is_complete_and_every_digest_is_right(tmp_path: Path) -> None:
    profile = load_profile(Path("pbx-debian12"))
    digests = []
    for place in ("one", "two"):
        root = small_tree(tmp_path / place / "root")
        target = tmp_path / place / "image.oci.tar"
        cache = Cache(tmp_path / "cache")
        with build_context("test", epoch=EPOCH, cache=cache, progress=Progress(silent=True)) as context:
            write_oci(root, target, profile, load_platform("debian12"), context)
        digests.append(digest_file(target))
    assert digests[0] == digests[1]
    with tarfile.open(target) as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]
    assert json.loads(contents["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    for name, content in contents.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(content).hexdigest() == name.rpartition("/")[2]
    [described] = json.loads(contents["index.json"])["manifests"]
    manifest = json.loads(contents[f"blobs/sha256/{described['digest'].partition(':')[2]}"])
    config = json.loads(contents[f"blobs/sha256/{manifest['config']['digest'].partition(':')[2]}"])
    [layer] = manifest["layers"]
    packed = contents[f"blobs/sha256/{layer['digest'].partition(':')[2]}"]
    plain = subprocess.run(["zstd", "-d", "-c"], input=packed, capture_output=True, check=True).stdout
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]
    assert config["config"]["Cmd"] == ["/sbin/init"]
