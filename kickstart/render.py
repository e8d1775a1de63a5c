"""From an Installation to the text of a kickstart: a pure function."""

from __future__ import annotations

import shlex
from importlib import resources

import jinja2

from kickstart.model import Installation

TEMPLATE = "kickstart.ks.j2"


def script_names() -> tuple[str, ...]:
    """The shell scripts that the template may include, sorted."""
    directory = resources.files("kickstart") / "scripts"
    return tuple(sorted(entry.name for entry in directory.iterdir() if entry.name.endswith(".sh")))


def script(name: str) -> str:
    """The text of one script."""
    return (resources.files("kickstart") / "scripts" / name).read_text(encoding="utf-8").rstrip("\n")


def render(installation: Installation) -> str:
    """The kickstart as text; equal installations give equal bytes."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kickstart"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - a kickstart is no HTML; values pass the filters below
    )
    environment.filters["shell"] = lambda value: shlex.quote(str(value))
    environment.filters["option"] = _option
    template = environment.get_template(TEMPLATE)
    fields = {name: getattr(installation, name) for name in Installation.__dataclass_fields__}
    fields["finish"] = installation.finish.value
    return template.render(**fields, scripts={name: script(name) for name in script_names()})


def _option(value: str) -> str:
    """A value as pykickstart's shlex splits it: always in double quotes."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
