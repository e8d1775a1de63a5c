"""`centralino-build lab`: try one appliance, or a pair, on nodes that boot here in seconds."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.table import Table

from appliance.cli_common import chosen_profile, profile_options
from appliance.lab import Lab, registered, remove_leftovers
from appliance.lab_host import LabError

HOME = Path("/var/tmp/centralino-lab")  # noqa: S108 - disks of nodes, made 0700 below
Function = TypeVar("Function", bound=Callable[..., object])


def name_option(function: Function) -> Function:
    """`--name LAB`, needed only when several labs are up."""
    return click.option("--name", metavar="LAB", help="Which lab, if several are up.")(function)


@click.group()
def lab() -> None:
    """Boot nodes from a built root tree, look into them, break them, and take them down."""


@lab.command()
@click.option(
    "--root", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A built root tree."
)
@profile_options
@click.option("--nodes", default=1, show_default=True, type=click.IntRange(1, 80))
@click.option("--name", default="lab", show_default=True, help="Name of the lab: letters and digits.")
@click.option("--dhcp", is_flag=True, help="Addresses by DHCP from the gateway instead of static ones.")
@click.option("--disk", default=4096, show_default=True, help="Size of each node's disk in MiB (sparse).")
def up(
    root: Path | None,
    profile_file: Path | None,
    platform_name: str | None,
    nodes: int,
    name: str,
    dhcp: bool,
    disk: int,
) -> None:
    """Boot nodes and leave them running; without --root the root tree is built, or taken from the cache."""
    tree = root or built_root(profile_file, platform_name)
    home = HOME / name
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Lab(tree, home, name, dhcp=dhcp)
    made.create(detached=True)
    try:
        for _ in range(nodes):
            made.add_node(size=disk << 20)
        made.power_on_all()
    except BaseException:
        click.echo(f"logs of the failed nodes: {made.save_logs(Path('out/lab-logs'))}", err=True)
        made.remove()
        raise
    _show(made)
    click.echo(f"`centralino-build lab exec --name {name} node1` opens a shell on the first node.")


@lab.command(context_settings={"ignore_unknown_options": True})
@name_option
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def exec(name: str | None, host: str, command: tuple[str, ...]) -> None:  # noqa: A001 - the user's word
    """Run COMMAND on a node (or with the network of a client); without one, a shell."""
    chosen = Lab.find(name)
    if host in chosen.clients or host == "gateway":
        door = [f"--net=/run/netns/{chosen.network.namespace(host)}"]
    else:
        node = chosen.node(host)
        if node.group.frozen:
            raise LabError(
                f"{host} is frozen and runs nothing", f"`centralino-build lab fault thaw {host}` first"
            )
        door = [f"--target={node.init}", "--all"]
    sys.stdout.flush()
    os.execvp("nsenter", ["nsenter", *door, "--", *(command or ("bash", "--login"))])  # noqa: S606


@lab.command()
@name_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(name: str | None, as_json: bool) -> None:
    """Show the labs of this host and the state of every node."""
    labs = [Lab.open(directory) for each, directory in registered().items() if name in (None, each)]
    if as_json:
        click.echo(json.dumps({each.name: _facts(each) for each in labs}, indent=2))
    elif not labs:
        click.echo("No lab is up; `centralino-build lab up` starts one.")
    for each in [] if as_json else labs:
        _show(each)


@lab.command()
@name_option
@click.option("--all", "everything", is_flag=True, help="All labs, and whatever crashed ones left behind.")
@click.option("--keep-disks", is_flag=True, help="Keep the nodes' disks for inspection.")
def down(name: str | None, everything: bool, keep_disks: bool) -> None:
    """End the nodes at once and remove everything that the lab made."""
    if everything:
        removed = remove_leftovers(everything=True)
        click.echo(f"removed: {', '.join(removed) or 'nothing was left'}")
        return
    chosen = Lab.find(name)
    chosen.remove(keep_disks=keep_disks)
    click.echo(f"removed: {chosen.name}")


@lab.group()
def fault() -> None:
    """Break something, or mend it."""


def _node_fault(verb: str, text: str, action: str, *, segment: bool = False) -> None:
    """Add `lab fault VERB NODE` that calls the node's method `action`."""

    def command(name: str | None, host: str, segment_name: str = "lan") -> None:
        method = getattr(Lab.find(name).node(host), action)
        if segment:
            method(segment_name)
        else:
            method()
        click.echo(f"{host}: {text[0].lower()}{text[1:].rstrip('.')}: done")

    command.__doc__ = text
    wrapped: Callable[..., object] = click.argument("host")(name_option(command))
    if segment:
        wires = click.Choice(["lan", "mgmt"])
        wrapped = click.option("--segment", "segment_name", default="lan", type=wires)(wrapped)
    fault.command(verb)(wrapped)


_node_fault("power-off", "Cut the power, without goodbye.", "power_off")
_node_fault("power-on", "Boot it again, with the disk that it had.", "power_on")
_node_fault("reboot", "Let it reboot in good order.", "reboot")
_node_fault("freeze", "Stop everything in it, its kernel included.", "freeze")
_node_fault("thaw", "Undo freeze.", "thaw")
_node_fault("link-down", "Pull a cable.", "link_down", segment=True)
_node_fault("link-up", "Plug the cable in again.", "link_up", segment=True)
_node_fault("fill-disk", "Use up all space of its disk.", "fill_disk")
_node_fault("free-disk", "Give the space back.", "free_disk")


@fault.command()
@name_option
@click.option("--one-way", is_flag=True, help="Only frames from THESE to THOSE are lost.")
@click.option(
    "--segment", "segments", multiple=True, type=click.Choice(["lan", "mgmt"]), help="Default: both."
)
@click.argument("these")
@click.argument("those")
def partition(name: str | None, one_way: bool, segments: tuple[str, ...], these: str, those: str) -> None:
    """Lose every frame between THESE and THOSE: host names joined by commas, `gateway` is one."""
    wires = segments or ("lan", "mgmt")
    Lab.find(name).partition(these.split(","), those.split(","), segments=wires, one_way=one_way)
    click.echo(
        f"{these} {'-/->' if one_way else '</>'} {those} on {', '.join(wires)}; `lab fault heal` undoes it"
    )


@fault.command()
@name_option
def heal(name: str | None) -> None:
    """Undo every partition and every lossy cable."""
    Lab.find(name).heal()
    click.echo("healed")


@fault.command("kill")
@name_option
@click.argument("host")
@click.argument("unit")
def kill_unit(name: str | None, host: str, unit: str) -> None:
    """SIGKILL every process of a systemd UNIT on a node."""
    Lab.find(name).node(host).signal_unit(unit)
    click.echo(f"{host}: killed every process of {unit}")


def built_root(
    profile_file: Path | None,
    platform_name: str | None,
    *,
    mirrors: tuple[str, ...] = (),
    wheel_directories: tuple[Path, ...] = (),
) -> Path:
    """The root tree of a profile or platform, from the cache or built now; read only. Raises BuildError."""
    from appliance.formats_contract import OutputFormat
    from appliance.image import build_images

    chosen, platform = chosen_profile(profile_file, platform_name)
    wanted = (OutputFormat.ROOT,)
    made = build_images(chosen, platform, wanted, mirrors=mirrors, wheel_directories=wheel_directories)
    return made.paths[OutputFormat.ROOT]


def _facts(made: Lab) -> dict[str, object]:
    return {
        "directory": str(made.directory),
        "root": str(made.root),
        "nodes": {
            node.name: {
                "state": node.state(),
                "lan": node.address("lan"),
                "mgmt": node.address("mgmt"),
                "boots": node.boots(),
            }
            for node in made.nodes.values()
        },
        "clients": {client.name: client.address() for client in made.clients.values()},
    }


def _show(made: Lab) -> None:
    table = Table(title=f"lab {made.name}: {made.directory}", title_justify="left")
    for column in ("node", "state", "lan", "mgmt", "boots"):
        table.add_column(column)
    for node in made.nodes.values():
        table.add_row(node.name, node.state(), node.address("lan"), node.address("mgmt"), str(node.boots()))
    Console().print(table)
