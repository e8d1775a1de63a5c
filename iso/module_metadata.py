"""Module metadata (modulemd YAML) and package groups (comps XML), cut down to what the medium needs.

A modular RPM in a repository without metadata of its module is refused by dnf's fail-safe, so the documents
of every stream on the medium must be there. Documents are kept as the vendor wrote them.
"""

from __future__ import annotations

import gzip
import lzma
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from appliance.errors import InputError


def read_metadata(path: Path) -> str:
    """A repository's metadata file, unpacked by its suffix; raises InputError."""
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        elif path.suffix == ".xz":
            raw = lzma.decompress(raw)
        return raw.decode("utf-8")
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} cannot be read: {error}", "refresh the mirror") from error


def prune_modules(texts: Iterable[str], streams: Sequence[str], file_names: Iterable[str]) -> str:
    """The documents of the wanted `name:stream`s, their defaults left out, as one YAML stream.

    Of several builds of a stream only those are kept that list a package of `file_names` (`*.rpm`) among
    their artefacts; without any such, all of them. Raises InputError if a stream has no document.
    """
    wanted = {tuple(stream.split(":", 1)) for stream in streams}
    names = {name.removesuffix(".rpm") for name in file_names}
    kept: dict[tuple[str, str], list[tuple[bool, str]]] = {}
    for text in texts:
        for part in re.split(r"(?m)^---\s*$", text):
            part = re.sub(r"(?m)^\.\.\.\s*$", "", part).strip("\n")
            if not part.strip():
                continue
            document = yaml.safe_load(part)
            if not isinstance(document, dict) or document.get("document") != "modulemd":
                continue
            data = document["data"]
            key = (str(data["name"]), str(data["stream"]))
            if key in wanted:
                artefacts = {_without_epoch(name) for name in (data.get("artifacts") or {}).get("rpms") or ()}
                kept.setdefault(key, []).append((bool(artefacts & names), part))
    if missing := sorted(":".join(key) for key in wanted - kept.keys()):
        raise InputError(
            f"no repository has metadata of the module stream {', '.join(missing)}",
            "correct packages.modules, or add the repository that holds it",
        )
    chosen = []
    for key in sorted(kept):
        used = [part for is_used, part in kept[key] if is_used] or [part for _, part in kept[key]]
        chosen += sorted(set(used))
    return "".join(f"---\n{part}\n...\n" for part in chosen)


def _without_epoch(artefact: str) -> str:
    """`name-1-2.x86_64` of `name-0:1-2.x86_64`: file names have no epoch."""
    return re.sub(r"-\d+:([^-]+-[^-]+)$", r"-\1", artefact)


def streams_in(text: str) -> set[str]:
    """Every `name:stream` that has a modulemd document."""
    found = set()
    for document in yaml.safe_load_all(text):
        if isinstance(document, dict) and document.get("document") == "modulemd":
            found.add(f"{document['data']['name']}:{document['data']['stream']}")
    return found


def prune_comps(texts: Iterable[str], groups: Sequence[str]) -> str:
    """A comps file with the wanted groups only; raises InputError if one is nowhere."""
    root = ElementTree.Element("comps")
    found: dict[str, ElementTree.Element] = {}
    for text in texts:
        try:
            parsed = ElementTree.fromstring(text)  # noqa: S314 - the mirror's own metadata, checked by dnf
        except ElementTree.ParseError as error:
            raise InputError(
                f"a repository's groups cannot be read: {error}", "refresh the mirror"
            ) from error
        for group in parsed.iter("group"):
            name = group.findtext("id", "")
            if name in groups and name not in found:
                found[name] = group
    if missing := sorted(set(groups) - found.keys()):
        raise InputError(f"no repository has the group {', '.join(missing)}", "correct the list of groups")
    for name in sorted(found):
        for element in found[name].iter():
            # Translations are half of the file and nobody reads them during an unattended installation.
            for child in list(element):
                if any(key.endswith("lang") for key in child.attrib):
                    element.remove(child)
        root.append(found[name])
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"
