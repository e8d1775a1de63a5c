"""`.treeinfo`, `.discinfo` and `media.repo`: how Anaconda and dnf find the packages of the medium."""

from __future__ import annotations

import configparser
import io
from collections.abc import Mapping, Sequence

from iso.base import read_treeinfo


def treeinfo(
    base: str, variants: Sequence[str], checksums: Mapping[str, str], *, epoch: int, name: str
) -> str:
    """The vendor's `.treeinfo` with our variants and with the checksums of images that changed.

    Each variant's repository is the directory of its name. Sections and keys are sorted, as productmd
    writes them.
    """
    info = read_treeinfo(base, name)
    for section in list(info.sections()):
        if section.startswith(("variant-", "addon-")):
            info.remove_section(section)
    for variant in variants:
        info[f"variant-{variant}"] = {
            "id": variant,
            "name": variant,
            "packages": f"{variant}/Packages",
            "repository": variant,
            "type": "variant",
            "uid": variant,
        }
    for section in ("tree", "general"):
        if info.has_section(section):
            info[section]["variants"] = ",".join(sorted(variants))
    if info.has_section("general"):
        info["general"]["variant"] = variants[0]
        info["general"]["timestamp"] = str(epoch)
        info["general"]["packagedir"] = f"{variants[0]}/Packages"
        info["general"]["repository"] = variants[0]
    if info.has_section("tree"):
        info["tree"]["build_timestamp"] = str(epoch)
    if info.has_section("checksums"):
        for path in info["checksums"]:
            if path in checksums:
                info["checksums"][path] = f"sha256:{checksums[path]}"
            elif path.endswith("repomd.xml"):
                del info["checksums"][path]
    return _text(info)


def _text(info: configparser.ConfigParser) -> str:
    stream = io.StringIO()
    for section in sorted(info.sections()):
        stream.write(f"[{section}]\n")
        for key, value in sorted(info[section].items()):
            stream.write(f"{key} = {value}\n")
        stream.write("\n")
    return stream.getvalue()


def discinfo(epoch: int, version: str, architecture: str) -> str:
    """`.discinfo`: Anaconda takes a device as package source if the third line is its architecture."""
    return f"{epoch}.000000\n{version}\n{architecture}\nALL\n"


def media_repo(title: str, version: str, epoch: int) -> str:
    """`media.repo`: lets dnf use the mounted medium."""
    lines = ("[InstallMedia]", f"name={title} {version}", f"mediaid={epoch}.000000", "metadata_expire=-1")
    return "\n".join((*lines, "gpgcheck=0", "cost=500")) + "\n"
