"""Every rendered kickstart is read by pykickstart's handler of the target before it is used."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from pykickstart.errors import KickstartError
from pykickstart.parser import KickstartParser, Script
from pykickstart.version import makeVersion

from appliance.errors import InputError

HANDLER = "RHEL8"


@dataclass(frozen=True)
class Section:
    """One script of a kickstart: `kind` is `%pre`, `%post` ..., `line` where it begins."""

    kind: str
    text: str
    interpreter: str
    line: int
    in_chroot: bool
    stops_on_failure: bool


class KickstartInvalidError(InputError):
    """The kickstart is refused by the handler; the message names line and option."""


def validate(text: str, name: str = "kickstart", handler: str = HANDLER) -> list[Section]:
    """Parse `text`; returns its scripts.

    Raises KickstartInvalidError with the line, the line's text and what is wrong with which option; a
    deprecated command counts as wrong, because the next minor release may refuse it.
    """
    parser = KickstartParser(makeVersion(handler), missingIncludeIsFatal=False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            parser.readKickstartFromString(text)
        except KickstartError as error:
            raise KickstartInvalidError(
                f"{name} is no valid {handler} kickstart: {_explain(text, error)}",
                "correct the profile or the template named by that line",
            ) from error
    # A missing include is announced too, and ours is made by the installer itself.
    complaints = [str(entry.message) for entry in seen if "nclude" not in str(entry.message)]
    if complaints:
        raise KickstartInvalidError(f"{name}: {'; '.join(' '.join(text.split()) for text in complaints)}")
    return [_section(entry) for entry in parser.handler.scripts]


def _section(entry: Script) -> Section:
    return Section(
        kind=_kind(entry.type),
        text=entry.script,
        interpreter=entry.interp,
        line=int(entry.lineno),
        in_chroot=bool(entry.inChroot),
        stops_on_failure=bool(entry.errorOnFail),
    )


def _kind(number: int) -> str:
    return {0: "%pre", 1: "%post", 2: "%traceback", 3: "%pre-install", 4: "%onerror"}.get(number, "%script")


def _explain(text: str, error: KickstartError) -> str:
    number = int(getattr(error, "lineno", 0) or 0)
    message = " ".join(str(getattr(error, "message", error)).split())
    # The parser leads with a sentence of its own that repeats the number.
    message = re.sub(r"^.*?reading line \d+ of .*? ?:? ?file:? ?", "", message)
    lines: Sequence[str] = text.splitlines()
    if 0 < number <= len(lines):
        return f"line {number} `{lines[number - 1].strip()}`: {message}"
    return message
