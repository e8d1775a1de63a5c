"""`centralino-build iso`, `pxe` and `boot-test`; loaded by appliance.cli when one of them is used."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import click

from appliance.cli_common import (
    chosen_profile,
    json_option,
    mirror_option,
    output_option,
    profile_options,
    show,
    wheel_dir_option,
)
from appliance.formats_contract import OutputFormat, artefact_name
from appliance.platform_data import PlatformData
from appliance.profile import Profile
from appliance.progress import Progress
from appliance.stages import BuildContext, build_context
from iso.qemu import Attachment, Firmware

if TYPE_CHECKING:
    from iso.build import Options

P = ParamSpec("P")

DEFAULT_PLATFORM = "almalinux8"
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Order:
    """What `iso` and `pxe` are told alike, read and checked; `options` has no signing key yet."""

    profile: Profile
    platform: PlatformData
    options: Options
    directory: Path
    wheel_directories: tuple[Path, ...]
    as_json: bool

    def target(self, form: OutputFormat) -> Path:
        """Where the result of this form goes."""
        return self.directory / artefact_name(self.profile, form)

    def building(self, purpose: str) -> AbstractContextManager[BuildContext]:
        """The build's log, progress and cleanup."""
        return build_context(
            purpose,
            epoch=self.profile.source_date_epoch,
            mirrors=tuple(self.options.mirrors),
            wheel_directories=self.wheel_directories,
            progress=Progress(silent=self.as_json),
        )


def installer_command(command: Callable[Concatenate[Order, P], None]) -> Callable[..., None]:
    """Add the options that `iso` and `pxe` share; the command gets them as one Order, then its own."""

    @profile_options
    @click.option(
        "--base-iso",
        required=True,
        type=click.Path(dir_okay=False, path_type=Path),
        help="AlmaLinux 8 boot, minimal or DVD ISO.",
    )
    @click.option(
        "--checksum",
        "checksum_file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The vendor's CHECKSUM file for the base ISO.",
    )
    @click.option(
        "--lock",
        "lock_file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Package lock; made if it does not exist. Default: beside the result.",
    )
    @click.option("--update-lock", is_flag=True, help="Resolve anew and rewrite the lock.")
    @click.option(
        "--gpg-key",
        "gpg_keys",
        multiple=True,
        type=EXISTING,
        help="Public key that signs packages, beside the platform's own.",
    )
    @click.option(
        "--no-gpgcheck", is_flag=True, help="Do not check package signatures; the manifest says so."
    )
    @click.option(
        "--payload",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Ready payload directory; without it the payload is built.",
    )
    @output_option
    @mirror_option
    @wheel_dir_option
    @json_option
    @wraps(command)
    def told(
        profile_file: Path | None,
        platform_name: str | None,
        base_iso: Path,
        checksum_file: Path | None,
        lock_file: Path | None,
        update_lock: bool,
        gpg_keys: tuple[Path, ...],
        no_gpgcheck: bool,
        payload: Path | None,
        output: Path | None,
        mirrors: tuple[str, ...],
        wheel_directories: tuple[Path, ...],
        as_json: bool,
        *own: P.args,
        **named: P.kwargs,
    ) -> None:
        from iso.build import Options

        if profile_file is None and platform_name is None:
            platform_name = DEFAULT_PLATFORM
        profile, platform = chosen_profile(profile_file, platform_name)
        directory = output or Path("out")
        options = Options(
            base_iso=base_iso,
            checksum_file=checksum_file,
            lock=lock_file or directory / f"{profile.product.name}-{platform.name}.packages.toml",
            update_lock=update_lock,
            mirrors=mirrors,
            gpg_keys=gpg_keys,
            check_signatures=not no_gpgcheck,
            payload=payload,
        )
        order = Order(profile, platform, options, directory, wheel_directories, as_json)
        command(order, *own, **named)

    return told


@click.command()
@installer_command
@click.option("--sign-key", type=EXISTING, help="GPG secret key file that signs the medium's hash list.")
def iso(order: Order, sign_key: Path | None) -> None:
    """Build the unattended installer ISO from the vendor's. Needs no root. Prints its path."""
    from iso.build import build_iso

    options = replace(order.options, signing_key=sign_key)
    with order.building("iso") as context:
        made = build_iso(order.profile, order.platform, options, order.target(OutputFormat.ISO), context)
    show(made.as_json(), as_json=order.as_json, text="\n".join([*made.changes, str(made.image.path)]))


@click.command()
@installer_command
@click.option("--url", required=True, help="Where the directory will be served: http://SERVER/DIRECTORY")
def pxe(order: Order, url: str) -> None:
    """Build a directory for a boot server: kernel, kickstart, repositories, sample configuration."""
    from iso.pxe import build_pxe

    with order.building("pxe") as context:
        target = order.target(OutputFormat.PXE)
        made = build_pxe(order.profile, order.platform, order.options, url, target, context)
    show(made.as_json(), as_json=order.as_json, text=str(made.path))


@click.command("boot-test")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--firmware", multiple=True, type=click.Choice([str(kind) for kind in Firmware]))
@click.option("--attach", multiple=True, type=click.Choice([str(kind) for kind in Attachment]))
@click.option("--milestones", help="installer, live, disk, or a TOML file. Default: by the kind of image.")
@click.option("--memory", default=2048, show_default=True, help="MiB.")
@click.option("--cpus", default=2, show_default=True)
@click.option(
    "--target-gb", default=0, help="Give the machine an empty disk of this size (for an installer)."
)
@click.option(
    "--log-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/boot-test"),
    show_default=True,
)
@json_option
def boot_test(
    image: Path,
    firmware: tuple[str, ...],
    attach: tuple[str, ...],
    milestones: str | None,
    memory: int,
    cpus: int,
    target_gb: int,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Boot an ISO, disk image or network boot tree in QEMU and watch its console. The exit code tells.

    Without --firmware and --attach every way is tried in which the image must boot; a network boot tree
    starts by iPXE from BIOS only, and must be made for an address like http://10.0.2.100/pbx.
    """
    from appliance.interruptions import interruptible
    from iso import boot_test as tester
    from iso.qemu import Machine

    kind = tester.image_format(image)
    window = tester.disk_inside(image) if image.is_file() else None
    expectation = tester.load_expectation(milestones or tester.usual_milestones(image))
    ways = [Attachment(word) for word in attach] or tester.default_attachments(image)
    firmwares = [Firmware(word) for word in firmware] or (
        [Firmware.BIOS] if image.is_dir() else list(Firmware)
    )
    results: dict[str, object] = {}
    with interruptible():
        for way in ways:
            for one in firmwares:
                machine = Machine(
                    image=image,
                    firmware=one,
                    attachment=way,
                    image_format=kind,
                    window=window,
                    memory_mib=memory,
                    cpus=cpus,
                    disk_bytes=target_gb * 10**9,
                )
                name = f"{one}-{way}"
                result = tester.boot_test(
                    machine,
                    expectation,
                    log_dir / f"{image.name}-{name}.log",
                    on_milestone=_teller(name, silent=as_json),
                )
                results[name] = result.as_json()
    show(results, as_json=as_json, text="\n".join(f"{name}: passed" for name in results))


def _teller(name: str, *, silent: bool) -> Callable[[str, float], None]:
    def tell(title: str, seconds: float) -> None:
        if not silent:
            click.echo(f"{name}: {title} after {seconds:.1f} s", err=True)

    return tell
