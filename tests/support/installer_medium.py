"""A base ISO with the structure of AlmaLinux 8's, made of what a Debian host has.

isolinux, an EFI image with shim and a signed GRUB, `.treeinfo`, `.discinfo`, `media.repo`, BaseOS and
AppStream with repodata and modules are as on the vendor's medium (lorax' rhel8 branch: x86.tmpl, efi.tmpl).
The kernel is Debian's, and the initramfs holds `installer_init.sh`, which plays the installer's first steps.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from appliance.cache import Cache

HERE = Path(__file__).parent
EPOCH = 1716595200  # 2024-05-25, about AlmaLinux 8.10's release
PROGRAMS = (
    "bash",
    "curl",
    "sha256sum",
    "findmnt",
    "tar",
    "gpgv",
    "readlink",
    "blkid",
    "mkdir",
    "cat",
    "tail",
    "rm",
)
MODULES = (
    "scsi_mod",
    "cdrom",
    "sd_mod",
    "sr_mod",
    "libata",
    "ata_piix",
    "ahci",
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "xhci_pci",
    "ehci_pci",
    "uhci_hcd",
    "usb_storage",
    "uas",
    "isofs",
    "loop",
    "squashfs",
    "virtio_net",
)


def _run(
    *arguments: str | Path, cwd: Path | None = None, data: bytes | None = None, **environment: str
) -> bytes:
    done = subprocess.run(
        [str(word) for word in arguments],
        cwd=cwd,
        input=data,
        capture_output=True,
        check=False,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", **environment},
    )
    if done.returncode:
        raise RuntimeError(
            f"{arguments}: {done.stderr.decode(errors='replace')}{done.stdout.decode(errors='replace')}"
        )
    return done.stdout


def kernel_directory() -> Path:
    """Debian's newest kernel package, unpacked; fetched once from the host's own mirror into the cache."""
    cache = Cache().directory / "test-kernel"
    if list(cache.glob("boot/vmlinuz-*")):
        return cache
    dependencies = _run("apt-cache", "depends", "linux-image-amd64").decode()
    name = re.findall(r"Depends: (linux-image-\S+)", dependencies)[0]
    partial = cache.with_name(f"test-kernel.{os.getpid()}")
    partial.mkdir(parents=True)
    _run("apt-get", "download", name, cwd=partial)
    _run("dpkg-deb", "-x", next(partial.glob("*.deb")), partial / "tree")
    if not cache.exists():
        (partial / "tree").rename(cache)
    shutil.rmtree(partial)
    return cache


def _libraries(program: Path) -> list[Path]:
    text = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    return [Path(found) for found in re.findall(r"(?:=> )?(/\S+) \(0x", text)]


def _module_order(directory: Path) -> list[str]:
    """The wanted modules' files below the kernel's directory, each after what it depends on."""
    wanted = {name.replace("_", "-") for name in MODULES}
    depends: dict[str, list[str]] = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        file, _, needs = line.partition(":")
        depends[file] = needs.split()
    order: list[str] = []

    def add(file: str) -> None:
        for need in depends[file]:
            add(need)
        if file not in order:
            order.append(file)

    for file in sorted(depends):
        if Path(file).name.split(".")[0].replace("_", "-") in wanted:
            add(file)
    return order


def initramfs(directory: Path) -> bytes:
    """The stand-in installer, a gzipped cpio archive."""
    tree = directory / "initramfs"
    for name in ("bin", "modules", "etc", "lib64", "lib/x86_64-linux-gnu"):
        (tree / name).mkdir(parents=True)
    for link, target in (("usr", "."), ("sbin", "bin")):
        (tree / link).symlink_to(target)
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is not installed"
    shutil.copy(busybox, tree / "bin/busybox")
    shutil.copy(HERE / "installer_init.sh", tree / "init")
    (tree / "init").chmod(0o755)
    for name in PROGRAMS:
        found = shutil.which(name, path="/bin:/usr/bin:/sbin:/usr/sbin")
        assert found, name
        shutil.copy(found, tree / "bin" / name)
        for library in _libraries(Path(found)):
            # The loader's place is fixed in every program; the loader finds the others by itself.
            target = tree / ("lib64" if library.name.startswith("ld-") else "lib/x86_64-linux-gnu")
            shutil.copy(library, target / library.name)
    kernel = kernel_directory()
    modules = next((kernel / "lib/modules").iterdir())
    if not (modules / "modules.dep").exists():
        _run("busybox", "depmod", "-b", kernel, modules.name)
    order = _module_order(modules)
    for file in order:
        shutil.copy(modules / file, tree / "modules" / Path(file).name)
    (tree / "modules/order").write_text("".join(f"{Path(file).name}\n" for file in order))
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    archive = _run(
        "busybox", "cpio", "-o", "-H", "newc", "-R", "0:0", cwd=tree, data="\n".join(names).encode()
    )
    return gzip.compress(archive, 6, mtime=0)


MENU = """default vesamenu.c32
timeout 600

display boot.msg
menu clear
menu background splash.png
menu title AlmaLinux {version}

label linux
  menu label ^Install AlmaLinux {version}
  kernel vmlinuz
  append initrd=initrd.img inst.stage2=hd:LABEL={escaped} quiet

label check
  menu label Test this ^media & install AlmaLinux {version}
  menu default
  kernel vmlinuz
  append initrd=initrd.img inst.stage2=hd:LABEL={escaped} rd.live.check quiet

menu separator # insert an empty line

menu begin ^Troubleshooting
  menu title Troubleshooting

label rescue
  menu indent count 5
  menu label ^Rescue a AlmaLinux system
  text help
        If the system will not boot, this lets you access files
  endtext
  kernel vmlinuz
  append initrd=initrd.img inst.stage2=hd:LABEL={escaped} inst.rescue quiet

label local
  menu label Boot from ^local drive
  localboot 0xffff
menu end
"""
GRUB = """set default="1"

function load_video {{
  insmod efi_gop
  insmod all_video
}}

load_video
set gfxpayload=keep
insmod gzio
insmod part_gpt
insmod ext2

set timeout=60
### END /etc/grub.d/00_header ###

search --no-floppy --set=root -l '{label}'

### BEGIN /etc/grub.d/10_linux ###
menuentry 'Install AlmaLinux {version}' --class fedora --class gnu-linux --class gnu --class os {{
        linuxefi /images/pxeboot/vmlinuz inst.stage2=hd:LABEL={escaped} quiet
        initrdefi /images/pxeboot/initrd.img
}}
menuentry 'Test this media & install AlmaLinux {version}' --class fedora --class gnu-linux {{
        linuxefi /images/pxeboot/vmlinuz inst.stage2=hd:LABEL={escaped} rd.live.check quiet
        initrdefi /images/pxeboot/initrd.img
}}
submenu 'Troubleshooting -->' {{
        menuentry 'Rescue a AlmaLinux system' --class fedora --class gnu-linux --class gnu --class os {{
                linuxefi /images/pxeboot/vmlinuz inst.stage2=hd:LABEL={escaped} inst.rescue quiet
                initrdefi /images/pxeboot/initrd.img
        }}
}}
"""
# Debian's signed GRUB looks for this file; EL8's reads EFI/BOOT/grub.cfg of the same filesystem.
GRUB_STUB = "configfile ($root)/EFI/BOOT/grub.cfg\n"


@dataclass(frozen=True)
class Base:
    """What the made medium says of itself; change it to make a wrong one."""

    label: str = "AlmaLinux-8-10-x86_64-dvd"
    family: str = "AlmaLinux"
    version: str = "8.10"
    platform_id: str = "platform:el8"
    filler_bytes: int = 0
    repositories: dict[str, Path] = field(default_factory=dict)

    @property
    def escaped(self) -> str:
        return self.label.replace(" ", "\\x20")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def efi_image(tree: Path, directory: Path, *, stub: bool = True) -> None:
    """`images/efiboot.img`: what a stick's EFI system partition is."""
    image = tree / "images/efiboot.img"
    size = sum(path.stat().st_size for path in (tree / "EFI").rglob("*") if path.is_file())
    with image.open("wb") as stream:
        stream.truncate((size // 2**20 + 3) * 2**20)
    _run("mkfs.vfat", "-n", "ANACONDA", "-i", "c0ffee00", "--invariant", image)
    _run("mcopy", "-i", image, "-s", "-Q", tree / "EFI", "::")
    if stub:
        grub = directory / "stub.cfg"
        grub.write_text(GRUB_STUB)
        _run("mmd", "-i", image, "::/EFI/debian")
        _run("mcopy", "-i", image, grub, "::/EFI/debian/grub.cfg")


def treeinfo(tree: Path, base: Base) -> str:
    variants = sorted(base.repositories) or ["AppStream", "BaseOS"]
    images = (
        "images/efiboot.img",
        "images/install.img",
        "images/pxeboot/initrd.img",
        "images/pxeboot/vmlinuz",
    )
    lines = ["[checksums]", *(f"{name} = sha256:{_digest(tree / name)}" for name in images)]
    lines += [
        "",
        "[general]",
        f"arch = x86_64\nfamily = {base.family}\nname = {base.family} {base.version}",
        "packagedir = Packages\nplatforms = x86_64,xen\nrepository = .",
        f"timestamp = {EPOCH}\nvariant = BaseOS",
        f"variants = {','.join(variants)}\nversion = {base.version}",
        "",
        "[header]",
        "type = productmd.treeinfo\nversion = 1.2",
    ]
    for platform in ("x86_64", "xen"):
        lines += ["", f"[images-{platform}]"]
        lines += ["efiboot.img = images/efiboot.img"] if platform == "x86_64" else []
        lines += ["initrd = images/pxeboot/initrd.img", "kernel = images/pxeboot/vmlinuz"]
    lines += [
        "",
        "[release]",
        f"name = {base.family}\nshort = {base.family}\nversion = {base.version}",
        "",
        "[stage2]",
        "mainimage = images/install.img",
        "",
        "[tree]",
        f"arch = x86_64\nbuild_timestamp = {EPOCH}\nplatforms = x86_64,xen",
        f"variants = {','.join(variants)}",
    ]
    for variant in variants:
        lines += [
            "",
            f"[variant-{variant}]",
            f"id = {variant}\nname = {variant}\npackages = {variant}/Packages",
            f"repository = {variant}\ntype = variant\nuid = {variant}",
        ]
    return "\n".join(lines) + "\n"


def write_tree(directory: Path, base: Base) -> Path:
    """The medium's files; returns their directory."""
    tree = directory / "tree"
    for name in ("isolinux", "images/pxeboot", "EFI/BOOT/fonts"):
        (tree / name).mkdir(parents=True)
    kernel = next(kernel_directory().glob("boot/vmlinuz-*"))
    ramdisk = initramfs(directory)
    for name in ("images/pxeboot", "isolinux"):
        shutil.copy(kernel, tree / name / "vmlinuz")
        (tree / name / "initrd.img").write_bytes(ramdisk)
    for name in ("ldlinux.c32", "libcom32.c32", "libutil.c32", "vesamenu.c32"):
        shutil.copy(Path("/usr/lib/syslinux/modules/bios") / name, tree / "isolinux" / name)
    shutil.copy("/usr/lib/ISOLINUX/isolinux.bin", tree / "isolinux/isolinux.bin")
    (tree / "isolinux/boot.msg").write_text("splash.lss\n\n")
    values = {"version": base.version, "escaped": base.escaped, "label": base.label}
    (tree / "isolinux/isolinux.cfg").write_text(MENU.format(**values))
    for name in ("grub.cfg", "BOOT.conf"):
        (tree / "EFI/BOOT" / name).write_text(GRUB.format(**values))
    shutil.copy("/usr/lib/shim/shimx64.efi.signed", tree / "EFI/BOOT/BOOTX64.EFI")
    shutil.copy("/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", tree / "EFI/BOOT/grubx64.efi")
    (tree / "EFI/BOOT/fonts/TRANS.TBL").write_text("F unicode.pf2\n")
    efi_image(tree, directory)
    stage2 = directory / "stage2/etc"
    stage2.mkdir(parents=True)
    (stage2 / "anaconda.marker").write_text("stands for the installer's runtime\n")
    _run(
        "mksquashfs",
        directory / "stage2",
        tree / "images/install.img",
        "-quiet",
        "-no-progress",
        SOURCE_DATE_EPOCH=str(EPOCH),
    )
    if base.filler_bytes:
        with (tree / "images/filler.img").open("wb") as stream:
            for _ in range(base.filler_bytes >> 20):
                stream.write(os.urandom(1 << 20))
    for variant in ("BaseOS", "AppStream"):
        target = tree / variant
        if variant in base.repositories:
            shutil.copytree(base.repositories[variant], target)
        else:
            (target / "Packages").mkdir(parents=True)
            _run("createrepo_c", "--quiet", "--revision", str(EPOCH), "--set-timestamp-to-revision", target)
    (tree / ".treeinfo").write_text(treeinfo(tree, base))
    (tree / ".discinfo").write_text(f"{EPOCH}.000000\n{base.version}\nx86_64\nALL\n")
    (tree / "media.repo").write_text(
        f"[InstallMedia]\nname={base.family} {base.version}\nmediaid={EPOCH}.000000\nmetadata_expire=-1\n"
        "gpgcheck=0\ncost=500\n"
    )
    return tree


def write_iso(tree: Path, iso: Path, label: str) -> Path:
    """As lorax does it: in-tree EFI image as second El Torito entry, isohybrid with GPT, media checksum."""
    _run(
        "xorriso",
        "-as",
        "mkisofs",
        "-quiet",
        "-o",
        iso,
        "-V",
        label,
        "-J",
        "-joliet-long",
        "-r",
        "-T",
        "-b",
        "isolinux/isolinux.bin",
        "-c",
        "isolinux/boot.cat",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-boot-info-table",
        "-eltorito-alt-boot",
        "-e",
        "images/efiboot.img",
        "-no-emul-boot",
        "-isohybrid-mbr",
        "/usr/lib/ISOLINUX/isohdpfx.bin",
        "-isohybrid-gpt-basdat",
        tree,
    )
    _run("implantisomd5", iso)
    return iso


def make_base(directory: Path, base: Base | None = None) -> Path:
    """Write a base ISO into an empty directory; returns the file."""
    base = Base() if base is None else base
    directory.mkdir(parents=True, exist_ok=True)
    return write_iso(
        write_tree(directory, base), directory / f"{base.label.replace(' ', '_')}.iso", base.label
    )
