"""Manifest, signature, `verify` and `diff` on small artefacts: every damage is found and named."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.artifact_cli import diff
from appliance.difference import difference, text
from appliance.errors import InputError, VerificationError
from appliance.file_list import ListedFile, read_file_list, write_file_list
from appliance.formats import disk_facts
from appliance.formats_contract import OutputFormat
from appliance.gpt import BIOS_BOOT, LINUX_ROOT_X86_64, Partition, Table, write_table
from appliance.manifest import (
    CHUNK_BYTES,
    MANIFEST_SUFFIX,
    Contents,
    beside,
    digests,
    read_manifest,
    write_manifest,
)
from appliance.platform_data import load_platform
from appliance.profile import Profile, Signing, load_profile
from appliance.sbom import Component, Source
from appliance.signing import check_signature
from appliance.sparse import sha256_of
from appliance.verify import verify
from appliance.vmdk import write_stream_vmdk

MIB = 1 << 20
EPOCH = 1767225600
COMPONENTS = (
    Component(Source.DEB, "openssl", "3.0.15", "amd64", distribution="debian-12"),
    Component(Source.DEB, "zsh", "5.9", "amd64", distribution="debian-12"),
)
FILES = (
    ListedFile("etc/ssh/sshd_config", "file", 0o644, 0, 0, 10, "a" * 64),
    ListedFile("usr/bin/su", "file", 0o4755, 0, 0, 10, "b" * 64),
    ListedFile("usr/share/doc/x", "file", 0o644, 0, 0, 10, "c" * 64),
)


def disk(path: Path) -> Path:
    """A raw disk of 20 MiB with a table and something in its root partition."""
    table = Table(
        UUID(int=9),
        20 * MIB,
        (
            Partition(BIOS_BOOT, UUID(int=1), MIB, MIB, "centralino-bios"),
            Partition(LINUX_ROOT_X86_64, UUID(int=3), 2 * MIB, 17 * MIB, "centralino-data"),
        ),
    )
    with path.open("w+b") as stream:
        stream.truncate(table.disk_bytes)
        write_table(stream, table)
        stream.seek(9 * MIB)
        stream.write(b"content" * 10000)
    return path


def keys(directory: Path) -> tuple[Path, Path]:
    """A minisign key pair without password, as `minisign -G -W` writes it."""
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = private.public_key().public_bytes_raw()
    number = b"12345678"
    secret = bytes(range(32)) + public
    sealed = b"Ed" + bytes(2) + b"B2" + bytes(48) + number + secret + bytes(32)
    (directory / "key").write_text(f"untrusted comment: x\n{base64.b64encode(sealed).decode()}\n")
    encoded = base64.b64encode(b"Ed" + number + public).decode()
    (directory / "key.pub").write_text(f"untrusted comment: x\n{encoded}\n")
    return directory / "key", directory / "key.pub"


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    key, _ = keys(tmp_path)
    made = load_profile(Path("pbx-debian12"))
    return made.model_copy(update={"signing": Signing(tool="minisign", key_file=key)})


@pytest.fixture
def build(tmp_path: Path, profile: Profile) -> Callable[..., Path]:
    """Make a raw artefact with its manifest; arguments change what goes into it."""

    def make(
        name: str = "x.raw",
        components: tuple[Component, ...] = COMPONENTS,
        files: tuple[ListedFile, ...] = FILES,
    ) -> Path:
        path = disk(tmp_path / name)
        listed = tmp_path / f"{name}.list"
        write_file_list(files, listed)
        contents = Contents({"disk stage": "1" * 64}, components, listed, disk_facts(path, "seed"))
        write_manifest(path, OutputFormat.XEN, profile, load_platform("debian12"), EPOCH, contents)
        return path

    return make


@pytest.fixture(autouse=True)
def no_root_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    # This disk's only partition holds no file system; tests/image has one that does.
    from appliance import verify as module

    monkeypatch.setitem(module._CHECKS, OutputFormat.XEN, (module._partition_table,))


def test_a_good_artefact_is_good(build: Callable[..., Path], tmp_path: Path) -> None:
    report = verify(build(), key=tmp_path / "key.pub")
    assert report.findings == []
    assert report.signer.startswith(
        "minisign key 3837363534333231, timestamp:1767225600 file:x.raw.manifest.json"
    )


def test_what_this_host_cannot_check_is_not_said_to_be_checked(
    build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance import verify as module

    monkeypatch.setitem(module._CHECKS, OutputFormat.XEN, module._RAW)
    monkeypatch.setattr(module, "find_program", lambda name: None)
    checked = verify(build()).checked
    assert "root file system not checked: this host lacks e2fsck" in checked
    assert "partition table" in checked and "root file system" not in checked


def test_same_inputs_same_manifest(build: Callable[..., Path], tmp_path: Path) -> None:
    build()
    first = {path.name: path.read_bytes() for path in tmp_path.glob("x.raw*")}
    build()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("x.raw*")} == first
    assert len(first) == 7


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found_and_named(
    data: st.DataObject, build: Callable[..., Path], tmp_path: Path
) -> None:
    if not (tmp_path / "x.raw").exists():
        build()
    victim = data.draw(
        st.sampled_from(sorted(path for path in tmp_path.glob("x.raw*") if path.suffix != ".list"))
    )
    place = data.draw(st.integers(0, victim.stat().st_size - 1))
    original = victim.read_bytes()[place]
    flip(victim, place, original ^ 1 << data.draw(st.integers(0, 7)))
    try:
        findings = verify(tmp_path / "x.raw", key=tmp_path / "key.pub").findings
        # The comments of a minisign file are for people; only its two middle lines count.
        if victim.suffix == ".minisig" and place < victim.read_text(errors="replace").index("\n"):
            return
        assert findings, f"{victim.name}, byte {place}"
        assert any(each.part in victim.name or victim.name.startswith(each.part) for each in findings)
    except InputError as error:
        assert victim.name in error.message
    finally:
        flip(victim, place, original)


def flip(file: Path, place: int, value: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([value]))


def test_damage_is_named_by_bytes_and_partition(build: Callable[..., Path]) -> None:
    path = build()
    flip(path, 9 * MIB + 3, 0)
    messages = [each.message for each in verify(path).findings]
    assert messages == ["bytes 8388608 to 12582911 (partition centralino-data) are not what was built"]


def test_damaged_partition_table_is_named_twice(build: Callable[..., Path]) -> None:
    path = build()
    flip(path, 520, 0xFF)
    messages = [each.message for each in verify(path).findings]
    assert any("bytes 0 to 4194303" in message for message in messages)
    assert any("checksum of the primary GPT header is wrong" in message for message in messages)


def test_a_cut_file_is_named(build: Callable[..., Path]) -> None:
    path = build()
    with path.open("r+b") as stream:
        stream.truncate(10 * MIB)
    assert f"has {10 * MIB} bytes, the manifest says {20 * MIB}" in [
        each.message for each in verify(path).findings
    ]


def test_a_changed_manifest_does_not_pass_for_signed(build: Callable[..., Path], tmp_path: Path) -> None:
    path = build()
    manifest = beside(path, MANIFEST_SUFFIX)
    manifest.write_text(manifest.read_text().replace('"5.9"', '"5.8"'))
    findings = verify(path, key=tmp_path / "key.pub").findings
    assert any("does not fit the file that it signs" in each.message for each in findings)
    assert any("names other packages" in each.message for each in findings)


def test_another_key_is_refused(build: Callable[..., Path], tmp_path: Path) -> None:
    path = build()
    comment, encoded = (tmp_path / "key.pub").read_text().splitlines()
    raw = base64.b64decode(encoded)
    other = base64.b64encode(raw[:2] + b"87654321" + raw[10:]).decode()
    (tmp_path / "other.pub").write_text(f"{comment}\n{other}\n")
    with pytest.raises(VerificationError, match="made with another key"):
        check_signature(beside(path, MANIFEST_SUFFIX), tmp_path / "other.pub")


def test_without_manifest_nothing_is_said_to_be_good(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no manifest"):
        verify(disk(tmp_path / "x.raw"))


def test_a_missing_companion_is_named(build: Callable[..., Path]) -> None:
    path = build()
    beside(path, ".spdx.json").unlink()
    assert [each.sentence() for each in verify(path).findings] == ["x.raw.spdx.json: is missing"]


def test_a_vmdk_of_another_disk_is_named(tmp_path: Path, profile: Profile) -> None:
    raw = disk(tmp_path / "x.raw")
    facts = disk_facts(raw, "seed")
    with raw.open("r+b") as stream:
        stream.seek(9 * MIB)
        stream.write(b"another")
    write_stream_vmdk(raw, tmp_path / "x.vmdk")
    platform = load_platform("debian12")
    write_manifest(
        tmp_path / "x.vmdk",
        OutputFormat.VMDK,
        profile,
        platform,
        EPOCH,
        Contents({}, COMPONENTS, None, facts),
    )
    messages = [each.message for each in verify(tmp_path / "x.vmdk").findings]
    assert messages == ["what the file holds is not the disk that was built"]


def test_digests_of_sparse_and_dense_files_agree(tmp_path: Path) -> None:
    sparse = disk(tmp_path / "sparse")
    dense = tmp_path / "dense"
    dense.write_bytes(sparse.read_bytes())
    assert digests(sparse) == digests(dense)
    assert digests(sparse)[0] == sha256_of(dense)
    assert len(digests(sparse)[1]) == 20 * MIB // CHUNK_BYTES


@pytest.mark.parametrize("password", [None, "a pass phrase"])
def test_gpg_signatures(password: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not installed")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    # Else the agent takes seconds to measure how often it can hash a password.
    (home / "gpg-agent.conf").write_text("s2k-count 65536\n")
    gpg = [
        "gpg",
        "--homedir",
        str(home),
        "--batch",
        "--pinentry-mode",
        "loopback",
        "--passphrase",
        password or "",
    ]
    subprocess.run(
        [
            *gpg,
            "--faked-system-time",
            "1700000000!",
            "--quick-generate-key",
            "release",
            "ed25519",
            "sign",
            "never",
        ],
        check=True,
        capture_output=True,
    )
    for name, option in (("key", "--export-secret-keys"), ("key.pub", "--export")):
        done = subprocess.run([*gpg, "--armor", option], check=True, capture_output=True)
        (tmp_path / name).write_bytes(done.stdout)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
    if password is not None:
        monkeypatch.setenv("CENTRALINO_SIGNING_PASSWORD", password)
    file = tmp_path / "file"
    file.write_text("text")
    from appliance.signing import sign

    signature = sign(file, Signing(tool="gpg", key_file=tmp_path / "key"), EPOCH)
    assert check_signature(file, tmp_path / "key.pub").startswith("GPG key ")
    if password is None:
        # Once: with a password each signature costs the seconds that guessing it would.
        first = signature.read_bytes()
        sign(file, Signing(tool="gpg", key_file=tmp_path / "key"), EPOCH)
        assert signature.read_bytes() == first
    file.write_text("other")
    with pytest.raises(VerificationError, match="not a valid signature"):
        check_signature(file, tmp_path / "key.pub")


def test_minisign_itself_accepts_our_signature(build: Callable[..., Path], tmp_path: Path) -> None:
    if shutil.which("minisign") is None:
        pytest.skip("minisign is not installed")
    manifest = beside(build(), MANIFEST_SUFFIX)
    subprocess.run(["minisign", "-V", "-p", tmp_path / "key.pub", "-m", manifest], check=True)


def test_diff_names_what_matters_for_security_first(build: Callable[..., Path], tmp_path: Path) -> None:
    old = build("old.raw")
    new = build(
        "new.raw",
        (
            Component(Source.DEB, "aardvark", "1", "amd64", distribution="debian-12"),
            Component(Source.DEB, "openssl", "3.0.16", "amd64", distribution="debian-12"),
        ),
        (
            ListedFile("etc/ssh/sshd_config", "file", 0o644, 0, 0, 12, "d" * 64),
            ListedFile("usr/bin/new-root-shell", "file", 0o4755, 0, 0, 10, "e" * 64),
            ListedFile("usr/share/doc/x", "file", 0o600, 0, 0, 10, "c" * 64),
        ),
    )
    found = difference(old, new)
    assert [each.sentence() for each in found.packages] == [
        "~ openssl 3.0.15 -> 3.0.16",
        "+ aardvark 1",
        "- zsh 5.9",
    ]
    assert found.files is not None
    assert [(each.path, each.what, each.security) for each in found.files] == [
        ("etc/ssh/sshd_config", "changed, 10 -> 12 bytes", True),
        ("usr/bin/new-root-shell", "added", True),
        ("usr/bin/su", "removed", True),
        ("usr/share/doc/x", "mode 0644 -> 0600", False),
    ]
    lines = text(found).splitlines()
    assert lines.index("Packages that matter for security (1):") < lines.index("Other packages (2):")
    result = CliRunner().invoke(diff, [str(old), str(beside(new, MANIFEST_SUFFIX)), "--json"])
    assert json.loads(result.output)["packages"][0]["name"] == "openssl"


def test_diff_of_equals_says_so(build: Callable[..., Path]) -> None:
    assert "No package and no file differs." in text(difference(build("a.raw"), build("b.raw")))


def test_file_list_keeps_every_name(tmp_path: Path) -> None:
    odd = ListedFile("dir/N\udce9tl\u0151ck\tname", "symlink", 0o777, 1, 2, 3, "target")
    write_file_list([odd], tmp_path / "list")
    assert read_file_list(tmp_path / "list") == {odd.path: odd}


def test_a_foreign_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.manifest.json").write_text('{"schema": 99}')
    with pytest.raises(InputError, match="no manifest of this builder"):
        read_manifest(tmp_path / "x.manifest.json")
