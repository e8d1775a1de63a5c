"""Commands for what was built: `verify`, `diff`, `ami`, `package`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from appliance.cli_common import (
    chosen_profile,
    json_option,
    mirror_option,
    output_option,
    profile_options,
    show,
)
from appliance.errors import HostError, InputError, VerificationError

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("artefact", type=click.Path(exists=True, path_type=Path))
@click.option("--key", type=FILE, help="Public key (minisign or GPG) that must have signed the manifest.")
@click.option("--keyring", type=FILE, help="Trusted GPG keyring for the hash lists inside an installer.")
@json_option
def verify(artefact: Path, key: Path | None, keyring: Path | None, as_json: bool) -> None:
    """Check an artefact against its manifest, and all its parts against each other."""
    from appliance.interruptions import interruptible
    from appliance.verify import verify as check

    with interruptible():
        report = check(artefact, key=key, keyring=keyring)
    if report.good:
        signed = f", signed by {report.signer}" if report.signer else ""
        show(
            report.as_json(), as_json=as_json, text=f"{artefact}: good{signed} ({'; '.join(report.checked)})"
        )
        return
    if as_json:
        show(report.as_json(), as_json=True, text="")
        raise click.exceptions.Exit(VerificationError.exit_code)
    lines = "\n".join(f"  {each.sentence()}" for each in report.findings)
    raise VerificationError(f"{artefact} is not good:\n{lines}", "do not use it; fetch or build it again")


@click.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@json_option
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Say what changed from OLD to NEW (artefacts or manifests): packages, files, size."""
    from appliance.difference import difference, text

    found = difference(old, new)
    show(found.as_json(), as_json=as_json, text=text(found))


@click.group()
def ami() -> None:
    """Amazon machine images."""


@ami.command()
@click.argument("description", type=FILE)
@click.option("--region", help="Default: the one in the profile, else the AWS configuration's.")
@click.option("--bucket", help="S3 bucket for the upload. Default: the one in the profile.")
@click.option("--dry-run", is_flag=True, help="Print the calls, make none.")
@json_option
def register(description: Path, region: str | None, bucket: str | None, dry_run: bool, as_json: bool) -> None:
    """Upload the disk beside DESCRIPTION (an .ami.json) and register it as an image.

    Credentials and region come from where the AWS tools look for them.
    """
    from appliance.ami import Registrar, load_registration, planned_calls
    from appliance.sparse import sha256_of

    document = load_registration(description)
    chosen_bucket = bucket or document["bucket"]
    if not chosen_bucket:
        raise InputError("no bucket is named", "give --bucket, or set output.ami.bucket in the profile")
    # None: what the AWS configuration of this host says.
    chosen_region = region or (str(document["region"]) if document["region"] else None)
    if dry_run:
        calls = planned_calls(document, str(chosen_bucket))
        show(
            [
                {"region": chosen_region, "service": service, "operation": name, "parameters": values}
                for service, name, values in calls
            ],
            as_json=as_json,
            text="\n".join(
                [
                    f"region: {chosen_region or 'the one of the AWS configuration'}",
                    *(f"{service}.{name} {json.dumps(values)}" for service, name, values in calls),
                ]
            ),
        )
        return
    disk = description.with_name(str(document["file"]))
    if not disk.is_file() or sha256_of(disk) != document["sha256"]:
        raise InputError(f"{disk} is missing or is not the disk that {description.name} describes")
    try:
        import boto3
    except ImportError as error:
        raise HostError("this host lacks boto3", "pip install 'centralino[build,aws]'") from error
    session = boto3.Session(region_name=chosen_region)
    registrar = Registrar(
        session.client("s3"),
        session.client("ec2"),
        str(chosen_bucket),
        say=lambda line: click.echo(line, err=True),
    )
    made = registrar.register(document, disk)
    show(made, as_json=as_json, text=f"{made['image']} (snapshot {made['snapshot']})")


@click.group()
def package() -> None:
    """Build the packages that a platform does not have."""


@package.command()
@profile_options
@click.option("--source", required=True, type=FILE, help="Tarball of Asterisk 20 or 22.")
@click.option("--sha256", help="Digest that the tarball must have.")
@click.option(
    "--root", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Root tree to build in."
)
@output_option
@mirror_option
def asterisk(
    profile_file: Path | None,
    platform_name: str | None,
    source: Path,
    sha256: str | None,
    root: Path | None,
    output: Path | None,
    mirrors: tuple[str, ...],
) -> None:
    """Build RPMs of Asterisk from a source tarball, in the platform's own root tree. Needs root."""
    from appliance.packages.build import build_asterisk

    profile, platform = chosen_profile(profile_file, platform_name)
    for path in build_asterisk(profile, platform, source, sha256, root, output or Path("out"), mirrors):
        click.echo(str(path))


@package.command()
@profile_options
@click.option(
    "--root", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Root tree to build in."
)
@output_option
@mirror_option
def pygobject(
    profile_file: Path | None,
    platform_name: str | None,
    root: Path | None,
    output: Path | None,
    mirrors: tuple[str, ...],
) -> None:
    """Build the PyGObject wheel for the platform's Python, in its own root tree. Needs root."""
    from appliance.packages.build import build_pygobject

    profile, platform = chosen_profile(profile_file, platform_name)
    click.echo(str(build_pygobject(profile, platform, root, output or Path("out"), mirrors)))
