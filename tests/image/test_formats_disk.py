"""Every disk format from one small tree: same bytes in two places at two times, verified, damage found.

The tree holds this host's GRUB and shim, a stand-in for a kernel, and the odd files that break archivers.
Needs no root: nothing is mounted and no device is used.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import formats
from appliance.cache import Cache
from appliance.disk import DiskPlan, assemble
from appliance.errors import BuildError, InputError
from appliance.ext4 import Ext4, check
from appliance.formats_contract import DISK_FORMATS, SUFFIXES, OutputFormat
from appliance.gpt import read_table
from appliance.manifest import MANIFEST_SUFFIX, beside
from appliance.platform_data import load_platform
from appliance.profile import Profile, load_profile
from appliance.progress import Progress
from appliance.stages import build_context
from appliance.verify import verify

HOST_FILES = (
    "usr/bin/grub-mkimage",
    "usr/lib/grub/i386-pc",
    "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
    "usr/lib/shim/shimx64.efi.signed",
    "usr/lib/shim/mmx64.efi.signed",
)
PROGRAMS = ("qemu-img", "mkfs.vfat", "mcopy", "debugfs", "mke2fs", "e2fsck")
SEARCH = "/usr/bin:/usr/sbin:/sbin:/bin"
MISSING = [f"/{name}" for name in HOST_FILES if not Path("/", name).exists()]
MISSING += [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"this host lacks {', '.join(MISSING)}"),
]
PLATFORM = load_platform("debian12")
EPOCH = 1767225600
STATUS = b"Package: bash\nStatus: install ok installed\nVersion: 5\nArchitecture: amd64\n"
GIB = 1 << 30
AGENT = "google-guest-agent.service"
Places = tuple[tuple[Path, Path], tuple[Path, Path]]


def make_tree(root: Path, *, backwards: bool = False) -> Path:
    """The tree; `backwards` makes the same one in another order and with other times of building."""
    for name in HOST_FILES:
        source, target = Path("/", name), root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
    libraries = subprocess.run(
        ["ldd", "/usr/bin/grub-mkimage"], check=True, capture_output=True, text=True
    ).stdout
    for word in libraries.split():
        if word.startswith("/"):
            where = root / ("lib64" if "ld-linux" in word else "usr/lib/x86_64-linux-gnu")
            where.mkdir(parents=True, exist_ok=True)
            shutil.copy2(word, where / Path(word).name)
    files = {
        "boot/vmlinuz-6.1": b"kernel" * 100_000,
        "boot/initrd.img-6.1": bytes(range(256)) * 4000,
        "etc/os-release": b'ID=debian\nVERSION_ID="12"\n',
        "etc/machine-id": b"0123456789abcdef0123456789abcdef\n",
        "etc/ssh/ssh_host_rsa_key": b"the key of the build host",
        "var/lib/dpkg/status": STATUS,
        "var/log/apt/history.log": b"when it was built",
        "usr/share/with space/quo\"te's": b"x",
        "usr/share/NetLock_F\u0151tan\u00fas\u00edtv\u00e1ny.pem": b"y",
        "usr/share/sparse": b"a" + bytes(300_000) + b"b",
        "usr/share/empty": b"",
        "var/cache/apt/archives/x.deb": b"z" * 10_000,
        "etc/cloud/cloud.cfg": b"",
        f"usr/lib/systemd/system/{AGENT}": b"[Service]\n",
    }
    for name, content in sorted(files.items(), reverse=backwards):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for directory in ("proc", "sys", "dev", "run", "tmp", "opt"):
        (root / directory).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    os.link(root / "usr/share/sparse", root / "usr/share/hard link")
    (root / "vmlinuz").symlink_to("boot/vmlinuz-6.1")
    (root / "usr/share/long").symlink_to("x" * 200)
    shutil.copy2("/bin/true", root / "usr/bin/su")
    (root / "usr/bin/su").chmod(0o4755)
    os.mkfifo(root / "opt/fifo")
    for number, path in enumerate(sorted(root.rglob("*"))):
        if not path.is_symlink() and path.name in ("etc", "bash", "sparse", "cloud.cfg", "opt"):
            # Younger than the epoch: what the build touched.
            os.utime(path, (EPOCH + number + 1000 * backwards, EPOCH + number + 1000 * backwards))
        elif not path.is_symlink() and path.is_relative_to(root / "usr/share"):
            os.utime(path, (EPOCH - 5000, EPOCH - 5000))
    return root


@pytest.fixture(scope="module")
def profile() -> Profile:
    made = load_profile(Path("pbx-debian12"))
    return made.model_copy(update={"disk": made.disk.model_copy(update={"image_gib": 1})})


def build(form: OutputFormat, root: Path, profile: Profile, directory: Path) -> Path:
    output = directory / f"centralino{SUFFIXES[form]}"
    with build_context(
        "test", epoch=EPOCH, cache=Cache(directory / "cache"), progress=Progress(silent=True)
    ) as context:
        return formats.make(form, root, profile, PLATFORM, output, context)


def made(form: OutputFormat, two_places: Places, profile: Profile) -> Path:
    """The artefact of the first place; nobody changes it, so it is built once."""
    tree, here = two_places[0]
    output = here / f"centralino{SUFFIXES[form]}"
    return output if output.exists() else build(form, tree, profile, here)


@pytest.fixture(scope="module")
def two_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """(tree, directory) twice; the second tree was made in the other order."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second-and-longer")
    yield (
        (make_tree(first / "root"), first),
        (make_tree(second / "another-root", backwards=True), second),
    )
    for directory in (first, second):
        shutil.rmtree(directory)


def first_difference(one: Path, other: Path) -> str:
    """Empty if two files are equal, else where they part."""
    done = subprocess.run(["cmp", one, other], capture_output=True, text=True, check=False)
    return done.stdout.strip() + done.stderr.strip()


@pytest.mark.parametrize("form", sorted(DISK_FORMATS))
def test_same_bytes_in_two_places(form: OutputFormat, two_places: Places, profile: Profile) -> None:
    (tree, here), (other_tree, there) = two_places
    one, other = build(form, tree, profile, here), build(form, other_tree, profile, there)
    companions = sorted(
        path.name for path in here.iterdir() if path.name.startswith(one.name) and path != one
    )
    assert len(companions) >= 4
    differences = [
        found
        for name in [one.name, *companions]
        # The manifest names the inputs, and the two trees have other times inside.
        if not name.endswith(MANIFEST_SUFFIX) and (found := first_difference(here / name, there / name))
    ]
    assert not differences
    documents = [json.loads(beside(path, MANIFEST_SUFFIX).read_text()) for path in (one, other)]
    for document in documents:
        document["inputs"].pop("disk stage")
    assert documents[0] == documents[1]
    assert verify(one).findings == []


@pytest.mark.parametrize(
    ("form", "name"), [("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vhdx", "vhdx"), ("vhd", "vpc")]
)
def test_qemu_sees_the_raw_disk_in_every_format(
    form: str, name: str, two_places: Places, profile: Profile
) -> None:
    raw, other = made(OutputFormat.RAW, two_places, profile), made(OutputFormat(form), two_places, profile)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", name, raw, other], check=True)


@pytest.fixture(scope="module")
def raw(two_places: Places, profile: Profile) -> Path:
    return made(OutputFormat.RAW, two_places, profile)


def inside(raw: Path, command: str) -> str:
    start = read_table(raw).partitions[2].start
    done = subprocess.run(
        ["/usr/sbin/debugfs", "-R", command, f"{raw}?offset={start}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_partitions_are_aligned_and_root_is_last(raw: Path) -> None:
    table = read_table(raw)
    assert [each.name for each in table.partitions] == [
        "centralino-bios",
        "centralino-efi",
        "centralino-root",
    ]
    assert all(each.start % (1 << 20) == 0 and each.size % (1 << 20) == 0 for each in table.partitions)
    assert raw.stat().st_size == GIB
    assert raw.stat().st_blocks * 512 < GIB // 4


def test_what_belongs_to_one_box_or_to_the_build_is_not_in_it(raw: Path) -> None:
    assert inside(raw, "cat /etc/machine-id") == ""
    for name in ("/etc/ssh/ssh_host_rsa_key", "/var/cache/apt/archives", "/root/.bash_history"):
        assert "Inode:" not in inside(raw, f"stat {name}")
    assert "Size: 0" in inside(raw, "stat /var/log/apt/history.log")


def test_files_keep_content_mode_links_and_time(raw: Path) -> None:
    assert "Mode:  04755" in inside(raw, "stat /usr/bin/su")
    assert "Mode:  01777" in inside(raw, "stat /tmp")
    assert "Links: 2" in inside(raw, 'stat "/usr/share/hard link"')
    assert "Type: FIFO" in inside(raw, "stat /opt/fifo")
    assert inside(raw, 'cat "/usr/share/with space/quo""te\'s"') == "x"
    assert inside(raw, "cat /usr/share/sparse") == "a" + "\0" * 300_000 + "b"
    sparse = inside(raw, "stat /usr/share/sparse")
    assert int(sparse.split("Blockcount: ")[1].split()[0]) <= 16, "zeros take space"
    # Clamped to the epoch, and kept where it is older.
    assert "Thu Jan  1 00:00:00 2026" in inside(raw, "stat /opt")
    assert "Wed Dec 31 22:36:40 2025" in inside(raw, "stat /usr/share/empty")


def test_root_is_found_by_the_same_identifier_everywhere(raw: Path) -> None:
    start = read_table(raw).partitions[2].start
    headers = subprocess.run(
        ["/usr/sbin/dumpe2fs", "-h", f"{raw}?offset={start}"], capture_output=True, text=True, check=True
    ).stdout
    identifier = headers.split("Filesystem UUID:")[1].split()[0]
    assert f"UUID={identifier} / ext4" in inside(raw, "cat /etc/fstab")
    assert f"root=UUID={identifier} " in inside(raw, "cat /boot/grub/grub.cfg")
    efi = read_table(raw).partitions[1].start
    stub = subprocess.run(
        ["mtype", "-i", f"{raw}@@{efi}", "::EFI/debian/grub.cfg"], capture_output=True, text=True, check=True
    ).stdout
    assert f"--set=root {identifier}" in stub
    # What AlmaLinux 8's kernel, e2fsprogs and GRUB do not know.
    assert "orphan_file" not in headers
    assert "metadata_csum_seed" not in headers


def test_grub_accepts_its_configuration(raw: Path, tmp_path: Path) -> None:
    checker = shutil.which("grub-script-check")
    if checker is None:
        pytest.skip("grub-script-check is not installed")
    (tmp_path / "grub.cfg").write_text(inside(raw, "cat /boot/grub/grub.cfg"))
    subprocess.run([checker, tmp_path / "grub.cfg"], check=True)


def test_bios_boot_code_points_at_the_core_image(raw: Path) -> None:
    partition = read_table(raw).partitions[0]
    with raw.open("rb") as stream:
        boot = stream.read(512)
        stream.seek(partition.start)
        core = stream.read(512)
    assert int.from_bytes(boot[0x5C:0x64], "little") * 512 == partition.start
    assert int.from_bytes(core[500:508], "little") * 512 == partition.start + 512
    assert boot[510:] == b"\x55\xaa"


def test_the_ova_has_the_disk_of_its_tier(two_places: Places, profile: Profile, tmp_path: Path) -> None:
    with tarfile.open(made(OutputFormat.OVA, two_places, profile)) as archive:
        archive.extractall(tmp_path)  # noqa: S202 (made a moment ago)
    disk = next(tmp_path.glob("*.vmdk"))
    told = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", disk], check=True, capture_output=True).stdout
    )
    # S-SZ-01, 75 users: 150 GB, what the descriptor says as well.
    assert told["virtual-size"] == 150 * GIB
    assert f'ovf:capacity="{150 * GIB}"' in next(tmp_path.glob("*.ovf")).read_text()
    subprocess.run(["qemu-img", "convert", "-O", "raw", "-S", "64k", disk, tmp_path / "raw"], check=True)
    table = read_table(tmp_path / "raw")
    root = table.partitions[2]
    check(Ext4(tmp_path / "raw", root.start, root.size, root.uuid, root.uuid, "", EPOCH))


def test_clouds_are_told_where_they_are(two_places: Places, profile: Profile, raw: Path) -> None:
    amazon = made(OutputFormat.AMI, two_places, profile)
    settings = json.loads(inside(amazon, "cat /etc/cloud/cloud.cfg.d/95_centralino.cfg"))
    assert settings["datasource_list"] == ["Ec2", "None"]
    assert "nvme_core.io_timeout=4294967295" in inside(amazon, "cat /boot/grub/grub.cfg")
    assert "169.254.169.123" in inside(amazon, "cat /etc/chrony/sources.d/cloud.sources")
    assert "Inode:" in inside(raw, "stat /etc/cloud/cloud-init.disabled")
    for elsewhere in (amazon, raw):
        assert '"/dev/null"' in inside(elsewhere, f"stat /etc/systemd/system/{AGENT}")
    described = json.loads(amazon.with_suffix(".json").read_text())
    assert (
        described["sha256"] == json.loads(beside(amazon, MANIFEST_SUFFIX).read_text())["artefact"]["sha256"]
    )


def test_google_wants_disk_raw_in_the_old_gnu_format(
    two_places: Places, profile: Profile, tmp_path: Path
) -> None:
    archive = made(OutputFormat.GCP, two_places, profile)
    with gzip.open(archive) as stream:
        head = stream.read(512)
    assert head[:9] == b"disk.raw\0"
    assert head[257:265] == b"ustar  \0"
    subprocess.run(["tar", "-xzSf", archive, "-C", tmp_path], check=True)
    disk = tmp_path / "disk.raw"
    # Google's agent starts here, with our settings, and on no other disk.
    assert AGENT in inside(disk, f"stat /etc/systemd/system/multi-user.target.wants/{AGENT}")
    assert "Inode:" not in inside(disk, f"stat /etc/systemd/system/{AGENT}")
    assert "accounts_daemon = false" in inside(disk, "cat /etc/default/instance_configs.cfg")


def test_a_flipped_bit_in_the_root_file_system_is_named(raw: Path, tmp_path: Path) -> None:
    names = [path for path in raw.parent.iterdir() if path.name.startswith(raw.name)]
    for path in names:
        subprocess.run(["cp", "--sparse=always", path, tmp_path / path.name], check=True)
    place = read_table(raw).partitions[2].start + 1024 + 0x78
    with (tmp_path / raw.name).open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))
    sentences = [each.sentence() for each in verify(tmp_path / raw.name).findings]
    assert any("partition" in each and "not what was built" in each for each in sentences)
    assert any(each.startswith("root file system: ") for each in sentences)


def test_a_tree_without_kernel_is_refused(tmp_path: Path, profile: Profile) -> None:
    tree = make_tree(tmp_path / "root")
    (tree / "boot/initrd.img-6.1").unlink()
    with pytest.raises(InputError, match="no kernel with an initramfs"):
        build(OutputFormat.RAW, tree, profile, tmp_path)
    left = [path.name for path in tmp_path.iterdir() if path.name not in ("root", "cache")]
    assert left == []


def test_a_tree_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "root")
    with (tree / "large").open("wb") as stream:
        stream.truncate(2 * GIB)
    plan = DiskPlan(tree, GIB, "seed", EPOCH, PLATFORM.disk, "Test", ())
    with pytest.raises(BuildError, match=r"needs \d+ MiB, its partition holds"):
        assemble(plan, tmp_path / "disk.raw")


def test_with_selinux_the_first_start_labels_everything(tmp_path: Path, raw: Path) -> None:
    tree = make_tree(tmp_path / "root")
    (tree / "etc/selinux").mkdir()
    (tree / "etc/selinux/config").write_text("SELINUX=enforcing\n")
    disk = tmp_path / "disk.raw"
    assemble(DiskPlan(tree, GIB, "seed", EPOCH, PLATFORM.disk, "Test", ()), disk)
    assert "Inode:" in inside(disk, "stat /.autorelabel")
    assert "Inode:" not in inside(raw, "stat /.autorelabel")


BUILD_OVA = """
import sys
from pathlib import Path
from appliance import formats
from appliance.cache import Cache
from appliance.formats_contract import OutputFormat
from appliance.platform_data import load_platform
from appliance.profile import load_profile
from appliance.progress import Progress
from appliance.stages import build_context
root, directory = Path(sys.argv[1]), Path(sys.argv[2])
profile = load_profile(Path("pbx-debian12"))
cache, silent = Cache(directory / "cache"), Progress(silent=True)
with build_context("test", epoch=1767225600, cache=cache, progress=silent) as context:
    output = directory / "out" / "x.ova"
    formats.make(OutputFormat.OVA, root, profile, load_platform("debian12"), output, context)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing_half_made(number: signal.Signals, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "root")
    # Enough that cannot be compressed to be caught in the middle of it.
    (tree / "large").write_bytes(random.Random(1).randbytes(96 << 20))  # noqa: S311 (no secret)
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen([sys.executable, "-c", BUILD_OVA, tree, tmp_path], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not any(path.suffix == ".disk" and path.stat().st_size > 1 << 20 for path in out.iterdir()):
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    assert list(out.iterdir()) == []
    assert [path for path in (tmp_path / "cache/stages/disk").iterdir() if path.name.startswith(".")] == []
