"""What several suites of installers share: it is made once a run, not once a file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from installer_site import Site, make_site, missing_programs


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Mirrors, keys, base ISO, payload and profiles; nobody changes them."""
    if missing := missing_programs():
        pytest.skip(f"this host lacks {', '.join(missing)}")
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def medium(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installer whose hash list is signed; the package lock lies beside it. Copy it to damage it."""
    output = tmp_path_factory.mktemp("medium")
    done = site.run("iso", *site.words(site.profile("pbx"), output, "--json", "--sign-key", site.key.secret))
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(json.loads(done.stdout)["path"])


@pytest.fixture(scope="session")
def keyring(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public keys that whoever verifies trusts."""
    target = tmp_path_factory.mktemp("keyring") / "trusted.gpg"
    gpg = ["gpg", "--homedir", site.key.home, "--batch"]
    subprocess.run([*gpg, "--output", target, "--export", "vendor"], check=True)
    return target
