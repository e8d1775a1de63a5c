"""RPM repositories made by rpmbuild: dependencies, weak ones, conflicts, modules, signatures good and bad."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

EPOCH = "1716595200"


def run(*words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, **environment},
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Rpm:
    """A package to make; `size` bytes of content that does not compress."""

    name: str
    version: str = "1.0"
    release: str = "1.el8"
    requires: tuple[str, ...] = ()
    recommends: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    module: str = ""
    epoch: int = 0
    size: int = 0

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-{self.release}.noarch.rpm"


def _relations(rpm: Rpm) -> str:
    lines = [f"Requires: {word}" for word in rpm.requires]
    lines += [f"Recommends: {word}" for word in rpm.recommends]
    lines += [f"Conflicts: {word}" for word in rpm.conflicts]
    lines += [f"Provides: {word}" for word in rpm.provides]
    return "\n".join(lines)


def build(directory: Path, rpms: Sequence[Rpm]) -> list[Path]:
    """Make the packages, each from a spec of its own unless they are plain; returns their files."""
    plain = [
        rpm for rpm in rpms if not rpm.module and (rpm.version, rpm.release, rpm.epoch) == ("1.0", "1.el8", 0)
    ]
    for number, group in enumerate([plain, *([rpm] for rpm in rpms if rpm not in plain)]):
        if group:
            _build(directory / f"work{number}", group)
            for file in (directory / f"work{number}/RPMS/noarch").glob("*.rpm"):
                shutil.move(file, directory / file.name)
            shutil.rmtree(directory / f"work{number}")
    return [directory / rpm.file_name for rpm in rpms]


def _build(top: Path, group: Sequence[Rpm]) -> None:
    top.mkdir(parents=True)
    first = group[0]
    spec = [
        f"Name: set-{first.name}\nVersion: {first.version}\nRelease: {first.release}",
        *([f"Epoch: {first.epoch}"] if first.epoch else []),
        *([f"ModularityLabel: {first.module}"] if first.module else []),
        "Summary: made for tests\nLicense: MIT\nBuildArch: noarch\n%description\nmade for tests",
        "%install",
    ]
    for rpm in group:
        content = top / f"{rpm.name}.bin"
        content.write_bytes(os.urandom(rpm.size) if rpm.size else rpm.name.encode())
        spec.append(f"install -D -m 0644 {content} %{{buildroot}}/usr/share/{rpm.name}/content")
    for rpm in group:
        spec.append(
            f"%package -n {rpm.name}\nSummary: {rpm.name}\n{_relations(rpm)}\n%description -n {rpm.name}\nx"
        )
        spec.append(f"%files -n {rpm.name}\n/usr/share/{rpm.name}")
    file = top / "set.spec"
    file.write_text("\n".join(spec) + "\n")
    run(
        "rpmbuild",
        "-bb",
        "--quiet",
        "--define",
        f"_topdir {top}",
        "--define",
        "_build_id_links none",
        "--define",
        "use_source_date_epoch_as_buildtime 1",
        "--define",
        "_buildhost test",
        "--define",
        "_binary_payload w0.gzdio",
        file,
    )


@dataclass(frozen=True)
class Key:
    """A GPG key of its own: `public` is what rpm imports."""

    home: Path
    name: str
    public: Path
    secret: Path


def make_key(directory: Path, name: str) -> Key:
    home = directory / f"gpg-{name}"
    home.mkdir(mode=0o700, parents=True)
    base = ("gpg", "--homedir", home, "--batch", "--quiet")
    run(
        *base,
        "--passphrase",
        "",
        "--quick-generate-key",
        f"{name} <{name}@example.com>",
        "rsa2048",
        "sign",
        "never",
    )
    public, secret = directory / f"{name}.asc", directory / f"{name}.secret"
    public.write_text(run(*base, "--armor", "--export", name))
    secret.write_text(run(*base, "--armor", "--export-secret-keys", name))
    secret.chmod(0o600)
    run("gpgconf", "--homedir", home, "--kill", "all")
    return Key(home, name, public, secret)


def sign(files: Iterable[Path], key: Key) -> None:
    gpg = f"__gpg {shutil.which('gpg')}"
    run(
        "rpmsign",
        "--define",
        f"_gpg_name {key.name}",
        "--define",
        f"_gpg_path {key.home}",
        "--define",
        gpg,
        "--addsign",
        *files,
    )
    run("gpgconf", "--homedir", key.home, "--kill", "all")


def comps(groups: dict[str, Sequence[str]]) -> str:
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<comps>"]
    for name, packages in groups.items():
        lines.append(
            f"<group><id>{name}</id><name>{name}</name><name xml:lang='de'>x</name><default>true</default>"
        )
        lines.append("<uservisible>true</uservisible><packagelist>")
        lines += [f'<packagereq type="mandatory">{package}</packagereq>' for package in packages]
        lines.append("</packagelist></group>")
    return "\n".join([*lines, "</comps>"]) + "\n"


def module(name: str, stream: str, artefacts: Sequence[str], version: int = 8100020240000000000) -> str:
    listed = "".join(f"      - {artefact}\n" for artefact in artefacts)
    return f"""---
document: modulemd
version: 2
data:
  name: {name}
  stream: "{stream}"
  version: {version}
  context: 489197e6
  arch: x86_64
  summary: {name} {stream}
  description: >-
    made for tests
  license:
    module: [MIT]
  dependencies:
    - buildrequires:
        platform: [el8]
      requires:
        platform: [el8]
  artifacts:
    rpms:
{listed}...
"""


def defaults(name: str, stream: str) -> str:
    return f"""---
document: modulemd-defaults
version: 1
data:
  module: {name}
  stream: "{stream}"
...
"""


def repository(directory: Path, files: Iterable[Path], *, groups: str = "", modules: str = "") -> Path:
    """A repository at `directory` of copies of `files`."""
    (directory / "Packages").mkdir(parents=True)
    for file in files:
        shutil.copy(file, directory / "Packages" / file.name)
    words: list[str | Path] = ["createrepo_c", "--quiet"]
    if groups:
        (directory / "comps.xml").write_text(groups)
        words += ["--groupfile", directory / "comps.xml"]
    run(*words, directory)
    if modules:
        text = directory.parent / f"{directory.name}-modules.yaml"
        text.write_text(modules)
        run("modifyrepo_c", "--mdtype=modules", text, directory / "repodata")
    return directory
