"""What changed between two artefacts: packages, files, size; what matters for security comes first.

Works on manifests and file lists alone, so that an old artefact itself need not be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from appliance.errors import InputError
from appliance.file_list import ListedFile, read_file_list
from appliance.manifest import FILES_SUFFIX, MANIFEST_SUFFIX, JsonObject, beside, read_manifest

# Packages whose change an administrator wants to know of first, by the beginning of their names.
SECURITY_PACKAGES = (
    "asterisk", "bash", "ca-certificates", "coturn", "cryptography", "curl", "dbus", "glibc", "gnutls",
    "grub", "kernel", "keepalived", "krb5", "libc6", "libcrypt", "libcurl", "libgnutls", "libpam",
    "libssh", "libssl", "linux-image", "mariadb", "nftables", "nginx", "openssh", "openssl", "pam",
    "paramiko", "polkit", "python3", "selinux-policy", "shadow", "shim", "sudo", "systemd", "zlib",
)  # fmt: skip
SECURITY_FILES = (
    "etc/pam.d/", "etc/polkit-1/", "etc/ssh/", "etc/ssl/", "etc/pki/", "etc/sudoers", "etc/passwd",
    "etc/group", "etc/nftables", "etc/dbus-1/", "etc/selinux/", "boot/", "usr/share/dbus-1/system.d/",
    "etc/security/",
)  # fmt: skip
SET_ID = 0o6000
WORLD_WRITABLE = 0o002


@dataclass(frozen=True)
class PackageChange:
    """One package: `old` or `new` is empty if it is not there."""

    source: str
    name: str
    old: str
    new: str

    @property
    def security(self) -> bool:
        """Whether it is one of those to be named first."""
        return self.name.startswith(SECURITY_PACKAGES)

    def sentence(self) -> str:
        """One line."""
        if not self.old:
            return f"+ {self.name} {self.new}"
        return f"- {self.name} {self.old}" if not self.new else f"~ {self.name} {self.old} -> {self.new}"


@dataclass(frozen=True)
class FileChange:
    """One file; `what` says how it changed, `security` whether that may open or close a door."""

    path: str
    what: str
    security: bool


@dataclass(frozen=True)
class Difference:
    """Everything that differs; `files` is None if either artefact has no file list. Sizes in bytes."""

    old: str
    new: str
    old_size: int
    new_size: int
    packages: tuple[PackageChange, ...]
    files: tuple[FileChange, ...] | None
    inputs: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """All of it, for programs."""
        return {
            "old": self.old,
            "new": self.new,
            "old_size": self.old_size,
            "new_size": self.new_size,
            "inputs": list(self.inputs),
            "packages": [
                {
                    "source": each.source,
                    "name": each.name,
                    "old": each.old,
                    "new": each.new,
                    "security": each.security,
                }
                for each in self.packages
            ],
            "files": None
            if self.files is None
            else [{"path": each.path, "what": each.what, "security": each.security} for each in self.files],
        }


def difference(old: Path, new: Path) -> Difference:
    """Compare two artefacts or manifests. Raises InputError if a manifest is missing or damaged."""
    first, second = _manifest(old), _manifest(new)
    described = [cast(JsonObject, manifest["artefact"]) for _, manifest in (first, second)]
    return Difference(
        str(described[0]["name"]),
        str(described[1]["name"]),
        cast(int, described[0]["size"]),
        cast(int, described[1]["size"]),
        _packages(first[1], second[1]),
        _files(first[0], second[0]),
        _inputs(first[1], second[1]),
    )


def _manifest(path: Path) -> tuple[Path, JsonObject]:
    """(the artefact, which need not exist; its manifest)."""
    if path.name.endswith(MANIFEST_SUFFIX):
        return path.with_name(path.name.removesuffix(MANIFEST_SUFFIX)), read_manifest(path)
    if path.is_dir():
        raise InputError(f"{path}: is a directory", "name an artefact or a manifest")
    return path, read_manifest(beside(path, MANIFEST_SUFFIX))


def _inputs(old: JsonObject, new: JsonObject) -> tuple[str, ...]:
    first, second = cast(dict[str, str], old["inputs"]), cast(dict[str, str], new["inputs"])
    return tuple(sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name)))


def _packages(old: JsonObject, new: JsonObject) -> tuple[PackageChange, ...]:
    def by_name(manifest: JsonObject) -> dict[tuple[str, str, str], str]:
        found: dict[tuple[str, str, str], str] = {}
        for each in cast(list[dict[str, str]], manifest["packages"]):
            key = (each["source"], each["name"], each["architecture"])
            # Several kernels may be installed at once.
            found[key] = f"{found[key]}, {each['version']}" if key in found else each["version"]
        return found

    first, second = by_name(old), by_name(new)
    changes = [
        PackageChange(key[0], key[1], first.get(key, ""), second.get(key, ""))
        for key in first.keys() | second.keys()
        if first.get(key) != second.get(key)
    ]
    return tuple(sorted(changes, key=lambda each: (not each.security, each.name, each.source)))


def _files(old: Path, new: Path) -> tuple[FileChange, ...] | None:
    first, second = _list(old), _list(new)
    if first is None or second is None:
        return None
    changes: list[FileChange] = []
    for path in first.keys() | second.keys():
        if what := _file_change(first.get(path), second.get(path)):
            changes.append(FileChange(path, what, _is_security(path, first.get(path), second.get(path))))
    return tuple(sorted(changes, key=lambda each: (not each.security, each.path)))


def _list(artefact: Path) -> dict[str, ListedFile] | None:
    """The list beside an artefact; an installer carries its own inside."""
    listed = beside(artefact, FILES_SUFFIX)
    if listed.is_file():
        return read_file_list(listed)
    if artefact.suffix != ".iso" or not artefact.is_file():
        return None
    # The installer's package builds upon this one; only here the other way round.
    from iso.hash_list import HASH_LIST, KICKSTART_LIST, parse_hash_list
    from iso.iso9660 import Iso

    with Iso(artefact) as medium:
        # The kickstarts pin the first list, so they stand in the second.
        digests = {
            path: digest
            for name in (HASH_LIST, KICKSTART_LIST)
            for path, digest in parse_hash_list(medium.read(name).decode("utf-8", "replace"), name).items()
            if path != HASH_LIST
        }
    return {path: ListedFile(path, "file", 0o644, 0, 0, 0, digest) for path, digest in digests.items()}


def _file_change(old: ListedFile | None, new: ListedFile | None) -> str:
    if old is None or new is None:
        return "added" if old is None else "removed"
    parts = []
    if old.kind != new.kind:
        parts.append(f"{old.kind} became {new.kind}")
    elif old.digest != new.digest:
        parts.append(_content_change(old, new))
    if old.mode != new.mode:
        parts.append(f"mode {old.mode:04o} -> {new.mode:04o}")
    if (old.uid, old.gid) != (new.uid, new.gid):
        parts.append(f"owner {old.uid}:{old.gid} -> {new.uid}:{new.gid}")
    return "; ".join(parts)


def _content_change(old: ListedFile, new: ListedFile) -> str:
    if new.kind != "file":
        return f"{old.digest} -> {new.digest}"
    # The lists inside of installers name no sizes.
    return f"changed, {old.size} -> {new.size} bytes" if old.size or new.size else "changed"


def _is_security(path: str, old: ListedFile | None, new: ListedFile | None) -> bool:
    if path.startswith(SECURITY_FILES):
        return True
    dangerous = [
        bool(each and each.kind != "symlink" and each.mode & (SET_ID | WORLD_WRITABLE)) for each in (old, new)
    ]
    return any(dangerous)


def text(found: Difference, *, longest: int = 40) -> str:
    """For people: at most `longest` lines of each kind that is not about security."""
    change = found.new_size - found.old_size
    lines = [f"{found.old} -> {found.new}", f"size {found.old_size} -> {found.new_size} bytes ({change:+d})"]
    if found.inputs:
        lines.append(f"inputs that differ: {', '.join(found.inputs)}")
    urgent = [each.sentence() for each in found.packages if each.security]
    others = [each.sentence() for each in found.packages if not each.security]
    lines += _section("Packages that matter for security", urgent, len(urgent))
    lines += _section("Other packages", others, longest)
    if found.files is None:
        lines.append("Files: not compared, a file list is missing beside one of the artefacts")
    else:
        urgent = [f"{each.path}: {each.what}" for each in found.files if each.security]
        others = [f"{each.path}: {each.what}" for each in found.files if not each.security]
        lines += _section("Files that matter for security", urgent, len(urgent))
        lines += _section("Other files", others, longest)
    if not found.packages and not found.files:
        lines.append("No package and no file differs.")
    return "\n".join(lines)


def _section(title: str, lines: list[str], longest: int) -> list[str]:
    if not lines:
        return []
    more = [f"  ... and {len(lines) - longest} more; --json names all"] if len(lines) > longest else []
    return [f"{title} ({len(lines)}):", *(f"  {line}" for line in lines[:longest]), *more]
