"""What the commands of `centralino-build` share: options, output, and the edge where errors become words."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from appliance.errors import BuildError, CommandFailedError, HostError
from appliance.platform_data import PlatformData, load_platform
from appliance.profile import Profile, load_profile

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_PROFILES = {"debian12": "pbx-debian12", "almalinux8": "pbx-almalinux8"}
INTERRUPTED = 130

json_option = click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
output_option = click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Directory for the results.",
)
mirror_option = click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="[NAME=]URL",
    help="Package mirror; NAME as in the platform file, main if left out. Default: what this host uses.",
)
wheel_dir_option = click.option(
    "--wheel-dir",
    "wheel_directories",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of ready wheels, looked into before the index; their digests are still checked.",
)


def profile_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add `--profile` and `--platform` (parameters `profile_file`, `platform_name`)."""
    command = click.option(
        "--profile",
        "profile_file",
        type=click.Path(path_type=Path),
        help="Profile file, or a shipped profile's name.",
    )(command)
    return click.option("--platform", "platform_name", help="Build for this platform.")(command)


def chosen_profile(profile_file: Path | None, platform_name: str | None) -> tuple[Profile, PlatformData]:
    """The profile and platform that the options name; raises ProfileError.

    Without `--profile` the platform's shipped PBX profile is used; without both, debian12's.
    """
    if profile_file is None:
        profile_file = Path(DEFAULT_PROFILES.get(platform_name or "debian12", "pbx-debian12"))
    profile = load_profile(profile_file)
    if platform_name is not None:
        profile = profile.with_platform(platform_name)
    return profile, load_platform(profile.platform.name)


def show(value: object, *, as_json: bool, text: str) -> None:
    """Write a result to standard output: JSON, or the text for people."""
    click.echo(json.dumps(value, indent=2, sort_keys=True, default=str) if as_json else text)


def report(error: BuildError, *, as_json: bool) -> int:
    """Tell a person (or with `as_json` a program) about an error; returns the exit code."""
    if as_json:
        click.echo(json.dumps(error.as_json(), indent=2, sort_keys=True))
        return error.exit_code
    click.echo(f"centralino-build: {error.message}", err=True)
    if isinstance(error, CommandFailedError):
        for line in error.last_lines:
            click.echo(f"    | {line}", err=True)
        if error.log is not None:
            click.echo(f"  log: {error.log}", err=True)
    if error.remedy:
        click.echo(f"  to do: {error.remedy}", err=True)
    return error.exit_code


def host_error(error: OSError) -> HostError:
    """What the operating system refused, in words: to what, and what to do next."""
    remedy = "free some space, or point CENTRALINO_CACHE or --output to a larger disk"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        remedy = "check that it exists and that you may read and write it"
    return HostError(f"{error.filename or 'a file'}: {error.strerror or error}", remedy)


def run_command(command: click.Command, name: str | None = None) -> None:
    """Run a command for `errors_to_exit_codes`: in click's own mode Ctrl-C would end with status 1 there.

    `name` is what help and usage call it, however it was started.
    """
    status = command(standalone_mode=False, prog_name=name)
    if isinstance(status, int) and status:
        raise SystemExit(status)


def errors_to_exit_codes(main: Callable[P, None]) -> Callable[P, None]:
    """Turn BuildError, the system's refusals and Ctrl-C into a message and an exit code."""

    @wraps(main)
    def guarded(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            main(*arguments, **options)
        except BuildError as error:
            sys.exit(report(error, as_json="--json" in sys.argv[1:]))
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except OSError as error:
            sys.exit(report(host_error(error), as_json="--json" in sys.argv[1:]))
        except (KeyboardInterrupt, click.Abort):
            click.echo("centralino-build: interrupted; nothing half-made was left behind", err=True)
            sys.exit(INTERRUPTED)

    return guarded
