"""From the power-off of a master to answers of its slave, heard from outside; beside bare keepalived.

Run alone with `python -m tests.bench.failover --root TREE`; the bare peer has the same adverts on the
same two nodes, in the same run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from appliance.lab import Lab, Node
from appliance.lab_host import wait_for
from tests.bench import rows
from tests.bench.rows import Row, median
from tests.support.pair_of_nodes import SHARED, EchoProber, PairOfNodes, boot_two, make_pair, start_echo

ADVERTS = {"standard": 0.3, "fast": 0.1}
TARGETS = {"standard": 1.3, "fast": 0.45}
ALLOWED_RATIO = 1.15
LIMIT_SECONDS = 20.0
BARE = """\
global_defs {{
    vrrp_version 3
    vrrp_rt_priority 50
}}
vrrp_instance bare {{
    state BACKUP
    nopreempt
    interface eth0
    virtual_router_id 77
    priority {priority}
    advert_int {adverts}
    unicast_src_ip {own}
    unicast_peer {{
        {peer}
    }}
    virtual_ipaddress {{
        {shared}/32 dev eth0 noprefixroute
    }}
}}
"""


def measure_pair(pair: PairOfNodes, runs: int) -> list[float]:
    """Power off whoever is master, `runs` times, and let it come back each time."""
    found = []
    for _ in range(runs):
        master = pair.wait_healthy()
        pair.start_echo()
        found.append(_seconds(pair, master))
        master.power_on(120)
    pair.wait_healthy()
    return found


def measure_bare(pair: PairOfNodes, adverts: float, runs: int) -> list[float]:
    """The same with keepalived alone; the pair is at rest meanwhile."""
    found = []
    for _ in range(runs):
        for node in pair.nodes:
            _start_bare(pair, node, adverts)
            start_echo(node)
        wait_for(lambda: len(pair.holders()) == 1, 20, "one holder of the address")
        holder = pair.holders()[0]
        found.append(_seconds(pair, holder))
        holder.power_on(120)
    for node in pair.nodes:
        node.run(["systemctl", "stop", "bare-keepalived"], check=False)
        node.run(["systemctl", "start", "centralino-peer", "centralino-vrrp", "centralinod"], check=False)
    return found


def _seconds(pair: PairOfNodes, holder: Node) -> float:
    with EchoProber(pair.probe) as prober:
        wait_for(lambda: len(prober.answers) > 50, 20, "answers at the shared address")
        return prober.first_after(holder.power_off(), LIMIT_SECONDS)


def _start_bare(pair: PairOfNodes, node: Node, adverts: float) -> None:
    node.run(["systemctl", "stop", "centralinod", "centralino-peer", "centralino-vrrp"], check=False)
    node.run(["nft", "flush", "ruleset"])
    text = BARE.format(
        priority=100 if node is pair.first else 99,
        adverts=adverts,
        own=node.address(),
        peer=pair.other(node).address(),
        shared=SHARED,
    )
    node.run(["tee", "/run/bare.conf"], input_text=text)
    node.run(["systemctl", "stop", "bare-keepalived"], check=False)
    command = [
        "keepalived",
        "--dont-fork",
        "--vrrp",
        "--log-console",
        "--no-syslog",
        "--use-file=/run/bare.conf",
    ]
    node.run(
        [
            "systemd-run",
            "--unit=bare-keepalived",
            *command,
            "--pid=/run/bare.pid",
            "--vrrp_pid=/run/bare-vrrp.pid",
        ]
    )


def measure(root: Path, runs: int = 5, profiles: tuple[str, ...] = ("standard", "fast")) -> list[Row]:
    """Both profiles, each beside bare keepalived."""
    made = []
    for profile in profiles:
        with (
            tempfile.TemporaryDirectory(prefix="centralino-bench-", dir="/var/tmp") as folder,
            Lab(root, Path(folder) / "lab") as lab,
        ):
            pair = boot_two(lab)
            make_pair(pair, profile=profile)
            ours = measure_pair(pair, runs)
            bare = measure_bare(pair, ADVERTS[profile], runs)
        note = f"ours {_all(ours)}; bare {_all(bare)}"
        made.append(
            Row(
                f"power-off of the master to UDP echo at the shared address, {profile}",
                median(ours),
                median(bare),
                "keepalived alone, same adverts",
                "s",
                runs,
                TARGETS[profile],
                f"and at most {ALLOWED_RATIO} of the peer",
                note,
            )
        )
    return made


def _all(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


@click.command()
@click.option("--root", type=click.Path(path_type=Path, exists=True), required=True, help="The tree to boot.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--profile", "profiles", multiple=True, type=click.Choice(tuple(ADVERTS)))
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/bench.json"), show_default=True)
def main(root: Path, runs: int, profiles: tuple[str, ...], output: Path) -> None:
    """Measure failover, side by side with bare keepalived."""
    found = measure(root, runs, profiles or tuple(ADVERTS))
    rows.write(found, output)
    click.echo(rows.markdown([row.as_json() for row in found]))
    for row in found:
        click.echo(row.note)


if __name__ == "__main__":
    main()
