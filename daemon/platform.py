"""What differs between platforms on the box: names and paths, read from one file that the image ships."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from daemon.errors import StorageError

PLATFORM_FILE = Path("/etc/centralino/platform.toml")


@dataclass(frozen=True)
class Platform:
    """The `[box]` table of `appliance/platforms/NAME.toml`, as the image carries it.

    `units` maps our service names to systemd unit names, `paths` names of places to absolute paths, `users`
    our service names to the accounts that they run as.
    """

    name: str
    version: str
    units: dict[str, str]
    paths: dict[str, Path]
    users: dict[str, str] = field(default_factory=dict)


@cache
def platform(file: Path = PLATFORM_FILE) -> Platform:
    """Read the platform file; raises StorageError naming the file and the key that is missing."""
    import tomllib  # needed once

    try:
        table = tomllib.loads(file.read_text())
        return Platform(
            name=table["name"],
            version=table["version"],
            units=dict(table["units"]),
            paths={name: Path(path) for name, path in table["paths"].items()},
            users=dict(table.get("users", {})),
        )
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror}", "reinstall the payload") from error
    except tomllib.TOMLDecodeError as error:
        raise StorageError(f"{file} is damaged: {error}", "reinstall the payload") from error
    except KeyError as error:
        raise StorageError(f"{file} has no {error}", "reinstall the payload") from error
