"""`centralino-build verify` and `diff` on an installer, as their user runs them: signed, damaged, renewed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from installer_site import Site

from iso.iso9660 import Iso

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def signed(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Medium and manifest signed by one GPG key."""
    directory = tmp_path_factory.mktemp("signed")
    profile = directory / "signed.toml"
    text = site.profile("pbx").read_text()
    profile.write_text(f'{text}[signing]\ntool = "gpg"\nkey_file = "{site.key.secret}"\n')
    done = site.run("iso", *site.words(profile, directory / "out", "--json"))
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(json.loads(done.stdout)["path"])


def test_one_key_vouches_for_all_of_it(site: Site, signed: Path, keyring: Path) -> None:
    done = site.run("verify", signed, "--key", keyring, "--keyring", keyring, "--json")
    told = json.loads(done.stdout)
    assert told["findings"] == []
    assert done.returncode == 0
    assert told["signer"].startswith("GPG key ")


def test_a_flipped_bit_names_the_file_on_the_medium(site: Site, signed: Path, tmp_path: Path) -> None:
    for file in signed.parent.glob(f"{signed.name}*"):
        shutil.copyfile(file, tmp_path / file.name)
    copy = tmp_path / signed.name
    generator = random.Random(7)  # noqa: S311 (where to look, no secret)
    with Iso(signed) as iso:
        packages = [path for path in iso.below("AppStream") if path.endswith(".rpm")]
        victim = generator.choice(packages)
        content = iso.read(victim)
    place = signed.read_bytes().index(content) + generator.randrange(len(content))
    with copy.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << generator.randrange(8)]))
    done = site.run("verify", copy)
    assert done.returncode == 9
    assert victim in done.stderr
    assert f"{copy.name}: bytes " in done.stderr


def test_diff_of_two_installers_names_packages_and_files(site: Site, signed: Path, tmp_path: Path) -> None:
    profile = tmp_path / "more.toml"
    text = site.profile("pbx").read_text()
    profile.write_text(
        text.replace("menu_seconds = 1", "menu_seconds = 9") + '[packages]\nextra = ["edge-tool"]\n'
    )
    done = site.run("iso", *site.words(profile, tmp_path / "out", "--json"))
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(site.run("diff", signed, json.loads(done.stdout)["path"], "--json").stdout)
    assert [each["name"] for each in told["packages"] if not each["old"]] == ["edge-tool"]
    changed = {each["path"]: each["what"] for each in told["files"]}
    assert any("edge-tool" in path and what == "added" for path, what in changed.items())
    assert changed["isolinux/isolinux.cfg"] == "changed"
