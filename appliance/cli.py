"""`centralino-build`: turn a profile into images, and look after them.

Exit codes are those of `appliance.errors`; 2 is wrong usage, 130 an interruption.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import click

from appliance.cache import Cache
from appliance.cli_common import (
    chosen_profile,
    errors_to_exit_codes,
    json_option,
    mirror_option,
    output_option,
    profile_options,
    run_command,
    show,
    wheel_dir_option,
)
from appliance.formats_contract import OutputFormat
from appliance.profile import load_profile, profile_schema
from appliance.tree import version

# Command groups of other modules, loaded when they are used: name -> module:attribute.
LAZY_COMMANDS = {
    "lab": "appliance.lab_cli:lab",
    "iso": "iso.cli:iso",
    "pxe": "iso.cli:pxe",
    "boot-test": "iso.cli:boot_test",
    "verify": "appliance.artifact_cli:verify",
    "diff": "appliance.artifact_cli:diff",
    "ami": "appliance.artifact_cli:ami",
    "package": "appliance.artifact_cli:package",
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is used or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Own commands and those lazy ones whose module is there."""
        return sorted(
            {*super().list_commands(ctx), *(name for name in LAZY_COMMANDS if self.get_command(ctx, name))}
        )

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported if need be; None if its module or attribute does not exist."""
        if (own := super().get_command(ctx, cmd_name)) is not None or cmd_name not in LAZY_COMMANDS:
            return own
        module_name, _, attribute = LAZY_COMMANDS[cmd_name].partition(":")
        if importlib.util.find_spec(module_name) is None:
            return None
        command = getattr(importlib.import_module(module_name), attribute, None)
        return command if isinstance(command, click.Command) else None


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"centralino-build {version()}")
        context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Turn a profile into appliance images: root trees, disks, installers."""


@cli.group()
def profile() -> None:
    """Check build profiles and describe what they may hold."""


@profile.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def profile_check(file: Path, as_json: bool) -> None:
    """Read a profile; names every error at once."""
    checked = load_profile(file)
    from appliance.platform_data import load_platform
    from appliance.profile import check_against_platform

    check_against_platform(checked, load_platform(checked.platform.name), str(file))
    show(
        {"ok": True, "profile": checked.model_dump(mode="json", by_alias=True)},
        as_json=as_json,
        text=f"{file}: no errors; {checked.product.title} {checked.product.version}, {checked.platform.name}",
    )


@profile.command("schema")
def profile_schema_command() -> None:
    """Write the profile's JSON Schema."""
    click.echo(json.dumps(profile_schema(), indent=2, sort_keys=True))


@cli.command()
@profile_options
@click.option("--format", "formats", multiple=True, type=click.Choice([str(form) for form in OutputFormat]))
@output_option
@mirror_option
@wheel_dir_option
@click.option("--cold", is_flag=True, help="Use nothing from the cache; downloads excepted.")
@json_option
def image(
    profile_file: Path | None,
    platform_name: str | None,
    formats: tuple[str, ...],
    output: Path | None,
    mirrors: tuple[str, ...],
    wheel_directories: tuple[Path, ...],
    cold: bool,
    as_json: bool,
) -> None:
    """Build a profile's images. Needs root. Prints the path of each result."""
    from appliance.image import build_images

    chosen, platform = chosen_profile(profile_file, platform_name)
    wanted = tuple(OutputFormat(form) for form in formats) or chosen.output.formats
    result = build_images(
        chosen,
        platform,
        wanted,
        output=output,
        mirrors=mirrors,
        wheel_directories=wheel_directories,
        cold=cold,
        silent=as_json,
    )
    show(result.as_json(), as_json=as_json, text="\n".join(str(path) for path in result.paths.values()))


@cli.command()
@profile_options
@output_option
@wheel_dir_option
@json_option
def payload(
    profile_file: Path | None,
    platform_name: str | None,
    output: Path | None,
    wheel_directories: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Build the offline payload: wheels, roles, version. Needs no root."""
    from appliance.payload import build_payload_command

    chosen, platform = chosen_profile(profile_file, platform_name)
    result = build_payload_command(chosen, platform, output, wheel_directories, silent=as_json)
    show(result, as_json=as_json, text=str(result["path"]))


@cli.command()
@click.option("--check", is_flag=True, help="Change nothing; fail if a lock is older than pyproject.toml.")
@json_option
def lock(check: bool, as_json: bool) -> None:
    """Renew the lock files of Python packages (appliance/locks/)."""
    from appliance.lock_files import renew_locks

    result = renew_locks(check=check)
    show(result, as_json=as_json, text="\n".join(f"{name}: {state}" for name, state in result.items()))


@cli.command()
@profile_options
@click.option("--format", "formats", multiple=True, type=click.Choice([str(form) for form in OutputFormat]))
@json_option
def plan(
    profile_file: Path | None, platform_name: str | None, formats: tuple[str, ...], as_json: bool
) -> None:
    """Say what would be made, from what and how large. Needs no root and no network."""
    from appliance.plan import make_plan, plan_text

    chosen, platform = chosen_profile(profile_file, platform_name)
    wanted = tuple(OutputFormat(form) for form in formats) or chosen.output.formats
    made = make_plan(chosen, platform, wanted)
    show(made, as_json=as_json, text=plan_text(made))


@cli.command()
@click.option("--keep", default=0, show_default=True, help="Keep the newest results of each stage.")
@click.option("--downloads", is_flag=True, help="Remove downloaded packages as well.")
@json_option
def clean(keep: int, downloads: bool, as_json: bool) -> None:
    """Remove cached results and abandoned halves of builds that died."""
    removed = Cache().clean(keep_newest=keep, downloads=downloads)
    show(
        {"removed": [str(path) for path in removed]},
        as_json=as_json,
        text="\n".join(f"removed {path}" for path in removed) or "nothing to remove",
    )


@errors_to_exit_codes
def main() -> None:
    """Entry point of the console script."""
    run_command(cli, "centralino-build")


if __name__ == "__main__":
    main()
