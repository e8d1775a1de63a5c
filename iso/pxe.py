"""Installing over the network: the same kickstart, repositories and payload, laid out for a boot server.

vmlinuz, initrd.img     the installer, loaded by TFTP or HTTP
ks.cfg, ks-questions.cfg
payload.tar
tree/                   .treeinfo, images/install.img, BaseOS, AppStream
boot.ipxe, dnsmasq.conf, grub.cfg    samples, ready to use
SHA256SUMS              every file above

The manifest lies beside the directory, as with every artefact.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from appliance.cache import digest_file
from appliance.errors import InputError
from appliance.formats_contract import OutputFormat
from appliance.manifest import Contents, write_manifest
from appliance.platform_data import PlatformData
from appliance.profile import Profile, check_against_platform
from appliance.stages import BuildContext, replacing
from iso import hash_list, metadata
from iso.base import DISC_INFO, TREE_INFO, check_checksum, inspect_base
from iso.boot_menus import QUESTIONS_KICKSTART, UNATTENDED_KICKSTART
from iso.build import PAYLOAD_PATH, Options, components_of_medium, prepare, remembered_digest
from iso.iso9660 import Iso
from iso.lock import Lock
from iso.remaster import VARIANTS, write_text
from kickstart.from_profile import MediumFacts, installation, installer_table
from kickstart.model import PayloadSource, Source
from kickstart.render import render
from kickstart.validate import validate

KERNEL = "images/pxeboot/vmlinuz"
RAMDISK = "images/pxeboot/initrd.img"
RUNTIME = "images/install.img"


@dataclass(frozen=True)
class BootTree:
    """A finished directory for a boot server; `files` counts what it holds."""

    path: Path
    lock: Lock
    files: int

    def as_json(self) -> dict[str, object]:
        """Keys `path`, `files`, `packages`."""
        return {"path": str(self.path), "files": self.files, "packages": len(self.lock.packages)}


def check_url(url: str) -> str:
    """The address that the directory will have, without a slash at its end; raises InputError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError(
            f"{url!r} is no address of a directory on a web server", "give --url http://SERVER/DIRECTORY"
        )
    if any(letter.isspace() or letter in "\"'\\" for letter in url):
        raise InputError(
            f"{url!r} cannot stand in a kernel argument", "use an address without spaces and quotes"
        )
    return url.rstrip("/")


def build_pxe(
    profile: Profile, platform: PlatformData, options: Options, url: str, output: Path, context: BuildContext
) -> BootTree:
    """Build the directory at `output`; it appears there whole or not at all. Raises BuildError."""
    url = check_url(url)
    check_against_platform(profile, platform, "the profile")
    _kickstarts(profile, platform, url, "0" * 64)
    with Iso(options.base_iso) as base, replacing(output) as partial:
        with context.step("check the base ISO"):
            if options.checksum_file is not None:
                check_checksum(options.base_iso, options.checksum_file)
            facts = inspect_base(
                base,
                title=platform.title,
                release=profile.platform.release or platform.release,
                architecture=platform.architecture,
            )
        prepared = prepare(profile, platform, options, partial / "tree", context)
        tree = partial / "tree"
        with context.step("lay out the boot server's directory"):
            (tree / PAYLOAD_PATH).rename(partial / "payload.tar")
            shutil.rmtree((tree / PAYLOAD_PATH).parent)
            base.extract(KERNEL, partial / "vmlinuz")
            base.extract(RAMDISK, partial / "initrd.img")
            base.extract(RUNTIME, tree / RUNTIME)
            (tree / KERNEL).parent.mkdir(parents=True, exist_ok=True)
            # Tools that know the vendor's layout (Cobbler, Foreman) look for both here.
            (tree / KERNEL).hardlink_to(partial / "vmlinuz")
            (tree / RAMDISK).hardlink_to(partial / "initrd.img")
            known = {name: digest_file(tree / name) for name in (KERNEL, RAMDISK, RUNTIME)}
            info = metadata.treeinfo(
                base.read(TREE_INFO).decode(), VARIANTS, known, epoch=context.epoch, name=base.path.name
            )
            write_text(tree / TREE_INFO, info)
            write_text(tree / DISC_INFO, metadata.discinfo(context.epoch, facts.version, facts.architecture))
            for name, text in {
                **_kickstarts(profile, platform, url, prepared.payload_sha256),
                **samples(profile, url),
            }.items():
                write_text(partial / name, text)
            digests = {
                path.relative_to(partial).as_posix(): digest_file(path)
                for path in sorted(partial.rglob("*"))
                if path.is_file()
            }
            lines = "".join(f"{digests[name]}  ./{name}\n" for name in sorted(digests))
            write_text(partial / hash_list.HASH_LIST, lines)
    with context.step("write the manifest"):
        contents = Contents(
            inputs={
                "base_iso": remembered_digest(options.base_iso, context.cache.directory / "base-digests"),
                "lock": prepared.lock.digest,
                "payload": prepared.payload_sha256,
            },
            components=components_of_medium(prepared, facts),
            facts={
                "url": url,
                "base_iso": {"name": options.base_iso.name, "family": facts.family, "version": facts.version},
                "package_signatures": "checked" if options.check_signatures else "not checked",
            },
        )
        write_manifest(output, OutputFormat.PXE, profile, platform, context.epoch, contents)
    return BootTree(output, prepared.lock, len(digests) + 1)


def _kickstarts(profile: Profile, platform: PlatformData, url: str, payload_sha256: str) -> Mapping[str, str]:
    facts = MediumFacts(
        payload=PayloadSource(sha256=payload_sha256, url=f"{url}/payload.tar"),
        source=Source(url=f"{url}/tree"),
    )
    handler = installer_table(platform).kickstart_handler
    made = {}
    for name, unattended in ((UNATTENDED_KICKSTART, True), (QUESTIONS_KICKSTART, False)):
        made[name] = render(installation(profile, platform, facts, unattended=unattended))
        validate(made[name], name, handler)
    return made


def samples(profile: Profile, url: str) -> dict[str, str]:
    """Configuration for the boot server, by file name."""
    extra = "".join(f" {word}" for word in profile.boot.installer_arguments)
    common = f"inst.stage2={url}/tree inst.repo={url}/tree ip=dhcp{extra}"
    title, host = profile.product.title, urlsplit(url).netloc
    seconds = profile.boot.menu_seconds
    return {
        "boot.ipxe": f"""#!ipxe
# {title} over the network. The first entry is taken after {seconds} s: it erases the machine's disk.
menu {title}
item install   Install {title}: no question asked, the disk is erased
item questions Install {title} with questions
item rescue    Rescue an installed system
item local     Boot from the local disk
choose --default install --timeout {max(1, seconds) * 1000} target && goto ${{target}}

:install
kernel {url}/vmlinuz initrd=initrd.img inst.ks={url}/{UNATTENDED_KICKSTART} {common}
initrd {url}/initrd.img
boot

:questions
kernel {url}/vmlinuz initrd=initrd.img inst.ks={url}/{QUESTIONS_KICKSTART} {common}
initrd {url}/initrd.img
boot

:rescue
kernel {url}/vmlinuz initrd=initrd.img inst.rescue {common}
initrd {url}/initrd.img
boot

:local
exit
""",
        "grub.cfg": f"""# {title}, for UEFI machines that load GRUB (grubx64.efi beside this file).
set timeout={max(1, seconds)}
menuentry 'Install {title}: no question asked, the disk is erased' {{
    linuxefi vmlinuz inst.ks={url}/{UNATTENDED_KICKSTART} {common}
    initrdefi initrd.img
}}
menuentry 'Install {title} with questions' {{
    linuxefi vmlinuz inst.ks={url}/{QUESTIONS_KICKSTART} {common}
    initrdefi initrd.img
}}
""",
        "dnsmasq.conf": f"""# dnsmasq as boot server beside a DHCP server that stays as it is (proxy DHCP).
# The directory must be reachable as {url}/ (web server {host}); change the address range to yours.
port=0
log-dhcp
dhcp-range=192.0.2.0,proxy
enable-tftp
tftp-root=/srv/tftp
# undionly.kpxe and ipxe.efi come with the package ipxe; copy them and boot.ipxe into tftp-root.
dhcp-match=set:ipxe,175
dhcp-match=set:uefi,option:client-arch,7
dhcp-match=set:uefi,option:client-arch,9
pxe-service=tag:!ipxe,x86PC,"{title}",undionly.kpxe
pxe-service=tag:!ipxe,X86-64_EFI,"{title}",ipxe.efi
dhcp-boot=tag:ipxe,{url}/boot.ipxe
""",
    }
