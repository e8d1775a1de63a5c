"""Boot menus, labels, `.treeinfo`, hash list: pure text in, pure text out (S-IN-01, S-IN-04)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from installer_medium import GRUB, MENU

from appliance.errors import InputError
from iso import boot_menus, hash_list, metadata
from iso.base import check_checksum, read_treeinfo
from iso.label import check_label, escape, unescape

GOLDEN = Path(__file__).parent / "golden_iso"
# As AlmaLinux 8.10's DVD has it (lorax' rhel8 branch fills in these templates).
VENDOR = {"version": "8.10", "label": "AlmaLinux-8-10-x86_64-dvd", "escaped": "AlmaLinux-8-10-x86_64-dvd"}
OURS = boot_menus.installer_menu("Centralino PBX", "CENTRALINO-1", 5, ("console=ttyS0,115200n8",))
TREEINFO = """[checksums]
images/efiboot.img = sha256:00
images/install.img = sha256:11
BaseOS/repodata/repomd.xml = sha256:22

[general]
arch = x86_64
family = AlmaLinux
name = AlmaLinux 8.10
packagedir = Minimal/Packages
platforms = x86_64,xen
repository = Minimal
timestamp = 1716500000
variant = Minimal
variants = Minimal
version = 8.10

[header]
type = productmd.treeinfo
version = 1.2

[images-x86_64]
efiboot.img = images/efiboot.img
initrd = images/pxeboot/initrd.img
kernel = images/pxeboot/vmlinuz

[release]
name = AlmaLinux
short = AlmaLinux
version = 8.10

[stage2]
mainimage = images/install.img

[tree]
arch = x86_64
build_timestamp = 1716500000
platforms = x86_64,xen
variants = Minimal

[variant-Minimal]
id = Minimal
name = Minimal
packages = Minimal/Packages
repository = Minimal
type = variant
uid = Minimal
"""


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"UPDATE_GOLDEN=1 writes {path.name} anew; read the difference before"


def test_isolinux_menu() -> None:
    golden("isolinux.cfg", boot_menus.isolinux(MENU.format(**VENDOR), OURS))


def test_grub_menu() -> None:
    golden("grub.cfg", boot_menus.grub(GRUB.format(**VENDOR), OURS))


def test_treeinfo_text_and_what_productmd_reads_from_it() -> None:
    text = metadata.treeinfo(
        TREEINFO, ("BaseOS", "AppStream"), {"images/efiboot.img": "ab" * 32}, epoch=1767225600, name="x"
    )
    golden("treeinfo", text)
    productmd = pytest.importorskip("productmd.treeinfo")
    info = productmd.TreeInfo()
    info.loads(text)
    assert sorted(info.variants) == ["AppStream", "BaseOS"]
    assert info.variants["BaseOS"].paths.repository == "BaseOS"
    assert info.release.version == "8.10" and info.stage2.mainimage == "images/install.img"
    assert info.checksums.checksums["images/efiboot.img"] == ("sha256", "ab" * 32)
    assert not [path for path in info.checksums.checksums if path.endswith("repomd.xml")]


def test_discinfo_is_what_anaconda_and_productmd_read() -> None:
    text = metadata.discinfo(1767225600, "8.10", "x86_64")
    assert text.splitlines()[2] == "x86_64"
    productmd = pytest.importorskip("productmd.discinfo")
    info = productmd.DiscInfo()
    info.loads(text)
    assert info.arch == "x86_64" and info.disc_numbers == ["ALL"]


@pytest.mark.parametrize("make", [boot_menus.isolinux, boot_menus.grub])
def test_no_vendor_entry_and_no_vendor_label_is_left(make) -> None:
    base = MENU if make is boot_menus.isolinux else GRUB
    text = make(base.format(**VENDOR), OURS)
    assert "AlmaLinux" not in text
    assert boot_menus.labels_in(text) == {"CENTRALINO-1"}
    assert text.count("inst.stage2=hd:LABEL=CENTRALINO-1") == 4


def test_a_menu_without_waiting_still_starts_by_itself() -> None:
    """isolinux waits for ever at `timeout 0`; GRUB starts at once."""
    menu = boot_menus.installer_menu("X", "X", 0)
    assert "\ntimeout 1\n" in boot_menus.isolinux(MENU.format(**VENDOR), menu)
    assert "\nset timeout=0\n" in boot_menus.grub(GRUB.format(**VENDOR), menu)


def test_newer_grub_commands_are_kept() -> None:
    """Enterprise Linux 9 says linux and initrd where 8 says linuxefi and initrdefi."""
    base = GRUB.format(**VENDOR).replace("linuxefi", "linux").replace("initrdefi", "initrd")
    text = boot_menus.grub(base, OURS)
    assert "\tlinux /images/pxeboot/vmlinuz " in text and "linuxefi" not in text


def test_a_label_with_a_space_is_escaped_for_the_kernel_and_not_for_grub() -> None:
    menu = boot_menus.installer_menu("X", "MY LABEL", 5)
    assert r"inst.stage2=hd:LABEL=MY\x20LABEL " in boot_menus.isolinux(MENU.format(**VENDOR), menu)
    text = boot_menus.grub(GRUB.format(**VENDOR), menu)
    # GRUB's own shell would eat the backslash.
    assert r"'inst.stage2=hd:LABEL=MY\x20LABEL'" in text
    assert "search --no-floppy --set=root -l 'MY LABEL'" in text
    assert boot_menus.labels_in(text) == {"MY LABEL"}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (boot_menus.isolinux, "default vesamenu.c32\n"),
        (boot_menus.isolinux, "label x\n  menu label y\n"),
        (boot_menus.grub, "set timeout=5\n"),
        (boot_menus.grub, "search --no-floppy --set=root -l 'X'\nmenuentry 'x' {\n}\n"),
        (boot_menus.grub, "menuentry 'x' {\n linuxefi /v a\n initrdefi /i\n}\n"),
    ],
)
def test_a_menu_that_is_no_installers_is_refused(make, text: str) -> None:
    with pytest.raises(InputError, match="base ISO"):
        make(text, OURS)


@given(st.text(max_size=40))
def test_escaping_is_undone_by_unescaping(label: str) -> None:
    escaped = escape(label)
    assert unescape(escaped) == label
    assert not set(escaped) & set(" \t\n'\"/")


@given(st.text(max_size=40))
def test_an_accepted_label_needs_no_escaping(label: str) -> None:
    try:
        check_label(label)
    except InputError:
        return
    assert 0 < len(label) <= 32 and escape(label) == label


def test_a_label_of_33_characters_is_refused() -> None:
    check_label("A" * 32)
    with pytest.raises(InputError, match="33 characters; a medium holds 32"):
        check_label("A" * 33)


def test_the_hash_list_leaves_out_what_cannot_be_in_it() -> None:
    digests = {
        "b": "1" * 64,
        "a b": "2" * 64,
        "ks.cfg": "3" * 64,
        "isolinux/isolinux.bin": "4" * 64,
        "SHA256SUMS": "",
    }
    text = hash_list.hash_list(digests)
    assert text == f"{'2' * 64}  ./a b\n{'1' * 64}  ./b\n"
    assert hash_list.parse_hash_list(text) == {"a b": "2" * 64, "b": "1" * 64}
    with pytest.raises(InputError, match="line 1"):
        hash_list.parse_hash_list("x\n")
    with pytest.raises(InputError, match="cannot be on a medium"):
        hash_list.hash_list({"a\nb": "1" * 64})


@pytest.mark.parametrize("form", ["SHA256 ({name}) = {digest}", "{digest}  {name}", "{digest} *{name}"])
def test_the_vendors_checksum_file_in_both_forms(tmp_path: Path, form: str) -> None:
    iso = tmp_path / "AlmaLinux-8.10-x86_64-boot.iso"
    iso.write_bytes(b"content")
    good = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    file = tmp_path / "CHECKSUM"
    file.write_text(f"# a comment: 7 bytes\n{form.format(name=iso.name, digest=good)}\n")
    assert check_checksum(iso, file) == good
    file.write_text(form.format(name=iso.name, digest="0" * 64))
    with pytest.raises(InputError, match="not what the vendor published"):
        check_checksum(iso, file)
    file.write_text(form.format(name="other.iso", digest=good))
    with pytest.raises(InputError, match="does not list"):
        check_checksum(iso, file)


def test_a_damaged_treeinfo_is_one_error() -> None:
    with pytest.raises(InputError, match=r"\.treeinfo of x\.iso cannot be read"):
        read_treeinfo("no section\n", "x.iso")
