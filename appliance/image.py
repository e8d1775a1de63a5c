"""From a profile to its images: the root tree once, then every format from it.

`build_root` is what the lab, the disk formats and the installers' tests call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from appliance.formats_contract import (
    OutputFormat,
    Variant,
)
from appliance.platform_data import PlatformData
from appliance.profile import Profile
from appliance.stages import BuildContext


@dataclass
class Images:
    """What a build made: `paths` by format, `stages` as (name, made anew, seconds)."""

    paths: dict[OutputFormat, Path] = field(default_factory=dict)
    stages: list[tuple[str, bool, float]] = field(default_factory=list)
    log: Path | None = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, object]:
        """Keys `artefacts` (format to path), `stages`, `log`, `seconds`."""
        return {
            "artefacts": {str(form): str(path) for form, path in self.paths.items()},
            "stages": [
                {"name": name, "made": made, "seconds": seconds} for name, made, seconds in self.stages
            ],
            "log": str(self.log),
            "seconds": round(self.seconds, 1),
        }


def build_root(
    profile: Profile, platform: PlatformData, context: BuildContext, variant: Variant = Variant.CONTAINER
) -> Path:
    """The finished root tree of a profile: packages, roles, payload, in the cache: READ ONLY.

    Raises BuildError; on failure nothing half-made stays. Needs root.
    """
    raise NotImplementedError
